"""Keys of servers: from the environment or from the system's keyring; never from settings.

A key is never logged, shown, or part of a message.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

from nexo_lsp.errors import SettingsError

_log = logging.getLogger(__name__)

VARIABLE = "NEXO_REMOTE_API_KEY"
"""The key of every endpoint that has none of its own."""

SERVICE = "nexo-lsp"
"""Under which name the keyring has our keys; the user there is the host."""


class Keyring(Protocol):
    """What is used of the library `keyring`."""

    def get_password(self, service: str, username: str, /) -> str | None:
        """The password, if there is one."""
        ...

    def set_password(self, service: str, username: str, password: str, /) -> None:
        """Keep a password."""
        ...

    def delete_password(self, service: str, username: str, /) -> None:
        """Forget a password."""
        ...


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and where it came from."""

    value: str = field(repr=False)
    origin: Literal["environment", "keyring"]
    variable: str = ""


def variables(host: str) -> tuple[str, ...]:
    """The variables that may hold the key of `host` (`host:port`), the first that is set counts.

    `NEXO_REMOTE_API_KEY_EXAMPLE_ORG_8443`, then without the port, then the one for all.
    """
    names = [re.sub("[^A-Z0-9]+", "_", part.upper()).strip("_") for part in (host, _without_port(host))]
    return (*dict.fromkeys(f"{VARIABLE}_{name}" for name in names if name), VARIABLE)


@dataclass(frozen=True, slots=True)
class Keys:
    """Finds, keeps and forgets keys. The keyring may block: it may ask the user to unlock it."""

    environ: Mapping[str, str] = field(repr=False)
    keyring: Keyring | None = None
    """None: the system's."""

    def find(self, host: str, *, general: bool = True) -> Key | None:
        """The key of `host` (`host:port`): its own variable's, else the keyring's, else the one for all.

        Without `general` not that one: it shall go to no other machine that is asked without encryption.
        """
        *own, everybody = variables(host)
        found = self._in_environment(own) or self._in_keyring(host)
        return found or (self._in_environment([everybody]) if general else None)

    def _in_environment(self, names: Sequence[str]) -> Key | None:
        for name in names:
            if value := self.environ.get(name, "").strip():
                return Key(value, "environment", name)
        return None

    def _in_keyring(self, host: str) -> Key | None:
        try:
            value = self._open(host).get_password(SERVICE, host)
        except SettingsError as error:
            _log.debug("no keyring: %s", error)
            return None
        except _failures() as error:
            _log.info("the keyring cannot be read (%s)", type(error).__name__)
            return None
        return Key(value, "keyring") if value else None

    def store(self, host: str, key: str) -> None:
        """Keep the key of `host` in the keyring. Raises `SettingsError` where there is none."""
        try:
            self._open(host).set_password(SERVICE, host, key)
        except _failures() as error:
            raise SettingsError(_no_keyring(host, type(error).__name__)) from error

    def remove(self, host: str) -> bool:
        """Forget the key of `host`; whether there was one. Raises `SettingsError` as `store` does."""
        try:
            ring = self._open(host)
            if ring.get_password(SERVICE, host) is None:
                return False
            ring.delete_password(SERVICE, host)
        except _failures() as error:
            raise SettingsError(_no_keyring(host, type(error).__name__)) from error
        return True

    def _open(self, host: str) -> Keyring:
        if self.keyring is not None:
            return self.keyring
        if not is_installed():
            package = 'The keyring needs one more package; run: pip install "nexo-lsp[remote]".'
            raise SettingsError(f"{package} Or set the variable {variables(host)[0]} (or {VARIABLE}).")
        import keyring

        return cast("Keyring", keyring.get_keyring())


def is_installed() -> bool:
    """Whether the library `keyring` is there; looked up without importing it."""
    return importlib.util.find_spec("keyring") is not None


def _failures() -> tuple[type[Exception], ...]:
    """What the keyring raises: its own errors (no backend, locked, refused), and those of files."""
    if not is_installed():
        return (OSError,)
    import keyring.errors

    return (keyring.errors.KeyringError, keyring.errors.NoKeyringError, OSError)


def _no_keyring(host: str, why: str) -> str:
    return (
        f"This system's keyring cannot be used ({why}). Set the variable {variables(host)[0]} (or "
        f"{VARIABLE}) instead, where your editor starts."
    )


def _without_port(host: str) -> str:
    return re.sub(r":\d+$", "", host)
