from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nexo_lsp.runtime.providers.containers.owners import Owner, is_orphan, labels
from nexo_lsp.runtime.providers.containers.plan import Facts, Plan, creation, memory_for, model_files, network

FACTS = Facts("Docker Engine 27.0", cpus=8, memory_bytes=16 << 30, init=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "coder.gguf"
    path.write_bytes(bytes(4000))
    return path


def made(
    plan: Plan, facts: Facts = FACTS, user: str | None = "1000:1000", cores: int = 4
) -> dict[str, object]:
    return creation(plan, facts, cores=cores, user=user)


def test_it_may_do_nothing_but_answer(model: Path) -> None:
    plan = Plan("image:1", model)
    options = made(plan)
    assert options["ports"] == {"8080/tcp": ("127.0.0.1", None)}
    assert options["mounts"] == [
        {"Type": "bind", "Source": str(model), "Target": "/models/coder.gguf", "ReadOnly": True}
    ]
    assert options["network"] == network(plan)["name"]
    assert (options["read_only"], options["cap_drop"], options["user"]) == (True, ["ALL"], "1000:1000")
    assert options["security_opt"] == ["no-new-privileges"]
    # The key is in the environment and not among the arguments, which every user of the machine can read.
    assert plan.key in options["environment"]["LLAMA_API_KEY"]
    assert plan.key not in str(options["command"])
    assert plan.key not in repr(plan)
    assert Plan("image:1", model).key != plan.key


def test_limits_follow_from_the_settings_and_from_what_there_is(model: Path) -> None:
    options = made(Plan("i", model, memory_bytes=memory_for(model)))
    assert options["mem_limit"] == options["memswap_limit"] == 5000 + (2 << 30)
    assert options["nano_cpus"] == 4_000_000_000
    options = made(Plan("i", model, threads=6))
    assert options["command"][options["command"].index("-t") + 1] == "6"
    # Docker Desktop's machine may have fewer processors than the one around it.
    assert made(Plan("i", model, threads=6), replace(FACTS, cpus=2))["nano_cpus"] == 2_000_000_000


def test_whose_the_server_is(model: Path) -> None:
    plan = Plan("i", model)
    assert "user" not in made(plan, replace(FACTS, rootless=True))
    assert "user" not in made(plan, replace(FACTS, remapped=True))
    assert "user" not in made(plan, user=None)
    assert "label=disable" in made(plan, replace(FACTS, selinux=True))["security_opt"]
    assert "device_requests" not in made(plan)
    assert "device_requests" in made(replace(plan, gpus=True))


def test_a_model_in_parts_is_mounted_whole(tmp_path: Path) -> None:
    first = tmp_path / "big-00001-of-00003.gguf"
    assert [path.name for path in model_files(first)] == [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert model_files(tmp_path / "small.gguf") == (tmp_path / "small.gguf",)


def test_an_orphan_is_what_a_dead_process_of_ours_left() -> None:
    me = Owner.this()
    assert me.alive()
    assert not is_orphan(labels(me, "coder", None), me)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = psutil.Process(other.pid).create_time()
        theirs = labels(replace(me, pid=other.pid, started=started), "coder", "abc")
        assert not is_orphan(theirs, me)
    assert is_orphan(theirs, me)
    # The number is somebody else's now.
    assert is_orphan(labels(replace(me, pid=os.getpid(), started=me.started - 3600), "coder", None), me)
    # What cannot be known is left alone: another machine, another user, something that is not ours.
    assert not is_orphan(theirs, replace(me, host="elsewhere"))
    assert not is_orphan(theirs, replace(me, user="somebody"))
    assert not is_orphan({"nexo-lsp": "engine"}, me)
    assert not is_orphan({**theirs, "nexo-lsp.owner.pid": "many"}, me)
