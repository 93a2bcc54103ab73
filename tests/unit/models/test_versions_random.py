"""Any sequence of pulls, updates, pins, roll-backs, prunes and evictions keeps what the user relies on."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nexo_lsp.errors import DiskFull, ModelMissing
from nexo_lsp.models.announcing import Announced
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.embedded import EmbeddedModels
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import Report, append
from nexo_lsp.models.updates import outlook, take
from nexo_lsp.models.versions import short

SIZE = 1000
VERSIONS = range(4)
OTHERS = ("other", "another")


def _data(name: str, version: int) -> bytes:
    # Versions of one model have the same size, so that only a digest tells them apart.
    return (f"{name} {version} ".encode() * SIZE)[:SIZE]


def _sha(name: str, version: int) -> str:
    return hashlib.sha256(_data(name, version)).hexdigest()


def _entry(name: str, version: int) -> CatalogEntry:
    return CatalogEntry(
        name=name,
        file=f"{name}.gguf",
        size=SIZE,
        sha256=_sha(name, version),
        hub_repo="org/repo",
        hub_file="file.gguf",
        mirror=(),
        urls=(),
        license="",
        description="",
        context_tokens=1,
    )


DATA = {_sha(name, version): _data(name, version) for name in ("model", *OTHERS) for version in VERSIONS}


class Delivers:
    """Has everything, and is sometimes interrupted in the middle."""

    name = "delivers"

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        have = target.stat().st_size if target.exists() else 0
        append(target, [DATA[entry.sha256][have:]], entry.size, progress, cancel)


class OneUser(RuleBasedStateMachine):
    """One models folder and a program that is replaced by newer ones."""

    def __init__(self) -> None:
        super().__init__()
        # In memory where that can be had: nothing here is about what a loss of power leaves.
        memory = Path("/dev/shm")
        self.home = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.version = 0
        self.in_use = contextlib.ExitStack()
        self.used: Path | None = None
        self.was_here = False

    @initialize(configured=st.booleans())
    def begin(self, configured: bool) -> None:
        self.configured = configured
        # From nothing at all only few sequences lead to anything.
        for version in (0, 1):
            self.new_program(version)
            self.pull(force=False)

    @rule(version=st.sampled_from(VERSIONS))
    def new_program(self, version: int) -> None:
        self.version = version
        catalog = [_entry("model", version), *(_entry(name, 0) for name in OTHERS)]
        none = EmbeddedModels(lambda: ())
        self.store = ModelStore(self.home / "models", {}, [Delivers()], catalog, embedded=none)
        self.store.configured = ("model",) if self.configured else ()
        self.entry = self.store.catalog[0]

    @rule(force=st.booleans())
    def pull(self, force: bool) -> None:
        path = self.store.pull("model", force=force)
        assert self._sha_of(path) in DATA
        self.was_here = True

    @rule(name=st.sampled_from(OTHERS), room=st.integers(1, 5))
    def pull_another_within_a_limit(self, name: str, room: int) -> None:
        self.store.limit_bytes = room * SIZE + 1500
        try:
            assert self._sha_of(self.store.pull(name)) == _sha(name, 0)
        except DiskFull:
            pass
        finally:
            self.store.limit_bytes = 0

    @precondition(lambda self: self.was_here)
    @rule(hub=st.one_of(st.none(), st.sampled_from(VERSIONS)))
    def update(self, hub: int | None) -> None:
        said = Announced(SIZE, _sha("model", self.version if hub is None else hub))
        (found,) = outlook(self.store, ["model"], lambda _entry, _cancel: said)
        if found.offers and not found.pinned:
            offer = found.offers[-1]
            take(self.store, offer)
            assert self._sha_of(self.store.locate("model")) == offer.entry.sha256

    @rule(which=st.integers(0, 3))
    def pin(self, which: int) -> None:
        here = self.store.versions.of(self.entry)
        if here:
            self.store.versions.pin(self.entry, here[which % len(here)].id)

    @rule()
    def unpin(self) -> None:
        self.store.versions.unpin(self.entry)

    @rule(forward=st.booleans())
    def roll(self, forward: bool) -> None:
        with contextlib.suppress(ModelMissing):
            version = self.store.versions.roll(self.entry, forward=forward)
            assert self.store.locate("model") == version.path

    @rule()
    def prune(self) -> None:
        before = self._located()
        gone = self.store.cleaning.remove(self.store.cleaning.waste(self.store.configured))
        assert all(one.path != self.used for one in gone)
        assert self._located() == before

    @rule(limit=st.sampled_from([2 * SIZE, 3 * SIZE]))
    def evict(self, limit: int) -> None:
        self.store.cleaning.trim(limit, self.store.configured)

    @rule()
    def evict_all_that_may_go(self) -> None:
        self.store.cleaning.trim(1, self.store.configured)

    @rule()
    def an_engine_loads_it(self) -> None:
        self.in_use.close()
        self.used = self.store.pull("model")
        self.in_use.enter_context(self.store.in_use(self.used))

    @rule()
    def the_engine_is_closed(self) -> None:
        self.in_use.close()
        self.used = None

    @rule()
    def a_pull_breaks_off(self) -> None:
        place = self.store.versions.place(self.entry)
        if not place.exists():
            self.home.joinpath("models").mkdir(exist_ok=True)
            place.with_name(place.name + ".partial").write_bytes(DATA[self.entry.sha256][:300])

    @invariant()
    def what_is_pinned_is_here_and_right(self) -> None:
        choice = self.store.versions.choice("model")
        if choice.pinned:
            path = self.store.locate("model")
            assert short(self._sha_of(path)) == choice.version

    @invariant()
    def what_is_configured_is_here_and_right(self) -> None:
        path = self._located()
        if path is not None:
            assert self._sha_of(path) in DATA
        elif self.configured:
            assert not self.was_here

    @invariant()
    def what_is_in_use_is_not_removed(self) -> None:
        assert self.used is None or self.used.exists()

    @invariant()
    def every_file_holds_what_its_name_says(self) -> None:
        for version in self.store.versions.of(self.entry):
            assert short(self._sha_of(version.path)) == version.id

    def teardown(self) -> None:
        self.in_use.close()
        shutil.rmtree(self.home)

    def _located(self) -> Path | None:
        try:
            return self.store.locate("model")
        except ModelMissing:
            return None

    def _sha_of(self, path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()


OneUser.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
TestOneUser = OneUser.TestCase
