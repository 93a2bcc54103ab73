"""Several versions of one model: which is used, what the user may choose, and what a crash leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nexo_lsp.errors import ModelCorrupt, ModelError, ModelMissing
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.record import record_file
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import Report, append
from nexo_lsp.models.versions import CHOICES_FILE, Choice, short, split_version

MakeEntry = Callable[..., CatalogEntry]
ROOT = Path(__file__).parents[3]

OLD, NEW, NEWEST = b"old weights" * 50, b"new weights!" * 50, b"the newest weights" * 50


class Delivers:
    """Has every version that it was given."""

    name = "delivers"

    def __init__(self, *data: bytes) -> None:
        self._data = {len(one): one for one in data}

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        target.unlink(missing_ok=True)
        append(target, [self._data[entry.size]], entry.size, progress, cancel)


@pytest.fixture
def store_of(tmp_path: Path, make_entry: MakeEntry) -> Callable[[bytes], ModelStore]:
    """The store of a program whose catalogue has that version."""

    def make(data: bytes) -> ModelStore:
        return ModelStore(tmp_path / "models", {}, [Delivers(OLD, NEW, NEWEST)], (make_entry(data),))

    return make


StoreOf = Callable[[bytes], ModelStore]


def _entry(store: ModelStore) -> CatalogEntry:
    return store.catalog[0]


def _in_use(store: ModelStore) -> bytes:
    return store.locate("tiny-coder").read_bytes()


def test_names_carry_versions() -> None:
    assert split_version("tiny-coder") == ("tiny-coder", "")
    assert split_version("tiny-coder@0123abcd") == ("tiny-coder", "0123abcd")
    assert split_version("tiny-coder@0123abcd.gguf") == ("tiny-coder.gguf", "0123abcd")
    assert split_version("me@home.gguf") == ("me@home.gguf", "")


def test_an_older_version_is_used_until_the_new_one_is_here_and_kept_afterwards(store_of: StoreOf) -> None:
    old_path = store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    assert store.locate("tiny-coder") == old_path
    (only,) = store.installed()
    assert (only.verified, only.problem, only.version) == (True, "", "")
    new_path = store.pull("tiny-coder")
    assert new_path.name == f"tiny-coder@{short(_entry(store).sha256)}.gguf"
    assert store.locate("tiny-coder") == new_path
    assert (old_path.read_bytes(), new_path.read_bytes()) == (OLD, NEW)
    names = {model.name for model in store.installed()}
    assert names == {"tiny-coder", f"tiny-coder@{short(_entry(store_of(OLD)).sha256)}"}


def test_a_program_that_knows_only_the_old_version_still_finds_it(store_of: StoreOf) -> None:
    store_of(OLD).pull("tiny-coder")
    store_of(NEW).pull("tiny-coder")
    assert _in_use(store_of(OLD)) == OLD
    assert _in_use(store_of(NEW)) == NEW


def test_rolling_back_and_forward_again(store_of: StoreOf) -> None:
    for data in (OLD, NEW, NEWEST):
        store_of(data).pull("tiny-coder")
    store = store_of(NEWEST)
    entry = _entry(store)
    seen = []
    for forward in (False, False, True, True):
        version = store.versions.roll(entry, forward=forward)
        assert version.path.read_bytes() == _in_use(store)
        seen.append(_in_use(store))
    assert seen == [NEW, OLD, NEW, NEWEST]
    # Back at the catalogue's version nothing is chosen any more, so the next one comes by itself.
    assert store.versions.choices() == {}
    with pytest.raises(ModelMissing, match="came after"):
        store.versions.roll(entry, forward=True)
    store.versions.roll(entry)
    store.versions.roll(entry)
    with pytest.raises(ModelMissing, match="came before"):
        store.versions.roll(entry)
    assert _in_use(store) == OLD


def test_what_was_rolled_back_stays_through_a_pull(store_of: StoreOf) -> None:
    store_of(OLD).pull("tiny-coder")
    store_of(NEW).pull("tiny-coder")
    store_of(NEW).versions.roll(_entry(store_of(NEW)))
    assert store_of(NEW).pull("tiny-coder").read_bytes() == OLD
    assert store_of(NEWEST).pull("tiny-coder").read_bytes() == OLD


def test_a_pin_holds_against_the_catalogue_and_is_let_go(store_of: StoreOf) -> None:
    store_of(OLD).pull("tiny-coder")
    store = store_of(OLD)
    pinned = store.versions.pin(_entry(store))
    store_of(NEW).pull("tiny-coder", force=True)
    assert _in_use(store_of(NEW)) == OLD
    assert store_of(NEW).versions.choice("tiny-coder") == Choice(pinned.id, pinned=True)
    # Rolling forward moves the pin along.
    store_of(NEW).versions.roll(_entry(store_of(NEW)), forward=True)
    assert store_of(NEW).versions.choice("tiny-coder").pinned
    assert _in_use(store_of(NEW)) == NEW
    store_of(NEW).versions.pin(_entry(store_of(NEW)), pinned.id)
    assert _in_use(store_of(NEW)) == OLD
    after = store_of(NEW).versions.unpin(_entry(store_of(NEW)))
    assert after is not None
    assert after.path.read_bytes() == NEW


def test_only_what_is_here_can_be_chosen(store_of: StoreOf) -> None:
    store = store_of(OLD)
    with pytest.raises(ModelMissing, match="not on this machine"):
        store.versions.pin(_entry(store))
    store.pull("tiny-coder")
    with pytest.raises(ModelMissing, match=r"0123abcd.*versions here"):
        store.versions.pin(_entry(store), "0123abcd")
    assert store.versions.choices() == {}


def test_a_version_can_be_named(store_of: StoreOf) -> None:
    old = short(_entry(store_of(OLD)).sha256)
    store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    store.pull("tiny-coder")
    assert store.locate(f"tiny-coder@{old}").read_bytes() == OLD
    assert store.pull(f"tiny-coder@{old}").read_bytes() == OLD
    assert store.entry_for(f"tiny-coder@{old}") is _entry(store)
    assert store.entry_for(str(store.locate("tiny-coder"))) is _entry(store)
    assert store.verify(f"tiny-coder@{old}").ok
    with pytest.raises(ModelMissing, match="version 00000000"):
        store.locate("tiny-coder@00000000")
    assert store.remove(f"tiny-coder@{old}") == len(OLD)
    assert _in_use(store) == NEW


def test_a_version_that_is_not_here_is_not_replaced_by_another(store_of: StoreOf) -> None:
    old, new = (short(_entry(store_of(data)).sha256) for data in (OLD, NEW))
    store = store_of(NEW)
    for name in (f"tiny-coder@{old}", f"tiny-coder@{old}.gguf"):
        assert store.fetched_as(name) is None
        with pytest.raises(ModelMissing, match=f"only {new} can be fetched"):
            store.pull(name)
    assert store.versions.of(_entry(store)) == ()
    assert store.fetched_as(f"tiny-coder@{new}") is store.fetched_as("tiny-coder") is _entry(store)
    assert store.pull(f"tiny-coder@{new}").read_bytes() == NEW


def test_an_old_version_that_is_damaged_can_be_removed(store_of: StoreOf) -> None:
    first, second = store_of(OLD), store_of(NEW)
    first.pull("tiny-coder")
    path = second.pull("tiny-coder")
    name, newest = f"tiny-coder@{short(_entry(second).sha256)}", store_of(NEWEST)
    newest.pull("tiny-coder")
    path.write_bytes(NEW[::-1])
    verdict = newest.verify(name)
    assert (verdict.ok, verdict.name, verdict.published) == (False, name, False)
    assert newest.remove(name) == len(NEW)
    assert not path.exists()
    assert _in_use(newest) == NEWEST


def test_a_damaged_old_version_is_found_and_never_used(store_of: StoreOf) -> None:
    path = store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    stat = path.stat()
    path.write_bytes(OLD[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    verdict = store.verify("tiny-coder")
    assert not verdict.ok
    with pytest.raises(ModelCorrupt):
        store.locate("tiny-coder")
    assert store.pull("tiny-coder").read_bytes() == NEW


def test_a_damaged_new_version_is_fetched_again_beside_the_old_one(store_of: StoreOf) -> None:
    old_path = store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    path = store.pull("tiny-coder")
    path.write_bytes(b"short")
    with pytest.raises(ModelCorrupt):
        store.locate("tiny-coder")
    # Until it is mended the user can still work with the one before.
    store.versions.choose(_entry(store), short(_entry(store_of(OLD)).sha256))
    assert store.locate("tiny-coder") == old_path
    store.versions.choose(_entry(store), "")
    assert store.pull("tiny-coder") == path
    assert _in_use(store) == NEW


def test_a_choice_that_is_gone_is_said_and_passed_over(
    store_of: StoreOf, caplog: pytest.LogCaptureFixture
) -> None:
    store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    store.pull("tiny-coder")
    old = store.versions.pin(_entry(store), short(_entry(store_of(OLD)).sha256))
    old.path.unlink()
    assert _in_use(store) == NEW
    assert "was chosen and is not here" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"tiny-coder": 1}', '{"tiny-coder": {"version": 5}}', "\xff"]
)
def test_a_choices_file_that_says_nothing_is_no_obstacle(store_of: StoreOf, text: str) -> None:
    store_of(OLD).pull("tiny-coder")
    store = store_of(OLD)
    (store.folder / CHOICES_FILE).write_bytes(text.encode("latin-1"))
    assert _in_use(store) == OLD
    store.versions.pin(_entry(store))
    assert json.loads((store.folder / CHOICES_FILE).read_text())["tiny-coder"]["pinned"] is True


def test_versions_are_known_without_their_records(store_of: StoreOf) -> None:
    """Somebody copied the folder, and left out what is no model."""
    store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    path = store.pull("tiny-coder")
    record_file(path).unlink()
    assert store.locate("tiny-coder") == path
    assert store.verify("tiny-coder").ok
    # Renamed by hand to what the name promises, the old one is a version too.
    old = short(_entry(store_of(OLD)).sha256)
    by_hand = store.folder / f"tiny-coder@{old}.gguf"
    (store.folder / "tiny-coder.gguf").rename(by_hand)
    assert store.locate(f"tiny-coder@{old}") == by_hand
    assert store.verify(f"tiny-coder@{old}").ok
    by_hand.write_bytes(b"something else")
    assert not store.verify(f"tiny-coder@{old}").ok


def test_a_model_that_an_older_program_fetched_is_kept_too(store_of: StoreOf) -> None:
    """Its records did not say whether the digest was a published one."""
    path = store_of(OLD).pull("tiny-coder")
    record = json.loads(record_file(path).read_text())
    del record["published"], record["added_ns"]
    record_file(path).write_text(json.dumps(record))
    # Used once by this program, it is known to be right from then on.
    (version,) = store_of(OLD).versions.of(_entry(store_of(OLD)))
    assert version.added_ns == path.stat().st_mtime_ns
    store = store_of(NEW)
    assert store.locate("tiny-coder") == path
    assert store.pull("tiny-coder").read_bytes() == NEW
    assert path.read_bytes() == OLD


def test_removing_a_model_removes_all_its_versions_and_the_choice(store_of: StoreOf) -> None:
    store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    store.pull("tiny-coder")
    store.versions.roll(_entry(store))
    assert store.remove("tiny-coder") == len(OLD) + len(NEW)
    assert list(store.folder.glob("*.gguf*")) == [store.folder / "tiny-coder.gguf.lock"]
    assert store.versions.choices() == {}


def test_a_version_from_elsewhere_than_the_catalogue_can_be_had_and_chosen(
    store_of: StoreOf, make_entry: MakeEntry
) -> None:
    store = store_of(OLD)
    store.pull("tiny-coder")
    other = dataclasses.replace(make_entry(NEWEST), description="announced by the Hub")
    assert store.have(other).read_bytes() == NEWEST
    assert _in_use(store) == OLD
    store.versions.choose(_entry(store), short(other.sha256))
    assert _in_use(store) == NEWEST


def test_nothing_can_be_chosen_where_nothing_can_be_written(store_of: StoreOf, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "file" / "models", {}, [], store_of(OLD).catalog)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ModelError, match="cannot be written"):
        store.versions.choose(_entry(store), "")


_KILLED = """
import os, signal, sys
from pathlib import Path
import nexo_lsp.models.record as record

at = int(sys.argv[2])
seen = 0

def trace(frame, event, arg):
    global seen
    if event == "line" and frame.f_code.co_filename.endswith(("record.py", "versions.py")):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace

from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.versions import Versions
entry = CatalogEntry(name="tiny-coder", file="tiny-coder.gguf", size=int(sys.argv[3]), sha256=sys.argv[4],
    hub_repo="", hub_file="", mirror=(), urls=(), license="", description="", context_tokens=1)
sys.settrace(trace)
Versions(Path(sys.argv[1])).roll(entry)
sys.settrace(None)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("at", [1, 60, 120, 150, 170, 180, 190, 200, 210, 10_000])
def test_a_process_killed_at_any_moment_of_a_rollback_leaves_one_of_the_two(
    store_of: StoreOf, at: int
) -> None:
    store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    store.pull("tiny-coder")
    entry = _entry(store)
    arguments = [str(store.folder), str(at), str(entry.size), entry.sha256]
    code = subprocess.run(
        [sys.executable, "-c", _KILLED, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    ).returncode
    assert code == (0 if at == 10_000 else -9)
    found = _in_use(store)
    assert found in {OLD, NEW}
    if at == 10_000:
        assert found == OLD
    # Whatever was left is no obstacle: the other one can be had at once.
    store.versions.roll(entry, forward=found == OLD)
    assert _in_use(store) == (NEW if found == OLD else OLD)
