"""What a model file says of itself, and that no damage to it does more than be named."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexo_lsp.errors import ModelError
from nexo_lsp.models.gguf_reading import (
    TENSOR_TYPES,
    GgufDamaged,
    GgufTruncated,
    GgufUnsupported,
    NotGguf,
    read_contents,
)
from nexo_lsp.models.header import FILE_TYPES, Header, InfillTokens, read_header
from tests.engine.tiny_gguf import SPECIAL, write_tiny_model

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Writes a header without tensors, with the keys that a test gives."""

    def write(architecture: str = "llama", tokens: list[str] | None = None, **keys: Any) -> Path:
        path = tmp_path / "made.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        if tokens is not None:
            writer.add_token_list(tokens)
        for key, value in keys.items():
            name = key.replace("__", ".").replace("ARCH", architecture)
            if isinstance(value, str):
                writer.add_string(name, value)
            elif isinstance(value, list):
                writer.add_array(name, value)
            else:
                writer.add_uint32(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path

    return write


def test_the_tiny_model_tells_all(tiny: Path) -> None:
    header = read_header(tiny)
    size = tiny.stat().st_size
    assert header == Header(
        version=3,
        architecture="llama",
        name="tiny",
        size_label="",
        license="",
        quantisation="F32",
        parameters=header.parameters,
        context_tokens=8192,
        layers=2,
        kv_bytes_per_token=2 * 2 * 64 * 2,
        has_chat_template=True,
        infill=InfillTokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|im_end|>",)),
        tensors=header.tensors,
        tensor_bytes=header.parameters * 4,
        needed_bytes=size,
        file_bytes=size,
    )
    reader = gguf.GGUFReader(tiny)
    assert header.tensors == len(reader.tensors)
    assert header.parameters == sum(int(tensor.n_elements) for tensor in reader.tensors)


def test_sizes_and_names_are_those_of_ggml() -> None:
    for kind, (name, block, size) in TENSOR_TYPES.items():
        own = gguf.GGMLQuantizationType(kind)
        assert (own.name, *gguf.GGML_QUANT_SIZES[own]) == (name, block, size)
    names = {
        kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType
    }
    assert {kind: names[kind] for kind in FILE_TYPES} == FILE_TYPES


def test_a_file_that_does_not_say_is_called_by_what_most_of_it_is(tmp_path: Path) -> None:
    assert read_header(write_tiny_model(tmp_path / "packed.gguf", packed=True)).quantisation == "Q5_0"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"ARCH__attention__head_count_kv": 2}, 3 * 2 * (16 + 16) * 2),
        ({}, 3 * 4 * (16 + 16) * 2),
        ({"ARCH__attention__head_count_kv": 2, "ARCH__attention__key_length": 24}, 3 * 2 * (24 + 16) * 2),
        ({"ARCH__attention__head_count_kv": [0, 2, 0]}, 2 * (16 + 16) * 2),
        ({"ARCH__attention__head_count_kv": 2, "ARCH__full_attention_interval": 3}, 2 * (16 + 16) * 2),
        (
            {
                "ARCH__attention__key_length_mla": 192,
                "ARCH__attention__kv_lora_rank": 512,
                "ARCH__rope__dimension_count": 64,
            },
            3 * 576 * 2,
        ),
    ],
    ids=["grouped", "all heads", "own width", "a layer each", "one layer of three", "compressed"],
)
def test_what_a_token_takes_of_the_cache(written: Write, keys: dict[str, Any], expected: int) -> None:
    shape = {"ARCH__block_count": 3, "ARCH__attention__head_count": 4, "ARCH__embedding_length": 64}
    assert read_header(written(**shape, **keys)).kv_bytes_per_token == expected


@pytest.mark.parametrize(
    ("tokens", "keys", "expected"),
    [
        (
            ["a", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "</s>"],
            {"tokenizer__ggml__eos_token_id": 5},
            InfillTokens("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<file_sep>", "</s>")),
        ),
        (
            ["x", "P", "S", "M", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
            {
                "tokenizer__ggml__fim_pre_token_id": 1,
                "tokenizer__ggml__suffix_token_id": 2,
                "tokenizer__ggml__fim_mid_token_id": 3,
            },
            InfillTokens("P", "S", "M"),
        ),
        (["[PREFIX]", "[SUFFIX]"], {}, InfillTokens("[PREFIX]", "[SUFFIX]", "")),
        (["<|fim_prefix|>", "<|fim_suffix|>"], {}, None),
        (["a <|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], {}, None),
        ([], {"tokenizer__ggml__fim_pre_token_id": 7}, None),
        (None, {}, None),
    ],
    ids=[
        "by text",
        "by key",
        "mistral",
        "no middle",
        "only inside a token",
        "no such token",
        "no vocabulary",
    ],
)
def test_the_tokens_for_filling_in(
    written: Write, tokens: list[str] | None, keys: dict[str, Any], expected: InfillTokens | None
) -> None:
    assert read_header(written(tokens=tokens, **keys)).infill == expected


def test_a_token_whose_text_holds_the_bytes_of_another_is_not_taken_for_it(written: Write) -> None:
    hidden = struct.pack("<Q", 14).decode("latin-1") + "<|fim_prefix|>"
    path = written(tokens=[hidden, "<|fim_suffix|>", "<|fim_middle|>"])
    assert read_header(path).infill is None


def test_nothing_that_a_terminal_obeys_comes_through(written: Write) -> None:
    assert read_header(written(general__name="evil\x1b[2Jname")).name == "evil[2Jname"


def test_a_value_of_another_kind_counts_as_absent(written: Write) -> None:
    header = read_header(written(general__name=3, ARCH__block_count="many", general__file_type="best"))
    assert (header.name, header.layers, header.quantisation) == ("", 0, "")


# What is no header


def _file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "any.gguf"
    path.write_bytes(data)
    return path


def _head(version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def _key(name: str, kind: int, data: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + data


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"", NotGguf, "not a GGUF"),
        (b"<!DOCTYPE html>", NotGguf, "not a GGUF"),
        (b"GG", GgufTruncated, "ends before"),
        (b"GGUF", GgufTruncated, "ends before"),
        (_head()[:-1], GgufTruncated, "ends before"),
        (_head(keys=1), GgufTruncated, "ends before"),
        (_head(tensors=1), GgufTruncated, "ends before"),
        (_head(version=1), GgufUnsupported, "older"),
        (_head(version=4), GgufUnsupported, "newer"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), GgufUnsupported, "big-endian"),
        (_head(keys=1 << 60), GgufDamaged, "entries"),
        (_head(tensors=1 << 60), GgufDamaged, "entries"),
        (_head(keys=1) + _key("a", 13, b""), GgufDamaged, "no known kind"),
        (_head(keys=1) + _key("a", 9, struct.pack("<IQ", 4, 1 << 62)), GgufDamaged, "items"),
        (_head(keys=1) + _key("a", 9, struct.pack("<IQ", 9, 5000)), GgufDamaged, "items"),
        (_head(keys=1) + _key("a", 9, struct.pack("<IQ", 9, 1) * 9), GgufDamaged, "no known kind"),
        (_head(keys=1) + _key("a", 8, struct.pack("<Q", 1 << 63)), GgufTruncated, "ends before"),
        (_head(tensors=1) + struct.pack("<QI", 0, 99), GgufDamaged, "dimensions"),
    ],
)
def test_what_is_wrong_is_told_apart(tmp_path: Path, data: bytes, error: type[ModelError], said: str) -> None:
    with pytest.raises(ModelError, match=said) as failure:
        read_header(_file(tmp_path, data))
    assert type(failure.value) is error
    assert "any.gguf" in str(failure.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(ModelError, match="cannot be read"):
        read_header(tmp_path)


def test_a_file_without_all_its_tensors_is_read_and_told(tiny: Path, tmp_path: Path) -> None:
    header = read_header(_file(tmp_path, tiny.read_bytes()[:-1]))
    assert not header.is_complete
    assert read_header(tiny).is_complete


def test_long_arrays_are_stepped_over(written: Write) -> None:
    numbers = list(range(5000))
    contents = read_contents(written(numbers=numbers, few=[1, 2], tokens=["a"] * 5000, merges=["b c"] * 5000))
    assert contents.values["few"] == (1, 2)
    assert not {"numbers", "merges", "tokenizer.ggml.tokens"} & set(contents.values)
    assert contents.vocabulary.text(4999) == "a"
    assert contents.vocabulary.text(5000) is None


def test_a_header_longer_than_the_first_look_is_read(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexo_lsp.models.gguf_reading._FIRST_READ", 100)
    assert read_header(tiny).name == "tiny"
    monkeypatch.setattr("nexo_lsp.models.gguf_reading._MOST_HEADER", 400)
    with pytest.raises(GgufDamaged, match="no end"):
        read_header(tiny)


def test_counts_that_lie_take_neither_memory_nor_time(tmp_path: Path) -> None:
    lies = [
        _head(keys=1) + _key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1 << 22)) + bytes(1 << 16),
        _head(keys=1) + _key("a", 9, struct.pack("<IQ", 12, 1 << 22)),
        _head(keys=100_000) + bytes(1 << 16),
        _head(tensors=100_000) + bytes(1 << 16),
    ]
    for data in lies:
        path = _file(tmp_path, data)
        tracemalloc.start()
        try:
            with pytest.raises(ModelError):
                read_header(path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 << 20


_WHOLE: dict[str, bytes] = {}


def _whole(folder: Path) -> bytes:
    if "data" not in _WHOLE:
        _WHOLE["data"] = write_tiny_model(folder / "whole.gguf").read_bytes()
    return _WHOLE["data"]


# Bytes, and the numbers that do most harm as a length, a count or a kind.
_DAMAGE = st.one_of(
    st.binary(min_size=1, max_size=9),
    st.sampled_from([0, 1, 9, 1 << 16, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]).map(
        lambda number: struct.pack("<Q", number)
    ),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 8000), _DAMAGE, st.booleans()), max_size=4), st.integers(0, 9000))
def test_any_damage_is_a_header_or_a_model_error(
    tmp_path: Path, damages: list[tuple[int, bytes, bool]], length: int
) -> None:
    data = bytearray(_whole(tmp_path)[: length if length % 2 else None])
    for at, damage, insert in damages:
        data[at : at if insert else at + len(damage)] = damage
    try:
        header = read_header(_file(tmp_path, bytes(data)))
    except ModelError as error:
        assert str(error)
    else:
        assert header.tensors >= 0


@pytest.mark.model
def test_the_real_model_is_read_in_an_instant(model_path: Path) -> None:
    started = time.perf_counter()
    header = read_header(model_path)
    took = time.perf_counter() - started
    assert (header.architecture, header.size_label, header.quantisation) == ("qwen2", "0.5B", "Q4_K_M")
    assert (header.layers, header.context_tokens, header.kv_bytes_per_token) == (24, 32_768, 12_288)
    assert header.needed_bytes == header.file_bytes == 491_400_064
    assert header.has_chat_template
    assert header.infill is not None
    assert header.infill.prefix == SPECIAL[3]
    assert took < 60, "nothing but the vocabulary is looked through"
