"""The drop-in example, run as it stands."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "open_clip_drop_in.py"


def test_both_losses_fall_in_an_open_clip_loop():
    spec = importlib.util.spec_from_file_location("open_clip_drop_in", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    history = module.main(["--steps", "20", "--batch-size", "16"])
    assert len(history) == 20
    first, last = (
        [sum(column) / len(part) for column in zip(*part, strict=True)] for part in (history[:5], history[-5:])
    )
    assert last[0] < first[0]
    assert last[1] < first[1]


def test_what_is_added_is_about_fifteen_lines():
    marked = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if "  # +" in line]
    assert len(marked) <= 17
