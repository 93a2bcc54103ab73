"""The commands beside `review`, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nexo_lsp import __version__, settings
from nexo_lsp.cli.exit_codes import reported
from nexo_lsp.cli.program import build
from nexo_lsp.cli.serve import address
from nexo_lsp.cli.settings_page import allowed
from nexo_lsp.errors import EngineCrashed, UsageError

ROOT = Path(__file__).resolve().parents[3]


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build(words), list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_version() -> None:
    program = [sys.executable, "-m", "nexo_lsp", "--version"]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"nexo-lsp {__version__}\n"
    assert run("--version")[1] == done.stdout


def test_help_names_every_command_and_the_exit_codes() -> None:
    code, out, _ = run("--help")
    assert code == 0
    for word in ("serve", "review", "models", "doctor", "config", "130"):
        assert word in out


def test_unknown_commands_and_options() -> None:
    assert run("reviewed")[0] == 2
    assert run("serve", "--port", "1")[0] == 2
    assert run("review")[0] == 2


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("2087", ("127.0.0.1", 2087)),
        (":0", ("127.0.0.1", 0)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(text: str, place: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert address(text) == place
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["", "host", "host:", "1:2:x", "127.0.0.1:65536", "127.0.0.1:-1"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(UsageError):
        address(text)


@pytest.mark.parametrize("text", ["0.0.0.0:1", "[::]:1", "192.168.1.2:1", "example.org:1"])
def test_an_open_address_is_warned_of(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    address(text)
    assert "other machines" in capsys.readouterr().err


def test_serve_wants_one_transport() -> None:
    code, _, errors = run("serve", "--tcp", "1", "--ws", "2")
    assert code == 2
    assert errors == "nexo-lsp: give one of --stdio, --tcp and --ws\n"


def test_config_shows_values_and_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXO_REVIEW_TRIGGER", "manual")
    code, out, _ = run("config", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["settings"]}
    assert set(rows) == {f"nexo.{name}" for name in settings.names()}
    assert rows["nexo.review.trigger"]["value"] == "manual"
    assert rows["nexo.review.trigger"]["origin"] == "environment (NEXO_REVIEW_TRIGGER)"
    assert rows["nexo.hover.waitMs"]["origin"] == "default"
    assert "nexo.review.trigger" in run("config")[1]


def test_config_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXO_REVIEW_TRIGGER", "sometimes")
    code, _, errors = run("config")
    assert code == 1
    assert "nexo.review.trigger" in errors
    assert json.loads(run("config", "--json")[1])["problems"][0]["name"] == "nexo.review.trigger"


def test_config_schema_and_page() -> None:
    assert json.loads(run("config", "--schema")[1]) == json.loads(json.dumps(settings.json_schema()))
    page = run("config", "--markdown")[1]
    assert all(f"## `nexo.{name}`" in page and settings.variable(name) in page for name in settings.names())
    assert run("config", "--schema", "--json")[0] == 2


def test_values_in_words() -> None:
    assert allowed({"type": "integer", "minimum": 1, "maximum": 2}) == "a whole number from 1 to 2"
    assert allowed({"type": "number", "minimum": 0}) == "a number, 0 or more"
    assert allowed({"anyOf": [{"type": "boolean"}, {"type": "null"}]}) == "`true` or `false` or `null`"
    assert allowed({"enum": ["a", "b"]}) == '`"a"`, `"b"`'


def test_errors_are_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, reported():
        raise EngineCrashed("The engine stopped.")
    assert ended.value.exit_code == 3
    assert capsys.readouterr().err == "nexo-lsp: The engine stopped.\n"
    with pytest.raises(typer.Exit) as ended, reported():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130


def program(*words: str, before: str = "", stdout: int | None = None) -> subprocess.CompletedProcess[str]:
    """The program as a process, in which `before` was run first."""
    code = f"import sys\n{before}\nfrom nexo_lsp.cli import main\nmain({list(words)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )


@pytest.mark.parametrize("words", [("models", "list"), ("doctor",), ("review", "examples"), ("config",)])
def test_ctrl_c_while_the_program_is_still_starting(words: tuple[str, ...]) -> None:
    early = (
        "class Interrupts:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())"
    )
    done = program(*words, before=early)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "nexo-lsp: stopped\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only some systems have a device that is full")
@pytest.mark.parametrize("words", [("--version",), ("models", "list"), ("config", "--json")])
def test_output_that_cannot_be_written(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = program(*words, stdout=full.fileno())
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr
