"""Which file is chosen and why, what is left on the disk, and one run of each kind with the real thing."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from nexo_lsp.engines.llama import compress as module
from nexo_lsp.engines.llama.compress import (
    Bounds,
    Compressed,
    Rules,
    Tried,
    Verdict,
    Workshop,
    percent,
)
from nexo_lsp.engines.llama.perplexity import Perplexity
from nexo_lsp.engines.llama.quantize import Foreseen, Kind, Origin, Outlook, kind_of
from nexo_lsp.errors import (
    DiskFull,
    EngineLoadFailed,
    ModelBroken,
    ModelError,
    ModelQuantizeFailed,
    ModelWorkCancelled,
    UsageError,
)

from .tiny_gguf import write_tiny_model

TOKENS = 400
Q4, Q8 = kind_of("q4_0"), kind_of("q8_0")


def reading(value: float, noise: float) -> Perplexity:
    """A perplexity of `value`, of losses that spread by `noise`; files of one model mostly have the same."""
    mean = math.log(value)
    return Perplexity(tuple(mean + noise * (-1) ** i for i in range(TOKENS)), 50, 20, 10**8)


class Bench:
    """The workshop with llama.cpp's part played: sizes and perplexities are what a test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.model = folder / "m-q8_0.gguf"
        self.model.write_bytes(b"x" * 1000)
        self.sizes = {"q2_k": 200, "q4_0": 400, "q4_k_m": 500, "q5_0": 600, "q8_0": 1000, "f16": 2000}
        self.layouts: dict[str, str] = {}
        self.values: dict[str, float | Exception] = {"m-q8_0.gguf": 10, "q4_0": 10.2}
        self.noise: dict[str, float] = {}
        self.written: list[str] = []
        self.told: list[str] = []
        self.on_tell: Callable[[str, float], None] = lambda _doing, _share: None
        self.cancel = threading.Event()
        monkeypatch.setattr(module, "foresee", self._foresee)
        monkeypatch.setattr(module, "write", self._write)
        monkeypatch.setattr(module, "perplexity", self._perplexity)

    def workshop(self, **rules: Any) -> Workshop:
        rules = {"disk_free": lambda _path: 10**12, **rules}
        return Workshop(self.model, Rules(**rules), self._tell, self.cancel)

    def target(self, kind: Kind) -> Path:
        return self.folder / f"m-{kind.name}.gguf"

    def compress(self, max_loss: float, max_size: int | None = None, **rules: Any) -> Compressed:
        return self.workshop(**rules).compress(self.target, Bounds(max_loss, max_size))

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def _tell(self, doing: str, share: float) -> None:
        self.told.append(doing)
        self.on_tell(doing, share)

    def _foresee(self, model: Path, kinds: list[Kind], _cancel: object) -> Outlook:
        rows = [
            Foreseen(kind, self.sizes[kind.name], self.layouts.get(kind.name, kind.name))
            for kind in kinds
            if kind.name in self.sizes
        ]
        return Outlook(Origin(model, model.stat().st_size, "q8_0", True), tuple(rows))

    def _write(self, _model: Path, wanted: Foreseen, target: Path, on_progress: Any, **_: Any) -> None:
        self.written.append(wanted.kind.name)
        target.write_bytes(b"y" * wanted.size)
        on_progress(1.0)

    def _perplexity(self, model: Path, _on_progress: Any, *, on_losses: Any, **_: Any) -> Perplexity:
        name = next((word for word in self.sizes if model.name.startswith(f"m-{word}.gguf.")), model.name)
        value = self.values[name]
        if isinstance(value, Exception):
            raise value
        found = reading(value, self.noise.get(name, 0.3))
        on_losses(found.losses[: TOKENS // 4])
        on_losses(found.losses)
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def verdicts(found: Compressed) -> dict[str, Verdict]:
    return {row.kind.name: row.verdict for row in found.tried}


def row(found: Compressed, name: str) -> Tried:
    return next(row for row in found.tried if row.kind.name == name)


def test_the_smallest_that_is_good_enough_is_chosen(bench: Bench) -> None:
    bench.values |= {"q2_k": 13}
    found = bench.compress(0.05)
    assert verdicts(found) == {
        "q2_k": Verdict.LOSES,
        "q4_0": Verdict.CHOSEN,
        "q4_k_m": Verdict.UNTRIED,
        "q5_0": Verdict.UNTRIED,
        "q8_0": Verdict.NO_SMALLER,
        "f16": Verdict.NO_SMALLER,
    }
    assert found.made is not None
    assert found.made.path == bench.folder / "m-q4_0.gguf"
    assert found.made.size == 400
    assert found.made.loss is not None
    assert found.made.loss.share == pytest.approx(0.02)
    assert bench.files == ["m-q4_0.gguf", "m-q8_0.gguf"]
    assert bench.model.read_bytes() == b"x" * 1000
    assert "writing q2_k" in bench.told


def test_what_is_hopeless_is_not_read_to_its_end(bench: Bench) -> None:
    bench.values |= {"q2_k": 13}
    hopeless = row(bench.compress(0.05), "q2_k")
    assert hopeless.after is None
    assert hopeless.reason == "loses more than 5 %, seen after 100 tokens"


def test_what_is_a_little_too_much_is_read_to_its_end(bench: Bench) -> None:
    bench.values |= {"q2_k": 10.51}
    bench.noise["q2_k"] = 0.31
    close = row(bench.compress(0.05), "q2_k")
    assert close.verdict is Verdict.LOSES
    assert close.after is not None
    assert close.reason == "loses more than 5 %"


def test_sizes_are_looked_at_before_anything_is_written(bench: Bench) -> None:
    bench.values |= {"q2_k": 13}
    bench.layouts = {"q4_0": "same", "q2_k": "same"}
    found = bench.compress(0.05, max_size=450)
    assert bench.written == ["q2_k"]
    assert verdicts(found)["q4_0"] is Verdict.SAME
    assert row(found, "q4_0").reason.endswith("the same as q2_k")
    assert verdicts(found)["q4_k_m"] is Verdict.TOO_LARGE
    assert found.made is None
    assert bench.files == ["m-q8_0.gguf"]


def test_a_broken_kind_is_a_row_and_the_next_is_tried(bench: Bench) -> None:
    bench.values |= {"q2_k": ModelBroken("no numbers")}
    found = bench.compress(0.05)
    assert verdicts(found)["q2_k"] is Verdict.BROKEN
    assert found.made is not None
    assert found.made.kind is Q4


def test_a_full_disk_ends_it(bench: Bench) -> None:
    with pytest.raises(DiskFull):
        bench.compress(0.05, disk_free=lambda _path: 10)
    assert bench.files == ["m-q8_0.gguf"]


def test_a_file_that_is_there_is_not_replaced_unasked(bench: Bench) -> None:
    (bench.folder / "m-q5_0.gguf").write_bytes(b"precious")
    bench.values |= {"q2_k": 10}
    for work in (
        lambda: bench.compress(0.05),
        lambda: bench.workshop().make(kind_of("q5_0"), bench.folder / "m-q5_0.gguf"),
    ):
        with pytest.raises(UsageError, match="--force"):
            work()
    assert bench.written == []
    assert (bench.folder / "m-q5_0.gguf").read_bytes() == b"precious"
    bench.values |= {"q5_0": 10}
    bench.workshop(force=True).make(kind_of("q5_0"), bench.folder / "m-q5_0.gguf")
    assert (bench.folder / "m-q5_0.gguf").stat().st_size == 600


def test_a_file_that_appears_meanwhile_is_not_replaced(bench: Bench) -> None:
    target = bench.target(Q4)
    bench.on_tell = lambda doing, _share: target.write_bytes(b"new") if doing.startswith("writing") else None
    with pytest.raises(UsageError):
        bench.workshop().make(Q4, target)
    assert target.read_bytes() == b"new"
    assert bench.files == ["m-q4_0.gguf", "m-q8_0.gguf"]


def test_the_model_itself_is_never_replaced(bench: Bench) -> None:
    with pytest.raises(UsageError, match="the model itself"):
        bench.workshop(force=True).make(Q4, bench.model)
    assert bench.model.read_bytes() == b"x" * 1000


def test_the_same_kind_again_is_refused(bench: Bench) -> None:
    with pytest.raises(UsageError, match="is q8_0 already"):
        bench.workshop().make(Q8, bench.folder / "other.gguf")
    with pytest.raises(ModelQuantizeFailed, match="cannot write q6_k"):
        bench.workshop().make(kind_of("q6_k"), bench.folder / "other.gguf")


@pytest.mark.parametrize("value", [31.0, ModelBroken("no numbers")])
@pytest.mark.parametrize("keep", [False, True])
def test_a_broken_result_goes_unless_it_is_wanted(
    bench: Bench, value: float | ModelBroken, keep: bool
) -> None:
    bench.values |= {"q4_0": value}
    with pytest.raises(ModelBroken, match="It is kept as .*m-q4_0" if keep else "It is removed"):
        bench.workshop(keep=keep).make(Q4, bench.target(Q4))
    assert bench.target(Q4).exists() is keep
    assert len(bench.files) == 1 + keep


def test_nothing_is_read_if_nothing_is_to_be_checked(bench: Bench) -> None:
    bench.values.clear()
    made = bench.workshop(check=False).make(Q4, bench.target(Q4))
    assert (made.before, made.after, made.loss) == (None, None, None)
    assert bench.target(Q4).exists()


def test_a_model_too_large_to_read_can_be_written_unread(bench: Bench) -> None:
    bench.values |= {"m-q8_0.gguf": EngineLoadFailed("It needs 15,000 MB of memory.")}
    with pytest.raises(EngineLoadFailed, match="--no-check"):
        bench.workshop().make(Q4, bench.target(Q4))


def test_being_stopped_leaves_nothing(bench: Bench) -> None:
    bench.values |= {"q2_k": 13, "q4_0": ModelWorkCancelled("stopped")}
    with pytest.raises(ModelWorkCancelled):
        bench.compress(0.05)
    assert bench.written == ["q2_k", "q4_0"]
    assert bench.files == ["m-q8_0.gguf"]


def test_what_a_killed_process_left_is_no_hindrance(bench: Bench) -> None:
    for name in ("m-q4_0.gguf.partial", "m-q4_0.gguf.lock"):
        (bench.folder / name).write_bytes(b"left")
    bench.workshop().make(Q4, bench.target(Q4))
    assert bench.target(Q4).read_bytes() == b"y" * 400
    assert bench.files == ["m-q4_0.gguf", "m-q8_0.gguf"]


def test_two_do_not_write_the_same_file(bench: Bench) -> None:
    with (
        filelock.FileLock(bench.folder / "m-q4_0.gguf.lock"),
        pytest.raises(ModelError, match="Another process"),
    ):
        bench.workshop().make(Q4, bench.target(Q4))


def test_a_folder_that_cannot_be_made_is_said(bench: Bench) -> None:
    (bench.folder / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="--out"):
        bench.workshop().make(Q4, bench.folder / "file" / "new.gguf")


def test_percent() -> None:
    assert [percent(share) for share in (0.0423, 0.05, 3)] == ["4.2 %", "5 %", "300 %"]


def test_the_tiny_model_is_made_smaller_for_real(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "wide-f32.gguf", width=256)
    before = model.read_bytes()
    seen: list[tuple[str, float]] = []
    workshop = Workshop(model, Rules(windows=2), lambda doing, share: seen.append((doing, share)))
    made = workshop.make(Q8, tmp_path / "wide-q8_0.gguf")
    assert made.size == made.path.stat().st_size < len(before) / 3
    assert made.loss is not None
    assert abs(made.loss.share) < 0.05
    assert [doing for doing, share in seen if share == 1] == [
        "reading with wide-f32.gguf",
        "writing q8_0",
        "reading with q8_0",
    ]
    found = workshop.compress(lambda kind: tmp_path / f"small-{kind.name}.gguf", Bounds(max_loss=100))
    assert found.made is not None
    assert found.made.kind.name == "q2_k"
    assert model.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "small-q2_k.gguf",
        "wide-f32.gguf",
        "wide-q8_0.gguf",
    ]


def test_a_broken_model_is_found_before_anything_is_written(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "nan.gguf", output=math.nan)
    with pytest.raises(ModelBroken, match=r"nan\.gguf is broken"):
        Workshop(model, Rules(windows=1)).make(Q8, tmp_path / "new.gguf")
    assert list(tmp_path.iterdir()) == [model]


def test_stopped_while_it_reads(tmp_path: Path) -> None:
    """A real process is ended in the middle of the text, and the new file goes with it."""
    model = write_tiny_model(tmp_path / "tiny-f32.gguf")
    cancel = threading.Event()

    def stop(doing: str, share: float) -> None:
        if doing == "reading with q8_0" and share > 0:
            cancel.set()

    with pytest.raises(ModelWorkCancelled):
        Workshop(model, Rules(), stop, cancel).make(Q8, tmp_path / "new.gguf")
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.model
def test_the_real_model_is_made_smaller(model_path: Path, tmp_path: Path) -> None:
    made = Workshop(model_path, Rules(windows=1)).make(Q4, tmp_path / "small.gguf")
    assert made.size < 0.9 * model_path.stat().st_size
    assert made.origin.quantized
    assert made.loss is not None
    assert -0.05 < made.loss.share < 0.5
