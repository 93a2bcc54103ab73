"""Where a download may be sent on to."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.sources import UrlSource
from nexo_lsp.models.transfer import SourceFailed

MakeEntry = Callable[..., CatalogEntry]


@pytest.mark.parametrize(("location", "reached"), [("http://b.invalid/x", 0), ("https://b.invalid/x", 1)])
def test_an_encrypted_address_does_not_lead_to_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    make_entry: MakeEntry,
    payload: bytes,
    location: str,
    reached: int,
) -> None:
    asked: list[str] = []

    def ignore(_done: int, _note: str) -> None:
        pass

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host == "a.invalid":
            return httpx.Response(302, headers={"Location": location})
        length = {"Content-Length": str(len(payload))}
        return httpx.Response(200, headers=length, stream=httpx.ByteStream(payload))

    made = functools.partial(httpx.Client, transport=httpx.MockTransport(answer))
    monkeypatch.setattr(httpx, "Client", made)
    source, entry = UrlSource("plain URL"), make_entry(urls=("https://a.invalid/x",))
    target, never = tmp_path / "x.partial", threading.Event()
    if reached:
        source.fetch(entry, target, ignore, never)
        assert source.announce(entry, never).size == len(payload)
    else:
        with pytest.raises(SourceFailed, match="without encryption"):
            source.fetch(entry, target, ignore, never)
        with pytest.raises(SourceFailed, match=r"a\.invalid sends on to b\.invalid without"):
            source.announce(entry, never)
    assert asked.count("b.invalid") == 2 * reached
