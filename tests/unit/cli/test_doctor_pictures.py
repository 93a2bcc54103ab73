"""The pictures of the doctor in `docs/` are those of this program."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from docs.make_pictures import PICTURES, SCENES, picture

DOCS = Path(__file__).resolve().parents[3] / "docs"


def words(svg: str) -> list[str]:
    """The texts of a picture, whatever rich draws them with."""
    return [
        html.unescape(text).replace("\xa0", " ") for text in re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    ]


@pytest.mark.parametrize("name", SCENES)
def test_a_picture_is_what_the_doctor_says(name: str) -> None:
    made = picture(name)
    assert words((PICTURES / f"doctor-{name}.svg").read_text("utf-8")) == words(made), (
        "the doctor says something else now; make its pictures anew: python -m docs.make_pictures"
    )
    assert picture(name) == made, "the same each time"
    assert f"pictures/doctor-{name}.svg" in (DOCS / "doctor.md").read_text("utf-8")


def test_what_the_pictures_are_of() -> None:
    shown = {name: " ".join(" ".join(words(picture(name))).split()) for name in SCENES}
    assert "All is well." in shown["well"]
    assert "2 things are wrong: llama-cpp-python, compiler." in shown["nothing"]
    assert "312,704,512 bytes instead of" in shown["broken"]
    assert "nexo.offline allows no download" in shown["offline"]
    for text in shown.values():
        assert "/tmp" not in text
        assert str(Path.home()) not in text
