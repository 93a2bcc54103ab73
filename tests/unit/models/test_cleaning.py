"""What is removed, what never is, and who uses a model in this process or another."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest

from nexo_lsp.errors import DiskFull, ModelError, ModelMissing
from nexo_lsp.folders import UNPACKED
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.cleaning import Waste
from nexo_lsp.models.embedded import EmbeddedModels, Place
from nexo_lsp.models.leases import used_file
from nexo_lsp.models.record import record_file
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import Report, append
from nexo_lsp.models.versions import short

MakeEntry = Callable[..., CatalogEntry]
ROOT = Path(__file__).parents[3]
SIZE = 1000


class Delivers:
    """Makes the bytes of any entry of the tests from its name."""

    name = "delivers"

    def __init__(self) -> None:
        self.before: Callable[[], None] = lambda: None

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        self.before()
        target.unlink(missing_ok=True)
        append(target, [_data(entry.description)], entry.size, progress, cancel)


def _data(word: str) -> bytes:
    return (word.encode() * SIZE)[:SIZE]


def _entry(make_entry: MakeEntry, name: str, word: str = "") -> CatalogEntry:
    data = _data(word or name)
    return dataclasses.replace(
        make_entry(data),
        name=name,
        file=f"{name}.gguf",
        description=word or name,
        sha256=hashlib.sha256(data).hexdigest(),
    )


@pytest.fixture
def source() -> Delivers:
    return Delivers()


@pytest.fixture
def store(tmp_path: Path, make_entry: MakeEntry, source: Delivers) -> ModelStore:
    """A store whose catalogue has a, b, c, d of a thousand bytes each."""
    catalog = [_entry(make_entry, name) for name in "abcd"]
    return ModelStore(tmp_path / "models", {}, [source], catalog)


@pytest.fixture
def later(store: ModelStore, make_entry: MakeEntry, source: Delivers) -> ModelStore:
    """The same folder, for a program whose catalogue has a newer a."""
    catalog = [_entry(make_entry, "a", "A2"), *store.catalog[1:]]
    return ModelStore(store.folder, {}, [source], catalog)


def _used_at(store: ModelStore, name: str, moment: int) -> None:
    path = store.locate(name)
    store.used(path)
    for file in (path, used_file(path)):
        os.utime(file, (moment, moment))


def _here(store: ModelStore) -> list[str]:
    return sorted(path.name for path in store.folder.glob("*.gguf"))


def _overhead(store: ModelStore) -> int:
    """Bytes of what lies beside the models."""
    return store.cleaning.size() - SIZE * len(_here(store))


@pytest.fixture
def using_process() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Another process that has a model in use when this returns, until its stdin is closed."""
    started: list[subprocess.Popen[str]] = []
    script = (
        "import sys; from pathlib import Path; from nexo_lsp.models.store import ModelStore\n"
        "path = Path(sys.argv[1])\n"
        "with ModelStore(path.parent, {}).in_use(path):\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
    )

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


# Remove


def test_removing_a_model_leaves_other_files_whose_names_begin_like_its_own(store: ModelStore) -> None:
    store.folder.mkdir()
    names = ["coder.gguf", "coder@0123abcd.gguf", "coder@work.gguf", "coder@0123abcd.gguf.partial"]
    for name in names:
        (store.folder / name).write_bytes(b"1")
    assert store.remove("coder.gguf") == 3
    assert _here(store) == ["coder@work.gguf"]


def test_a_pin_goes_with_the_file_whatever_it_is_called_by(store: ModelStore) -> None:
    for name in ("a", "a.gguf"):
        store.pull("a")
        store.versions.pin(store.catalog[0])
        store.remove(name)
        assert store.versions.choices() == {}


# Spellings


def test_a_model_is_kept_and_held_however_its_path_is_spelled(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.pull("a")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    spellings = ["~/models/a.gguf", "models/a.gguf", str(tmp_path / "models" / ".." / "models" / "a.gguf")]
    if os.name == "posix":
        (tmp_path / "link").symlink_to(store.folder)
        (tmp_path / "other.gguf").symlink_to(path)
        spellings += ["link/a.gguf", "other.gguf"]
    for spelling in spellings:
        assert path not in [one.path for one in store.cleaning.evictable([spelling])], spelling
        with store.in_use(Path(spelling).expanduser()):
            assert store.leases.is_held(path), spelling
            assert store.cleaning.evictable([]) == (), spelling
    assert [one.path for one in store.cleaning.evictable(["~/elsewhere/a.gguf"])] == [path]


# Prune


def test_prune_names_what_nothing_uses_and_removes_just_that(store: ModelStore, later: ModelStore) -> None:
    for name in "ab":
        store.pull(name)
    later.pull("a")
    (later.folder / "b.gguf.partial").write_bytes(b"12345")
    (later.folder / "gone.gguf.parts").mkdir()
    (later.folder / "gone.gguf.parts" / "pip.log").write_bytes(b"123")
    (later.folder / "gone.gguf.checked").write_bytes(b"{}")
    (later.folder / "gone.gguf.used").write_bytes(b"")
    (later.folder / "gone.gguf.lock").write_bytes(b"")
    for name, age_s in (("versions.json.0123abcd.new", 3600), ("b.gguf.checked.0123abcd.new", 0)):
        (later.folder / name).write_bytes(b"{")
        moment = time.time() - age_s
        os.utime(later.folder / name, (moment, moment))
    (later.folder / "own.gguf").write_bytes(b"the user's own")
    copies = later.folder / UNPACKED
    copies.mkdir()
    (copies / f"gone.{16 * 'a'}.gguf").write_bytes(b"copy")
    (copies / f"b.{16 * 'a'}.gguf").write_bytes(b"copy")
    waste = later.cleaning.waste()
    assert {(one.kind, one.path.name, one.size) for one in waste} == {
        ("version", "a.gguf", SIZE),
        ("partial", "b.gguf.partial", 5),
        ("partial", "gone.gguf.parts", 3),
        ("copy", f"gone.{16 * 'a'}.gguf", 4),
        ("leftover", "gone.gguf.checked", 2),
        ("leftover", "gone.gguf.used", 0),
        ("leftover", "gone.gguf.lock", 0),
        ("leftover", "versions.json.0123abcd.new", 1),
    }
    assert later.cleaning.remove(waste) == waste
    assert later.cleaning.waste() == ()
    new = short(later.catalog[0].sha256)
    assert _here(later) == [f"a@{new}.gguf", "b.gguf", "own.gguf"]
    assert [path.name for path in copies.iterdir()] == [f"b.{16 * 'a'}.gguf"]
    assert later.pull("a").read_bytes() == _data("A2")
    assert later.verify("b").ok


def test_copies_of_models_that_lie_elsewhere_stay(store: ModelStore, tmp_path: Path) -> None:
    copies = store.folder / UNPACKED
    copies.mkdir(parents=True)
    for stem in ("own", "shipped", "gone"):
        (copies / f"{stem}.{16 * 'a'}.gguf").write_bytes(b"copy")
    (tmp_path / "shipped.gguf").write_bytes(b"1")
    embedded = EmbeddedModels(lambda: (Place(tmp_path, "test"),))
    other = ModelStore(store.folder, {}, [], store.catalog, embedded=embedded)
    waste = other.cleaning.waste([str(tmp_path / "own.gguf")])
    assert [one.path.name for one in waste] == [f"gone.{16 * 'a'}.gguf"]


def test_prune_leaves_pinned_asked_for_and_newer_versions(store: ModelStore, later: ModelStore) -> None:
    store.pull("a")
    old = short(store.catalog[0].sha256)
    later.pull("a")
    assert [one.path.name for one in later.cleaning.waste()] == ["a.gguf"]
    assert later.cleaning.waste(keep=[f"a@{old}"]) == ()
    later.versions.pin(later.catalog[0], old)
    assert later.cleaning.waste() == ()
    later.versions.unpin(later.catalog[0])
    # After a roll-back the way forward stays.
    later.versions.roll(later.catalog[0])
    assert later.cleaning.waste() == ()


def test_what_is_being_fetched_is_no_waste(store: ModelStore) -> None:
    store.folder.mkdir()
    (store.folder / "a.gguf.partial").write_bytes(b"1")
    (store.folder / "a@0123abcd.gguf.partial").write_bytes(b"1")
    with filelock.FileLock(store.folder / "a.gguf.lock"):
        assert store.cleaning.waste() == ()
    waste = store.cleaning.waste()
    assert len(waste) == 2
    # It is looked at again at the last moment.
    with filelock.FileLock(store.folder / "a.gguf.lock"):
        assert store.cleaning.remove(waste) == ()
    assert len(list(store.folder.glob("*.partial"))) == 2


def test_a_version_that_was_pinned_meanwhile_stays(store: ModelStore, later: ModelStore) -> None:
    store.pull("a")
    later.pull("a")
    waste = later.cleaning.waste()
    later.versions.pin(later.catalog[0], short(store.catalog[0].sha256))
    assert later.cleaning.remove(waste) == ()
    assert len(_here(later)) == 2


# Leases


def test_a_model_in_use_is_not_removed_by_anybody(store: ModelStore, later: ModelStore) -> None:
    path = store.pull("a")
    later.pull("a")
    waste = later.cleaning.waste()
    with store.in_use(path), store.in_use(path):
        assert later.cleaning.waste() == ()
        assert later.cleaning.remove(waste) == ()
        with pytest.raises(ModelError, match="being used"):
            store.remove("a")
    assert path.exists()
    assert list((store.folder / "leases").iterdir()) == []
    assert later.cleaning.remove(waste) == waste


def test_another_process_that_uses_a_model_protects_it_until_it_ends(
    store: ModelStore, using_process: Callable[[Path], subprocess.Popen[str]]
) -> None:
    path = store.pull("a")
    other = using_process(path)
    assert store.leases.is_held(path)
    with pytest.raises(ModelError, match="being used"):
        store.remove("a")
    other.kill()
    other.wait()
    # It had no time to clear its lease away; the lock on it ended all the same.
    (left,) = store.cleaning.waste()
    assert left.kind == "leftover"
    assert not store.leases.is_held(path)
    assert store.remove("a") == SIZE
    assert list((store.folder / "leases").iterdir()) == []


def test_a_lease_that_was_taken_for_dead_is_looked_at_again(store: ModelStore) -> None:
    path = store.pull("a")
    with store.in_use(path):
        (lease,) = (store.folder / "leases").iterdir()
        assert store.cleaning.remove([Waste("leftover", lease, 0, "it had but begun")]) == ()
        assert store.leases.is_held(path)


def test_a_use_is_noted_without_touching_the_model(store: ModelStore) -> None:
    path = store.pull("a")
    _used_at(store, "a", 1_000)
    before = path.stat().st_mtime_ns
    with store.in_use(path):
        pass
    assert store.leases.last_use(path) > 1_000
    assert path.stat().st_mtime_ns == before
    assert store.leases.last_use(store.folder / "none.gguf") == 0


def test_files_of_others_need_no_lease_and_get_no_traces(store: ModelStore, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"1")
    with store.in_use(own):
        pass
    assert not store.folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["own.gguf"]


def test_what_was_removed_meanwhile_cannot_be_used(store: ModelStore) -> None:
    path = store.pull("a")
    store.remove("a")
    with pytest.raises(ModelMissing), store.in_use(path):
        pass


def test_names_that_begin_alike_are_not_mixed_up(store: ModelStore) -> None:
    path = store.pull("a")
    longer = store.folder / "a.gguf.1-2.gguf"
    longer.write_bytes(b"1")
    with store.in_use(longer):
        assert not store.leases.is_held(path)
        assert store.leases.is_held(longer)


# The limit


def test_the_one_that_was_not_used_for_longest_makes_room(store: ModelStore) -> None:
    for moment, name in enumerate("bac"):
        store.pull(name)
        _used_at(store, name, 1_000 + moment)
    _used_at(store, "b", 5_000)
    store.limit_bytes = 3 * SIZE + _overhead(store) + 300
    store.pull("d")
    assert _here(store) == ["b.gguf", "c.gguf", "d.gguf"]
    assert not record_file(store.folder / "a.gguf").exists()
    assert store.cleaning.size() <= store.limit_bytes


def test_no_room_is_made_at_the_cost_of_what_is_wanted(store: ModelStore) -> None:
    for moment, name in enumerate("abc"):
        store.pull(name)
        _used_at(store, name, 1_000 + moment)
    store.configured = ("a",)
    store.versions.pin(store.catalog[1])
    store.limit_bytes = 3 * SIZE + _overhead(store) + 300
    with store.in_use(store.locate("c")):
        with pytest.raises(DiskFull, match=r"cacheLimitGb.*models remove"):
            store.pull("d")
        assert _here(store) == ["a.gguf", "b.gguf", "c.gguf"]
    store.pull("d")
    assert _here(store) == ["a.gguf", "b.gguf", "d.gguf"]


def test_copies_of_nothing_and_dead_parts_go_first(store: ModelStore) -> None:
    store.pull("a")
    (store.folder / "c.gguf.partial").write_bytes(bytes(SIZE // 2))
    (store.folder / UNPACKED).mkdir()
    (store.folder / UNPACKED / f"gone.{16 * 'a'}.gguf").write_bytes(bytes(SIZE // 2))
    store.limit_bytes = 2 * SIZE + _overhead(store) - SIZE + 300
    store.pull("b")
    assert _here(store) == ["a.gguf", "b.gguf"]
    assert not (store.folder / "c.gguf.partial").exists()


def test_a_copy_goes_with_its_model(store: ModelStore) -> None:
    store.pull("a")
    _used_at(store, "a", 1_000)
    (store.folder / UNPACKED).mkdir()
    copy = store.folder / UNPACKED / f"a.{16 * 'a'}.gguf"
    copy.write_bytes(bytes(SIZE))
    store.limit_bytes = 2 * SIZE
    store.pull("b")
    assert _here(store) == ["b.gguf"]
    assert not copy.exists()


def test_an_update_may_go_over_the_limit_while_it_is_fetched_and_not_after(
    store: ModelStore, later: ModelStore, source: Delivers
) -> None:
    store.pull("a")
    later.configured = ("a",)
    later.limit_bytes = SIZE + _overhead(store) + 500
    there: list[list[str]] = []
    source.before = lambda: there.append(_here(later))
    later.pull("a")
    assert there == [["a.gguf"]]
    assert _here(later) == [f"a@{short(later.catalog[0].sha256)}.gguf"]
    assert later.locate("a").read_bytes() == _data("A2")


def test_what_could_not_be_fetched_again_stays(store: ModelStore, tmp_path: Path) -> None:
    store.pull("a")
    own = store.folder / "own.gguf"
    own.write_bytes(bytes(SIZE))
    elsewhere = tmp_path / "b-elsewhere.gguf"
    elsewhere.write_bytes(_data("b"))
    (store.folder / "b.gguf").symlink_to(elsewhere)
    store.cleaning.trim(1, ())
    assert _here(store) == ["b.gguf", "own.gguf"]
    assert store.locate("b").read_bytes() == _data("b")


def test_what_is_fetched_in_part_counts_once(store: ModelStore) -> None:
    store.folder.mkdir()
    (store.folder / "a.gguf.partial").write_bytes(bytes(SIZE - 10))
    store.limit_bytes = SIZE + 400
    assert store.pull("a").exists()


def test_a_model_that_cannot_fit_is_refused_before_anything_goes(store: ModelStore, source: Delivers) -> None:
    store.pull("a")
    store.limit_bytes = SIZE // 2
    asked: list[bool] = []
    source.before = lambda: asked.append(True)
    with pytest.raises(DiskFull):
        store.pull("b")
    assert asked == []
    assert _here(store) == ["a.gguf"]
