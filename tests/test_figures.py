"""docs/figures.py draws the pictures of the documentation."""

import importlib.util
import io
from pathlib import Path

import pytest
from PIL import Image

from tests.support.models import write_start

DOCS = Path(__file__).parents[1] / "docs"
SPEC = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figures)


def drawn(figure):
    file = io.BytesIO()
    figure.savefig(file)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_pictures_are_those_of_the_script(name):
    with Image.open(DOCS / f"{name}.png") as kept:
        here = drawn(figures.FIGURES[name]())
        assert here.size == kept.size
        colours = [image.resize((16, 8), Image.Resampling.BOX).tobytes() for image in (here, kept.convert("RGB"))]
    assert max(abs(a - b) for a, b in zip(*colours, strict=True)) <= 16, "run python docs/figures.py"


def test_where_a_model_sees_texts(tmp_path):
    picture = drawn(figures.draw_dense(write_start(tmp_path)))
    with Image.open(DOCS / "dense.png") as kept:
        assert picture.size == kept.size
