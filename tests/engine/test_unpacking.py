"""The copy of a model with its weights in whole bytes: the same model, or none at all."""

from __future__ import annotations

import os
import platform
import shutil
from collections import namedtuple
from pathlib import Path

import filelock
import gguf
import numpy as np
import pytest

from nexo_lsp.engines.llama.budget import MIB
from nexo_lsp.engines.llama.free_memory import Free
from nexo_lsp.engines.llama.loading import LoadedModel, LoadError, Machine, load, outlook
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.native import Decoded, Library, Slice
from nexo_lsp.engines.llama.unpacking import CannotUnpack, Copy, copy_of, in_whole_bytes, unpack

from .tiny_gguf import write_tiny_model

Q5, Q8 = gguf.GGMLQuantizationType.Q5_0, gguf.GGMLQuantizationType.Q8_0
TEXT = "def area(width, height):\n    return width * height\n"
Usage = namedtuple("Usage", ("total", "used", "free"))


@pytest.fixture(autouse=True)
def measured_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("packed") / "packed.gguf", packed=True)


def on_with(free: int = 10**11) -> Machine:
    return Machine(lambda: Free(free, f"{free} bytes are free"), lambda: 50 * MIB, lambda: ())


def place_of(library: Library, model: Path, folder: Path) -> Copy:
    copy = copy_of(library, model, folder)
    assert copy is not None
    return copy


def copied(library: Library, model: Path, folder: Path) -> Path:
    copy = place_of(library, model, folder)
    unpack(library, copy, lambda _progress: True)
    return copy.path


def logits(loaded: LoadedModel) -> list[np.ndarray]:
    """What follows a prompt, a single token behind it, and several verified at once."""
    tokens = loaded.model.tokenize(TEXT, special=False)
    rows: list[np.ndarray] = []
    for start, stop, wanted in ((0, 40, 1), (40, 41, 1), (41, 47, 6)):
        assert loaded.context.evaluate([Slice(0, start, tokens[start:stop], wanted)]) is Decoded.DONE
        rows += [loaded.context.logits(stop - start - wanted + row).copy() for row in range(wanted)]
    loaded.close()
    return rows


def test_every_weight_stays_what_it_is() -> None:
    values = np.random.default_rng(5).standard_normal((64, 96)).astype(np.float32)
    # The largest and the smallest number that five bits hold, and a block of nothing.
    values[0, :32] = np.linspace(-1, 1, 32)
    values[1, :32] = 0
    before = gguf.quants.quantize(values, Q5)
    after = in_whole_bytes(before.reshape(-1)).reshape(64, -1)
    assert np.array_equal(gguf.quants.dequantize(before, Q5), gguf.quants.dequantize(after, Q8))


def test_the_copy_says_the_same_to_the_last_bit(library: Library, packed: Path, tmp_path: Path) -> None:
    wish = Load(str(packed), 512, threads=1)
    before = load(library, wish, lambda _progress: True, on_with())
    after = load(library, _in(wish, tmp_path), lambda _progress: True, on_with())
    assert after.path == place_of(library, packed, tmp_path).path != before.path
    assert after.info.weights.startswith("kept in whole bytes")
    assert before.info.weights == ""
    for one, other in zip(logits(before), logits(after), strict=True):
        assert np.array_equal(one, other)


def test_only_what_pays_is_unpacked(library: Library, packed: Path, tmp_path: Path) -> None:
    foreseen = place_of(library, packed, tmp_path)
    copy = copied(library, packed, tmp_path)
    assert copy.stat().st_size == foreseen.size
    before, after = gguf.GGUFReader(packed), gguf.GGUFReader(copy)
    kinds = {tensor.name: tensor.tensor_type for tensor in after.tensors}
    assert kinds["token_embd.weight"] == Q5
    assert kinds["blk.1.ffn_down.weight"] == Q8
    assert [field for field in before.fields if not field.startswith("GGUF.")] == [
        field for field in after.fields if not field.startswith("GGUF.")
    ]


def test_a_model_without_such_weights_needs_no_copy(
    library: Library, tiny_model: Path, tmp_path: Path
) -> None:
    assert copy_of(library, tiny_model, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_where_nobody_has_measured_it_there_is_no_copy(
    library: Library, packed: Path, tmp_path: Path
) -> None:
    assert copy_of(library, packed, tmp_path, machine="x86_64") is not None
    assert copy_of(library, packed, tmp_path, machine="arm64") is None


def test_a_part_of_a_model_gets_no_copy(library: Library, packed: Path, tmp_path: Path) -> None:
    part = shutil.copyfile(packed, tmp_path / "m-00001-of-00003.gguf")
    assert copy_of(library, part, tmp_path) is None


def test_a_file_that_was_mended_gets_a_copy_of_its_own(
    library: Library, packed: Path, tmp_path: Path
) -> None:
    model = shutil.copyfile(packed, tmp_path / "m.gguf")
    before = place_of(library, model, tmp_path).path
    os.utime(model, (1e9, 1e9))
    assert place_of(library, model, tmp_path).path != before


def test_it_is_made_once(library: Library, packed: Path, tmp_path: Path) -> None:
    first = place_of(library, packed, tmp_path)
    copied(library, packed, tmp_path)
    told: list[float] = []
    # Found when it was looked for, or made by another process since.
    for copy in (place_of(library, packed, tmp_path), first):
        unpack(library, copy, lambda progress: not told.append(progress))
    assert told == []


def test_another_file_of_that_name_gets_another_copy(library: Library, packed: Path, tmp_path: Path) -> None:
    first = copied(library, packed, tmp_path)
    (tmp_path / "other").mkdir()
    other = write_tiny_model(tmp_path / "other" / packed.name, seed=7, packed=True)
    assert copied(library, other, tmp_path) != first


def test_stopped_in_the_middle_it_leaves_nothing(library: Library, packed: Path, tmp_path: Path) -> None:
    copy = place_of(library, packed, tmp_path)
    with pytest.raises(CannotUnpack, match="stopped"):
        unpack(library, copy, lambda progress: progress < 0.5)
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("trouble", ["full", "locked", "folder", "write"])
def test_without_a_copy_the_model_is_loaded_as_it_is(
    library: Library, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    folder = tmp_path / "copies"
    lock = filelock.FileLock(folder / ".lock")
    match trouble:
        case "full":
            monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 10**12, 10**9))
            why = "the disk has little more left"
        case "locked":
            folder.mkdir()
            lock.acquire()
            why = "another process"
        case "folder":
            folder.write_text("no folder")
            why = "the copy could not be kept"
        case _:
            monkeypatch.setattr(os, "fsync", _no_space)
            why = "No space left"
    made = load(library, _in(Load(str(packed), 512, threads=1), folder), lambda _progress: True, on_with())
    lock.release()
    assert made.path == packed
    assert made.info.weights.startswith("kept as in the file, not in whole bytes: ")
    assert why in made.info.weights
    assert len(logits(made)) == 8
    if folder.is_dir():
        assert not [path for path in folder.iterdir() if path.name != ".lock"]


def _no_space(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_memory_decides_first(library: Library, packed: Path, tmp_path: Path) -> None:
    wish = _in(Load(str(packed), 512, threads=1), tmp_path)
    made = load(library, wish, lambda _progress: True, on_with(400 * MIB))
    made.close()
    assert made.path == packed
    assert made.info.weights.endswith("there is too little memory")
    assert outlook(library, wish, on_with(400 * MIB)).weights == made.info.weights
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_the_disk_has_lost_is_thrown_away(library: Library, packed: Path, tmp_path: Path) -> None:
    copy = copied(library, packed, tmp_path)
    copy.write_bytes(copy.read_bytes()[:4000])
    wish = _in(Load(str(packed), 512, threads=1), tmp_path)
    made = load(library, wish, lambda _progress: True, on_with())
    made.close()
    assert made.path == packed
    assert "the copy was damaged" in made.info.weights
    assert not copy.exists()
    again = load(library, wish, lambda _progress: True, on_with())
    again.close()
    assert again.path == copy


def test_half_a_model_is_damaged_and_nothing_else(library: Library, packed: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    half.write_bytes(packed.read_bytes()[: packed.stat().st_size * 2 // 3])
    wish = _in(Load(str(half), 512, threads=1), tmp_path / "copies")
    with pytest.raises(LoadError, match="damaged, cut off"):
        load(library, wish, lambda _progress: True, on_with())
    assert not list((tmp_path / "copies").glob("half*"))


def test_what_the_doctor_foresees_is_what_happens(library: Library, packed: Path, tmp_path: Path) -> None:
    wish = _in(Load(str(packed), 512, threads=1), tmp_path)
    foreseen = outlook(library, wish, on_with())
    made = load(library, wish, lambda _progress: True, on_with())
    made.close()
    assert foreseen.weights == made.info.weights != ""
    assert foreseen.plan.context_tokens == made.plan.context_tokens


def test_copies_that_nobody_uses_go(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [write_tiny_model(tmp_path / f"m{seed}.gguf", seed=seed, packed=True) for seed in range(3)]
    folder = tmp_path / "copies"
    first, second = (copied(library, model, folder) for model in models[:2])
    for age, copy in ((50, first), (100, second)):
        os.utime(copy, (1e9 - age, 1e9 - age))
    third = copied(library, models[2], folder)
    assert {path.name for path in folder.glob("*.gguf")} == {first.name, third.name}
    assert not place_of(library, models[1], folder).there
    assert place_of(library, models[1], folder).path == second


def _in(wish: Load, folder: Path) -> Load:
    return Load(wish.path, wish.context_tokens, threads=wish.threads, unpack_folder=str(folder))
