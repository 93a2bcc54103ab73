"""The model arrives by itself: the question, the progress bar, its cancel."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pygls.exceptions import JsonRpcException

from nexo_lsp.errors import ModelDownloadCancelled
from nexo_lsp.models.progress import PullProgress
from nexo_lsp.server.language_server import NexoServer, create_server
from tests.lsp.conftest import StartEditor, capabilities_of
from tests.lsp.editor import WAIT_S

SIZE = 491_400_032


class Client:
    """A client that keeps what the server writes, and answers its requests."""

    def __init__(self, server: NexoServer) -> None:
        self.server = server
        self.sent: list[dict[str, Any]] = []
        self.button: str | None = None
        self.news = asyncio.Event()
        server.protocol.set_writer(self, include_headers=False)  # type: ignore[arg-type]

    def write(self, data: bytes) -> None:
        message = json.loads(data)
        self.sent.append(message)
        self.news.set()
        if "method" in message and "id" in message:
            asked = message["method"] == "window/showMessageRequest"
            result = {"title": self.button} if asked and self.button else None
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
            asyncio.get_running_loop().call_soon(self.server.protocol.receive, answer)

    def close(self) -> None:
        pass

    def of(self, method: str) -> list[dict[str, Any]]:
        return [message["params"] for message in self.sent if message.get("method") == method]

    async def until(self, condition: Callable[[], Any]) -> Any:
        async def wait() -> Any:
            while not (value := condition()):
                self.news.clear()
                await self.news.wait()
            return value

        return await asyncio.wait_for(wait(), WAIT_S)

    def progress(self, kind: str) -> list[dict[str, Any]]:
        return [params["value"] for params in self.of("$/progress") if params["value"]["kind"] == kind]


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    server = create_server({"NEXO_HOME": str(tmp_path), "NEXO_ENGINE": "mock"})
    client = Client(server)
    server.protocol.begin({**capabilities_of("vscode"), "workspaceFolders": []})
    yield client
    await server.aclose()


@pytest.mark.parametrize(("button", "agreed"), [("Download", True), ("Not now", False), (None, False)])
async def test_the_question_names_the_size_and_is_asked_once(
    client: Client, button: str | None, agreed: bool
) -> None:
    client.button = button
    host = client.server.host
    answers = await asyncio.gather(
        host.confirm_download("some-model", SIZE), host.confirm_download("some-model", SIZE)
    )
    assert answers == [agreed, agreed]
    assert await host.confirm_download("some-model", SIZE) is agreed
    (question,) = client.of("window/showMessageRequest")
    assert "some-model (491 MB)" in question["message"]
    assert [action["title"] for action in question["actions"]] == ["Download", "Not now"]


def state(done: int) -> PullProgress:
    return PullProgress("a source", done, SIZE, 4e6, "download", "")


async def test_the_download_shows_how_far_it_is(client: Client, tmp_path: Path) -> None:
    go_on = threading.Event()

    def fetch(report: Callable[[PullProgress], None], cancel: threading.Event) -> Path:
        assert go_on.wait(WAIT_S)
        report(state(SIZE // 2))
        return tmp_path

    download = asyncio.ensure_future(client.server.host.download("some-model", SIZE, fetch))
    await client.until(lambda: client.progress("begin"))
    go_on.set()
    (report,) = await client.until(lambda: client.progress("report"))
    assert (report["percentage"], report["message"]) == (50, "246 MB of 491 MB, 4.0 MB/s, 1:01 left")
    assert await download == tmp_path
    await client.until(lambda: client.progress("end"))
    (begin,) = client.progress("begin")
    assert begin["title"] == "Downloading some-model"
    assert begin["cancellable"] is True
    assert begin["message"].endswith("of 491 MB")


async def test_the_bar_cancels_the_download(client: Client, tmp_path: Path) -> None:
    def fetch(report: Callable[[PullProgress], None], cancel: threading.Event) -> Path:
        assert cancel.wait(WAIT_S)
        raise ModelDownloadCancelled("The download was stopped.")

    download = asyncio.ensure_future(client.server.host.download("some-model", SIZE, fetch))
    await client.until(lambda: client.progress("begin"))
    token = client.of("$/progress")[0]["token"]
    cancel = {"jsonrpc": "2.0", "method": "window/workDoneProgress/cancel", "params": {"token": token}}
    client.server.protocol.receive(cancel)
    with pytest.raises(ModelDownloadCancelled):
        await download
    assert client.progress("end")


async def test_closing_the_server_ends_downloads(client: Client) -> None:
    ended = threading.Event()

    def fetch(report: Callable[[PullProgress], None], cancel: threading.Event) -> Path:
        assert cancel.wait(WAIT_S)
        ended.set()
        raise ModelDownloadCancelled("The download was stopped.")

    download = asyncio.ensure_future(client.server.host.download("some-model", SIZE, fetch))
    await client.until(lambda: client.progress("begin"))
    await client.server.aclose()
    with pytest.raises(ModelDownloadCancelled):
        await download
    assert ended.is_set()


@pytest.mark.parametrize(("policy", "questions"), [("ask", 1), ("never", 0)])
async def test_without_a_model_there_is_one_clear_message(
    start_editor: StartEditor, policy: str, questions: int
) -> None:
    settings = {"models": {"autoDownload": policy}, "review": {"trigger": "onOpen"}}
    editor = await start_editor(environ={"NEXO_ENGINE": "native"}, configuration=settings)
    editor.reply = "Not now"
    uri = editor.open("a.py", "def f(x):\n    return x\n")
    await editor.until(editor.messages)
    with pytest.raises(JsonRpcException, match="nexo-lsp models pull"):
        await editor.review(uri)
    with pytest.raises(JsonRpcException, match="nexo-lsp models pull"):
        await editor.review(uri)
    assert len(editor.questions) == questions
    assert len(editor.messages()) == 1
    # What needs no model goes on.
    assert await editor.actions(uri, "return x")
    hover = await editor.hover(uri, "f(x)")
    assert hover is not None
