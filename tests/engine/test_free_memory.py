"""What a container leaves, from the files of both versions of control groups."""

from __future__ import annotations

import pytest

from nexo_lsp.engines.llama.control_groups import container_free
from nexo_lsp.engines.llama.free_memory import free_memory

GIB = 2**30
NO_LIMIT_V1 = "9223372036854771712"


def v2(folder: str, limit: str, used: int, reclaimable: int = 0) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon {used - reclaimable}\ninactive_file {reclaimable}\n",
    }


def v1(folder: str, limit: str, used: int) -> dict[str, str]:
    return {f"{folder}/memory.limit_in_bytes": f"{limit}\n", f"{folder}/memory.usage_in_bytes": f"{used}\n"}


ROOT = "/sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/\n", v2(ROOT, str(2 * GIB), GIB), GIB),
        ("0::/\n", v2(ROOT, str(2 * GIB), GIB, GIB // 2), GIB + GIB // 2),
        ("0::/\n", v2(ROOT, "max", GIB), None),
        ("0::/\n", {}, None),
        ("", {}, None),
        # A group around the own one has the smaller limit.
        ("0::/a/b\n", v2(f"{ROOT}/a", str(GIB), 0) | v2(f"{ROOT}/a/b", str(3 * GIB), 0), GIB),
        # The path is the host's, and the container sees its own group as the root.
        ("0::/docker/77\n", v2(ROOT, str(GIB), 0), GIB),
        ("5:cpu:/\n4:memory:/x\n", v1(f"{ROOT}/memory/x", str(GIB), GIB // 4), GIB - GIB // 4),
        ("4:cpu,memory:/x\n", v1(f"{ROOT}/memory", str(GIB), 2 * GIB), 0),
        ("4:memory:/\n0::/\n", v1(f"{ROOT}/memory", "nonsense", 1), None),
    ],
)
def test_what_the_groups_leave(groups: str, files: dict[str, str], left: int | None) -> None:
    assert container_free(({"/proc/self/cgroup": groups} | files).get) == left


def test_the_smaller_one_counts() -> None:
    inside = {"/proc/self/cgroup": "0::/\n"} | v2(ROOT, str(GIB), 0)
    free = free_memory(lambda: 4 * GIB, inside.get)
    assert (free.bytes, free.why) == (GIB, "1,024 MB are free in this container")
    free = free_memory(lambda: GIB // 2, inside.get)
    assert (free.bytes, free.why) == (GIB // 2, "512 MB are free")


def test_no_limit_of_version_1_is_a_huge_number() -> None:
    files = {"/proc/self/cgroup": "4:memory:/\n"} | v1(f"{ROOT}/memory", NO_LIMIT_V1, GIB)
    assert free_memory(lambda: GIB, files.get).why == "1,024 MB are free"


def test_this_machine_says_something() -> None:
    assert free_memory().bytes > 0
