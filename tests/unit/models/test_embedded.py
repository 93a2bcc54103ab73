"""Models that come with the program: found where they lie, used without a download, never changed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nexo_lsp.errors import ModelCorrupt, ModelError
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.embedded import EmbeddedModels, Place, Program, package_places, places
from nexo_lsp.models.store import ModelStore
from tests.engine.tiny_gguf import write_tiny_model

MakeEntry = Callable[..., CatalogEntry]
NOT_FROZEN = Program("", "/nowhere", frozen=False)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def _store(tmp_path: Path, entry: CatalogEntry, *folders: Path) -> ModelStore:
    found = tuple(Place(folder, "test") for folder in folders)
    return ModelStore(tmp_path / "models", {}, [], (entry,), embedded=EmbeddedModels(lambda: found))


def _put(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    return path


def test_the_order_of_places(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, package = tmp_path / "first", tmp_path / "second", tmp_path / "package"
    beside, shared = tmp_path / "program" / "models", tmp_path / "prefix" / "share" / "nexo-lsp" / "models"
    for folder in (first, second, package, beside, shared):
        folder.mkdir(parents=True)
    program = Program(str(tmp_path / "program" / "nexo-lsp"), str(tmp_path / "prefix"), frozen=True)
    environ = {"NEXO_MODELS_EMBEDDED": os.pathsep.join([str(first), str(tmp_path / "none"), "", str(second)])}
    with caplog.at_level("DEBUG", "nexo_lsp.models"):
        found = places(environ, program, lambda: [Place(package, "package p"), Place(first, "again")])
    assert [place.folder for place in found] == [first, second, beside, shared, package]
    assert found[0].why == "NEXO_MODELS_EMBEDDED"
    assert f"{tmp_path / 'none'} (not there)" in caplog.text
    # A Python that is no bundle has the folder of an interpreter, which nobody puts models beside.
    plain = places({}, Program(str(tmp_path / "program" / "python"), "/nowhere", frozen=False), lambda: [])
    assert plain == ()


def test_an_embedded_model_is_used_without_a_download(
    tmp_path: Path, make_entry: MakeEntry, payload: bytes
) -> None:
    embedded = _put(tmp_path / "shipped", "tiny-coder.gguf", payload)
    store = _store(tmp_path, make_entry(), embedded.parent)
    before = sorted(path.name for path in embedded.parent.iterdir())
    assert store.locate("tiny-coder") == embedded
    assert store.locate("tiny-coder.gguf") == embedded
    assert store.pull("tiny-coder") == embedded
    assert store.verify("tiny-coder").ok
    (row,) = store.installed()
    assert (row.name, row.path, row.embedded) == ("tiny-coder", embedded, "test")
    with store.in_use(embedded):
        store.used(embedded)
    assert sorted(path.name for path in embedded.parent.iterdir()) == before
    assert not store.folder.exists()


def test_it_is_never_removed(tmp_path: Path, make_entry: MakeEntry, payload: bytes) -> None:
    embedded = _put(tmp_path / "shipped", "tiny-coder.gguf", payload)
    store = _store(tmp_path, make_entry(), embedded.parent)
    with pytest.raises(ModelError, match="came with the program"):
        store.remove("tiny-coder")
    assert store.cleaning.waste() == ()
    store.limit_bytes = 1
    store.cleaning.trim(1, ())
    assert embedded.read_bytes() == payload


def test_under_another_name_its_digest_tells(tmp_path: Path, make_entry: MakeEntry, payload: bytes) -> None:
    alike = _put(tmp_path / "shipped", "alike.gguf", payload[::-1])
    other = _put(tmp_path / "shipped", "renamed.gguf", payload)
    store = _store(tmp_path, make_entry(), alike.parent)
    assert store.locate("tiny-coder") == other
    assert store.locate("alike.gguf") == alike
    other.unlink()
    with pytest.raises(ModelError):
        _store(tmp_path, make_entry(), alike.parent).locate("tiny-coder")


def test_a_file_of_that_name_with_other_contents_is_found_out_when_it_is_read(
    tmp_path: Path, make_entry: MakeEntry, payload: bytes
) -> None:
    embedded = _put(tmp_path / "shipped", "tiny-coder.gguf", payload[::-1])
    store = _store(tmp_path, make_entry(), embedded.parent)
    assert store.locate("tiny-coder") == embedded
    assert not store.verify("tiny-coder").ok
    with pytest.raises(ModelError, match="could not be fetched"):
        store.pull("tiny-coder")


def test_the_models_folder_comes_first(tmp_path: Path, make_entry: MakeEntry, payload: bytes) -> None:
    embedded = _put(tmp_path / "shipped", "tiny-coder.gguf", payload)
    store = _store(tmp_path, make_entry(), embedded.parent)
    own = _put(store.folder, "tiny-coder.gguf", payload)
    assert store.locate("tiny-coder") == own
    own.write_bytes(b"cut off")
    assert store.locate("tiny-coder") == embedded
    with pytest.raises(ModelCorrupt):
        _store(tmp_path, make_entry()).locate("tiny-coder")


def _wheel(folder: Path, gguf: bytes) -> Path:
    """A wheel that brings a model, as `python -m build` would write it."""
    info = "shipped_model-1.0.dist-info"
    files = {
        "shipped_model/__init__.py": b"raise AssertionError('nothing of it is ever run')\n",
        "shipped_model/files/__init__.py": b"",
        "shipped_model/files/shipped.gguf": gguf,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: shipped-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[nexo_lsp.models]\nshipped = shipped_model.files\n",
    }
    record = "".join(f"{name},,\n" for name in files) + f"{info}/RECORD,,\n"
    path = folder / "shipped_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(name, data)
    return path


def test_a_wheel_brings_a_model(
    tmp_path: Path, gguf: bytes, make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed by pip as anybody would, and found through its entry point by the whole program."""
    wheel = _wheel(tmp_path, gguf)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120, env={**os.environ, "PIP_NO_INPUT": "1"})
    monkeypatch.syspath_prepend(str(site))
    model = site / "shipped_model" / "files" / "shipped.gguf"
    assert [place.folder for place in package_places()] == [model.parent]
    entry = dataclasses.replace(
        make_entry(gguf), file="shipped.gguf", sha256=hashlib.sha256(gguf).hexdigest()
    )
    store = ModelStore(tmp_path / "models", {}, [], (entry,))
    assert store.locate("tiny-coder") == model
    assert store.locate("shipped.gguf") == model
    assert store.installed()[0].embedded == "package shipped_model.files"
    assert store.verify("tiny-coder").ok
    assert "shipped_model" not in sys.modules


def test_a_package_that_lies_in_an_archive_or_is_gone_is_passed_over(
    tmp_path: Path, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(_wheel(tmp_path, gguf)))
    info = tmp_path / "site" / "gone-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nexo_lsp.models]\ngone = gone_model\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert places({}, NOT_FROZEN, package_places) == ()


def test_the_command_line_shows_where_it_lies(tmp_path: Path, gguf: bytes) -> None:
    folder = _put(tmp_path / "shipped", "my-own.gguf", gguf).parent
    said = subprocess.run(
        [sys.executable, "-m", "nexo_lsp", "models", "list"],
        env={**os.environ, "NEXO_MODELS_EMBEDDED": str(folder), "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert f"my-own.gguf came with the program: {folder / 'my-own.gguf'}" in said
