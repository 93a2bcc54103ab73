"""Each feature once with the default model: the real server, the real worker, one session for all tests."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil
import pytest
import pytest_asyncio
from lsprotocol import types
from pygls.exceptions import JsonRpcException

from nexo_lsp.server.features.hover import PENDING
from tests.lsp.conftest import ROOT, begin, capabilities_of, server_environment, show_log, start_client
from tests.lsp.editor import Editor

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

PATIENCE_S = 120.0
"""How long to wait for the model; a busy machine makes a few tokens a second."""
LONGEST = 512
ORDERS = (ROOT / "examples" / "orders.py").read_text(encoding="utf-8")
REWRITE = "refactor.rewrite.nexo"
SUM = "def total(prices):\n    result = 0\n    for price in prices:\n        result += price\n    return result\n"
# What is written here goes on until the longest completion is reached.
COUNT = 'def count():\n    """Print 1, 2, 3 and so on up to 1000, one call a line."""\n    print(1)\n    print(2)\n    print(3)\n    '


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(
    model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Editor, Path]]:
    """An editor with a server that has loaded the model."""
    base = tmp_path_factory.mktemp("real")
    home, folder = base / "home", base / "workspace"
    (folder / "tests").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    settings = {
        "engine": "native",
        "model": str(model_path),
        "review": {"trigger": "manual"},
        "hover": {"waitMs": 0},
        "completion": {"maxTokens": LONGEST},
    }
    client = await start_client(server_environment(home, NEXO_ENGINE="native"))
    client.set_configuration({"nexo": settings})
    editor = Editor(client, capabilities_of("vscode"), folder, base / "unused")
    editor.patience_s = PATIENCE_S
    await begin(editor, settings)
    yield editor, home
    if client.error is None:
        await client.shutdown_session()
    await client.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def editor(session: tuple[Editor, Path]) -> AsyncIterator[Editor]:
    """The shared editor, at rest and with no messages."""
    shared, home = session
    await status_when(shared, at_rest)
    shared.client.messages.clear()
    shared.client.progress_reports.clear()
    shared.client.shown_documents.clear()
    shared.applied.clear()
    yield shared
    show_log(home)


async def status_when(editor: Editor, condition: Callable[[Any], bool]) -> Any:
    """Ask for `nexo/status` until it is as wanted: it is another process that does the work."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition(status := await editor.request("nexo/status")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return status


def at_rest(status: Any) -> bool:
    return status.queued == 0 and status.running == 0


async def run(editor: Editor, uri: str, text: str, kind: str) -> str:
    """Carry out the action of `kind` at `text` to its end; the text of the buffer after it."""
    action = await editor.action(uri, text, kind)
    assert action.command is not None
    await editor.execute(action.command)
    await editor.until(lambda: ends(editor), f"the end of {kind}")
    assert ends(editor) == ["done"], editor.messages()
    return editor.buffers[uri].text


def ends(editor: Editor) -> list[str]:
    reports = [r for reports in editor.client.progress_reports.values() for r in reports]
    return [str(report.message) for report in reports if report.kind == "end"]


def defined(code: str) -> dict[str, Any]:
    """What `code` defines when it is run."""
    names: dict[str, Any] = {}
    exec(compile(code, "generated", "exec"), names)
    return names


async def test_review_finds_the_injection_and_the_fix_is_applied(editor: Editor) -> None:
    uri = editor.open("orders.py", ORDERS, version=3)
    answer = await editor.review(uri)
    assert (answer.version, answer.complete) == (3, True)
    shown = editor.client.diagnostics[uri]
    assert answer.findings == len(shown) > 0
    assert editor.published[-1].version == 3
    assert {diagnostic.source for diagnostic in shown} == {"nexo"}
    quotes = [editor.text_at(uri, diagnostic.range) for diagnostic in shown]
    lines = [line.strip() for line in ORDERS.splitlines()]
    assert all(quote.strip().splitlines()[0] in lines for quote in quotes), quotes
    (injection,) = (quote for quote in quotes if "SELECT" in quote)

    after = await run(editor, uri, injection, "quickfix.nexo")
    assert after != ORDERS
    ast.parse(after)
    # Nothing but the function was touched, and its finding is gone with the code.
    end = "\n\ndef parse_price"
    assert after.partition(end)[2] == ORDERS.partition(end)[2]
    await editor.until(lambda: editor.published[-1].version == editor.buffers[uri].version)
    left = [editor.text_at(uri, diagnostic.range) for diagnostic in editor.client.diagnostics[uri]]
    assert injection not in left


async def test_a_generated_function_is_right(editor: Editor) -> None:
    before = (
        "def is_palindrome(text: str) -> bool:\n"
        '    """Whether `text` reads the same backwards."""\n'
        "    raise NotImplementedError\n\n\n"
        'print(is_palindrome("level"))\n'
    )
    uri = editor.open("palindrome.py", before)
    after = await run(editor, uri, "is_palindrome", f"{REWRITE}.generate")
    assert after.endswith('\n\n\nprint(is_palindrome("level"))\n')
    is_palindrome = defined(after)["is_palindrome"]
    assert is_palindrome("abcba")
    assert not is_palindrome("abcbx")
    assert len(editor.applied) == 1


async def test_a_docstring_is_all_that_documenting_changes(editor: Editor) -> None:
    uri = editor.open("sum.py", SUM)
    after = await run(editor, uri, "total", f"{REWRITE}.document")
    tree = ast.parse(after)
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    assert ast.get_docstring(function)
    del function.body[0]
    assert ast.dump(tree) == ast.dump(ast.parse(SUM))


async def test_an_optimised_function_still_adds_up(editor: Editor) -> None:
    uri = editor.open("optimise.py", SUM)
    after = await run(editor, uri, "total", f"{REWRITE}.optimize")
    assert after != SUM
    assert defined(after)["total"]([1, 2, 3]) == 6


async def test_tests_arrive_in_a_new_file(editor: Editor) -> None:
    uri = editor.open("adding.py", SUM)
    assert await run(editor, uri, "total", f"{REWRITE}.tests") == SUM
    made = editor.buffers[editor.uri("tests/test_adding.py")].text
    tree = ast.parse(made)
    assert any(isinstance(part, ast.FunctionDef) and "total" in part.name for part in tree.body)
    assert any(isinstance(part, ast.Assert) for part in ast.walk(tree))


async def test_an_explanation_is_shown(editor: Editor) -> None:
    uri = editor.open("explained.py", SUM)
    assert await run(editor, uri, "total", f"{REWRITE}.explain") == SUM
    (shown,) = editor.client.shown_documents
    text = Path(unquote(urlsplit(shown.uri).path)).read_text(encoding="utf-8")  # noqa: ASYNC240
    assert "total" in text
    assert len(text.split()) > 10


async def test_a_later_hover_has_the_explanation(editor: Editor) -> None:
    uri = editor.open("hovered.py", f"{SUM}\n\nprint(total([1, 2]))\n")

    async def hovered() -> str:
        hover = await editor.hover(uri, "total([")
        assert hover is not None
        assert isinstance(hover.contents, types.MarkupContent)
        return hover.contents.value

    first = await hovered()
    assert first.startswith("```python\ndef total(prices):\n```")
    assert PENDING in first
    await status_when(editor, at_rest)
    async with asyncio.timeout(PATIENCE_S):
        # The engine is done; the answer is on its way to the disk.
        while PENDING in (later := await hovered()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(later.partition("---")[2].split()) > 3


async def test_ghost_text_fits_its_place(editor: Editor) -> None:
    before = "def add(first, second):\n    return \n\n\nprint(add(1, 2))\n"
    uri = editor.open("ghost.py", before)
    params = editor.inline_params(uri, editor.find(uri, "return ", end=True))
    (item,) = await editor.client.text_document_inline_completion_async(params)
    assert item.range == types.Range(types.Position(1, 11), types.Position(1, 11))
    after = before.replace("return ", f"return {item.insert_text}")
    assert defined(after)["add"](2, 3) == 5


async def test_cancel_stops_the_engine_in_the_prompt(editor: Editor) -> None:
    calm = await status_when(editor, at_rest)
    uri = editor.open("long.py", f"{ORDERS}\n\n" * 4 + COUNT)
    params = editor.inline_params(uri, editor.position(uri, len(editor.buffers[uri].text)))
    asked = editor.start(types.TEXT_DOCUMENT_INLINE_COMPLETION, params, 701)
    await status_when(editor, lambda status: status.running == 1)
    editor.cancel(701)
    with pytest.raises(JsonRpcException) as cancelled:
        await asked
    assert cancelled.value.code == -32800
    after = await status_when(editor, at_rest)
    # No token was made, so it was the prompt that was left.
    assert after.decodeTokensPerSecond == calm.decodeTokensPerSecond
    await answered(editor)


async def test_cancel_stops_the_engine_in_the_answer(editor: Editor) -> None:
    calm = await status_when(editor, at_rest)
    uri = editor.open("count.py", COUNT)
    params = editor.inline_params(uri, editor.position(uri, len(COUNT)))
    asked = editor.start(types.TEXT_DOCUMENT_INLINE_COMPLETION, params, 702)
    # The worker tells the speed of decoding anew with the second token.
    writing = await status_when(
        editor, lambda status: status.decodeTokensPerSecond != calm.decodeTokensPerSecond
    )
    assert writing.running == 1
    loop = asyncio.get_running_loop()
    began = loop.time()
    editor.cancel(702)
    with pytest.raises(JsonRpcException) as cancelled:
        await asked
    assert cancelled.value.code == -32800
    await status_when(editor, at_rest)
    # What was left of the answer would have taken longer.
    assert loop.time() - began < LONGEST / writing.decodeTokensPerSecond / 2
    await answered(editor)


async def answered(editor: Editor) -> None:
    """The next request gets its answer, and nobody was bothered by the cancel."""
    uri = editor.open(f"next-{len(editor.buffers)}.py", "def half(number):\n    return \n")
    params = editor.inline_params(uri, editor.find(uri, "return ", end=True))
    (item,) = await editor.client.text_document_inline_completion_async(params)
    assert "number" in item.insert_text
    assert editor.messages() == []


async def test_a_killed_worker_is_told_once_and_replaced(editor: Editor) -> None:
    uri = editor.open("killed.py", SUM.replace("total", "added"))
    action = await editor.action(uri, "added", f"{REWRITE}.explain")
    assert action.command is not None
    await editor.execute(action.command)
    review = asyncio.ensure_future(editor.review(uri))
    await editor.until(
        lambda: any(
            str(report.message).endswith(" tokens")
            for reports in editor.client.progress_reports.values()
            for report in reports
        ),
        "tokens",
    )
    (worker,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if any("nexo_lsp.engines.llama.hub_process" in word for word in process.cmdline())
    )
    worker.kill()
    # Nothing of the review had been shown: the next engine makes it, and nobody is told.
    await review
    await editor.until(lambda: ends(editor) == ["failed"], "the end of the job")
    (message,) = editor.messages()
    assert "ended unexpectedly" in message
    editor.client.messages.clear()
    await answered(editor)
