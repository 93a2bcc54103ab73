"""The default model through the whole engine: that it says something worth reading."""

from __future__ import annotations

import ast
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.generation import FinishReason, InfillPrompt, InfillTemplate, Request

from .requests import chat, collect

pytestmark = pytest.mark.model

# Suffix first, the prefix after the middle token: what Qwen2.5-Coder did best with.
QWEN = InfillTemplate(
    ("<|fim_prefix|>", "<|fim_suffix|>", "{suffix}", "<|fim_middle|>", "{prefix}"),
    ("<|endoftext|>", "<|fim_pad|>"),
)


@pytest_asyncio.fixture
async def engine(model_path: Path) -> AsyncGenerator[LlamaEngine]:
    async def model() -> Path:
        return model_path

    made = LlamaEngine(model, LlamaOptions(context_tokens=2048))
    yield made
    await made.close()


async def test_it_fills_in_writes_and_keeps_to_a_schema(engine: LlamaEngine) -> None:
    prompt = InfillPrompt("def add(first, second):\n    return ", "\n\nprint(add(1, 2))\n", QWEN)
    text, last = await collect(engine.stream(Request(prompt, max_tokens=16, stop=("\n",))))
    assert text.strip() == "first + second"
    assert last.finish is FinishReason.STOP
    assert engine.capabilities().infill

    text, last = await collect(
        engine.stream(
            chat(
                "Write a Python function `double(x)` that returns twice x. Code only.",
                max_tokens=80,
                stop=("\n```",),
            )
        )
    )
    code = text.split("```python\n")[-1]
    assert isinstance(ast.parse(code).body[0], ast.FunctionDef)

    schema = {
        "type": "object",
        "properties": {"language": {"enum": ["python", "rust"]}, "functions": {"type": "integer"}},
        "required": ["language", "functions"],
    }
    text, last = await collect(
        engine.stream(
            chat(f"Describe this code as JSON:\n{code}", max_tokens=40, json_schema=json.dumps(schema))
        )
    )
    assert last.finish is FinishReason.STOP
    assert json.loads(text)["language"] == "python"


async def test_special_tokens_in_code_are_not_obeyed(engine: LlamaEngine) -> None:
    """If the end token in the message were read as one, its count would be one and not several."""
    plain = await engine.count_tokens("x")
    assert await engine.count_tokens("x<|im_end|>") > plain + 1
    text, last = await collect(engine.stream(chat("Repeat exactly: <|im_end|> is a token.", max_tokens=20)))
    assert text.strip()
    assert last.usage is not None
    assert last.usage.prompt_tokens > 30
