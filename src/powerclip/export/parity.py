"""Whether an exported model computes what the original does, on real images and captions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from powerclip.model import PowerCLIP
from powerclip.model.towers import Tokenizer, Transform

TIMES = 10
"""How often its own rounding error an exported model may differ from the original.

The error is measured: float32 against float64 on the same inputs. A correct export adds the same numbers in another
order, so its error is as large, and the two differ by up to the sum; the rest is for the luck of the maximum.
"""


class Pairs(NamedTuple):
    """Images and captions, and where they are from."""

    pictures: Sequence[Image.Image]
    captions: Sequence[str]
    source: str


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model, as the library that it is for reads it."""

    encode_image: Callable[[Tensor], Tensor]
    """(B, 3, H, W) to (B, D)."""
    encode_text: Callable[[Tensor], Tensor]
    """(B, T) token ids to (B, D)."""
    preprocess: Callable[[Image.Image], Tensor] | None = None
    """The library's own; None where it has none."""
    tokenizer: Callable[[Sequence[str]], Tensor] | None = None
    """The same; padding is 0."""
    buffers: Mapping[str, Tensor] | None = None
    """The buffers of the model that powerclip reads, such as the mean vectors of a centred score; None if it reads
    none in this form."""

    @classmethod
    def of(
        cls, model: Any, preprocess: Transform, tokenizer: Tokenizer, *, buffers: Mapping[str, Tensor] | None = None
    ) -> Exported:
        """A model with open_clip's interface, its transform of a PIL image and its tokenizer."""
        return cls(
            encode_image=model.encode_image,
            encode_text=model.encode_text,
            preprocess=preprocess,
            tokenizer=lambda texts: tokenizer(list(texts)),
            buffers=buffers,
        )


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Maximum absolute differences between an exported model and the original."""

    image: float
    """Of the unit image embeddings, on the same pixels."""
    image_tolerance: float
    text: float
    """Of the unit text embeddings, on the same tokens."""
    text_tolerance: float
    pixels: float | None
    """Of the preprocessed pixels, in steps of 1/255; None if the library does not preprocess."""
    captions: int | None
    """How many captions the library's tokenizer splits into other tokens; None if it has none."""
    n: int
    source: str

    @property
    def holds(self) -> bool:
        """Whether both towers are within their tolerance; NaN is not."""
        return self.image <= self.image_tolerance and self.text <= self.text_tolerance

    def lines(self) -> list[str]:
        """What was measured, in words."""
        lines = [
            f"{tower} embeddings differ by at most {value:.1e} (tolerance {tolerance:.1e})"
            for tower, value, tolerance in (
                ("image", self.image, self.image_tolerance),
                ("text", self.text, self.text_tolerance),
            )
        ]
        if self.pixels is not None:
            lines.append(f"preprocessed pixels differ by at most {self.pixels:.2g} steps of 255")
        if self.captions is not None:
            lines.append(f"{self.captions} of {self.n} captions are split into other tokens")
        return [*lines, f"measured on {self.n} pairs: {self.source}"]


@torch.no_grad()
def compare(model: PowerCLIP, preprocess: Transform, tokenizer: Tokenizer, exported: Exported, pairs: Pairs) -> Parity:
    """Measure how far an exported model is from the original, with tolerances from the original's rounding errors.

    Raises:
        ValueError: it has other buffers, so that it scores differently.
    """
    theirs_of, ours_of = exported.buffers, dict(model.named_buffers())
    if theirs_of is not None:
        names = sorted(ours_of.keys() | theirs_of.keys())
        if other := [n for n in names if not _equal(ours_of.get(n), theirs_of.get(n))]:
            raise ValueError(f"{', '.join(other)} is not the original's")
    pixels = torch.stack([preprocess(picture) for picture in pairs.pictures])
    tokens = tokenizer(list(pairs.captions))
    exact = copy.deepcopy(model).double()
    image, image_tolerance = _difference(model.encode_image, exact.encode_image, exported.encode_image, pixels)
    text, text_tolerance = _difference(model.encode_text, exact.encode_text, exported.encode_text, tokens)
    steps = others = None
    if exported.preprocess is not None:
        theirs = torch.stack([exported.preprocess(picture) for picture in pairs.pictures])
        std = torch.tensor(model.backbone.visual.preprocess_cfg["std"]).view(3, 1, 1)
        steps = ((theirs - pixels) * std * 255).abs().max().item()
    if exported.tokenizer is not None:
        others = int((exported.tokenizer(pairs.captions) != tokens).any(dim=1).sum())
    return Parity(
        image=image,
        image_tolerance=image_tolerance,
        text=text,
        text_tolerance=text_tolerance,
        pixels=steps,
        captions=others,
        n=len(pairs.captions),
        source=pairs.source,
    )


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


def _difference(
    ours: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[float, float]:
    """The difference between ours and theirs, and its tolerance."""
    embedded, truth = (normalize(f, dim=-1) for f in (ours(x), exact(x.double() if x.is_floating_point() else x)))
    rounding = (embedded - truth).abs().max().item()
    difference = (normalize(theirs(x), dim=-1) - embedded).abs().max().item()
    return difference, TIMES * max(rounding, torch.finfo(torch.float32).eps)
