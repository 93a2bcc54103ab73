"""A Ray Serve application: replicas of llama-cpp-python's OpenAI-compatible server behind one address.

`config.yaml` beside this file starts it: `serve run config.yaml`. Ray's proxy takes the requests and gives
each to a replica that is free; Ray's controller starts, watches, replaces, adds and removes replicas. Inside
a replica runs `llama_cpp.server` as it is. What is added here: the model's name of the catalogue, the number
of threads and layers from what Ray assigned, the replica's name in each answer, and that the work on a
request ends at once when its client has left, in the middle of a prompt too (the server itself notices it
between tokens).
"""

# No `from __future__ import annotations` here: Serve checks `args` with the type of `build`'s argument.
import asyncio
import contextlib
import ctypes
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

_log = logging.getLogger("ray.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

REPLICA_HEADER = b"x-nexo-replica"


class Options(BaseModel):
    """The application's `args` in `config.yaml`."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        description="A GGUF file at this path on every node, or a name of nexo-lsp's catalogue, which each "
        "node fetches once (nexo-lsp has to be installed there)."
    )
    name: str = Field(default="", description="The model's name for clients; empty is the file's.")
    context_tokens: int = Field(default=8192, ge=512, description="Prompt and answer together.")
    threads: int = Field(default=0, ge=0, description="0: as many as the CPUs that Ray gave the replica.")
    gpu_layers: int | None = Field(default=None, ge=-1, description="Unset: all with a GPU, none without.")
    api_key_file: str = Field(
        default="",
        description="A file on every node with the key that clients have to send; empty: none is wanted.",
    )
    stall_s: float = Field(
        default=300, gt=0, description="A replica that makes nothing for so long amid a request is replaced."
    )


def build(args: Options) -> serve.Application:
    """The application that `config.yaml` names."""
    return LlamaServer.bind(args)


@serve.deployment
@serve.ingress()
class LlamaServer:
    """One replica: one model, one request at a time (`max_ongoing_requests: 1` keeps the others in the proxy,
    where a free replica takes them)."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._watch: Watch | None = None

    def __serve_build_asgi_app__(self) -> AsgiApp:
        """Called by Serve in the replica; loads the model."""
        # Serve asks for no health while this runs, so that a large model may take its time.
        self._watch = Watch(_llama_app(self._options), serve.get_replica_context().replica_id.unique_id)
        return self._watch

    async def check_health(self) -> None:
        """Asked by Serve every `health_check_period_s`. Raises `RuntimeError` when a request hangs."""
        if self._watch is not None and self._watch.silent_s() > self._options.stall_s:
            raise RuntimeError(f"no token for {self._options.stall_s:.0f} s amid a request")


def _llama_app(options: Options) -> AsgiApp:
    # Imported in the replica only: whoever deploys needs no llama.cpp.
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    assigned = ray.get_runtime_context().get_assigned_resources()
    threads = options.threads or max(1, int(assigned.get("CPU", 1)))
    gpu = assigned.get("GPU", 0) > 0
    path = _model_file(options.model)
    return create_app(
        server_settings=ServerSettings(
            api_key=_api_key(options.api_key_file),
            # Otherwise a request that waits would end the one that is being answered.
            interrupt_requests=False,
        ),
        model_settings=[
            ModelSettings(
                model=str(path),
                model_alias=options.name or path.stem,
                n_ctx=options.context_tokens,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=options.gpu_layers if options.gpu_layers is not None else (-1 if gpu else 0),
                # The logits of every token of a prompt are wanted by nobody and take gigabytes.
                logits_all=False,
                verbose=False,
            )
        ],
    )


def _model_file(model: str) -> Path:
    """The file at a path, or of a catalogue name (fetched if it is missing)."""
    path = Path(model).expanduser()
    if path.is_file():
        return path
    try:
        from nexo_lsp.errors import ModelMissing
        from nexo_lsp.folders import folders
        from nexo_lsp.models.store import ModelStore
    except ImportError:
        raise FileNotFoundError(
            f"{model} is no file on this node; for a name of the catalogue install nexo-lsp here"
        ) from None
    store = ModelStore(folders(os.environ).models, os.environ)
    try:
        return store.locate(model)
    except ModelMissing:
        return store.pull(model)


def _api_key(file: str) -> str | None:
    if not file:
        return None
    lines = Path(file).read_text(encoding="utf-8").split()
    if not lines:
        # Without this an empty file would open the server to everybody.
        raise ValueError(f"the file with the API key is empty: {file}")
    return lines[0]


class Watch:
    """The server's app, watched: who answers, when a token came last, whether the client is still there."""

    def __init__(self, app: AsgiApp, replica: str) -> None:
        self._app = app
        self._replica = replica.encode()
        self._at_work = 0
        self._last_sign = time.monotonic()
        self._interrupt = Interrupt()
        self._prepared = False

    def silent_s(self) -> float:
        """For how long a request has had nothing; 0 while there is none."""
        return time.monotonic() - self._last_sign if self._at_work else 0.0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._prepared:
            self._prepared = True
            await self._interrupt.attach()
        left = False

        def leave() -> None:
            nonlocal left
            left = True
            # Where several are at work (`max_ongoing_requests`), it might be another's evaluation.
            if self._at_work == 1:
                self._interrupt.set()

        async def receive_watched() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                leave()
            return message

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (REPLICA_HEADER, self._replica)]
            # The pings of a silent stream are comments, and no sign of a model at work.
            if not message.get("body", b"").startswith(b":"):
                self._last_sign = time.monotonic()
            await send(message)

        if self._at_work == 0:
            self._last_sign = time.monotonic()
        self._at_work += 1
        working = asyncio.ensure_future(self._app(scope, receive_watched, send_marked))
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            # This is how Serve says that the client left (or that the replica ends).
            leave()
            working.cancel()
            await asyncio.wait([working])
            raise
        except BaseException as error:
            if not left:
                raise
            _log.info("a request ended early, since its client left: %s", error)
        finally:
            self._at_work -= 1
            self._interrupt.clear()


class Interrupt:
    """Ends an evaluation that is under way.

    llama.cpp asks a function before every node of its graph. It gets the C library's `strlen` and a text that
    is empty until `set`: so no Python runs inside the graph. What was ended leaves the model as it was.
    """

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)
        self._strlen: Any = ctypes.CDLL(None).strlen

    async def attach(self) -> None:
        """Have the loaded model listen."""
        import llama_cpp
        from llama_cpp.server.app import get_llama_proxy

        async with contextlib.asynccontextmanager(get_llama_proxy)() as models:
            if models is not None:
                function = ctypes.cast(self._strlen, llama_cpp.ggml_abort_callback)
                text = ctypes.cast(self._text, ctypes.c_void_p)
                llama_cpp.llama_set_abort_callback(models().ctx, function, text)

    def set(self) -> None:
        """End it, and what comes until `clear`."""
        self._text[0] = b"!"

    def clear(self) -> None:
        """Let the next one run."""
        self._text[0] = b"\0"
