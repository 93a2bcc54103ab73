"""Taking secrets out of what is sent, and putting them back into what comes.

Each secret becomes a placeholder of its kind (`<redacted-aws-key-1>`), the same one wherever it stands in a
request, so that code stays coherent. What comes back has its placeholders turned into the secrets again, on
this machine: else an edit of a file would write the placeholder over the secret.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from nexo_lsp.safety import secret_kinds as kinds

INSTALL_HINT = (
    "detect-secrets is not installed, which looks for secrets in what is sent; run: "
    'pip install "nexo-lsp[remote]".'
)

_ANYWHERE = 10
"""Characters: a shorter secret is taken out only where it was recognised, since it may be a word too."""

_KEY_LENGTH = 8192
"""Characters before the end of a private key that are looked at for its text."""

_NEAR = 1000
"""Characters on each side of a gap in which a secret across it is looked for."""

_KEPT = 64
"""Texts whose secrets are remembered: examples and rules are the same in every prompt."""


def is_installed() -> bool:
    """Whether `detect-secrets` is there; looked up without importing it."""
    return importlib.util.find_spec("detect_secrets") is not None


class Span(NamedTuple):
    """A secret's place in a text."""

    start: int
    end: int
    kind: str
    group: int = 0
    """Where a secret has several parts (the lines of a key): the place of its beginning, plus one."""


@dataclass(frozen=True, slots=True)
class Redacted:
    """Texts without their secrets."""

    texts: tuple[str, ...]
    secrets: Mapping[str, str] = field(repr=False)
    """From placeholders to what they stand for. Not for any log."""
    counts: Mapping[str, int]
    """How many different secrets of each kind."""


def redact(texts: Sequence[str], gaps: Sequence[int] = ()) -> Redacted:
    """Take the secrets out of `texts`, which are seen together. Takes some milliseconds for a long prompt.

    `gaps` are the texts that the next one continues: a secret may begin in one and end in the other.
    """
    found = [list(find(text)) for text in texts]
    for first in gaps:
        before, after = _across(texts[first], texts[first + 1])
        found[first] += before
        found[first + 1] += after
    if not any(found):
        return Redacted(tuple(texts), {}, {})
    anywhere = _values(texts, found)
    namer = _Namer(texts)
    results: list[str] = []
    for text, spans in zip(texts, found, strict=True):
        results.append(_replaced(text, _merged([*spans, *_elsewhere(text, anywhere)]), namer))
    return Redacted(tuple(results), namer.secrets, dict(sorted(namer.counts.items())))


def _across(before: str, after: str) -> tuple[list[Span], list[Span]]:
    """The parts of the secrets that lie across the end of `before` and the beginning of `after`."""
    start = max(0, len(before) - _NEAR)
    middle = len(before) - start
    spans = [span for span in find(before[start:] + after[:_NEAR]) if span.start < middle < span.end]
    return (
        [Span(span.start + start, len(before), span.kind) for span in spans],
        [Span(0, span.end - middle, span.kind) for span in spans],
    )


def describe(counts: Mapping[str, int]) -> str:
    """`2 passwords, 1 AWS key`."""
    parts = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {kinds.WORDS[kind][count != 1]}" for kind, count in parts)


class Restoring:
    """Puts secrets back into an answer that comes in pieces."""

    def __init__(self, secrets: Mapping[str, str], *, in_json: bool = False) -> None:
        """With `in_json` the secrets are written as they stand inside a JSON string."""
        self._secrets = {
            name: json.dumps(value, ensure_ascii=False)[1:-1] if in_json else value
            for name, value in secrets.items()
        }
        # Longer names first: `…-1` begins `…-12`, though the `>` at the end tells them apart.
        names = sorted(secrets, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None
        self._starts = {name[:length] for name in names for length in range(1, len(name))}
        self._longest = max(map(len, names), default=0)
        self._held = ""

    def feed(self, text: str) -> str:
        """Add a piece; returns what is sure."""
        if self._pattern is None:
            return text
        return self._restored(self._pattern, self._held + text)

    def finish(self) -> str:
        """What was held back because it might have become a placeholder."""
        held, self._held = self._held, ""
        return held

    def _restored(self, pattern: re.Pattern[str], pending: str) -> str:
        done: list[str] = []
        at = 0
        for match in pattern.finditer(pending):
            done.append(pending[at : match.start()])
            done.append(self._secrets[match.group()])
            at = match.end()
        rest = pending[at:]
        keep = self._half(rest)
        self._held = rest[len(rest) - keep :]
        return "".join(done) + rest[: len(rest) - keep]

    def _half(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a placeholder."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if text[-length:] in self._starts:
                return length
        return 0


def restored(text: str, secrets: Mapping[str, str]) -> str:
    """`text` with its placeholders turned back."""
    restoring = Restoring(secrets)
    return restoring.feed(text) + restoring.finish()


@functools.lru_cache(maxsize=_KEPT)
def find(text: str) -> tuple[Span, ...]:
    """The secrets in `text`, in order, without overlaps."""
    lower = text.lower()
    if len(lower) != len(text):
        # A few letters have a longer small form; positions must not move.
        lower = "".join(letter.lower() if letter.isascii() else letter for letter in text)
    return tuple(_merged([*_by_form(text, lower), *_by_name(text, lower), *_by_library(text)]))


def _by_form(text: str, lower: str) -> Iterator[Span]:
    yield from _private_keys(text)
    for match in kinds.TOKENS.finditer(text):
        yield Span(*match.span(), (match.lastgroup or "token").replace("_", "-"))
    for literal, pattern, kind, likely in _VALUES:
        if literal not in lower:
            continue
        for match in pattern.finditer(text):
            if likely(match["value"]):
                yield Span(*match.span("value"), kind)


def _random_enough(value: str) -> bool:
    """Words may follow "basic" and "bearer" too."""
    return not kinds.stands_for_another(value) and (value.endswith("=") or any(map(str.isdigit, value)))


def _no_placeholder(value: str) -> bool:
    return not kinds.stands_for_another(value)


_VALUES = (
    ("://", kinds.URL_PASSWORD, "password", _no_placeholder),
    ("basic", kinds.BASIC_AUTH, "basic-auth", _random_enough),
    ("bearer", kinds.BEARER, "token", _random_enough),
    ("curl", kinds.CURL_USER, "password", _no_placeholder),
    ("password", kinds.CONNECTION, "password", kinds.may_be_unquoted),
    ("pwd", kinds.CONNECTION, "password", kinds.may_be_unquoted),
    ("key=", kinds.AZURE, "azure-key", _random_enough),
    ("sig=", kinds.SHARED_SIGNATURE, "azure-key", _random_enough),
)
"""A literal without which the pattern need not be tried; the kind of what it finds; whether that is one."""


def _private_keys(text: str) -> Iterator[Span]:
    begun: int | None = None
    marks = list(kinds.KEY_MARK.finditer(text))
    for number, mark in enumerate(marks):
        if mark["which"] == "BEGIN":
            end = marks[number + 1].start() if number + 1 < len(marks) else len(text)
            begun = mark.end()
            yield from _key_lines(text, begun, end)
        elif begun is None:
            # The beginning is not shown.
            start = mark.start()
            while start > max(0, mark.start() - _KEY_LENGTH) and text[start - 1] in kinds.KEY_TEXT:
                start -= 1
            yield from _key_lines(text, start, mark.start())
        else:
            begun = None


def _key_lines(text: str, start: int, end: int) -> Iterator[Span]:
    for line in kinds.KEY_LINE.finditer(text, start, end):
        yield Span(*line.span(), "private-key", start + 1)


def _by_name(text: str, lower: str) -> Iterator[Span]:
    line_end = -1
    for at in sorted(_positions(lower, kinds.STEMS)):
        name = kinds.NAME.match(lower, at)
        match = kinds.ASSIGNED.match(text, name.end()) if name is not None else None
        if name is not None and match is not None:
            password = name["password"] is not None
            likely = kinds.may_be_password if password and not name["short"] else kinds.may_be_key
            if likely(match["value"]) and (match["sign"] != "," or _is_argument(text, at)):
                yield Span(*match.span("value"), "password" if password else "secret")
        elif at > line_end:
            start = text.rfind("\n", 0, at) + 1
            line_end = text.find("\n", at)
            line_end = len(text) if line_end < 0 else line_end
            plain = kinds.UNQUOTED.match(text, start, line_end)
            if plain is not None and kinds.may_be_unquoted(plain["value"]):
                yield Span(*plain.span("value"), "password" if plain["password"] else "secret")


def _positions(text: str, words: Iterable[str]) -> Iterator[int]:
    for word in words:
        at = text.find(word)
        while at >= 0:
            yield at
            at = text.find(word, at + 1)


def _is_argument(text: str, at: int) -> bool:
    """Whether the name at `at` is a call's first argument (`define("DB_PASSWORD", …`), not one of a list."""
    return re.search(r"\w\([ \t]*[\"'][\w.-]*\Z", text[max(0, at - 60) : at]) is not None


def _by_library(text: str) -> Iterator[Span]:
    library = _library()
    for kind, pattern in library.patterns:
        for match in pattern.finditer(text):
            yield Span(*match.span(), kind)
    for match in library.quoted.finditer(text):
        value = match[2]
        if kinds.may_be_random(value) and library.entropy(value) > library.limit:
            yield Span(*match.span(2), "secret")


@dataclass(frozen=True, slots=True)
class _Library:
    """What is used of `detect-secrets`."""

    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    quoted: re.Pattern[str]
    entropy: Callable[[str], float]
    limit: float


@functools.cache
def _library() -> _Library:
    """Its detectors of tokens by form that ours have not, and its entropy. Importing it takes a moment."""
    from detect_secrets.plugins.discord import DiscordBotTokenDetector
    from detect_secrets.plugins.github_token import GitHubTokenDetector
    from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
    from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString
    from detect_secrets.plugins.mailchimp import MailchimpDetector
    from detect_secrets.plugins.openai import OpenAIDetector
    from detect_secrets.plugins.pypi_token import PypiTokenDetector
    from detect_secrets.plugins.sendgrid import SendGridDetector
    from detect_secrets.plugins.slack import SlackDetector
    from detect_secrets.plugins.square_oauth import SquareOAuthDetector
    from detect_secrets.plugins.stripe import StripeDetector
    from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
    from detect_secrets.plugins.twilio import TwilioKeyDetector

    # Its patterns have no types.
    detectors: Sequence[tuple[str, Any]] = cast(
        "Sequence[tuple[str, Any]]",
        (
            ("github-token", GitHubTokenDetector()),
            ("gitlab-token", GitLabTokenDetector()),
            ("openai-key", OpenAIDetector()),
            ("slack-token", SlackDetector()),
            ("stripe-key", StripeDetector()),
            ("token", DiscordBotTokenDetector()),
            ("key", MailchimpDetector()),
            ("token", PypiTokenDetector()),
            ("token", SendGridDetector()),
            ("secret", SquareOAuthDetector()),
            ("token", TelegramBotTokenDetector()),
            ("key", TwilioKeyDetector()),
        ),
    )
    random: Any = Base64HighEntropyString()
    return _Library(
        tuple((kind, one) for kind, found in detectors for one in found.denylist),
        random.regex,
        random.calculate_shannon_entropy,
        random.entropy_limit,
    )


def _merged(spans: Iterable[Span]) -> list[Span]:
    """In order and without overlaps: what overlaps becomes one, of the first's kind."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            # A name says less than a form: `password = "ghp_…"` is a token of GitHub's.
            kind = (
                span.kind
                if last.kind in {"secret", "password", "token"} and span.kind != "secret"
                else last.kind
            )
            merged[-1] = last._replace(end=max(last.end, span.end), kind=kind)
        else:
            merged.append(span)
    return merged


def _values(texts: Sequence[str], found: Sequence[Sequence[Span]]) -> dict[str, str]:
    """The secrets that are looked for everywhere, and their kinds."""
    values: dict[str, str] = {}
    for text, spans in zip(texts, found, strict=True):
        for span in spans:
            value = text[span.start : span.end]
            if len(value) >= _ANYWHERE and not value.isalpha():
                values.setdefault(value, span.kind)
    return values


def _elsewhere(text: str, values: Mapping[str, str]) -> Iterator[Span]:
    for value, kind in values.items():
        at = text.find(value)
        while at >= 0:
            yield Span(at, at + len(value), kind)
            at = text.find(value, at + len(value))


class _Namer:
    """Gives each secret its placeholder."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.secrets: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._texts = texts
        self._names: dict[str, str] = {}
        self._groups: dict[tuple[int, int], tuple[int, int]] = {}

    def name(self, value: str, kind: str, group: tuple[int, int]) -> str:
        """The placeholder of `value`; `group` is what several lines of one key have in common."""
        if value in self._names:
            return self._names[value]
        while True:
            number, part = self._next(kind, group)
            name = f"<redacted-{kind}-{number}{f'.{part}' if part else ''}>"
            # What is in the text already would be taken for a secret in the answer.
            if not any(name in text for text in self._texts):
                break
        self._names[value] = name
        self.secrets[name] = value
        return name

    def _next(self, kind: str, group: tuple[int, int]) -> tuple[int, int]:
        if not group[1]:
            self.counts[kind] += 1
            return self.counts[kind], 0
        if group not in self._groups:
            self.counts[kind] += 1
            self._groups[group] = (self.counts[kind], 0)
        number, part = self._groups[group]
        self._groups[group] = (number, part + 1)
        return number, part + 1


def _replaced(text: str, spans: Sequence[Span], namer: _Namer) -> str:
    parts: list[str] = []
    at = 0
    for span in spans:
        parts.append(text[at : span.start])
        parts.append(namer.name(text[span.start : span.end], span.kind, (id(text), span.group)))
        at = span.end
    return "".join([*parts, text[at:]])
