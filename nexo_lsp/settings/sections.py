"""The sections of the settings, each declared once with its description, default and bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

Severity = Literal["error", "warning", "information", "hint"]

EngineKind = Literal["auto", "native", "mobile", "docker", "remote", "client-hosted", "mock"]

USERS_OWN: dict[str, Any] = {"scope": "application"}
"""Marks a setting that counts only where the user wrote it, never where a workspace may have: it decides what
leaves this machine, or what is run on it. The word is that of VS Code's manifests."""


class Section(BaseModel):
    """What all sections have in common: camel case outside, no unknown keys, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, populate_by_name=True)


class EngineSettings(Section):
    """How tokens are made."""

    kind: EngineKind = Field(
        default="auto",
        description="Which engine answers: `native` runs the model on this machine, `mobile` does so under "
        "a phone's rules, `docker` in a container, `remote` asks a server (`nexo.remote`), `client-hosted` "
        "asks the editor, `mock` gives scripted answers (for tests); `auto` takes the best one available. "
        "`nexo.engine` may be this word too.",
    )
    idle_unload_minutes: float = Field(
        default=10,
        ge=0,
        description="After so many minutes without use the model is let go of to free memory; 0 keeps it.",
    )
    context_tokens: int = Field(
        default=8192, ge=1024, le=32768, description="How many tokens the engine keeps in memory at once."
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="CPU threads for inference; 0 takes what `nexo-lsp doctor --tune` measured, else the "
        "number of cores.",
    )
    shared: bool = Field(
        default=True,
        description="Whether all editors and commands of one user that want the same model share one engine, "
        "so that it is in memory once. Off gives this server one of its own.",
    )
    memory_limit_mb: int = Field(
        default=0,
        ge=0,
        description="What the engine may take in all, in MiB; its context is made smaller, and its cache "
        "compressed, to stay within it. 0 sets no limit: then only what is free when the model is loaded "
        "counts.",
    )
    gpu_layers: Literal["auto", "none", "all"] | Annotated[int, Field(ge=0, le=1000)] = Field(
        default="auto",
        description="How many of the model's layers go to a GPU where llama.cpp was built for one: `auto` "
        "takes as many as fit, `none`, `all`, or so many.",
    )
    unpack_weights: bool = Field(
        default=True,
        description="Whether a copy of the model is kept whose weights take whole bytes: the same values, "
        "which a processor reads prompts up to a third faster with, for more disk and memory (the default "
        "model: 0.6 GB of disk, 0.1 GB of memory). It is made once, in some seconds, for models with weights "
        "in five bits on x86-64 processors, where no GPU is used.",
    )


class ModelsSettings(Section):
    """Where model files come from."""

    auto_download: Literal["ask", "always", "never"] = Field(
        default="ask",
        description="Whether a missing model is fetched at its first use: ask once with the size named, "
        "always, or never.",
    )
    prefer: Literal["performance", "balanced", "quality"] = Field(
        default="balanced",
        description="What `nexo.model` = `auto` looks for where memory leaves a choice: quick answers, good "
        "ones, or something of both.",
    )
    upgrade: bool = Field(
        default=True,
        description="Whether `auto` may fetch the model that suits this machine best in the background while "
        "another one answers; `nexo.models.autoDownload` decides whether it asks first.",
    )
    cache_limit_gb: float = Field(
        default=0,
        ge=0,
        description="How much the models folder may hold, in GB: what was not used for the longest time is "
        "removed first, never what is in use, pinned, named by the settings, or a file of your own. 0 sets "
        "no limit.",
    )


class RemoteSettings(Section):
    """Engines on other machines. All of it counts only in the user's own settings."""

    enabled: bool = Field(
        default=False,
        json_schema_extra=USERS_OWN,
        description="Whether prompts, which hold code, may be sent to `nexo.remote.endpoints`: only from "
        "workspaces that are trusted, and with what looks like a secret taken out.",
    )
    endpoints: tuple[str, ...] = Field(
        default=(),
        json_schema_extra=USERS_OWN,
        description="Addresses of OpenAI-compatible servers (`https://host/v1`), the best first: the next "
        "one is asked when one fails.",
    )
    model: str = Field(
        default="",
        json_schema_extra=USERS_OWN,
        description="The model's name on the server; empty takes the first that it lists.",
    )
    context_tokens: int = Field(
        default=8192,
        ge=1024,
        le=1_048_576,
        json_schema_extra=USERS_OWN,
        description="How many tokens a prompt and its answer may be there together.",
    )
    parallel: int = Field(
        default=4,
        ge=1,
        le=256,
        json_schema_extra=USERS_OWN,
        description="How many requests one endpoint gets at once.",
    )
    connect_timeout_s: float = Field(
        default=5, gt=0, le=120, json_schema_extra=USERS_OWN, description="How long connecting may take."
    )
    answer_timeout_s: float = Field(
        default=60,
        gt=0,
        le=3600,
        json_schema_extra=USERS_OWN,
        description="How long a server may say nothing before it is taken for failed.",
    )
    ca_file: str = Field(
        default="",
        json_schema_extra=USERS_OWN,
        description="A file of certificates (PEM) to be trusted beside the system's: a server of your own.",
    )


class DockerSettings(Section):
    """An engine in a container on this machine. What is run is the user's own choice."""

    enabled: bool = Field(
        default=False,
        json_schema_extra=USERS_OWN,
        description="Whether `auto` may start a container.",
    )
    image: str = Field(
        default="ghcr.io/ggml-org/llama.cpp:server",
        json_schema_extra=USERS_OWN,
        description="The image of a llama.cpp server.",
    )
    pull: bool = Field(
        default=False,
        json_schema_extra=USERS_OWN,
        description="Whether an image that is not here may be fetched.",
    )
    socket: str = Field(
        default="",
        json_schema_extra=USERS_OWN,
        description="Where Docker or Podman listens (`unix:///run/docker.sock`); empty looks in the usual "
        "places.",
    )
    gpus: bool = Field(
        default=False,
        json_schema_extra=USERS_OWN,
        description="Whether the container gets the machine's GPUs: for images that use them, such as "
        "`ghcr.io/ggml-org/llama.cpp:server-cuda`, where Docker can hand them on (NVIDIA Container Toolkit).",
    )


class ReviewSettings(Section):
    """Review as diagnostics."""

    enabled: bool = Field(default=True, description="Whether code is reviewed at all.")
    trigger: Literal["onOpen", "onSave", "onType", "manual"] = Field(
        default="onSave",
        description="When a file is reviewed: when it is opened (and saved), when it is saved, while typing "
        "(after a pause), or only on command.",
    )
    max_severity: Severity = Field(
        default="warning", description="The highest severity that a finding may be shown with."
    )
    debounce_ms: int = Field(
        default=1500, ge=0, le=60_000, description="The pause in typing after which `onType` reviews."
    )
    max_findings: int = Field(
        default=3, ge=1, le=20, description="How many findings one function may get at the most."
    )
    pause_below_battery: int = Field(
        default=30,
        ge=0,
        le=100,
        description="On battery, review that nobody asked for pauses below this charge, in percent; 0 never "
        "pauses it.",
    )
    engine: EngineKind | Literal[""] = Field(
        default="", description="Which engine reviews; empty is the one of `nexo.engine.kind`."
    )
    model: str = Field(default="", description="Which model reviews; empty is `nexo.model`.")


class CompletionSettings(Section):
    """Inline completion (ghost text)."""

    enabled: bool = Field(default=True, description="Whether completions are offered.")
    debounce_ms: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="The pause in typing before the engine is asked. Null adapts it to the typing rhythm and "
        "the measured latency; a number fixes it; 0 switches it off.",
    )
    as_completion_items: bool = Field(
        default=False,
        description="Offer the same by `textDocument/completion`, for editors without inline completion.",
    )
    max_tokens: int = Field(default=64, ge=4, le=512, description="The longest completion, in tokens.")
    engine: EngineKind | Literal[""] = Field(
        default="", description="Which engine completes; empty is the one of `nexo.engine.kind`."
    )
    model: str = Field(default="", description="Which model completes; empty is `nexo.model`.")


class HoverSettings(Section):
    """Docs as hover."""

    enabled: bool = Field(default=True, description="Whether hovers are answered.")
    explain: bool = Field(
        default=True, description="Whether the model adds a short explanation to the signature and docs."
    )
    wait_ms: int = Field(
        default=400,
        ge=0,
        le=20_000,
        description="How long a hover waits for the explanation before it says that it is coming.",
    )


class Settings(Section):
    """The settings of one server. `Settings()` is what a new user has."""

    enable: bool = Field(
        default=True, description="Off means off: no request to any model, and no model loaded."
    )
    model: str = Field(
        default="auto",
        description="Which model answers: a name of the catalogue (`nexo-lsp models list`), the path of a "
        "GGUF file, its address, `hf:owner/repository/file`, or `auto` for what suits this machine.",
    )
    offline: bool = Field(
        default=False,
        description="Whether nothing may need a network: no engine on another machine, and no download.",
    )
    disabled_languages: tuple[str, ...] = Field(
        default=(), description="Language identifiers (`markdown`, `yaml`, …) for which nothing is asked."
    )
    disabled_globs: tuple[str, ...] = Field(
        default=(),
        description="Patterns in `.gitignore` syntax, relative to the workspace: files that match are never "
        "shown to a model.",
    )
    engine: EngineSettings = Field(default_factory=EngineSettings)
    models: ModelsSettings = Field(default_factory=ModelsSettings)
    remote: RemoteSettings = Field(default_factory=RemoteSettings)
    docker: DockerSettings = Field(default_factory=DockerSettings)
    review: ReviewSettings = Field(default_factory=ReviewSettings)
    completion: CompletionSettings = Field(default_factory=CompletionSettings)
    hover: HoverSettings = Field(default_factory=HoverSettings)

    @field_validator("engine", mode="before")
    @classmethod
    def _engine_word(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value
