"""`nexo-lsp doctor` on machines where something is missing or broken: it says what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nexo_lsp.cli.diagnosis.looks import Looks
from nexo_lsp.cli.doctor import examine
from nexo_lsp.models.store import ModelStore
from tests.conftest import IN_CI
from tests.engine.scripted_server import CHAT, ScriptedServer, answer
from tests.engine.tiny_gguf import write_tiny_model
from tests.unit.cli.doctors import (
    LAPTOP,
    QUICK,
    checks,
    default_entry,
    problems,
    put_model,
    report,
    run_real,
)
from tests.unit.models.faults import read_only, small_disk
from tests.unit.runtime.machines import ENVIRONMENTS

# A GGUF file of version 3 without keys and tensors: enough to be one.
HEAD = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)
PULL = f"nexo-lsp models pull {default_entry().name}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def needs_llama() -> None:
    if not IN_CI:
        pytest.importorskip("llama_cpp")


def test_a_machine_with_nothing(tmp_path: Path) -> None:
    hidden = ("llama_cpp", "detect_secrets", "keyring", "docker")
    done = run_real(tmp_path, hidden=hidden)
    assert done.code == 1, done.errors
    assert 'pip install "nexo-lsp[native]"' in done.out
    assert PULL in done.out
    assert "none: nothing can be answered" in done.out
    assert done.out.splitlines()[-1].startswith(("1 thing is wrong: llama-cpp-python", "2 things are wrong"))
    assert not (tmp_path / "home" / "models").exists(), "looking makes nothing"


def test_a_whole_machine_without_a_model_asks_no_network(tmp_path: Path) -> None:
    needs_llama()
    done = run_real(tmp_path, "--json")
    assert done.code == 0, done.errors
    data = done.data
    assert data["ok"] is True
    (model,) = [check for check in data["checks"] if check["name"] == "model file"]
    assert (model["state"], PULL in model["mend"]) == ("warning", True)
    assert "needs a network; without one put the file" in model["mend"]
    assert {"environment", "engines", "models", "checks"} <= set(data)
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert written == [tmp_path / "home" / "state" / "gpus.json"]


def test_a_model_that_was_cut_off(tmp_path: Path) -> None:
    needs_llama()
    put_model(tmp_path / "home", size=1000, head=b"GGUF")
    done = run_real(tmp_path, "--json")
    assert done.code == 1, done.errors
    (wrong,) = [check for check in done.data["checks"] if check["state"] == "problem"]
    assert "1,000 bytes instead of" in wrong["value"]
    assert wrong["mend"] == PULL


def test_without_a_network_in_a_pipe(tmp_path: Path) -> None:
    done = run_real(tmp_path, hidden=("llama_cpp",), NEXO_OFFLINE="true", COLUMNS="80")
    assert done.code == 1, done.errors
    assert "nexo.offline allows no download" in done.out
    assert f"set nexo.offline to false, then {PULL}" in done.out, "a command is one line in a pipe"
    assert "no network (nexo.offline)" in done.out


def test_a_digest_that_is_not_the_published_one(home: Path) -> None:
    put_model(home, digest="0" * 64)
    wrong = problems(report(home))["model file"]
    assert "its SHA-256 is not the published one" in wrong.value
    assert wrong.mend == PULL
    offline = problems(report(home, NEXO_OFFLINE="true"))["model file"]
    assert offline.mend == f"set nexo.offline to false, then {PULL}"


def test_a_model_of_the_right_size_that_is_something_else(home: Path) -> None:
    put_model(home, head=b"<!DOCTYPE html>")
    wrong = problems(report(home))["model file"]
    assert PULL in wrong.mend


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, b"PK\x03\x04"])
def test_a_file_of_ones_own_that_is_no_model(home: Path, content: bytes) -> None:
    own = home / "own.gguf"
    own.write_bytes(content)
    wrong = problems(report(home, NEXO_MODEL=str(own)))["model file"]
    assert str(own) in wrong.value
    assert "nexo.model" in wrong.mend


def test_a_file_of_ones_own_that_is_cut_off(home: Path) -> None:
    own = write_tiny_model(home / "own.gguf")
    assert report(home, NEXO_MODEL=str(own)).well
    own.write_bytes(own.read_bytes()[:-1000])
    wrong = problems(report(home, NEXO_MODEL=str(own)))["model file"]
    assert "cut off" in wrong.value


def test_a_model_that_nobody_knows(home: Path) -> None:
    wrong = problems(report(home, NEXO_MODEL="gpt"))["model file"]
    assert wrong.mend == "nexo-lsp models list"


def test_no_download_where_the_hub_is_off_and_nobody_else_has_it(home: Path) -> None:
    found = report(home, HF_HUB_OFFLINE="1", NEXO_MODEL="qwen2.5-coder-7b-instruct-q4_k_m")
    wrong = problems(found)["model file"]
    assert "HF_HUB_OFFLINE" in wrong.value
    assert wrong.mend.startswith("unset HF_HUB_OFFLINE, then nexo-lsp models pull qwen2.5-coder-7b")


def test_no_download_unless_the_user_pulls(home: Path) -> None:
    wrong = problems(report(home, NEXO_MODELS_AUTO_DOWNLOAD="never"))["model file"]
    assert wrong.mend == PULL


def test_folders_that_cannot_be_written(home: Path) -> None:
    looks = replace(QUICK, writable=lambda folder: folder.name != "models")
    wrong = problems(report(home, looks=looks))["models"]
    assert "NEXO_HOME" in wrong.mend
    (home / "models").write_text("a file, where a folder should be")
    assert "models" in problems(report(home))


def test_a_folder_that_is_read_only(home: Path) -> None:
    with small_disk(home / "models", 1_000_000), read_only(home / "models"):
        assert "NEXO_HOME" in problems(report(home))["models"].mend


def test_a_disk_that_is_nearly_full(home: Path) -> None:
    with small_disk(home / "models", 50_000_000):
        found = report(home)
    assert problems(found)["disk"].value == "50 MB free where the model of 491 MB would go"
    assert "models prune" in problems(found)["disk"].mend
    assert checks(found)["models"].state == "warning"
    looks = replace(QUICK, disk_free=lambda _folder: None)
    assert report(home, looks=looks).well, "what is not known is no problem"


def test_wrong_settings(home: Path) -> None:
    (home / "config").mkdir()
    (home / "config" / "settings.toml").write_text('[review]\ntrigger = "sometimes"\n')
    wrong = problems(report(home, NEXO_HOVER_WAIT_MS="soon"))
    assert {"nexo.review.trigger", "nexo.hover.waitMs"} <= set(wrong)
    assert "nexo-lsp config" in wrong["nexo.review.trigger"].mend
    (home / "config" / "settings.toml").write_text("this is no TOML")
    assert str(home / "config" / "settings.toml") in problems(report(home))


def test_a_catalogue_that_is_wrong(home: Path) -> None:
    (home / "config").mkdir()
    (home / "config" / "models.toml").write_text('[[model]]\nname = "mine"\n')
    wrong = problems(report(home))["catalogue"]
    assert "mine" in wrong.value
    assert str(home / "config" / "models.toml") in wrong.mend


CONTAINER = replace(LAPTOP, container="docker", total_bytes=400_000_000, free_bytes=300_000_000)


def test_a_container_with_little_memory(home: Path) -> None:
    put_model(home)
    found = report(home, CONTAINER)
    wrong = problems(found)["actions"]
    assert "wants 736 MB of memory, and 300 MB are free" in wrong.value
    assert wrong.mend.startswith("give the container more memory")
    (memory,) = [check for check in found.checks if (check.area, check.name) == ("machine", "memory")]
    assert memory.value == "300 MB of 400 MB free, what the docker container may take"


def test_memory_that_is_tight(home: Path) -> None:
    tight = report(home, replace(CONTAINER, total_bytes=1_000_000_000, free_bytes=760_000_000))
    assert tight.plan.uses("native")
    write_tiny_model(home / "own.gguf")
    own = report(home, replace(LAPTOP, free_bytes=300_000_000), NEXO_MODEL=str(home / "own.gguf"))
    (memory,) = [check for check in own.checks if (check.area, check.name) == ("model", "memory")]
    assert (memory.state, "end other programs" in memory.mend) == ("warning", True)


REMOTE = {"NEXO_REMOTE_ENABLED": "true", "NEXO_REMOTE_ENDPOINTS": "https://models.example.org/v1"}


def test_servers_in_a_workspace_that_nobody_trusted(home: Path) -> None:
    found = report(home, given=REMOTE)
    (row,) = [row for row in found.plan.engines if row.name == "remote"]
    assert all(cell.points is None and cell.if_trusted for cell in row.cells.values())
    assert "your editor tells it" in checks(found)["trust"].value
    assert "models.example.org" in checks(found)["server"].value


def test_servers_without_the_library_that_finds_secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexo_lsp.safety.redaction.is_installed", lambda: False)
    wrong = problems(report(home, given=REMOTE))["secrets"]
    assert wrong.mend == 'pip install "nexo-lsp[remote]"'


def test_servers_that_are_wrong(home: Path) -> None:
    none = problems(report(home, NEXO_REMOTE_ENABLED="true"))["servers"]
    assert "nexo.remote.endpoints" in none.mend
    odd = problems(report(home, NEXO_REMOTE_ENABLED="true", NEXO_REMOTE_ENDPOINTS="ftp://example.org"))
    assert "not a web address" in odd["server"].value
    plain = report(home, NEXO_REMOTE_ENABLED="true", NEXO_REMOTE_ENDPOINTS="http://models.example.org")
    assert checks(plain)["server"].state == "warning"
    named = problems(report(home, NEXO_ENGINE="remote"))
    assert "nexo.remote.enabled" in named["actions"].mend


def test_an_engine_that_only_an_editor_has(home: Path) -> None:
    found = report(home, NEXO_ENGINE="client-hosted")
    assert found.well
    assert checks(found)["actions"].state == "warning"


def test_servers_are_asked_only_on_demand(home: Path) -> None:
    closed = {"NEXO_REMOTE_ENABLED": "true", "NEXO_REMOTE_ENDPOINTS": "http://127.0.0.1:9/v1"}
    assert "127.0.0.1:9" not in problems(report(home, given=closed))
    assert "nexo.remote.endpoints" in problems(report(home, connect=True, given=closed))["127.0.0.1:9"].mend
    offline = report(home, connect=True, NEXO_OFFLINE="true", given=closed)
    assert "nexo.offline" in checks(offline)["connect"].value
    assert "none may be" in checks(report(home, connect=True))["connect"].value


async def test_servers_that_answer(home: Path) -> None:
    async with ScriptedServer(owner="vllm", model="coder") as server:
        server.on(CHAT, answer("ok"))
        environ = {
            "NEXO_HOME": str(home),
            "NEXO_REMOTE_ENABLED": "true",
            "NEXO_REMOTE_ENDPOINTS": server.url,
        }
        quiet = await examine(environ, LAPTOP, QUICK)
        assert server.got == [], "without --connect nothing is asked"
        assert quiet.well
        found = await examine(environ, LAPTOP, QUICK, connect=True)
        assert [chat.body["messages"][-1]["content"] for chat in server.chats] == ["Say: ok"]
    said = checks(found)[f"127.0.0.1:{server.port}"]
    assert (said.state, said.value.startswith("answers, its first token after ")) == ("ok", True)
    assert "model coder" in said.value


def test_a_library_that_does_not_load(home: Path) -> None:
    looks = Looks(import_failure=lambda _module: "it crashed (exit code -4)", ask=QUICK.ask)
    needs_llama()
    wrong = problems(report(home, looks=looks))["llama-cpp-python"]
    assert wrong.mend.startswith("pip install --force-reinstall")


def test_what_the_folder_of_models_holds(home: Path) -> None:
    put_model(home, digest=default_entry().sha256)
    (home / "models" / "other.gguf.partial").write_bytes(b"")
    with (home / "models" / "other.gguf.partial").open("wb") as file:
        file.truncate(200_000_000)
    found = checks(report(home, NEXO_MODELS_CACHE_LIMIT_GB="0.5"))
    assert (found["size"].state, "nexo.models.cacheLimitGb" in found["size"].value) == ("warning", True)
    assert (found["unused"].mend, "200 MB" in found["unused"].value) == ("nexo-lsp models prune", True)


def test_a_model_that_came_with_the_program(home: Path) -> None:
    shipped = put_model(home / "shipped", head=HEAD)
    found = report(home, NEXO_MODELS_EMBEDDED=str(shipped.parent))
    file = checks(found)["model file"]
    assert (file.state, file.mend) == ("ok", "")
    assert f"{shipped} (491 MB; came with the program: NEXO_MODELS_EMBEDDED)" in file.value
    assert "came along" in checks(found)


def test_a_model_that_is_pinned(home: Path) -> None:
    put_model(home, head=HEAD, digest=default_entry().sha256)
    store = ModelStore(home / "models", {})
    store.versions.pin(default_entry())
    pinned = checks(report(home))["pinned"].value
    assert f"{default_entry().name}@{default_entry().sha256[:8]}" in pinned
    assert "nexo-lsp models unpin" in pinned


def test_a_slow_python_is_told(home: Path) -> None:
    system = checks(report(home, replace(LAPTOP, emulated=True, architecture="arm64")))["system"]
    assert (system.state, "arm64" in system.mend) == ("warning", True)


@pytest.mark.parametrize("name", list(ENVIRONMENTS)[::5])
def test_every_kind_of_machine_can_be_looked_at(home: Path, name: str) -> None:
    found = report(home, ENVIRONMENTS[name])
    assert {check.name for check in found.checks} >= {"processor", "memory", "battery", "allowed"}
    problems(found)
