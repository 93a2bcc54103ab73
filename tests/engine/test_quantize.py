"""Writing a model in another kind: real llama.cpp on the tiny model, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import psutil
import pytest

from nexo_lsp.engines.llama.errand import run
from nexo_lsp.engines.llama.process import ROOT
from nexo_lsp.engines.llama.quantize import (
    KINDS,
    Foreseen,
    default_threads,
    foresee,
    kind_of,
    require_room,
    write,
)
from nexo_lsp.errors import (
    DiskFull,
    EngineCrashed,
    ModelCorrupt,
    ModelQuantizeFailed,
    ModelWorkCancelled,
    UsageError,
)

from .tiny_gguf import write_tiny_model

WIDE = 256
# Says its process id, writes some of the target, and waits.
STUCK = """
import json, os, sys, threading
wish = json.loads(sys.stdin.readline())
open(wish["target"], "wb").write(b"GGUF" * 1000)
print(json.dumps({"pid": os.getpid()}), flush=True)
%s
threading.Event().wait()
"""


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256 weights, which is what the newer kinds need."""
    return write_tiny_model(tmp_path_factory.mktemp("wide") / "wide-f32.gguf", width=WIDE)


def foreseen(model: Path, name: str) -> Foreseen:
    (wanted,) = foresee(model, [kind_of(name)]).kinds
    return wanted


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kinds_in(path: Path) -> set[gguf.GGMLQuantizationType]:
    return {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}


def test_names_in_any_case_and_the_nearest_for_a_wrong_one() -> None:
    assert kind_of("Q4_K_M") is kind_of("q4-k-m") is kind_of("q4_k_m")
    with pytest.raises(UsageError, match="did you mean q4_k_s or q4_k_m"):
        kind_of("q4k")
    with pytest.raises(UsageError, match="there are: q2_k, q3_k_s"):
        kind_of("tiny")


def test_a_core_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, threads in ((1, 1), (2, 1), (8, 7)):
        monkeypatch.setattr("nexo_lsp.engines.llama.quantize.processors", lambda count=count: count)
        assert default_threads() == threads


def test_sizes_are_known_before_anything_is_written(wide_model: Path, tmp_path: Path) -> None:
    before = digest(wide_model)
    outlook = foresee(wide_model, KINDS)
    assert outlook.origin.size == wide_model.stat().st_size
    assert not outlook.origin.quantized
    assert {one.kind.name for one in outlook.kinds} == {kind.name for kind in KINDS}
    for name in ("q4_k_m", "f16"):
        wanted = next(one for one in outlook.kinds if one.kind.name == name)
        shares: list[float] = []
        target = tmp_path / f"{name}.gguf"
        write(wide_model, wanted, target, shares.append)
        assert target.stat().st_size == pytest.approx(wanted.size, rel=0.02)
        assert shares == sorted(shares)
        assert shares[-1] == 1
        again = foresee(target, [])
        assert again.origin.kind == name
        assert again.origin.quantized is (name != "f16")
    assert gguf.GGMLQuantizationType.Q4_K in kinds_in(tmp_path / "q4_k_m.gguf")
    assert digest(wide_model) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f16.gguf", "q4_k_m.gguf"]


def test_what_is_quantised_already_can_be_quantised_again(tmp_path: Path) -> None:
    packed = write_tiny_model(tmp_path / "packed.gguf", packed=True)
    outlook = foresee(packed, [kind_of("q4_0")])
    assert outlook.origin.quantized
    write(packed, outlook.kinds[0], tmp_path / "again.gguf")
    assert gguf.GGMLQuantizationType.Q4_0 in kinds_in(tmp_path / "again.gguf")


def test_kinds_that_come_to_the_same_are_seen(tiny_model: Path, wide_model: Path) -> None:
    """Rows of 64 have no place for blocks of 256: llama.cpp takes another kind for them."""
    for model, same in ((tiny_model, True), (wide_model, False)):
        small, large = foresee(model, [kind_of("q6_k"), kind_of("q8_0")]).kinds
        assert (small.layout == large.layout) is same


def test_no_model_and_half_a_model(tmp_path: Path, half_a_model: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"this is no model at all")
    for path in (junk, tmp_path / "none.gguf", half_a_model):
        with pytest.raises(ModelCorrupt, match=path.name):
            foresee(path, [kind_of("q4_0")])


def test_without_room_nothing_is_begun(tiny_model: Path, tmp_path: Path) -> None:
    wanted = foreseen(tiny_model, "q4_0")
    with pytest.raises(DiskFull, match="make room"):
        require_room(wanted, tmp_path / "not" / "there", lambda _path: wanted.size)
    require_room(wanted, tmp_path / "not" / "there", lambda _path: wanted.size + 10**9)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("full", [True, False])
def test_a_disk_that_fills_meanwhile(tiny_model: Path, tmp_path: Path, full: bool) -> None:
    """Writing fails for real after 40,000 bytes; what the disk says decides what is told."""
    limited = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); "
        "runpy.run_module('nexo_lsp.engines.llama.quantizing', run_name='__main__', alter_sys=True)"
    )
    target = tmp_path / "new.gguf"
    with pytest.raises(DiskFull if full else ModelQuantizeFailed, match="Nothing of it is left"):
        write(
            tiny_model,
            foreseen(tiny_model, "q8_0"),
            target,
            disk_free=lambda _path: 0 if full else 10**12,
            command=[sys.executable, "-c", limited],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelQuantizeFailed):
        write(
            tiny_model,
            foreseen(tiny_model, "q8_0"),
            tmp_path / "none" / "new.gguf",
            disk_free=lambda _: 1 << 40,
        )


def test_stopped_in_the_middle_it_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    cancel, target = threading.Event(), tmp_path / "new.gguf"

    def stop(share: float) -> None:
        # The first bytes are there.
        assert target.exists()
        if share > 0:
            cancel.set()

    command = [sys.executable, "-c", STUCK % ""]
    with pytest.raises(ModelWorkCancelled, match="nothing of it is left"):
        write(tiny_model, foreseen(tiny_model, "q4_0"), target, stop, cancel=cancel, command=command)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_killed_process_is_a_clear_error(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUCK % "os.kill(os.getpid(), 9)"]
    with pytest.raises(EngineCrashed, match="signal 9"):
        write(tiny_model, foreseen(tiny_model, "q4_0"), tmp_path / "new.gguf", command=command)
    assert list(tmp_path.iterdir()) == []


def test_what_ends_the_call_ends_the_process(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(said: object) -> None:
        assert isinstance(said, dict)
        pids.append(said["pid"])
        raise KeyboardInterrupt

    wish = {"target": str(tmp_path / "new.gguf")}
    with pytest.raises(KeyboardInterrupt):
        run("unused", wish, "Waiting", on_said=interrupt, command=[sys.executable, "-c", STUCK % ""])
    assert not psutil.pid_exists(pids[0])


def test_last_words_and_noise(tmp_path: Path) -> None:
    noisy = "import sys; print('ggml: hello'); print('[1]'); sys.stderr.write('oh no\\n'); sys.exit(3)"
    with pytest.raises(EngineCrashed, match="Waiting ended without a result: oh no"):
        run("unused", {}, "Waiting", command=[sys.executable, "-c", noisy])
    with pytest.raises(EngineCrashed, match="exit code 4"):
        run("unused", {}, "Waiting", command=[sys.executable, "-c", "raise SystemExit(4)"])
    with pytest.raises(EngineCrashed, match="could not be started"):
        run("unused", {}, "Waiting", command=[str(tmp_path / "none")])


def test_nothing_outlives_a_parent_that_is_gone(tmp_path: Path) -> None:
    """What is written goes too: the child tidies up after itself when its stdin closes."""
    code = (
        "import threading\nfrom pathlib import Path\nfrom nexo_lsp.engines.llama.errand import serve\n"
        "def work(wish, say):\n"
        "    global target\n"
        "    target = Path(wish['target']); target.write_text('half'); print('native noise', flush=True)\n"
        "    say({'begun': True}); threading.Event().wait()\n"
        "serve(work, lambda: target.unlink())\n"
    )
    target = tmp_path / "new.gguf"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f'{{"target": "{target.as_posix()}"}}\n'.encode())
    child.stdin.flush()
    # What the library prints to descriptor 1 does not reach the channel.
    assert child.stdout.readline() == b'{"begun": true}\n'
    assert target.exists()
    child.stdin.close()
    try:
        assert child.wait(timeout=60) == 1
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert not target.exists()
