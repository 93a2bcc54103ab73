from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from nexo_lsp.folders import folders


def test_everything_moves_with_nexo_home(tmp_path: Path) -> None:
    found = folders({"NEXO_HOME": str(tmp_path)})
    assert (found.models, found.state, found.logs) == (
        tmp_path / "models", tmp_path / "state", tmp_path / "logs"
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == [], "nothing is made by asking"


def test_the_home_folder_is_known_by_its_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert folders({"NEXO_HOME": "~/nexo"}).models == tmp_path / "nexo" / "models"


def test_a_home_that_nobody_has_stays_in_the_path() -> None:
    assert folders({"NEXO_HOME": "~nobody-of-this-name/x"}).models.parts[0] == "~nobody-of-this-name"


@pytest.mark.parametrize("environ", [{}, {"NEXO_HOME": ""}, {"NEXO_HOME": "  "}])
def test_without_it_the_platform_decides(environ: dict[str, str]) -> None:
    found = folders(environ)
    dirs = platformdirs.PlatformDirs("nexo-lsp", appauthor=False)
    assert found.models == Path(dirs.user_cache_dir) / "models"
    assert found.state == Path(dirs.user_state_dir)
    assert found.logs == Path(dirs.user_log_dir)
