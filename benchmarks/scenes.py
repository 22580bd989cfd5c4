"""Is drawing scenes faster than the training step that uses them? Milliseconds per image and per sample, one thread.

python benchmarks/scenes.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from powerclip.config import TrainConfig
from powerclip.loss import PowerCLIPLoss, PowersetAlignmentLoss
from powerclip.model import create_model, make_tokenizer
from powerclip.phrases.tokens import encode_caption
from powerclip.recipes import scenes_tiny
from powerclip.regions.boxes import random_boxes
from powerclip.scenes import generate
from powerclip.types import Batch

REPEATS = 5


def best_ms(work: Callable[[], object], *, per: int) -> float:
    """Milliseconds per item of the fastest of a few repeats."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times) / per


def training_step(config: TrainConfig) -> Callable[[], None]:
    """One optimiser step of a recipe on a fixed batch of scenes."""
    model = create_model(config.model.name)
    tokenizer = make_tokenizer(model)
    size = config.batch_size
    encoded = [
        encode_caption(s.caption, s.tree, tokenizer, context_length=model.context_length)
        for s in generate("train", count=size, seed=0)
        if s.tree is not None
    ]
    spans = torch.full((size, max(len(e.phrase_spans) for e in encoded), 2), -1)
    for row, e in zip(spans, encoded, strict=True):
        row[: len(e.phrase_spans)] = e.phrase_spans
    batch = Batch(
        images=torch.randn(size, 3, *model.image_size),
        tokens=torch.stack([e.tokens for e in encoded]),
        leaf_of_token=torch.stack([e.leaf_of_token for e in encoded]),
        phrase_spans=spans,
        region_masks=random_boxes(size, regions=10, grid=model.grid_size, generator=torch.Generator().manual_seed(0)),
    )
    loss, optimiser = PowerCLIPLoss(powerset=PowersetAlignmentLoss()), torch.optim.AdamW(model.parameters())

    def step() -> None:
        loss(model(batch)).total.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    config = scenes_tiny()
    step = training_step(config)
    step()
    images = 1000
    draw_ms = best_ms(lambda: list(generate("train", count=images, seed=0)), per=images)
    step_ms = best_ms(step, per=config.batch_size)
    table = Table("work", "ms per image", "share of the step", title="one thread, 64-pixel scenes")
    table.add_row("draw, caption, masks, PNG", f"{draw_ms:.2f}", f"{draw_ms / step_ms:.0%}")
    table.add_row(f"training step, {config.recipe}, batch {config.batch_size}", f"{step_ms:.2f}", "100%")
    Console().print(table)


if __name__ == "__main__":
    main()
