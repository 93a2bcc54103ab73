"""Explanations to the editor: a read-only document where it can show one, else a message."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lsprotocol import types
from pygls.exceptions import JsonRpcException

from nexo_lsp.offload import in_thread

if TYPE_CHECKING:
    from nexo_lsp.pipeline.actions import Explanation
    from nexo_lsp.server.language_server import NexoServer

_KEPT: Final = 20
"""How many explanation files stay on the disk; they quote the user's code, so not for ever."""


async def show_explanation(server: NexoServer, explanation: Explanation) -> None:
    """Show it to the user."""
    if server.client.show_document:
        folder = server.app.folders.state / "explanations"
        path = await in_thread(lambda: write_read_only(folder, explanation))
        try:
            answer = await server.window_show_document_async(
                types.ShowDocumentParams(uri=path.as_uri(), external=False, take_focus=False)
            )
        except JsonRpcException:
            answer = types.ShowDocumentResult(success=False)
        if answer.success:
            return
    server.show(f"{explanation.title}\n\n{explanation.markdown}", types.MessageType.Info)


def write_read_only(folder: Path, explanation: Explanation) -> Path:
    """Write the explanation to a file of its own in `folder`, and drop the oldest files."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"# {explanation.title}\n\n{explanation.markdown}\n"
    path = folder / f"explanation-{hashlib.sha256(text.encode()).hexdigest()[:16]}.md"
    if not path.exists():
        path.write_text(text, encoding="utf-8")
        path.chmod(stat.S_IREAD)
    files = sorted(folder.glob("explanation-*.md"), key=lambda file: file.stat().st_mtime)
    for old in files[:-_KEPT]:
        if old != path:
            old.chmod(stat.S_IREAD | stat.S_IWRITE)
            old.unlink(missing_ok=True)
    return path
