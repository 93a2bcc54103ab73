"""`nexo-lsp models quantize` and `compress`, through their own command line."""

from __future__ import annotations

import _thread
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from nexo_lsp.cli import models_quantize as cli
from nexo_lsp.cli.model_store import open_store
from nexo_lsp.cli.models import app
from nexo_lsp.engines.llama.compress import Bounds, Compressed, Made, Rules, Tried, Verdict, Workshop
from nexo_lsp.engines.llama.perplexity import Perplexity, loss
from nexo_lsp.engines.llama.quantize import Kind, Origin, kind_of
from nexo_lsp.errors import DiskFull, ModelWorkCancelled
from nexo_lsp.models.catalog import CATALOG
from tests.engine.tiny_gguf import write_tiny_model

BEFORE, AFTER = Perplexity((2.0, 2.2), 50, 20, 7 * 10**8), Perplexity((2.1, 2.4), 50, 24, 6 * 10**8)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})


@pytest.fixture
def models(nexo_home: Path) -> Path:
    folder = nexo_home / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def model(models: Path) -> Path:
    return write_tiny_model(models / "tiny-f32.gguf", width=256)


class Played:
    """A workshop that does nothing, and remembers what it was asked for."""

    asked: tuple[Any, ...] = ()
    chosen = True
    quantized = True

    def __init__(self, model: Path, rules: Rules, tell: Any, cancel: threading.Event) -> None:
        self.model, self.tell, self.cancel = model, tell, cancel
        type(self).rules = rules

    def make(self, kind: Kind, target: Path) -> Made:
        type(self).asked = (self.model, kind.name, target)
        self.tell(f"writing {kind.name}", 0.5)
        before, after = (BEFORE, AFTER) if self.rules.check else (None, None)
        return Made(
            Origin(self.model, 900_000_000, "f16", self.quantized),
            kind,
            target,
            300_000_000,
            before,
            after,
            1,
        )

    def compress(self, target_of: Any, bounds: Bounds) -> Compressed:
        kind = kind_of("q4_0")
        type(self).asked = (self.model, bounds, target_of(kind))
        made = self.make(kind, target_of(kind))
        rows = (
            Tried(kind_of("q2_k"), 200_000_000, Verdict.LOSES, "loses 30 %", loss=loss(BEFORE, AFTER)),
            Tried(kind, made.size, Verdict.CHOSEN, "the smallest", AFTER, loss(BEFORE, AFTER)),
        )
        type(self).asked = (self.model, bounds, target_of(kind))
        return Compressed(made.origin, BEFORE, rows[: 1 + self.chosen], made if self.chosen else None)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    class Fresh(Played):
        rules = Rules()

    monkeypatch.setattr(cli, "Workshop", Fresh)
    return Fresh


def test_the_new_file_can_be_used_at_once(model: Path, models: Path) -> None:
    """Real llama.cpp; the name at the end is one that the models folder knows."""
    result = run("quantize", "tiny-f32.gguf", "--to", "Q8_0", "--no-check")
    assert result.exit_code == 0, result.output
    made = models / "tiny-q8_0.gguf"
    assert made.stat().st_size < model.stat().st_size
    assert 'nexo.model = "tiny-q8_0.gguf"' in result.stdout
    assert open_store().locate("tiny-q8_0.gguf") == made
    again = run("quantize", "tiny-f32.gguf", "--to", "Q8_0", "--no-check")
    assert again.exit_code == 2
    assert "--force" in again.stderr
    damaged = models / "half.gguf"
    damaged.write_bytes(model.read_bytes()[:3000])
    broken = run("quantize", "half.gguf", "--to", "q8_0", "--json")
    assert broken.exit_code == 3
    assert json.loads(broken.stdout)["error"] == "model-corrupt"


def test_the_table_says_what_it_costs(model: Path, played: type[Played]) -> None:
    result = run("quantize", model, "--to", "q4_0")
    before, after = result.stdout.splitlines()[1:3]
    assert before.split() == ["before", "f16", "900", "MB", "8.17", "±", "0.82", "20", "700", "MB"]
    assert after.split() == [
        "after",
        "q4_0",
        "300",
        "MB",
        "9.49",
        "±",
        "1.42",
        "+16.2",
        "±",
        "5.8",
        "%",
        "24",
        "600",
        "MB",
    ]
    assert "was quantised already" in result.stdout
    played.quantized = False
    assert "was quantised already" not in run("quantize", model, "--to", "q4_0").stdout
    assert played.rules == Rules()


def test_options_reach_the_workshop(model: Path, models: Path, played: type[Played], tmp_path: Path) -> None:
    out = tmp_path / "mine.gguf"
    words = ("--to", "q5_k_m", "--out", out, "--force", "--no-check", "--keep", "--threads", 3, "--json")
    said = json.loads(run("quantize", model, *words).stdout)
    assert played.rules == Rules(threads=3, check=False, force=True, keep=True)
    assert played.asked == (model, "q5_k_m", out)
    assert said["result"] == {"path": str(out), "kind": "q5_k_m", "size": 300_000_000}
    assert said["use"] == f"nexo.model = {json.dumps(str(out))}"


def test_compress_shows_what_was_tried(model: Path, models: Path, played: type[Played]) -> None:
    result = run("compress", model, "--max-loss", "4.5%", "--max-size", "500MB")
    assert result.exit_code == 0
    assert played.asked == (model, Bounds(0.045, 500_000_000), models / "tiny-q4_0.gguf")
    for words in ("loses 30 %", "the smallest", "+16.2 ± 5.8 %", 'nexo.model = "tiny-q4_0.gguf"'):
        assert words in result.stdout
    said = json.loads(run("compress", model, "--json").stdout)
    assert [row["verdict"] for row in said["tried"]] == ["loses", "chosen"]
    assert said["chosen"]["path"] == str(models / "tiny-q4_0.gguf")
    assert said["model"]["perplexity"] == BEFORE.value


def test_where_nothing_is_good_enough_the_status_says_so(model: Path, played: type[Played]) -> None:
    played.chosen = False
    result = run("compress", model)
    assert result.exit_code == 1
    assert "stays as it is" in result.stdout
    assert json.loads(run("compress", model, "--json").stdout)["chosen"] is None


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("quantize", "tiny-f32.gguf", "--to", "q4k"), "did you mean q4_k_s"),
        (("quantize", "tiny-f32.gguf", "--to", "q4_0", "--out", "name.bin"), "end in .gguf"),
        (("quantize", "none.gguf", "--to", "q4_0"), "no model file"),
        (("compress", "tiny-f32.gguf", "--max-loss", "little"), "per cent"),
        (("compress", "tiny-f32.gguf", "--max-size", "small"), "500MB"),
    ],
)
def test_what_does_not_fit_is_said(model: Path, words: tuple[str, ...], why: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert why in result.stderr


def test_sizes_and_shares() -> None:
    sizes = {"500MB": 500_000_000, "1.2 gb": 1_200_000_000, "300m": 300_000_000, "12345": 12_345}
    assert {text: cli._bytes(text) for text in sizes} == sizes
    assert [cli._share(text) for text in ("5%", "5", "0.5 %")] == [0.05, 0.05, 0.005]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("qwen-0.5b-instruct-q4_k_m", "qwen-0.5b-instruct"),
        ("Llama-3.Q8_0", "Llama-3"),
        ("model-f16", "model"),
        ("model.BF16", "model"),
        ("big-UD-IQ2_XXS", "big"),
        ("big-Q8_0-00001-of-00003", "big"),
        ("coder-7b", "coder-7b"),
    ],
)
def test_the_old_kind_leaves_the_name(models: Path, name: str, stem: str) -> None:
    target = cli._target(open_store(), Path(f"/somewhere/{name}.gguf"), kind_of("q5_0"), None)
    assert target == models / f"{stem}-q5_0.gguf"


def test_names_of_the_catalogue_are_left_to_it(models: Path, model: Path, played: type[Played]) -> None:
    """The store would take another file of that name for a damaged one."""
    entry = CATALOG[0]
    source = Path("/somewhere") / entry.file.replace("q4_k_m", "f16")
    target = cli._target(open_store(), source, kind_of("q4_k_m"), None)
    assert target.name == entry.file.replace(".gguf", "-own.gguf")
    refused = run("quantize", model, "--to", "q4_k_m", "--out", models / entry.file)
    assert refused.exit_code == 2
    assert "catalogue" in refused.stderr


def test_names_of_the_users_catalogue_and_of_references_are_left_to_them(
    nexo_home: Path, models: Path
) -> None:
    catalogue = nexo_home / "config" / "models.toml"
    catalogue.parent.mkdir(parents=True)
    catalogue.write_text(
        '[[model]]\nname = "mine"\nfile = "Mine-Q8_0.gguf"\nurls = ["https://x.example/m.gguf"]\n', "utf-8"
    )

    def target(source: str) -> str:
        return cli._target(open_store(), Path(source), kind_of("q8_0"), None).name

    # Most file systems do not tell these two apart.
    assert target("/somewhere/mine-f16.gguf") == "mine-q8_0-own.gguf"
    assert target("/somewhere/owner--repo--file-f16.gguf") == "owner--repo--file-q8_0-own.gguf"
    assert target("/somewhere/a--b-f16.gguf") == "a--b-q8_0.gguf"


def test_a_model_of_the_users_catalogue_can_be_quantised(
    nexo_home: Path, models: Path, model: Path, played: type[Played]
) -> None:
    catalogue = nexo_home / "config" / "models.toml"
    catalogue.parent.mkdir(parents=True)
    catalogue.write_text(
        f'[[model]]\nname = "mine"\nfile = "{model.name}"\nurls = ["https://x.example/m.gguf"]\n', "utf-8"
    )
    assert run("quantize", "mine", "--to", "q8_0").exit_code == 0
    assert played.asked[0] == model


def test_a_folder_to_put_it_in(model: Path, played: type[Played], tmp_path: Path) -> None:
    run("compress", model, "--out", tmp_path)
    assert played.asked[-1] == tmp_path / "tiny-q4_0.gguf"


def test_ctrl_c_ends_the_work_in_good_order(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(workshop: Workshop, _kind: Kind, _target: Path) -> Made:
        _thread.interrupt_main()
        assert workshop._cancel is not None
        assert workshop._cancel.wait(30)
        raise ModelWorkCancelled("Quantising was stopped.")

    monkeypatch.setattr(Workshop, "make", make)
    result = run("quantize", model, "--to", "q4_0")
    assert result.exit_code == 130
    assert "stopped" in result.stderr


def test_a_full_disk_and_a_missing_engine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(_workshop: Workshop, _kind: Kind, _target: Path) -> Made:
        raise DiskFull("make room")

    monkeypatch.setattr(Workshop, "make", make)
    assert run("quantize", model, "--to", "q4_0").exit_code == 3
    monkeypatch.setattr(cli, "is_installed", lambda: False)
    missing = run("quantize", model, "--to", "q4_0")
    assert missing.exit_code == 3
    assert "nexo-lsp[native]" in missing.stderr
