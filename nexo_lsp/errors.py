"""Every error that the project raises on purpose.

Third-party exceptions are mapped to these where they enter. The message of each is one that a user can read:
what happened, and what to do next. Code tells errors apart by class, never by text.
"""

from __future__ import annotations


class NexoError(Exception):
    """The root. `str(error)` is what the user sees; `code` is stable and goes to logs and JSON output."""

    code = "error"


class SettingsError(NexoError):
    """A setting that makes it impossible to go on (most wrong settings only fall back to their default)."""

    code = "settings"


class UsageError(NexoError):
    """The command or request asks for something that does not exist or does not fit."""

    code = "usage"


class DisabledError(NexoError):
    """A setting or an ignore file says that nothing may be asked here."""

    code = "disabled"


class ModelError(NexoError):
    """The root of everything about model files."""

    code = "model"


class ModelUnknown(ModelError):
    """Neither a catalogue name nor a file."""

    code = "model-unknown"


class ModelMissing(ModelError):
    """The model is not on this machine and may not be fetched now."""

    code = "model-missing"


class ModelDownloadFailed(ModelError):
    """No source could deliver the model; the message names each and why."""

    code = "model-download"


class ModelDownloadCancelled(ModelError):
    """The user stopped the download; what came so far is kept."""

    code = "model-download-cancelled"


class ModelCorrupt(ModelError):
    """A file whose size or digest is not the catalogue's."""

    code = "model-corrupt"


class DiskFull(ModelError):
    """Not enough room for a model file."""

    code = "disk-full"


class ModelQuantizeFailed(ModelError):
    """llama.cpp could not write a model in the wanted kind of quantisation."""

    code = "model-quantize"


class ModelBroken(ModelError):
    """A model file that loads, and whose predictions are worthless."""

    code = "model-broken"


class ModelWorkCancelled(ModelError):
    """The user stopped what was being made of a model; nothing of it is left."""

    code = "model-cancelled"


class EngineError(NexoError):
    """The root of everything about inference."""

    code = "engine"


class EngineUnavailable(EngineError):
    """No engine can be had on this machine with these settings."""

    code = "engine-unavailable"


class EngineSilent(EngineUnavailable):
    """A server took a request and said nothing in the time that it has."""

    code = "engine-silent"


class EngineLoadFailed(EngineError):
    """The model file could not be loaded (missing, truncated, foreign, too little memory)."""

    code = "engine-load"


class EngineCrashed(EngineError):
    """The engine's process died, or hung and was ended, while this request was waiting."""

    code = "engine-crashed"


class EngineClosed(EngineError):
    """The engine was closed (the server is shutting down, the settings changed)."""

    code = "engine-closed"


class PromptTooLong(EngineError):
    """The prompt and the answer do not fit into the model's context."""

    code = "prompt-too-long"


class BadAnswer(EngineError):
    """The model's answer could not be used (not parsable, empty)."""

    code = "bad-answer"


class DocumentError(NexoError):
    """The root of everything about open documents."""

    code = "document"


class DocumentNotOpen(DocumentError):
    """A request for a document that the client has not opened."""

    code = "document-not-open"


class StaleDocument(DocumentError):
    """The code changed underneath in the same place while the answer was made."""

    code = "document-stale"


class EditRefused(NexoError):
    """A generated edit failed its checks and was not applied."""

    code = "edit-refused"


class StorageError(NexoError):
    """The database could not be opened or written."""

    code = "storage"
