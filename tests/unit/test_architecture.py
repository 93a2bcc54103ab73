from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nexo_lsp.cli.settings_page import settings_page

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nexo_lsp"
MAX_LINES = 450


def test_imports_point_down_the_map() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_layers_name_every_module() -> None:
    """A module that no layer names would be free to import anything."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    named = {name.strip() for layer in layers for part in layer.split("|") for name in part.split(":")}
    modules = {
        f"nexo_lsp.{path.stem}"
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" and not path.stem.startswith("__")) or (path / "__init__.py").exists()
    }
    assert named == modules


def test_the_settings_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run `nexo-lsp config --markdown > docs/settings.md`"


@pytest.mark.parametrize("folder", ["nexo_lsp", "tests", "benchmarks", "clients", "examples"])
def test_no_file_is_too_long(folder: str) -> None:
    sources = [path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".lua", ".scm"}]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    too_long = {str(path.relative_to(ROOT)): count for path, count in lengths.items() if count > MAX_LINES}
    assert too_long == {}


def test_every_package_folder_is_a_package() -> None:
    """A folder without `__init__.py` would be missing from import contracts and from some tools."""
    missing = [
        path for path in PACKAGE.rglob("*") if list(path.glob("*.py")) and not (path / "__init__.py").exists()
    ]
    assert missing == []


def test_the_light_commands_import_no_heavy_library() -> None:
    """Editors wait for `serve`; the first message is answered before anything large is imported."""
    program = (
        "import sys\n"
        "from nexo_lsp.cli import main\n"
        "try:\n"
        "    main(['--version'])\n"
        "except SystemExit: pass\n"
        "import nexo_lsp.server\n"
        "heavy = {'typer', 'rich', 'huggingface_hub', 'llama_cpp', 'httpx', 'pygls', 'tree_sitter'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
