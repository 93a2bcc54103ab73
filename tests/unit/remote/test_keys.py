"""Where keys come from, and where they are never seen."""

from __future__ import annotations

import keyring.errors
import pytest
from typer.testing import CliRunner

from nexo_lsp import settings
from nexo_lsp.cli import remote as cli
from nexo_lsp.errors import SettingsError
from nexo_lsp.runtime.keys import SERVICE, VARIABLE, Keys, variables

HOST = "example.org:8443"
SECRET = "the-" + "key"


class Ring:
    """A keyring in memory."""

    def __init__(self, **kept: str) -> None:
        self.kept = {(SERVICE, host): value for host, value in kept.items()}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


class NoRing(Ring):
    def get_password(self, service: str, username: str) -> str | None:
        raise keyring.errors.NoKeyringError("none")

    def set_password(self, service: str, username: str, password: str) -> None:
        raise keyring.errors.NoKeyringError("none")


def test_the_variables_of_a_host() -> None:
    assert variables(HOST) == (f"{VARIABLE}_EXAMPLE_ORG_8443", f"{VARIABLE}_EXAMPLE_ORG", VARIABLE)
    assert variables("h") == (f"{VARIABLE}_H", VARIABLE)
    assert variables("[::1]:80") == (f"{VARIABLE}_1_80", f"{VARIABLE}_1", VARIABLE)


def test_what_is_for_the_host_comes_before_what_is_for_all() -> None:
    ring = Ring()
    ring.set_password(SERVICE, HOST, "from the ring")
    environ = {VARIABLE: "general", f"{VARIABLE}_EXAMPLE_ORG": "of the host"}
    found = Keys(environ, ring).find(HOST)
    assert found is not None
    assert (found.value, found.origin, found.variable) == (
        "of the host",
        "environment",
        f"{VARIABLE}_EXAMPLE_ORG",
    )
    found = Keys({VARIABLE: "general"}, ring).find(HOST)
    assert found is not None
    assert (found.value, found.origin) == ("from the ring", "keyring")
    found = Keys({VARIABLE: "general"}, Ring()).find(HOST)
    assert found is not None
    assert (found.value, found.variable) == ("general", VARIABLE)
    assert Keys({VARIABLE: "general"}, Ring()).find(HOST, general=False) is None
    assert Keys({VARIABLE: " "}, Ring()).find(HOST) is None


def test_without_a_keyring_the_variable_is_named() -> None:
    keys = Keys({}, NoRing())
    assert keys.find(HOST) is None
    with pytest.raises(SettingsError, match=f"{VARIABLE}_EXAMPLE_ORG_8443"):
        keys.store(HOST, SECRET)
    with pytest.raises(SettingsError, match=VARIABLE):
        keys.remove(HOST)


def test_a_key_is_in_no_picture() -> None:
    keys = Keys({VARIABLE: SECRET}, Ring())
    assert SECRET not in repr(keys)
    assert SECRET not in repr(keys.find(HOST))


def test_a_key_is_no_setting() -> None:
    environ = {VARIABLE: SECRET, f"{VARIABLE}_EXAMPLE_ORG": SECRET}
    resolved = settings.resolve([settings.from_environment(environ)])
    assert resolved.problems == ()
    assert SECRET not in repr(resolved)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Ring:
    one = Ring()
    monkeypatch.setattr(cli, "keys", lambda: Keys({}, one))
    return one


def test_login_and_logout(ring: Ring) -> None:
    run = CliRunner()
    url = f"https://{HOST}/v1"
    done = run.invoke(cli.app, ["login", url], input=f"{SECRET}\n")
    assert done.exit_code == 0
    assert SECRET not in done.output
    assert ring.kept == {(SERVICE, HOST): SECRET}
    gone = run.invoke(cli.app, ["logout", url])
    assert "is gone" in gone.stdout
    assert ring.kept == {}
    assert "no key" in run.invoke(cli.app, ["logout", url]).stdout


def test_login_says_what_is_wrong(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner()
    assert run.invoke(cli.app, ["login", "nowhere"]).exit_code == 2
    assert run.invoke(cli.app, ["login", "https://h/v1"], input=" \n \n").exit_code != 0
    assert ring.kept == {}
    monkeypatch.setattr(cli, "keys", lambda: Keys({}, NoRing()))
    failed = run.invoke(cli.app, ["login", "https://h/v1"], input=f"{SECRET}\n")
    assert failed.exit_code == 1
    assert f"{VARIABLE}_H" in failed.stderr
    assert SECRET not in failed.output
