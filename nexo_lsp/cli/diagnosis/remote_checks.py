"""Whether anything may leave this machine, to whom, and what keeps secrets in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nexo_lsp.cli.check import Check
from nexo_lsp.errors import SettingsError
from nexo_lsp.runtime import keys
from nexo_lsp.safety import redaction
from nexo_lsp.settings import Settings

if TYPE_CHECKING:
    from nexo_lsp.cli.remote import Tried
    from nexo_lsp.engines.remote.endpoint import Address

_AREA = "remote"
_INSTALL = 'pip install "nexo-lsp[remote]"'


def remote(settings: Settings, environ: Mapping[str, str]) -> Iterator[Check]:
    """What `nexo.remote` allows. No server is asked, and no keyring opened."""
    wanted = settings.remote
    if not wanted.enabled:
        named = f"; {len(wanted.endpoints)} named in nexo.remote.endpoints" if wanted.endpoints else ""
        yield Check(_AREA, "servers", "ok", f"off: no code leaves this machine{named}")
        return
    if not wanted.endpoints:
        mend = "set nexo.remote.endpoints in your own settings, or nexo.remote.enabled to false"
        yield Check(_AREA, "servers", "problem", "on, and no server is named", mend)
    for url in wanted.endpoints:
        yield _endpoint(url, environ)
    yield Check(
        _AREA,
        "trust",
        "ok",
        "not known here: your editor tells it for each workspace, and without it nothing is sent",
    )
    yield _redaction()
    yield _keyring()


def _address(url: str) -> Address | str:
    """An endpoint taken apart, or why it is none."""
    # It brings an HTTP library along.
    from nexo_lsp.engines.remote.endpoint import Address

    try:
        return Address.of(url)
    except SettingsError as error:
        return str(error)


def _endpoint(url: str, environ: Mapping[str, str]) -> Check:
    address = _address(url)
    if isinstance(address, str):
        return Check(
            _AREA, "server", "problem", address, "correct nexo.remote.endpoints in your own settings"
        )
    found = next((name for name in keys.variables(address.host) if environ.get(name, "").strip()), None)
    key = f"its key is in {found}" if found else "its key, if it wants one, would be in the keyring"
    if found == keys.VARIABLE:
        key = f"its key is in the keyring, else in {found}"
    if address.encrypted or address.loopback:
        return Check(_AREA, "server", "ok", f"{address.host}; {key}; `--connect` asks it")
    mend = "use https:// in nexo.remote.endpoints, if the server offers it"
    return Check(_AREA, "server", "warning", f"{address.host} is asked without encryption", mend)


def _redaction() -> Check:
    if redaction.is_installed():
        return Check(_AREA, "secrets", "ok", "detect-secrets is installed: secrets are taken out")
    text = "detect-secrets is not installed, so nothing is sent"
    return Check(_AREA, "secrets", "problem", text, _INSTALL)


def _keyring() -> Check:
    if keys.is_installed():
        return Check(_AREA, "keyring", "ok", "installed; `nexo-lsp remote login` keeps keys in it")
    text = f"not installed: keys come from {keys.VARIABLE} only"
    return Check(_AREA, "keyring", "warning", text, _INSTALL)


async def connected(settings: Settings) -> tuple[Check, ...]:
    """What the servers answer that `nexo.remote.endpoints` names; none is asked that may not be used."""
    wanted = settings.remote
    if not (wanted.enabled and wanted.endpoints):
        mend = "set nexo.remote.enabled and nexo.remote.endpoints in your own settings"
        return (Check(_AREA, "connect", "ok", "no server was asked, since none may be", mend),)
    if settings.offline:
        return (Check(_AREA, "connect", "ok", "no server was asked: nexo.offline is on"),)
    from nexo_lsp.cli.remote import try_all
    from nexo_lsp.runtime.providers.remote import options_of

    # One that is no address was told already.
    urls = tuple(url for url in wanted.endpoints if not isinstance(_address(url), str))
    return tuple(map(_answered, await try_all(urls, replace(options_of(wanted), attempts=1))))


def _answered(tried: Tried) -> Check:
    if not tried.ok:
        mend = "start the server, correct nexo.remote.endpoints, or `nexo-lsp remote login` for its key"
        return Check(_AREA, tried.host, "problem", tried.problem, mend)
    soon = (
        f", its first token after {tried.first_token_ms:.0f} ms" if tried.first_token_ms is not None else ""
    )
    text = f"answers{soon}; {tried.kind or 'unknown program'}, model {tried.model or 'unknown'}"
    return Check(_AREA, tried.host, "ok", text)
