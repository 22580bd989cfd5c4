"""The contact sheet: held-out emoji of both styles, with the caption that the model ranks first."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from emoji_captions import with_tone
from emoji_packages import Emoji
from emoji_tasks import PROFESSIONS, is_held_out, profession
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from powerclip.model import PowerCLIP

_CELL_WIDTH, _CELL_HEIGHT, _COLUMNS = 330, 156, 4
_LINE = 44
"""Characters in a line of text."""
_RIGHT, _WRONG = (30, 120, 60), (180, 50, 40)


def write_contact_sheet(
    path: Path,
    emoji: Sequence[Emoji],
    images: Mapping[str, Mapping[str, Image.Image]],
    *,
    model: PowerCLIP,
    preprocess: Callable[[Image.Image], Tensor],
    tokenizer: Callable[[list[str]], Tensor],
) -> Path:
    """Draw one held-out emoji of each profession in every style next to the caption the model puts first.

    The model chooses among the captions of all emoji, those of the held-out ones included.
    """
    held = [one for one in emoji if is_held_out(one)]
    shown = []
    for position, work in enumerate(PROFESSIONS):
        if people := [one for one in held if profession(one) == work]:
            shown.append(people[position % len(people)])
    captions = list(dict.fromkeys(with_tone(one.base, one.tones) for one in emoji))
    with torch.inference_mode():
        model.eval()
        text = torch.cat(
            [model.encode_text(tokenizer(captions[i : i + 256]), normalize=True) for i in range(0, len(captions), 256)]
        )  # (J, D)
        guesses = {}
        for style, of_style in images.items():
            batch = torch.stack([preprocess(of_style[one.key]) for one in shown])
            best = (model.encode_image(batch, normalize=True) @ text.T).argmax(dim=1)  # (I,)
            guesses[style] = [captions[index] for index in best.tolist()]
    cells = [
        (style, of_style[one.key], with_tone(one.base, one.tones), guesses[style][i])
        for i, one in enumerate(shown)
        for style, of_style in images.items()
    ]
    _draw(cells).save(path)
    return path


def _draw(cells: Sequence[tuple[str, Image.Image, str, str]]) -> Image.Image:
    rows = -(-len(cells) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _CELL_WIDTH, rows * _CELL_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for index, (style, image, caption, guess) in enumerate(cells):
        left, top = index % _COLUMNS * _CELL_WIDTH + 8, index // _COLUMNS * _CELL_HEIGHT + 8
        sheet.paste(image.resize((72, 72), Image.Resampling.LANCZOS), (left, top))
        draw.text((left + 84, top + 4), style, fill=(120, 120, 120), font=font)
        lines = [(line, "black") for line in textwrap.wrap(f"is: {caption}", _LINE)]
        colour = _RIGHT if guess == caption else _WRONG
        lines += [(line, colour) for line in textwrap.wrap(f"model: {guess}", _LINE)]
        for number, (line, fill) in enumerate(lines):
            draw.text((left, top + 78 + 16 * number), line, fill=fill, font=font)
    return sheet
