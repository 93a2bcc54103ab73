"""Making a smaller model file and checking it: of a wanted kind, or the smallest that is good enough."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nexo_lsp.engines.llama.new_file import NewFile, new_file, require_free
from nexo_lsp.engines.llama.perplexity import Loss, Perplexity, loss, loss_of, perplexity
from nexo_lsp.engines.llama.quantize import (
    KINDS,
    DiskFree,
    Foreseen,
    Kind,
    Origin,
    Outlook,
    foresee,
    free_disk,
    require_room,
    sizes,
    write,
)
from nexo_lsp.errors import EngineLoadFailed, ModelBroken, ModelQuantizeFailed, UsageError

_BROKEN_RATIO = 3.0
"""A file whose perplexity is so many times that of the model that it was made of is no use to anybody.

Two bits a weight (q2_k), the fewest of `KINDS`, make 1.56 times of it with an 8B Llama 3 (9.75 and 6.23, the
README of llama.cpp's `perplexity`).
"""
_SURE = 3.0
"""So many standard errors above the bound nothing is expected to come down again."""


Tell = Callable[[str, float], None]
"""Told what is done just now, and how far that is, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How things are done."""

    threads: int = 0
    """0: all processors but one."""
    windows: int = 0
    """How many windows of the text are read; 0: all."""
    check: bool = True
    """Whether the result's predictions are compared with those of the model that it is made of."""
    force: bool = False
    """Whether a file that is there may be replaced."""
    keep: bool = False
    """Whether a broken result is kept."""
    disk_free: DiskFree = free_disk


@dataclass(frozen=True, slots=True)
class Made:
    """A file that was made."""

    origin: Origin
    kind: Kind
    path: Path
    size: int
    """Bytes."""
    before: Perplexity | None
    """Of the model that it is made of; None if nothing was checked."""
    after: Perplexity | None
    seconds: float
    """How long it took to write."""

    @property
    def loss(self) -> Loss | None:
        """What was lost, if that was looked at."""
        return loss(self.before, self.after) if self.before is not None and self.after is not None else None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is good enough."""

    max_loss: float
    """The most that perplexity may rise, as a share: 0.05 is five per cent."""
    max_size: int | None = None
    """Bytes of the file."""


class Verdict(StrEnum):
    """What became of one kind."""

    CHOSEN = "chosen"
    LOSES = "loses"
    BROKEN = "broken"
    SAME = "same"
    TOO_LARGE = "too-large"
    NO_SMALLER = "no-smaller"
    UNTRIED = "untried"


@dataclass(frozen=True, slots=True)
class Tried:
    """One kind, and why it was chosen or not."""

    kind: Kind
    size: int
    """Bytes; of a file that was not written, nearly exact."""
    verdict: Verdict
    reason: str
    after: Perplexity | None = None
    loss: Loss | None = None


@dataclass(frozen=True, slots=True)
class Compressed:
    """What was tried, and what was chosen."""

    origin: Origin
    before: Perplexity
    tried: tuple[Tried, ...]
    """The smallest file first."""
    made: Made | None
    """None where nothing is within the bounds."""


def _silent(_doing: str, _share: float) -> None:
    pass


class Workshop:
    """Makes and checks files of one model.

    All that it does blocks, and raises `UsageError` (a file that is in the way), `DiskFull`, `ModelCorrupt`,
    `EngineLoadFailed`, `EngineCrashed`, `ModelError` (the folder), and `ModelWorkCancelled` once `cancel` is
    set. Whatever happens, nothing is left of files that were not finished, and the model stays as it is.
    """

    def __init__(
        self, model: Path, rules: Rules, tell: Tell = _silent, cancel: threading.Event | None = None
    ) -> None:
        self._model = model
        self._rules = rules
        self._tell = tell
        self._cancel = cancel

    def make(self, kind: Kind, target: Path) -> Made:
        """Write the model as `kind` to `target`, which appears only if it is found good.

        Raises also `UsageError` if the model is of that kind already, `ModelQuantizeFailed` if llama.cpp
        cannot do it, and `ModelBroken` if what it made is no use: that file stays only with `Rules.keep`.
        """
        self._require_place(target)
        outlook = self._foresee([kind])
        if outlook.origin.kind == kind.name:
            raise UsageError(
                f"{self._model.name} is {kind.name} already; to write it again would only lose something."
            )
        if not outlook.kinds:
            raise ModelQuantizeFailed(f"This build of llama.cpp cannot write {kind.name}.")
        (wanted,) = outlook.kinds
        require_room(wanted, target.parent, self._rules.disk_free)
        before = self._read_model() if self._rules.check else None
        with new_file(target, force=self._rules.force) as file:
            seconds = self._write(wanted, file)
            size = file.partial.stat().st_size
            try:
                after = self._judged(file, kind, before) if before is not None else None
            except ModelBroken:
                if self._rules.keep:
                    file.place()
                raise
            file.place()
        return Made(outlook.origin, kind, target, size, before, after, seconds)

    def compress(self, target_of: Callable[[Kind], Path], bounds: Bounds) -> Compressed:
        """Write the smallest file whose perplexity stays within `bounds`, to `target_of(its kind)`.

        From the smallest kind on each is written and read, until one is good enough; only that one stays. A
        kind that cannot be written, or is broken, is no error but a row of the result.
        """
        outlook = self._foresee(KINDS)
        rows = list(_sorted_out(outlook.origin, outlook.kinds, bounds))
        for row in rows:
            if isinstance(row, Foreseen):
                self._require_place(target_of(row.kind))
        before = self._read(self._model, self._model.name)
        tried: list[Tried] = []
        made: Made | None = None
        for row in rows:
            if isinstance(row, Tried):
                tried.append(row)
            elif made is not None:
                reason = f"{made.kind.name} is smaller and good enough"
                tried.append(Tried(row.kind, row.size, Verdict.UNTRIED, reason))
            else:
                with new_file(target_of(row.kind), force=self._rules.force) as file:
                    result, seconds = self._try(row, file, before, bounds)
                    tried.append(result)
                    if result.verdict is Verdict.CHOSEN:
                        file.place()
                        made = Made(
                            outlook.origin, row.kind, file.target, result.size, before, result.after, seconds
                        )
        return Compressed(outlook.origin, before, tuple(tried), made)

    def _try(
        self, wanted: Foreseen, file: NewFile, before: Perplexity, bounds: Bounds
    ) -> tuple[Tried, float]:
        """What becomes of one kind, and how long it took to write."""
        require_room(wanted, file.target.parent, self._rules.disk_free)
        kind, size, seconds = wanted.kind, wanted.size, 0.0

        def watch(losses: Sequence[float]) -> None:
            so_far = loss_of(before.losses[: len(losses)], losses)
            if so_far.share - _SURE * so_far.uncertainty > bounds.max_loss:
                raise _Hopeless(so_far, len(losses))

        try:
            seconds = self._write(wanted, file)
            size = file.partial.stat().st_size
            after = self._judged(file, kind, before, watch)
        except _Hopeless as stop:
            reason = f"loses more than {percent(bounds.max_loss)}, seen after {stop.tokens:,} tokens"
            return Tried(kind, size, Verdict.LOSES, reason, loss=stop.so_far), seconds
        except (ModelQuantizeFailed, ModelBroken) as error:
            return Tried(kind, size, Verdict.BROKEN, str(error)), seconds
        lost = loss(before, after)
        if lost.share > bounds.max_loss:
            reason = f"loses more than {percent(bounds.max_loss)}"
            return Tried(kind, size, Verdict.LOSES, reason, after, lost), seconds
        reason = f"the smallest that loses at most {percent(bounds.max_loss)}"
        return Tried(kind, size, Verdict.CHOSEN, reason, after, lost), seconds

    def _foresee(self, kinds: Sequence[Kind]) -> Outlook:
        self._tell(f"looking into {self._model.name}", 0)
        return foresee(self._model, kinds, self._cancel)

    def _read_model(self) -> Perplexity:
        try:
            return self._read(self._model, self._model.name)
        except EngineLoadFailed as error:
            # To write a file takes little memory, to read with a large model much.
            raise EngineLoadFailed(f"{error} With --no-check the file is written unread.") from error

    def _write(self, wanted: Foreseen, file: NewFile) -> float:
        began = time.monotonic()
        write(
            self._model,
            wanted,
            file.partial,
            lambda share: self._tell(f"writing {wanted.kind.name}", share),
            threads=self._rules.threads,
            cancel=self._cancel,
            disk_free=self._rules.disk_free,
        )
        return time.monotonic() - began

    def _read(
        self, path: Path, name: str, watch: Callable[[Sequence[float]], None] = lambda _losses: None
    ) -> Perplexity:
        doing = f"reading with {name}"
        self._tell(doing, 0)
        return perplexity(
            path,
            lambda share: self._tell(doing, share),
            on_losses=watch,
            windows=self._rules.windows,
            threads=self._rules.threads,
            cancel=self._cancel,
        )

    def _judged(
        self,
        file: NewFile,
        kind: Kind,
        before: Perplexity,
        watch: Callable[[Sequence[float]], None] = lambda _losses: None,
    ) -> Perplexity:
        """How well the new file predicts. Raises `ModelBroken` if that is no use."""
        fate = f"It is kept as {file.target}." if self._rules.keep else "It is removed; choose a larger kind."
        try:
            after = self._read(file.partial, kind.name, watch)
        except ModelBroken as error:
            raise ModelBroken(
                f"The {kind.name} file is broken: what it computes are no numbers. {fate}"
            ) from error
        if after.value > _BROKEN_RATIO * before.value:
            raise ModelBroken(
                f"The {kind.name} file is broken: its perplexity is {after.value:.1f}, and the model's is "
                f"{before.value:.1f}. {fate}"
            )
        return after

    def _require_place(self, target: Path) -> None:
        if target.exists() and target.samefile(self._model):
            raise UsageError(
                f"{target} is the model itself, which stays as it is; name another place with --out."
            )
        require_free(target, force=self._rules.force)


class _Hopeless(Exception):
    """It has lost so much already that reading on would change nothing."""

    def __init__(self, so_far: Loss, tokens: int) -> None:
        self.so_far, self.tokens = so_far, tokens


def _sorted_out(origin: Origin, kinds: Sequence[Foreseen], bounds: Bounds) -> Iterator[Foreseen | Tried]:
    """What is worth a try as it is, and the rest with the reason against it; the smallest first."""
    seen: dict[str, Kind] = {}
    for one in sorted(kinds, key=lambda one: one.size):
        same = seen.setdefault(one.layout, one.kind)
        if one.kind.name == origin.kind or one.size >= origin.size:
            yield Tried(one.kind, one.size, Verdict.NO_SMALLER, "no smaller than the model itself")
        elif bounds.max_size is not None and one.size > bounds.max_size:
            yield Tried(one.kind, one.size, Verdict.TOO_LARGE, f"larger than {sizes(bounds.max_size)}")
        elif same is not one.kind:
            yield Tried(one.kind, one.size, Verdict.SAME, f"for this model it is the same as {same.name}")
        else:
            yield one


def percent(share: float) -> str:
    """A share for people: `4.2 %`."""
    return f"{round(100 * share, 1):g} %"
