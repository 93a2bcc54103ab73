from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexo_lsp.server.framing import FrameError, FrameParser, frame


@given(
    messages=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=5),
    cuts=st.lists(st.integers(min_value=1, max_value=40), max_size=30),
)
def test_messages_come_out_whole_however_the_bytes_are_cut(
    messages: list[dict[str, str]], cuts: list[int]
) -> None:
    stream = b"".join(frame(message) for message in messages)
    parser, bodies, at = FrameParser(), [], 0
    for cut in [*cuts, len(stream)]:
        bodies += parser.feed(stream[at : at + cut])
        at += cut
    assert [json.loads(body) for body in bodies] == messages


def test_header_names_have_any_case_and_any_order() -> None:
    assert FrameParser().feed(b"content-type: x\r\nCONTENT-LENGTH:2\r\n\r\n{}") == [b"{}"]


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 99999999999999\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_not_lsp_is_refused(stream: bytes) -> None:
    with pytest.raises(FrameError):
        FrameParser().feed(stream)
