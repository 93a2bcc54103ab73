"""Taking back the last token of a prompt, and the tokens that may come in its place."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.engines.llama.healing import Healing, HealingState
from nexo_lsp.engines.llama.loading import LoadedModel
from nexo_lsp.engines.llama.prompts import Prompts
from nexo_lsp.generation import ChatPrompt as Chat
from nexo_lsp.generation import InfillPrompt, InfillTemplate, Message, Request, Role

from .requests import INFILL, collect

WORDS = (
    b"",
    *(bytes([value]) for value in range(256)),
    *(b"  ", b"   ", b"    ", b"     ", b" val", b" value", b" values", b" return", b"return", b"():\n"),
    *(b"\n\n", "é".encode(), b"va"),
)
BYTES = st.lists(st.sampled_from([b" ", b"v", b"a", b"l", b"\xff", b"\n"]), max_size=6).map(b"".join)


@dataclass
class Words:
    """A vocabulary that is a list; splits a text greedily, by the longest word that fits."""

    pieces: tuple[bytes, ...] = WORDS
    asked: list[int] = field(default_factory=list)

    bos = None
    bos_text = eos_text = ""
    chat_template = None

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def piece(self, token: int) -> bytes:
        self.asked.append(token)
        return self.pieces[token]

    def special(self, text: str) -> int | None:
        return 0 if text.startswith("<|") else None

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        data, tokens = text.encode(), []
        while data:
            best = max((p for p in self.pieces if data.startswith(p)), key=len)
            tokens.append(self.pieces.index(best))
            data = data[len(best) :]
        return tokens


TEMPLATE = InfillTemplate(("<|s|>", "{suffix}", "<|m|>", "{prefix}"), heal=True)


def healed(prefix: str, template: InfillTemplate = TEMPLATE) -> tuple[list[bytes], bytes]:
    words = Words()
    tokens, rest = Prompts(words).healed(InfillPrompt(prefix, "end", template), Healing(words))
    return [words.pieces[token] for token in tokens], rest


def chosen(rest: bytes, *pieces: bytes) -> bytes:
    """What is new in an answer that begins with `pieces`; all of them have to be allowed."""
    words = Words()
    state, new = HealingState(Healing(words), rest), b""
    for piece in pieces:
        if state:
            assert piece in {words.pieces[token] for token in state.allowed()}
        new += state.advance(piece)
    assert not state
    return new


@pytest.mark.parametrize(
    ("prefix", "kept", "rest"),
    [
        ("x = val", [b"x", b" ", b"="], b" val"),
        ("():\n    ", [b"():\n"], b"    "),
        ("x val  ", [b"x", b" val"], b"  "),
        ("x values", [b"x", b" values"], b""),
        ("", [], b""),
    ],
)
def test_a_token_that_could_go_on_is_taken_back(prefix: str, kept: list[bytes], rest: bytes) -> None:
    assert healed(prefix) == ([b"", *(bytes([byte]) for byte in b"end"), b"", *kept], rest)


def test_several_tokens_are_taken_back_if_they_begin_one() -> None:
    assert Words().tokenize("x va", special=False) == [WORDS.index(piece) for piece in (b"x", b" ", b"va")]
    assert healed("x va") == ([b"", *(bytes([byte]) for byte in b"end"), b"", b"x"], b" va")


def test_nothing_is_taken_back_where_it_is_not_asked_for_or_the_prefix_does_not_end_the_prompt() -> None:
    assert healed("x val", replace(TEMPLATE, heal=False))[1] == b""
    assert healed("x val", InfillTemplate(("<|p|>", "{prefix}", "<|m|>"), heal=True))[1] == b""
    words = Words()
    assert Prompts(words).healed(Chat((Message(Role.USER, " val"),)), Healing(words))[1] == b""


def test_a_model_of_single_bytes_has_nothing_to_heal(loaded: LoadedModel) -> None:
    prompts, healing = Prompts(loaded.model), Healing(loaded.model)
    template = InfillTemplate(("<|fim_suffix|>", "{suffix}", "<|fim_middle|>", "{prefix}"), heal=True)
    prompt = InfillPrompt("x = val", "\n", template)
    assert prompts.healed(prompt, healing) == (prompts.tokens(prompt), b"")
    assert prompts.healed(InfillPrompt("x", "\n", INFILL), healing)[1] == b""


def test_what_goes_beyond_the_bytes_taken_back_is_new() -> None:
    assert chosen(b" val", b" value", b"s") == b"ues"
    assert chosen(b" val", b" ", b"va", b"l", b"x") == b"x"
    assert chosen(b"    ", b"   ", b" return") == b"return"
    assert chosen(b" val", b" val") == b""
    assert chosen(b"", b" any", b"thing") == b" anything"


def test_a_token_that_repeats_nothing_is_refused() -> None:
    state = HealingState(Healing(Words()), b" val")
    with pytest.raises(ValueError, match="return"):
        state.advance(b" return")
    with pytest.raises(ValueError, match="b''"):
        state.advance(b"")


@given(st.lists(BYTES.filter(bool), max_size=40), BYTES.filter(bool))
def test_the_index_finds_what_a_search_through_all_tokens_finds(pieces: list[bytes], rest: bytes) -> None:
    allowed = Healing(Words((b"", *pieces))).allowed(rest)
    expected = {
        token
        for token, piece in enumerate(pieces, start=1)
        if piece.startswith(rest) or rest.startswith(piece)
    }
    assert sorted(allowed.tolist()) == sorted(expected)


@given(BYTES.filter(bool), st.data())
def test_every_choice_of_allowed_tokens_repeats_the_bytes_and_ends(rest: bytes, data: st.DataObject) -> None:
    words = Words()
    state, said, new = HealingState(Healing(words), rest), b"", b""
    while state:
        token = int(data.draw(st.sampled_from(state.allowed().tolist())))
        said += words.pieces[token]
        new += state.advance(words.pieces[token])
    assert said == rest + new


def test_the_index_is_made_in_the_background_once() -> None:
    words = Words()
    healing = Healing(words)
    healing.prepare()
    healing.prepare()
    assert healing.allowed(b" val").size
    healing.close()
    assert len(words.asked) == len(WORDS)


def test_closing_ends_the_work_in_the_background() -> None:
    asked = threading.Event()

    class Endless:
        vocab_size = 10**12

        def piece(self, token: int) -> bytes:
            asked.set()
            return b""

    healing = Healing(Endless())
    healing.prepare()
    asked.wait()
    healing.close()


@pytest.mark.model
@pytest.mark.parametrize(
    ("prefix", "answer"),
    [
        ("def add(first, second):\n    ", "return first + second"),
        ("def add(first, second):\n    retu", "rn first + second"),
        ("def add(first, second):\n    return fir", "st + second"),
    ],
)
async def test_a_real_model_goes_on_inside_a_token(model_path: Path, prefix: str, answer: str) -> None:
    async def model() -> Path:
        return model_path

    template = InfillTemplate(
        ("<|fim_prefix|>", "<|fim_suffix|>", "{suffix}", "<|fim_middle|>", "{prefix}"), heal=True
    )
    prompt = InfillPrompt(prefix, "\n\nprint(add(1, 2))\n", template)
    engine = LlamaEngine(model, LlamaOptions(context_tokens=1024))
    try:
        text, _ = await collect(engine.stream(Request(prompt, max_tokens=16, stop=("\n",))))
    finally:
        await engine.close()
    assert text.rstrip() == answer
