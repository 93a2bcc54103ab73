"""Which engines and models there are for these settings on this machine: where providers are named."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexo_lsp.engines.client_port import ClientPort
from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.llama.threaded import spawn_in_thread
from nexo_lsp.errors import EngineUnavailable, ModelError
from nexo_lsp.folders import Folders
from nexo_lsp.generation import EngineState, EngineStatus, Operation
from nexo_lsp.models.catalog import CatalogEntry, load_catalog
from nexo_lsp.models.embedded import EmbeddedModels, places
from nexo_lsp.offload import Offload
from nexo_lsp.pipeline.step import InfillWords
from nexo_lsp.runtime.choice import ModelChoice, kind_of, model_for
from nexo_lsp.runtime.engines import Engines, Offer
from nexo_lsp.runtime.environment import Environment
from nexo_lsp.runtime.gpus import find_gpus, known_gpus
from nexo_lsp.runtime.needs import Policy
from nexo_lsp.runtime.providers.client_hosted import ClientHostedProvider
from nexo_lsp.runtime.providers.docker import DockerProvider
from nexo_lsp.runtime.providers.mobile import PHONES, MobileProvider, PhoneRules
from nexo_lsp.runtime.providers.mock import MockProvider
from nexo_lsp.runtime.providers.native import ModelFigures, NativeProvider, measured_tokens_per_s
from nexo_lsp.runtime.providers.provider import Provider
from nexo_lsp.runtime.providers.remote import RemoteProvider
from nexo_lsp.runtime.redacting import Redacting
from nexo_lsp.runtime.selection import Selection
from nexo_lsp.runtime.supply import Asks, ModelSupply
from nexo_lsp.settings import Settings

if TYPE_CHECKING:
    from nexo_lsp.models.store import ModelStore

_log = logging.getLogger("nexo_lsp.app")

_MIB = 2**20
_NO_MODEL_FILE = frozenset({"mock", "remote", "client-hosted"})
"""Engines whose model is somebody else's business."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the engine room needs of the app around it."""

    keep: Callable[[Coroutine[Any, Any, None]], None]
    """Runs a coroutine in the background until the app closes."""
    on_status: Callable[[], None]
    """Called when an engine's state has changed."""
    notice: Callable[[str], None]
    """Tells the user one thing."""
    free_bytes: Callable[[], int]
    """Reads how much memory is free."""
    lasting: bool
    """Whether this app lives long: then a better model may be fetched while another one answers."""


class EngineRoom:
    """Plans which engine and model each operation gets, and plans anew when something changes."""

    def __init__(
        self,
        environ: Mapping[str, str],
        folders: Folders,
        host: Asks,
        offload: Offload,
        settings: Callable[[], Settings],
        environment: Environment,
        hooks: Hooks,
    ) -> None:
        self._environ = environ
        self._folders = folders
        self._settings = settings
        self._hooks = hooks
        self._offload = offload
        self._catalog = load_catalog(folders.catalog_file)
        self._embedded = EmbeddedModels(lambda: places(environ))
        self._store: ModelStore | None = None
        self._trusted = False
        self._models: dict[Operation, ModelChoice] = {}
        self._upgrading: set[str] = set()
        self._failed_upgrades: set[str] = set()
        self._looked_for_gpus = False
        self._words: dict[str, InfillWords] = {}
        self.environment = replace(environment, gpus=known_gpus(folders.state) or environment.gpus)
        self.supply = ModelSupply(lambda: self.store, host, offload, settings, lambda: self._trusted)
        self.engines = Engines(hooks.keep, hooks.on_status, hooks.notice)
        self.client_port = ClientPort()
        """Where the editor's own engine is plugged in, if it has one."""
        self.client_port.on_change = self._client_changed
        self.plan()

    def _client_changed(self) -> None:
        """The editor announced another engine, or none any more."""
        self.plan()
        self._hooks.on_status()

    @property
    def store(self) -> ModelStore:
        """The model files of this user."""
        if self._store is None:
            # It brings an HTTP library along, which a server that has its model never needs.
            from nexo_lsp.models.store import ModelStore

            self._store = ModelStore(
                self._folders.models,
                self._environ,
                catalog=self._catalog.entries,
                embedded=self._embedded,
            )
            self._follow(self._store)
        return self._store

    def _follow(self, store: ModelStore) -> None:
        """Keep what the settings name, and what was chosen, when room is made for other models."""
        store.follow(self._settings())
        chosen = (choice.entry for choice in self._models.values())
        store.configured = (*store.configured, *(entry.file for entry in chosen if entry is not None))

    def plan(self, *, trusted: bool | None = None) -> None:
        """Choose engines and models for the settings of the moment."""
        if trusted is not None:
            self._trusted = trusted
        self._upgrading -= self._failed_upgrades
        self._failed_upgrades.clear()
        settings = self._settings()
        offers: dict[Operation, Sequence[Offer]] = {}
        policies: dict[Operation, Policy] = {}
        made: dict[tuple[str, int, int], Sequence[Offer]] = {}
        # Asked of each model several times in one plan; it may read a file.
        measured = cache(self._measured)
        for operation in Operation:
            choice = model_for(
                settings, operation, self.environment, self._catalog.entries, self._is_here, measured
            )
            self._models[operation] = choice
            same = choice.reference, choice.context_tokens, choice.least_bytes
            offers[operation] = made.setdefault(same, self._offers(settings, choice))
            policies[operation] = Policy(
                kind=kind_of(settings, operation),
                offline=settings.offline,
                remote=settings.remote.enabled,
                trusted=self._trusted,
                memory_bytes=settings.engine.memory_limit_mb * _MIB,
            )
        if self._store is not None:
            self._follow(self._store)
        self.engines.plan(offers, self.environment, policies)

    def engine(self, operation: Operation) -> Engine:
        """The engine of an operation; raises `EngineUnavailable` with the reasons if there is none."""
        try:
            engine = self.engines.engine(operation)
        except EngineUnavailable:
            if not self._look_again():
                raise
            engine = self.engines.engine(operation)
        if self._hooks.lasting and self.loads_a_file(operation):
            if not self._looked_for_gpus:
                self._looked_for_gpus = True
                self._hooks.keep(self.find_gpus())
            self._upgrade(operation)
        return engine

    def _look_again(self) -> bool:
        """Plan with the memory of this moment, where nothing could be chosen with that of a while ago.

        Not at each plan: what an engine of ours takes would count against it.
        """
        now = self._hooks.free_bytes()
        if now <= self.environment.free_bytes:
            return False
        self.environment = replace(self.environment, free_bytes=now)
        self.plan()
        return True

    async def find_gpus(self) -> None:
        """Ask llama.cpp which GPUs it can use, if nobody has since it was installed; then plan anew.

        Takes some seconds, in another process.
        """
        state = self._folders.state
        known = await self._offload(lambda: known_gpus(state))
        if known is None and self.environment.processes:
            found = await self._offload(lambda: find_gpus(state))
            _log.info("GPUs: %s", found.reason)
            known = found.gpus
        if known is not None and known != self.environment.gpus:
            self.environment = replace(self.environment, gpus=known)
            self.plan()
            self._hooks.on_status()

    def pause_below(self) -> int:
        """The charge, in percent, below which review that nobody asked for waits; 0 never."""
        setting = self._settings().review.pause_below_battery
        return PhoneRules().pause_below(setting) if self.environment.platform in PHONES else setting

    def selection(self, operation: Operation) -> Selection:
        """What was chosen for an operation, with reasons."""
        return self.engines.selection(operation)

    def model_name(self, operation: Operation) -> str | None:
        """The model of an operation; None where the engine has its own."""
        provider = self.selection(operation).provider
        if provider is not None and provider.name == "client-hosted":
            announced = self.client_port.announced
            return announced.model if announced is not None else None
        if provider is not None and provider.name == "remote":
            return self._settings().remote.model or None
        if provider is None or provider.name in _NO_MODEL_FILE:
            return None
        return self._models[operation].reference

    def model_of(self, operation: Operation, engine: EngineStatus) -> str | None:
        """The model of the engine that answers now, which may stand in for the one that was chosen."""
        provider = self.selection(operation).provider
        # A phone's engine is the native one under other rules, and calls itself so.
        ours = provider is None or engine.name in {
            provider.name,
            "native" if provider.name == "mobile" else "",
        }
        return self.model_name(operation) if ours else engine.model

    def choice(self, operation: Operation) -> ModelChoice:
        """The model that an operation would get from an engine that needs a file, and how it was chosen."""
        return self._models[operation]

    def measured_tokens_per_s(self, operation: Operation) -> float | None:
        """How quickly its model was found to write here; None where nobody measured."""
        entry = self._models[operation].entry
        return self._measured(entry) if entry is not None else None

    def infill_of(self, operation: Operation) -> InfillWords:
        """The family of an operation's model, and the tokens that its file names."""
        choice = self._models[operation]
        # A server elsewhere knows its own model; whoever stands in for it has ours.
        ranked = self.selection(operation).ranked
        if all(candidate.provider.name in _NO_MODEL_FILE for candidate in ranked):
            return "", None
        if choice.entry is not None:
            return choice.entry.family, None
        return self._words.get(choice.reference, ("", None))

    def parameters_of(self, operation: Operation) -> float | None:
        """How large an operation's model is, in billions; None where nobody told."""
        entry = self._models[operation].entry if self.loads_a_file(operation) else None
        return entry.parameters or None if entry is not None else None

    async def know_models(self) -> None:
        """Look into model files that no catalogue knows, once each, as soon as they are here."""
        for operation, choice in self._models.items():
            known = choice.entry is not None or choice.reference in self._words
            if known or not self.loads_a_file(operation):
                continue
            with suppress(ModelError):
                self._words[choice.reference] = await self._offload(
                    partial(self._look_into, choice.reference)
                )

    def _look_into(self, reference: str) -> InfillWords:
        from nexo_lsp.models.profile import profile_of

        profile = profile_of(self.store.locate(reference), self._catalog.entries)
        return profile.family, profile.infill_texts

    def loads_a_file(self, operation: Operation) -> bool:
        """Whether the engine of an operation needs a model file of this machine."""
        provider = self.selection(operation).provider
        return provider is not None and provider.name not in _NO_MODEL_FILE

    def model_key(self, operation: Operation) -> str:
        """What identifies engine and model in the keys of cached answers."""
        provider = self.selection(operation).provider
        name = provider.name if provider is not None else "none"
        # Servers elsewhere have models of their own under the same name.
        where = f"{' '.join(self._settings().remote.endpoints)}:" if name == "remote" else ""
        return f"{name}:{where}{self.model_name(operation) or ''}"

    def status(self, operation: Operation) -> EngineStatus:
        """How the engine of an operation is; one that was not needed yet is idle."""
        made = self.engines.status(operation)
        if made is not None:
            return made
        selection = self.selection(operation)
        if selection.provider is None:
            return EngineStatus(EngineState.FAILED, "none", detail=" ".join(selection.reasons))
        return EngineStatus(EngineState.IDLE, selection.provider.name)

    def reasons(self) -> tuple[str, ...]:
        """Why each operation has its engine and model; what is the same for several is said once."""
        said = dict.fromkeys(self._why(Operation.ACTION))
        for operation in (Operation.COMPLETION, Operation.REVIEW):
            if self._plan_of(operation) != self._plan_of(Operation.ACTION):
                said.update(dict.fromkeys(f"{operation.value}: {line}" for line in self._why(operation)))
        return tuple(said)

    def _why(self, operation: Operation) -> tuple[str, ...]:
        model = self._models[operation].reasons if self.loads_a_file(operation) else ()
        return (*self.selection(operation).reasons, *model)

    def _plan_of(self, operation: Operation) -> tuple[object, ...]:
        ranked = self.selection(operation).ranked
        return (*(candidate.provider.name for candidate in ranked), self.model_name(operation))

    async def model_file(self, operation: Operation = Operation.ACTION) -> Path:
        """The file of an operation's model, fetched if need be. Raises the kinds of `ModelError`."""
        return await self.supply.file(self._models[operation].reference)

    def _offers(self, settings: Settings, choice: ModelChoice) -> tuple[Offer, ...]:
        reference, environment = choice.reference, self.environment
        threaded = None if environment.processes else spawn_in_thread
        figures = self._figures(choice)
        native = NativeProvider(
            settings.engine,
            lambda: self.supply.file(reference),
            self._folders.prefixes,
            about=figures,
            # Slower cores would hold others back, and so would more threads than a container may run.
            cores=environment.performance_cores,
            most_context=choice.context_tokens,
            only_by_name=environment.platform in PHONES,
            thread=threaded,
        )
        # Which of them is asked is no part of how an engine is run.
        used = (
            settings.engine.model_copy(update={"kind": "auto"}),
            reference,
            native.cores,
            native.most_context,
        )
        named = "mobile" in {settings.review.engine, settings.completion.engine}
        port = self.client_port
        providers: tuple[tuple[Provider, object], ...] = (
            (native, used),
            (MobileProvider(native, environment, spawn=threaded, named=named), used),
            (ClientHostedProvider(port, self._refusal, Redacting), _identity(port)),
            (
                DockerProvider(
                    settings.docker,
                    settings.engine,
                    native.model,
                    self._environ,
                    environment.platform,
                    about=figures,
                ),
                (used, settings.docker),
            ),
            (RemoteProvider(settings.remote, lambda: self._trusted, self._environ), settings.remote),
            (MockProvider(self._environ), ""),
        )
        return tuple(Offer(provider, (provider.name, key)) for provider, key in providers)

    def _figures(self, choice: ModelChoice) -> ModelFigures:
        entry = choice.entry
        if entry is None:
            return ModelFigures()
        return ModelFigures(entry.parameters or None, choice.least_bytes, self._measured(entry))

    def _measured(self, entry: CatalogEntry) -> float | None:
        path = self._folders.models / entry.file
        here = os.path.isfile(path)  # noqa: PTH113 - see `_is_here`
        return measured_tokens_per_s(path, self._folders.state) if here else None

    def _refusal(self) -> str | None:
        """Why prompts may not leave this machine now; None if they may."""
        if not self._settings().remote.enabled:
            return "nexo.remote.enabled is off, in your own settings"
        return None if self._trusted else "this workspace is not trusted"

    def _is_here(self, entry: CatalogEntry) -> bool:
        # The store would look at the size too, and brings an HTTP library along.
        # `isfile`: a folder that may not be looked into has nothing for us, and is no reason to end.
        if os.path.isfile(self._folders.models / entry.file):  # noqa: PTH113
            return True
        # What came with the program is looked for where nothing else is: that takes a look at all packages.
        return not any(self._folders.models.glob("*.gguf")) and self._embedded.find(entry) is not None

    def _upgrade(self, operation: Operation) -> None:
        """Fetch what would suit this machine better, and change over between requests."""
        choice, settings = self._models[operation], self._settings()
        better = choice.better
        if choice.entry is not None and not self._is_here(choice.entry):
            # What is small comes first, and has the line for itself.
            return
        if better is None or better.name in self._upgrading or not settings.models.upgrade:
            return
        if not self.supply.may_fetch(better.name):
            return
        self._upgrading.add(better.name)

        async def arrived() -> None:
            _log.info("%s is here; requests from now on are answered with it", better.name)
            self.plan()
            self.supply.release(but={choice.reference for choice in self._models.values()})
            self._hooks.on_status()

        async def fetch() -> None:
            try:
                await self.supply.fetch_ahead(better.name, arrived)
            except ModelError as error:
                # A network that is not there: the next plan tries again.
                _log.warning("%s could not be fetched: %s", better.name, error)
                self._failed_upgrades.add(better.name)
            finally:
                # Who declined, or stopped it, is asked again once the settings change: the supply knows.
                if not self.supply.may_fetch(better.name):
                    self._upgrading.discard(better.name)

        self._hooks.keep(fetch())


def _identity(port: ClientPort) -> object:
    """What makes the client's engine another one: not the state that it is in."""
    announced = port.announced
    return (announced.model, announced.capabilities) if announced is not None else None
