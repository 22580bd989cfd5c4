"""Your own open_clip training loop, with powerset alignment added: the lines marked with +.

    python examples/open_clip_drop_in.py                       # a tiny model on generated scenes, a minute on a CPU
    python examples/open_clip_drop_in.py --model ViT-B-32 --steps 20

Everything else is as it was: your model, your tokenizer, your optimizer, your CLIP loss, your data loader (here 512
generated pairs stand for it). What is added reads the towers' dense outputs, so one forward pass serves both losses.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from torch.utils.data import DataLoader

import powerclip.model
from powerclip import PowersetAlignmentLoss  # +
from powerclip.data.collate import annotate  # +
from powerclip.model import from_open_clip  # +
from powerclip.phrases import load_parser  # +
from powerclip.regions import random_boxes  # +
from powerclip.scenes import generate


def main(argv: list[str] | None = None) -> list[tuple[float, float]]:
    """Train for some steps; return both losses of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="any ViT of open_clip")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    open_clip.add_model_config(Path(powerclip.model.__file__).parent / "configs")  # where "tiny" is
    model, preprocess, _ = open_clip.create_model_and_transforms(arguments.model)
    tokenizer = open_clip.get_tokenizer(arguments.model)
    clip_loss = ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    pairs = [(preprocess(Image.open(io.BytesIO(s.image))), s.caption) for s in generate("train", count=512, seed=0)]
    loader = DataLoader(pairs, batch_size=arguments.batch_size, shuffle=True, drop_last=True)

    dense = from_open_clip(model)  # +  the same parameters, with dense outputs
    captioning = {"parser": load_parser(), "tokenizer": tokenizer, "context_length": dense.context_length}  # +
    generator = torch.Generator().manual_seed(0)  # +
    powerset_loss = PowersetAlignmentLoss(margin=0.2, normalise_by_regions=True)  # +

    history: list[tuple[float, float]] = []
    while len(history) < arguments.steps:
        for images, captions in loader:
            boxes = random_boxes(len(images), regions=10, grid=dense.grid_size, generator=generator)  # +
            f = dense(
                annotate(images, captions, region_masks=boxes, **captioning)
            )  # +  in place of model(images, tokens)
            contrastive = clip_loss(f.image, f.text, f.logit_scale)
            powerset = powerset_loss(f.regions, f.phrases, f.region_mask, f.phrase_mask)  # +
            loss = contrastive + 0.2 * powerset  # +
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append((contrastive.item(), powerset.item()))
            if len(history) % 10 == 0:
                print(f"step {len(history)}: CLIP loss {contrastive:.3f}, powerset loss {powerset:.3f}")
            if len(history) == arguments.steps:
                break
    return history


if __name__ == "__main__":
    main()
