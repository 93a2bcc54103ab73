"""What secrets look like: tokens by their form, passwords by the name they are given.

The forms are those that the services document, or that `detect-secrets` has. Where the form alone does not
tell (a password), the name must, and the value must not be one that stands for another.
"""

from __future__ import annotations

import itertools
import re
import string

WORDS: dict[str, tuple[str, str]] = {
    "anthropic-key": ("Anthropic key", "Anthropic keys"),
    "aws-key": ("AWS key", "AWS keys"),
    "azure-key": ("Azure key", "Azure keys"),
    "basic-auth": ("basic-auth header", "basic-auth headers"),
    "gcp-key": ("Google key", "Google keys"),
    "github-token": ("GitHub token", "GitHub tokens"),
    "gitlab-token": ("GitLab token", "GitLab tokens"),
    "hf-token": ("Hugging Face token", "Hugging Face tokens"),
    "jwt": ("JSON web token", "JSON web tokens"),
    "key": ("key", "keys"),
    "openai-key": ("OpenAI key", "OpenAI keys"),
    "password": ("password", "passwords"),
    "private-key": ("private key", "private keys"),
    "secret": ("secret", "secrets"),
    "slack-token": ("Slack token", "Slack tokens"),
    "stripe-key": ("Stripe key", "Stripe keys"),
    "token": ("token", "tokens"),
}
"""Each kind, as its placeholders name it, in words: one, and several."""

_TOKENS = {
    "anthropic-key": r"sk-ant-[\w-]{20,}",
    "openai-key": r"sk-(?:proj-|svcacct-|admin-)[\w-]{24,}|sk-(?=[A-Za-z]*\d)[A-Za-z0-9]{32,}",
    "aws-key": r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])",
    "gcp-key": r"AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{28}",
    "azure-key": r"[\w~.]{3}8Q~[\w~.-]{31,34}",
    "github-token": r"gh[pousr]_[A-Za-z0-9_]{36,}|github_pat_\w{22,}",
    "gitlab-token": r"gl(?:pat|dt|rt|ft|soat|ptt|cbt|imt|agent|oas|ffct)-[\w-]{20,}",
    "slack-token": r"xox[abceoprs]-[\w-]{10,}|xapp-\d-[\w-]{10,}|"
    r"https://hooks\.slack\.com/(?:services|workflows)/[\w/]{20,}",
    "stripe-key": r"[rs]k_(?:live|test)_[0-9A-Za-z]{16,}|whsec_[0-9A-Za-z+/=]{24,}",
    "hf-token": r"hf_(?=[A-Za-z]*\d)[A-Za-z0-9]{30,}",
    "jwt": r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?",
    "token": r"npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|do[opr]_v1_[a-f0-9]{64}|dckr_pat_[\w-]{20,}|"
    r"SG\.[\w-]{16,}\.[\w-]{16,}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|AGE-SECRET-KEY-1[0-9A-Z]{58}",
}

TOKENS = re.compile(
    # Not inside a longer word; a path or a text may stand before it.
    r"(?a)(?<![A-Za-z0-9_~-])(?:"
    + "|".join(f"(?P<{kind.replace('-', '_')}>{form})" for kind, form in _TOKENS.items())
    + ")"
)
"""Forms that tell by themselves; the name of the group is the kind, with `_` for `-`."""

KEY_MARK = re.compile(r"-----(?P<which>BEGIN|END) [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
"""Where a key in PEM's form begins and ends."""

KEY_LINE = re.compile(r"(?<!\\)[A-Za-z0-9+/=]{16,}")
"""What of a private key is secret: its lines, each for itself, so that the shape of the text stays. The
letter of an escaped line end is none of them."""

KEY_TEXT = frozenset(string.ascii_letters + string.digits + "+/= \\\t\r\n\"'`,")
"""What the text of a key is made of, as a file has it or a program's literal."""

URL_PASSWORD = re.compile(r"(?<=://)[^\s/:@\"'`<>]*:(?P<value>[^\s/\"'`<>]+)@(?=[\w\[.%${-])")
"""The password of an address (`postgres://user:password@host`); it may have an `@` itself."""

BASIC_AUTH = re.compile(r"(?i)\bbasic\s+(?P<value>[A-Za-z0-9+/]{8,}={0,2})(?![\w+/=])")
BEARER = re.compile(r"(?i)\bbearer\s+(?P<value>[\w.~+/-]{16,}=*)")

CURL_USER = re.compile(
    r"\bcurl\b[^\n]{0,200}?\s(?:-u|--user)[ =]++[\"']?[^\s:\"']{1,100}+:(?P<value>[^\s\"']+)"
)

CONNECTION = re.compile(
    r"(?i)(?<![\w-])(?:password|pwd)"
    r"[ \t]*+=[ \t]*+(?P<value>[^;\"'`\s()\[\]{},]{4,200}+)(?=[;\"'`])",
)
"""Parts of connection strings (`Server=…;Password=…;`); the value ends at a `;` or at a quote."""

AZURE = re.compile(r"(?i)(?:account|sharedaccess)key=(?P<value>[A-Za-z0-9+/]{20,}={0,2})")

SHARED_SIGNATURE = re.compile(r"(?<=[?&])sig=(?P<value>[A-Za-z0-9%/+_-]{30,}=*)")

STEMS = ("pass", "pwd", "contrase", "kennwort", "secret", "token", "key", "credential")
"""In lower case: what the names of secrets have in them. Found quickly; `NAME` looks closer."""

_OWNERS = (
    "api|auth|access|secret|private|encryption|signing|master|service|account|client|session|webhook|consumer|"
    "storage|shared|deploy|admin|bot|app|refresh|id"
)

NAME = re.compile(
    r"(?P<password>pass(?:word|wd|phrase|code)|pwd|contrase(?:ñ|n)a|kennwort|(?:(?<=db)|(?<=db_)|(?<![a-z]))(?P<short>pass))|"
    r"(?P<key>secret(?:_?(?:key|token))?|token|credentials?|"
    rf"(?:{'|'.join(f'(?<={word}{sign})' for word in _OWNERS.split('|') for sign in ('', '_', '-'))})key)"
)
"""The end of a name that says that its value is a secret, in lower case, from a stem on."""

ASSIGNED = re.compile(
    # A little more of the name may follow, a bracket or a quote, a type; then comes a sign, and a literal.
    r"(?:_?\d{1,2}|_?(?:value|dev|prod|production|staging|test|default|local|id))?(?![\w-])"
    # In a literal that holds JSON, quotes have a backslash before them.
    r"(?:\\?[\"'`\])]){0,2}[ \t]*+(?:\[\d{0,9}+\][ \t]*+)?"
    r"(?::[ \t]*+(?![\"'`])[&\w<>\[\].?|' ]{1,40}?(?=[ \t]*+=))?[ \t]*+"
    r"(?P<sign>=>|:=|={1,3}|!==?|:|\(|,|(?<=[ \t])(?=[\"']))[ \t]*+"
    r"(?:[@$]|[rRbBuUfFL]{1,2}(?=[\"'`]))?(?P<quote>\"{3}|'{3}|\\?[\"'`])"
    r"(?P<value>(?:(?!(?P=quote))(?:\\.|[^\\\n]))+)(?:(?P=quote)|\Z)",
    re.IGNORECASE,
)
"""What follows a name where a literal is assigned, passed or compared, in any of the languages."""

UNQUOTED = re.compile(
    r"[ \t]*+(?:-[ \t]+)?(?:export[ \t]+|set[ \t]+|ENV[ \t]+|ARG[ \t]+)?[\w.-]*"
    r"(?:(?P<password>pass(?:word|wd|phrase|code)?|pwd|kennwort)|(?P<key>secret|token|key|credentials?))(?:_?\d)?"
    r"(?:=|[ \t]=[ \t]|:[ \t]+)(?P<value>[^\s\"'`#,;(){}<>\[\]$]{6,})[ \t]*+(?:#.*)?\r?$",
    re.IGNORECASE | re.MULTILINE,
)
"""Lines of `.env`, `.ini`, YAML and shells, without quotes."""

_STANDS_FOR = re.compile(
    r"(?i)^(?:<.*>|\[.*\]|\{.*\}|.*\$\{.*|\$\(.*|\$\w+(?:->|::|\[).*|"
    # A variable's name, or a format's: a password may begin with the same sign.
    r"(?-i:\$(?:[A-Z_][A-Z\d_]*|[a-z_]+\d{0,2}|[A-Za-z]+))|\$\d|(?:\$(?:\.\w+)+)|%\w+%|%[-\d.]{0,4}[a-z@]{1,2}|"
    r".*\{\{.*|.*%\(.*|#\{.*|x{3,}.*|\*+|-+|_+|•+|.*(?:\.\.\.|…).*|"
    # Words that say so, unless digits among them make it a password.
    r"(?=.*(?:change_?-?me|example|placeholder|redacted|your|dummy|sample|insert|replace|todo|fixme|hunter_here))"
    r"\D*\d{0,4}|"
    r"(?:my|the|a|some|test|fake|user|new|old|wrong|bad|invalid|default|super)?[-_ ]?"
    r"(?:pass(?:word|wd|phrase|code)?|pwd|pw|secret|token|key|api[-_]?key|value|string)[-_ ]?\d{0,3}|"
    r"none|null|nil|undefined|true|false|string|text|str|bool(?:ean)?|int|number|required|optional|hidden|"
    r"bearer|basic|digest|oauth2?|n/a|empty|env|vault|foo(?:bar)?|bar|baz|abc|test|none)$"
)

_WORD = re.compile(r"[A-Za-z][a-z]*(?:[-_. /][A-Za-z][a-z]*)*")
_CAMEL = re.compile(r"[a-z]+(?:[A-Z][a-z]+)+|(?:[A-Z][a-z]+)+")
_PATH = re.compile(r"[A-Za-z_]\w*(?:[./]\w+)+")
_PLAIN_PATH = re.compile(r"[A-Za-z_]+\d{0,3}(?:[./][A-Za-z_]+\d{0,3})+")
_SHORT = 20
"""Characters: a longer path with digits inside its words may as well be base64."""
_TYPE = re.compile(
    r"(?i)^(?:u?int|float|double|[iuf]|utf|big|char|byte|vec|base|sha|md|uint)\d{1,4}\w{0,20}$"
)
_NO_KEY = re.compile(r"[\s\[\](){}|\\^<>]")
_HEX = re.compile(r"[0-9a-fA-F]+|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def stands_for_another(value: str) -> bool:
    """Whether `value` is no secret itself: a placeholder, a reference, a word for what belongs there."""
    return _STANDS_FOR.match(value) is not None


def may_be_password(value: str) -> bool:
    """Whether a literal that is called a password is one."""
    if len(value) < 4 or stands_for_another(value) or value.count(" ") > 1 or "\\n" in value:
        return False
    plain = _WORD.fullmatch(value) or _CAMEL.fullmatch(value)
    # A name of something (`user_password`, `db.password`, `resetPassword`) is none; a bare word may be one.
    return plain is None or (value.isalpha() and value.islower() and NAME.search(value) is None)


def may_be_key(value: str) -> bool:
    """Whether a literal that is called a key, a token or a secret is one: those are made by machines."""
    if len(value) < 10 or stands_for_another(value) or "://" in value:
        return False
    # A regular expression, or a text.
    if _NO_KEY.search(value):
        return False
    return _mixed(value) and not _TYPE.match(value)


def may_be_unquoted(value: str) -> bool:
    """Whether a value without quotes is a secret; it may be code."""
    if stands_for_another(value) or _TYPE.match(value) or "::" in value or "->" in value:
        return False
    # Attributes and calls (`self.password1`, `config/secret2`) are no secrets.
    path = _PATH if len(value) < _SHORT else _PLAIN_PATH
    return path.fullmatch(value) is None and _mixed(value)


def may_be_random(value: str) -> bool:
    """Whether a literal of high entropy is a secret: no digest, no identifier, no path, no alphabet."""
    if len(value) < 32 or _HEX.fullmatch(value) or value.startswith(("sha", "md5", "data:", "/")):
        return False
    kinds = (str.isupper, str.islower, str.isdigit)
    if not all(any(kind(letter) for letter in value) for kind in kinds):
        return False
    ordered = sum(abs(ord(one) - ord(two)) == 1 for one, two in itertools.pairwise(value))
    words = re.findall(r"[a-z]{4,}", value)
    return ordered < len(value) / 4 and sum(map(len, words)) < len(value) / 3


def _mixed(value: str) -> bool:
    return any(letter.isdigit() for letter in value) and any(letter.isalpha() for letter in value)
