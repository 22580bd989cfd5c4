"""The largest batch that one GPU holds: all at once, with activation checkpointing,
in pieces (GradCache), and with both.

    python benchmarks/memory.py                 # ViT-B/16 and a GPU of 80 GB, which need not be there
    python benchmarks/memory.py --check 512     # on a GPU: predicted and measured for steps of 512 pairs

Predictions are ``powerclip.train.estimate.step_memory``'s. Without a GPU the towers run on the CPU with the precisions
that autocast chooses on a GPU: as on a CPU, but with LayerNorm in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from powerclip.config import ParallelConfig
from powerclip.model import PowerCLIP
from powerclip.recipes import recipe
from powerclip.train.build import build_model
from powerclip.train.estimate import PHRASES, step_memory
from powerclip.train.step import Engine
from powerclip.types import Batch


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is predicted."""

    recipe: str = "cc12m_vit_b16"
    """Model and objective."""
    objectives: tuple[str, ...] = ("clip", "powerclip")
    """Losses."""
    gigabytes: float = 80.0
    """Of the GPU, of 10^9 bytes."""
    tokens: int = 32
    """To which captions are cut."""
    piece: int = 256
    """Pairs of a piece."""
    check: int | None = None
    """Pairs of a step that is run on the GPU, in one piece and in pieces."""


def in_float32(x: Tensor, *args: Any, layer_norm: Callable[..., Tensor] = F.layer_norm) -> Tensor:
    """LayerNorm as autocast has it on a GPU."""
    with torch.autocast("cpu", enabled=False):
        return layer_norm(x.float(), *args)


def main(options: Options) -> None:
    on_gpu = options.check is not None
    table = Table(title=f"{options.recipe}, {options.tokens} tokens, {options.gigabytes:g} GB")
    for name in ("objective", "activations", "MB a pair", "pairs at once", f"pairs, {options.piece} at a time"):
        table.add_column(name, justify="left" if name in ("objective", "activations") else "right")
    if on_gpu:
        table.add_column("step: GB predicted, measured")
    for objective in options.objectives:
        for again in (False, True):
            config = replace(
                recipe(options.recipe).with_objective(objective),
                precision="bf16",
                parallel=ParallelConfig(activation_checkpointing=again),
            )
            model = build_model(config).to("cuda" if on_gpu else "cpu")
            with nullcontext() if on_gpu else patch.object(F, "layer_norm", in_float32):
                memory = step_memory(config, model, tokens=options.tokens)
            size = int(options.gigabytes * 1e9)
            row = [objective, "computed again" if again else "kept", f"{memory.pair / 1e6:.1f}"]
            row += [str(memory.most(size)), str(memory.most(size, piece=options.piece))]
            if options.check is not None:
                pieces = {options.check, min(options.check, options.piece)}
                found = [
                    f"{memory.step(options.check, piece=piece) / 1e9:.2f}, "
                    f"{measured(config, model, options, piece):.2f}"
                    for piece in sorted(pieces, reverse=True)
                ]
                row.append("; ".join(found))
            table.add_row(*row)
    Console().print(table)


def measured(config: Any, model: PowerCLIP, options: Options, piece: int) -> float:
    """GB that two steps take at most on the GPU."""
    assert options.check is not None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = replace(
        config, batch_size=options.check, parallel=replace(config.parallel, accumulate=options.check // piece)
    )
    engine = Engine(config, model, device=torch.device("cuda"), steps=1000, output=Path("nowhere"))
    T, M = options.tokens, config.objective.regions if config.objective.uses_regions else 0
    tokens = torch.randint(1, 40_000, (piece, T))
    tokens[:, -1] = model.vocabulary - 1
    batch = Batch(
        images=torch.randn(piece, 3, *model.image_size),
        tokens=tokens,
        leaf_of_token=torch.arange(T).expand(piece, T),
        phrase_spans=torch.randint(0, T, (piece, PHRASES, 2)).sort(dim=2).values,
        region_masks=torch.rand(piece, M, model.grid_size[0] * model.grid_size[1]) < 0.3,
    ).pin_memory()
    for step in range(2):
        engine.step([batch] * (options.check // piece), step)
    engine.settle()
    return torch.cuda.max_memory_allocated() / 1e9


if __name__ == "__main__":
    main(tyro.cli(Options))
