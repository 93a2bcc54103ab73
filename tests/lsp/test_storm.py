"""Many requests at once, with changes and cancels between them: each is answered once."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from tests.lsp.raw import INITIALIZE, start_raw

URI = "file:///storm.py"
CODE = "def add(a, b):\n    return a + b\n\n\ndef todo(x):\n    ...\n"


async def test_each_request_is_answered_exactly_once(tmp_path: Path) -> None:
    server = await start_raw(tmp_path)
    server.send(INITIALIZE)
    server.send({"method": "initialized", "params": {}})
    item = {"uri": URI, "languageId": "python", "version": 1, "text": CODE}
    server.send({"method": "textDocument/didOpen", "params": {"textDocument": item}})
    dice = random.Random(4711)
    document = {"textDocument": {"uri": URI}}
    position = {"line": 1, "character": 8}
    here = {"start": position, "end": position}
    requests = [
        ("textDocument/hover", {**document, "position": position}),
        ("textDocument/inlineCompletion", {**document, "position": position, "context": {"triggerKind": 1}}),
        ("textDocument/inlineCompletion", {**document, "position": position, "context": {"triggerKind": 2}}),
        ("textDocument/codeAction", {**document, "range": here, "context": {"diagnostics": []}}),
        ("nexo/review", document),
        ("nexo/status", None),
        ("no/such", None),
    ]
    asked = list(range(100, 300))
    version = 1
    for identity in asked:
        method, params = dice.choice(requests)
        server.send({"id": identity, "method": method, "params": params})
        if dice.random() < 0.3:
            server.send(
                {"method": "$/cancelRequest", "params": {"id": dice.choice([identity, identity - 1])}}
            )
        if dice.random() < 0.3:
            version += 1
            edit = {
                "range": {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 0}},
                "text": "\n",
            }
            changed = {"textDocument": {"uri": URI, "version": version}, "contentChanges": [edit]}
            server.send({"method": "textDocument/didChange", "params": changed})
    server.send({"id": "last", "method": "shutdown"})
    answered: Counter[object] = Counter()
    while not answered["last"]:
        message = await server.receive()
        if "method" not in message:
            answered[message["id"]] += 1
            assert ("result" in message) is not ("error" in message)
    server.send({"method": "exit"})
    assert server.process.stdout is not None
    assert await server.process.stdout.read() == b""
    assert await server.ended() == 0
    del answered[1], answered["last"]
    assert answered == Counter(asked)
