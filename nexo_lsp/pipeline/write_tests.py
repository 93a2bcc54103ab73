"""Writing unit tests into the place where the project keeps them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nexo_lsp.errors import BadAnswer, EditRefused, UsageError
from nexo_lsp.generation import Operation, Priority, Request
from nexo_lsp.pipeline.actions import ActionProgress, Listener, NewFile, Proposal, Task
from nexo_lsp.pipeline.code import FENCE, unfenced
from nexo_lsp.pipeline.step import Workbench, infer
from nexo_lsp.pipeline.units import dedented
from nexo_lsp.syntax.parsing import parse
from nexo_lsp.text import Edit, Span

_CONTEXT_TOKENS = 400
_MAX_TOKENS = 500


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the tests go, and how they begin."""

    path: Path
    exists: bool
    framework: str
    opening: str
    """The first lines of the tests: imports, and the start of the first test."""


_CHECKS = re.compile(
    r"assert|expect|raises|throw|should|\brequire\.|panic|\bt\.(?:error|fatal)", re.IGNORECASE
)
"""How tests of many languages check something."""
_OPENS = re.compile(r"[:{(\[,]\s*\Z")
"""A line that more has to follow, which not every grammar calls an error."""


class TestWriter:
    """Carries out `tests`."""

    # The name is not a test class's: pytest collects by this prefix.
    __test__ = False

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    async def __call__(self, task: Task, progress: Listener) -> Proposal:
        """A proposal for a new test file, or for more tests at the end of the one that is there."""
        bench, snapshot, symbol = self._bench, task.snapshot, task.symbol
        path = snapshot.path
        if symbol is None:
            raise UsageError("There is no function at this place to write tests for.")
        if path is None:
            raise UsageError("Save the file first: tests are written beside it or into the tests folder.")
        language = snapshot.language.id if snapshot.language is not None else ""
        place = await bench.offload(lambda: _place(path, language, symbol.name))
        around = bench.gatherer.surroundings(
            snapshot, symbol.span, await bench.others(snapshot), _CONTEXT_TOKENS
        )
        request = Request(
            prompt=bench.prompts.action(
                "tests",
                snapshot.language,
                dedented(snapshot, symbol.span),
                context=around.text(),
                answer_prefix=f"{FENCE}{language}\n{place.opening}",
                words={"framework": f" with {place.framework}" if place.framework else ""},
            ),
            max_tokens=_MAX_TOKENS,
            session="action:tests",
            stop=(FENCE,),
            priority=Priority.FOREGROUND,
        )
        answer = await infer(
            bench.engine(Operation.ACTION),
            request,
            lambda text, tokens: progress(ActionProgress(tokens, place.opening + text)),
        )
        body = unfenced(answer.text)
        if not body.strip():
            raise BadAnswer("The model wrote no tests. Try again, or try a larger model.")
        text = _whole_statements(task, (place.opening + body).rstrip() + "\n")
        return await self._proposal(task, place, text)

    async def _proposal(self, task: Task, place: _Place, text: str) -> Proposal:
        snapshot, uri = task.snapshot, place.path.as_uri()
        title = task.offer.title
        if not place.exists:
            return Proposal(
                snapshot.uri, snapshot.version, title, task.span, text, new_files=(NewFile(uri, text),)
            )
        opened = self._bench.documents.find(uri)
        if opened is None:
            # An edit to a file that is not open could meet a text that nobody has looked at.
            beside = await self._bench.offload(lambda: _free_name(place.path))
            return Proposal(
                snapshot.uri, snapshot.version, title, task.span, text,
                new_files=(NewFile(beside.as_uri(), text),),
            )  # fmt: skip
        end = len(opened.text)
        gap = "" if not opened.text.strip() else "\n\n" if opened.text.endswith("\n") else "\n\n\n"
        edit = Edit(Span(end, end), gap + text)
        return Proposal(opened.uri, opened.version, title, Span(end, end), edit.text, (edit,))


def _whole_statements(task: Task, text: str) -> str:
    """`text`, cut back to the last line up to which it parses, if all does not: its end may be cut off.

    The last test has to check something: half a test would always pass, or be no code at all.
    """
    language = task.snapshot.language
    tree = parse(language, text) if language is not None else None
    if language is None or tree is None or tree.error_count() == 0:
        return text
    at = len(text.rstrip())
    while (at := text.rfind("\n", 0, at)) > 0:
        shorter = text[:at].rstrip() + "\n"
        last = shorter.rpartition("\n\n")[2]
        if _CHECKS.search(last) is None or _OPENS.search(shorter) is not None:
            continue
        cut = parse(language, shorter)
        if cut is not None and cut.error_count() == 0:
            return shorter
    raise EditRefused("The generated tests do not parse, so nothing was written. Try again.")


def _place(path: Path, language: str, name: str) -> _Place:
    """Where the tests for a function of `path` belong, by the conventions of its language."""
    stem, suffix = path.stem, path.suffix
    root = _root(path)
    match language:
        case "python":
            folder = next((root / n for n in ("tests", "test") if (root / n).is_dir()), path.parent)
            module = _python_module(path, root)
            opening = f"from {module} import {name}\n\n\ndef test_{name}"
            target, framework = folder / f"test_{stem}.py", "pytest, as plain functions"
        case "javascript" | "javascriptreact" | "typescript" | "typescriptreact":
            opening = f'import {{ {name} }} from "./{stem}";\n\n'
            target, framework = path.with_name(f"{stem}.test{suffix}"), "Jest (describe, test, expect)"
        case "go":
            package = _first_match(path, r"^package\s+(\w+)") or path.parent.name
            opening = f'package {package}\n\nimport "testing"\n\nfunc Test{name[:1].upper()}{name[1:]}'
            target, framework = path.with_name(f"{stem}_test.go"), "the testing package"
        case "java" | "kotlin":
            parts = ["test" if part == "main" else part for part in path.parent.parts]
            target = Path(*parts) / f"{stem}Test{suffix}"
            opening, framework = "import org.junit.jupiter.api.Test;\n", "JUnit 5"
        case "ruby":
            target, framework, opening = path.with_name(f"{stem}_test.rb"), "minitest", ""
        case "rust":
            target, framework, opening = root / "tests" / f"{stem}.rs", "#[test] functions", ""
        case _:
            target, framework, opening = path.with_name(f"test_{stem}{suffix}"), "", ""
    return _Place(target, target.exists(), framework, opening)


def _root(path: Path) -> Path:
    """The nearest folder above that looks like a project's root."""
    marks = (".git", "pyproject.toml", "setup.py", "package.json", "Cargo.toml", "go.mod", "pom.xml")
    for folder in path.parents:
        if any((folder / mark).exists() for mark in marks):
            return folder
    return path.parent


def _python_module(path: Path, root: Path) -> str:
    """The dotted name under which `path` is imported: up through the folders that are packages."""
    parts = [path.stem]
    folder = path.parent
    while folder != root.parent and (folder / "__init__.py").exists():
        parts.append(folder.name)
        folder = folder.parent
    return ".".join(reversed([part for part in parts if part != "__init__"] or parts))


def _first_match(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found.group(1) if found else None


def _free_name(path: Path) -> Path:
    number = 2
    while (candidate := path.with_name(f"{path.stem}_{number}{path.suffix}")).exists():
        number += 1
    return candidate
