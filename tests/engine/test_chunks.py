"""How much of a prompt is evaluated in one step."""

from __future__ import annotations

import pytest

from nexo_lsp.engines.llama.chunks import Chunks


@pytest.mark.parametrize("rows", [0, 1, 3, 16, 17, 40])
@pytest.mark.parametrize("speed", [None, 3.0, 60.0, 200.0, 5000.0])
def test_a_batch_is_whole_sixteens_and_never_too_large(rows: int, speed: float | None) -> None:
    size = Chunks(512).size(speed, rows, watched=False)
    assert size > 0
    assert rows + size <= 512
    assert (rows + size) % 16 == 0


def test_a_chunk_takes_one_and_a_half_seconds_and_less_where_somebody_watches() -> None:
    chunks = Chunks(512)
    assert chunks.size(200, 0, watched=False) == 288
    assert chunks.size(200, 0, watched=True) == 16
    assert chunks.size(1000, 0, watched=True) == 112


def test_interruptions_make_chunks_smaller_until_one_gets_through() -> None:
    chunks = Chunks(512)
    sizes: list[int] = []
    for _ in range(4):
        sizes.append(chunks.size(200, 0, watched=False))
        chunks.interrupted(200)
    assert sizes == [288, 144, 64, 32]
    for _ in range(6):
        chunks.passed()
    assert chunks.size(200, 0, watched=False) == 288
