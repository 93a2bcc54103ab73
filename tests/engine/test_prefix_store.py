"""Static prefixes on disk: what is written is read, and whatever is wrong with a file costs only the file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nexo_lsp.engines.llama.prefix_store import PrefixStore

LIMIT = 1_000_000
DAY = 86400.0
SCRIPT = """
import sys
from pathlib import Path
from nexo_lsp.engines.llama.prefix_store import PrefixStore

store = PrefixStore(Path(sys.argv[1]), "key", 40_000)
for turn in range(60):
    which = turn % 5
    state = bytes([which]) * 10_000
    store.write((1, which), state)  # Windows refuses while another process reads the file.
    read = store.read((1, which))
    assert read is None or read == state
    for tokens in store.load():
        assert store.read(tokens) in (None, bytes([tokens[1]]) * 10_000)
"""


class Clock:
    """Seconds since the epoch, a second later at each look."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        self.now += 1
        return self.now


def store(folder: Path, key: str = "key", limit: int = LIMIT, clock: Clock | None = None) -> PrefixStore:
    return PrefixStore(folder, key, limit, clock or Clock())


def only_file(folder: Path) -> Path:
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    one = store(tmp_path)
    assert one.load() == []
    assert one.write([1, 2, 3], b"state")
    assert one.write([1, 2], b"other")
    assert one.write([1, 2], b"newer")
    again = store(tmp_path)
    assert sorted(again.load()) == [(1, 2), (1, 2, 3)]
    assert again.read([1, 2, 3]) == b"state"
    assert again.read((1, 2)) == b"newer"
    assert again.read([1]) is None


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    store(tmp_path / "new").write([1], b"state")
    if os.name == "posix":
        path = only_file(tmp_path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_another_model_or_build_reads_nothing_of_it(tmp_path: Path) -> None:
    store(tmp_path, "one").write([1, 2], b"state")
    other = store(tmp_path, "two")
    assert other.load() == []
    assert other.read([1, 2]) is None
    other.write([3], b"mine")
    foreign = next(path for path in tmp_path.rglob("*.prefix") if b"state" in path.read_bytes())
    mine = next(path for path in tmp_path.rglob("*.prefix") if b"mine" in path.read_bytes())
    moved = foreign.replace(mine.parent / foreign.name)
    assert other.read([1, 2]) is None
    assert not moved.exists()


@pytest.mark.parametrize("cut", [0, 10, 60, 63, 66, 70])
def test_a_file_that_was_cut_is_removed(tmp_path: Path, cut: int) -> None:
    store(tmp_path).write([1, 2], b"state" * 4)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    assert store(tmp_path).load() == []
    assert not path.exists()
    path.write_bytes(b"")
    assert store(tmp_path).read([1, 2]) is None
    assert not path.exists()


@pytest.mark.parametrize("at", [0, 20, 33, 45, 50, 54, 60, 70])
def test_a_damaged_file_is_removed_when_it_is_read_at_the_latest(tmp_path: Path, at: int) -> None:
    store(tmp_path).write([1, 2], b"state" * 4)
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)
    damaged = store(tmp_path)
    assert [tokens for tokens in damaged.load() if tokens != (1, 2)] == []
    assert damaged.read([1, 2]) is None
    assert not path.exists()
    assert damaged.write([1, 2], b"state")
    assert damaged.read([1, 2]) == b"state"


def test_a_file_under_another_ones_name_is_removed(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.write([1], b"one")
    path = only_file(tmp_path)
    path.rename(path.with_name("0" * 32 + ".prefix"))
    assert one.load() == []
    assert list(path.parent.iterdir()) == []


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    clock = Clock()
    one = store(tmp_path, limit=3500, clock=clock)
    for token in range(3):
        assert one.write([token], bytes(1000))
    assert one.read([0]) == bytes(1000)
    assert one.write([3], bytes(1000))
    assert sorted(one.load()) == [(0,), (2,), (3,)]
    assert one.load()[-1] == (2,), "the last used come first"
    assert not one.write([4], bytes(3500)), "more than the limit"
    assert len(one.load()) == 3, "and nothing was removed for it"


def test_what_was_not_used_for_a_month_goes_with_its_folder(tmp_path: Path) -> None:
    clock = Clock()
    store(tmp_path, "old model", clock=clock).write([1], b"old")
    store(tmp_path, "used model", clock=clock).write([1], b"used")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("none of ours")
    (tmp_path / "file").write_text("none of ours")
    clock.now += 20 * DAY
    assert store(tmp_path, "used model", clock=clock).load() == [(1,)]
    clock.now += 20 * DAY
    assert store(tmp_path, "new model", clock=clock).load() == []
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left[-2:] == ["file", "file"]
    assert len(left) == 3
    assert store(tmp_path, "used model", clock=clock).load() == [(1,)]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_with_something_of_the_users_in_it_stays(tmp_path: Path) -> None:
    clock = Clock()
    store(tmp_path, "old model", clock=clock).write([1], b"old")
    note = only_file(tmp_path).with_name("note")
    note.write_text("keep")
    clock.now += 40 * DAY
    store(tmp_path, clock=clock).load()
    assert only_file(tmp_path) == note


def test_a_file_that_nobody_will_finish_is_removed(tmp_path: Path) -> None:
    clock = Clock()
    one = store(tmp_path, clock=clock)
    one.write([1], b"state")
    half = only_file(tmp_path).with_name("half.tmp")
    half.write_bytes(b"ha")
    one.load()
    assert half.exists(), "another process may be writing it"
    clock.now += 2 * 3600
    assert one.load() == [(1,)]
    assert not half.exists()


def test_a_folder_that_cannot_be_written_is_mentioned_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    one = store(tmp_path / "file")
    assert one.load() == []
    assert not one.write([1], b"state")
    assert not one.write([2], b"state")
    assert one.read([1]) is None
    assert capsys.readouterr().err.count("\n") == 1


def test_a_disk_that_is_full_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_source: object, _target: object) -> None:
        raise OSError(28, "No space left on device")

    one = store(tmp_path)
    one.write([1], b"state")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        assert not one.write([2], b"state")
        assert not one.write([3], b"state")
    assert "No space left" in capsys.readouterr().err
    assert store(tmp_path).load() == [(1,)]
    assert only_file(tmp_path).suffix == ".prefix"
    assert one.write([2], b"state"), "it may have room again"


def test_several_processes_use_one_folder(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors
    left = store(tmp_path)
    assert left.load()
    for tokens in left.load():
        assert left.read(tokens) == bytes([tokens[1]]) * 10_000
    assert not list(tmp_path.rglob("*.tmp"))
