"""What is explored: a model with its preprocessing, and pairs to begin with."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from powerclip.config import ExploreConfig
from powerclip.data.images import decode_image
from powerclip.data.limits import MAX_MEMBER_BYTES
from powerclip.devices import find_device
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.evaluate.encode import Encoder
from powerclip.model import PowerCLIP, load_any
from powerclip.report.samples import Pair, own_pairs, scene_pairs

SHIPPED = Path(__file__).parent / "model"
"""The model that comes with powerclip; ``experiments/shipped_model.py`` makes it."""

CUT_SHOWN = 40
"""Characters before the end of what is read of a text."""

EXAMPLES = 6
"""Pairs to begin with."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to explore."""

    name: str
    encoder: Encoder
    aligned: bool
    """Whether it has phrases and regions: powerclip's models do, open_clip's by name were not trained with them."""
    pairs: Sequence[Pair]
    """Of the run's own data, or generated scenes."""

    @property
    def dense(self) -> PowerCLIP | None:
        """The model, if it has embeddings of patches; some of open_clip's have none."""
        return self.encoder.model if isinstance(self.encoder.model, PowerCLIP) else None

    def afresh(self) -> Encoder:
        """The encoder without what it has computed, which would add up from visitor to visitor."""
        return replace(self.encoder, known={})

    def cut(self, texts: Sequence[str]) -> str:
        """A line that says of which texts the model reads only a beginning, and where that ends; empty if of none."""
        ends = []
        for text in texts:
            if self.encoder.cut([text]):
                tokens = self.encoder.tokenizer([text])
                read = bisect_left(
                    range(len(text)), True, key=lambda n: torch.equal(self.encoder.tokenizer([text[:n]]), tokens)
                )
                ends.append(f'"... {text[max(read - CUT_SHOWN, 0) : read]}"')
        if not ends:
            return ""
        length = getattr(self.encoder.tokenizer, "context_length", None)
        return f"Only the first {length} tokens of a text are read; cut here: {', '.join(ends)}."

    def vector_of(self, query: str | Image.Image) -> Tensor:
        """(D,) the unit global embedding of a text or an image."""
        with torch.inference_mode():
            encoder = self.afresh()
            return (encoder.texts([query]) if isinstance(query, str) else encoder.images([query]))[0]


def find_subject(run: str | None, config: ExploreConfig) -> Subject:
    """Load a run, a model folder or hub id, with ``config.pretrained`` a model of open_clip, or the shipped one.

    PowerclipError if there is no such model, or it is damaged.
    """
    if run is None and config.pretrained is not None:
        raise PowerclipError(f"--pretrained {config.pretrained} needs the model's name: powerclip explore ViT-B-32 ...")
    device = find_device(config.device)
    model, preprocess, tokenizer = load_any(str(SHIPPED) if run is None else run, config.pretrained, device=device)
    pairs = own_pairs({run: Path(run)}, count=EXAMPLES)[0] if run and config.pretrained is None else []
    encoder = Encoder(model, preprocess, tokenizer, device=device, batch_size=32, pixels="training")
    name = "the model that comes with powerclip" if run is None else Path(run).resolve().name
    return Subject(
        name=f"{run} {config.pretrained}" if config.pretrained else name,
        encoder=encoder,
        aligned=config.pretrained is None and isinstance(model, PowerCLIP),
        pairs=pairs or scene_pairs(count=EXAMPLES, image_size=224),
    )


def open_image(path: Path) -> Image.Image:
    """The image in a file, upright RGB, within the limits of what powerclip reads; BadSampleError if it is none."""
    with path.open("rb") as file:
        data = file.read(MAX_MEMBER_BYTES + 1)
    if len(data) > MAX_MEMBER_BYTES:
        raise BadSampleError(f"file of more than {MAX_MEMBER_BYTES >> 20} MiB")
    return decode_image(data)
