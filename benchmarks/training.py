"""A training step of powerclip beside one of open_clip's own loop:
one process, model, batches and precision; interleaved.

Prints medians, spread and ratios of ``open_clip_train.train.train_one_epoch`` with its defaults and of powerclip's
engine with CLIP's loss and with PowerCLIP's. All start from the same weights and pool as open_clip does, and the losses
of the first batch are compared before anything counts. Batches are decoded beforehand, with captions of 20 to 25 tokens
(CC12M's have about 25); open_clip gets them in its own form, padded to the context. On a CPU the ratios are of CPU
time, which other programs on the machine disturb less.

    python benchmarks/training.py                                         # ViT-B-32, 32 pairs, CPU
    python benchmarks/training.py --model ViT-B-16 --batch-size 512 --device cuda --steps-per-round 10
"""

from __future__ import annotations

import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import open_clip
import torch
import tyro
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import pad

from powerclip.config import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, TrainConfig
from powerclip.data.loader import open_data
from powerclip.data.shards import write_shards
from powerclip.model import PowerCLIP, make_tokenizer
from powerclip.scenes import sample
from powerclip.train.build import build_loader, build_model
from powerclip.train.step import Engine
from powerclip.types import Batch

TOKENS = range(20, 26)
"""Tokens of a caption, start and end included."""

WARM_UP = 1
"""Rounds that do not count."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is timed."""

    model: str = "ViT-B-32"
    """Towers."""
    batch_size: int = 32
    """Pairs per step."""
    regions: int = 10
    """M of PowerCLIP."""
    objectives: tuple[str, ...] = ("clip", "powerclip")
    """Of powerclip, timed beside open_clip."""
    rounds: int = 10
    """Rounds that count; in each, every trainer takes its turn."""
    steps_per_round: int = 1
    """Steps of a turn, between two waits for the device."""
    batches: int = 4
    """Different batches."""
    device: str = "cpu"
    """Where to train: in bfloat16 on a GPU, in float32 on a CPU."""


@dataclass(kw_only=True)
class Trainer:
    """What takes steps, and how long its turns took."""

    step: Callable[[Batch], Tensor]
    """One step; returns its loss."""
    loss: float = 0.0
    """Of the first step."""
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


class Turns:
    """Lets trainers take turns. To open_clip, whose loop has no step to call, this is the loader of its training data.

    The time from the moment it gets its first batch of a turn until it asks for the next turn's is open_clip's.
    """

    def __init__(self, batches: list[Batch], trainers: dict[str, Trainer], options: Options, context: int) -> None:
        self.batches, self.trainers, self.options, self.context = batches, trainers, options, context
        self.open_clip = Trainer(step=lambda batch: torch.zeros(()))
        self.rounds = options.rounds + WARM_UP
        self.num_batches = self.rounds * options.steps_per_round
        self.num_samples = self.num_batches * options.batch_size
        self.dataloader = self

    def set_epoch(self, epoch: int) -> None:
        """What open_clip calls before an epoch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        steps, order = self.options.steps_per_round, random.Random(0)
        for number in range(self.rounds):
            turn = [self.batches[(number * steps + i) % len(self.batches)] for i in range(steps)]
            for trainer in order.sample(list(self.trainers.values()), len(self.trainers)):
                for batch in self.timed(trainer, turn):
                    loss = trainer.step(batch)
                    trainer.loss = trainer.loss or loss.item()
            for batch in self.timed(self.open_clip, turn):
                yield batch.images, pad(batch.tokens, (0, self.context - batch.tokens.shape[1]))

    def timed(self, trainer: Trainer, turn: list[Batch]) -> Iterator[Batch]:
        """The batches of a turn, whose time is taken."""
        self.wait()
        wall, cpu = time.perf_counter(), time.process_time()
        yield from turn
        self.wait()
        trainer.wall_s.append(time.perf_counter() - wall)
        trainer.cpu_s.append(time.process_time() - cpu)

    def wait(self) -> None:
        """For the device."""
        if self.options.device != "cpu":
            torch.cuda.synchronize()


class FirstLoss(nn.Module):
    """open_clip's loss, which notes its first value."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.first = open_clip.ClipLoss(cache_labels=True), None

    def forward(self, *args, **options):
        """As open_clip's."""
        found = self.loss(*args, **options)
        self.first = found["contrastive_loss"].detach() if self.first is None else self.first
        return found


def train_with_open_clip(model: nn.Module, turns: Turns, options: Options) -> float:
    """Run open_clip's own loop over the turns, set up as its ``main`` does; returns its first loss."""
    precision = "fp32" if options.device == "cpu" else "amp_bf16"
    given = {"model": options.model, "precision": precision, "device": options.device, "batch-size": options.batch_size}
    args = parse_args([word for name, value in given.items() for word in (f"--{name}", str(value))])
    vars(args).update(distill=False, rank=0, world_size=1, distributed=False, wandb=False)
    model.output_dict = True
    without_decay = [name for name, p in model.named_parameters() if p.ndim < 2 or "bn" in name or "ln" in name]
    groups = [[p for name, p in model.named_parameters() if (name in without_decay) == out] for out in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.0}, {"params": groups[1], "weight_decay": args.wd}],
        lr=args.lr,
        betas=(args.beta1, args.beta2),
        eps=args.eps,
    )
    scheduler, loss = cosine_lr(optimizer, args.lr, args.warmup, turns.num_batches), FirstLoss()
    train_one_epoch(model, {"train": turns}, loss, 0, optimizer, None, scheduler, None, args)
    return loss.first.item()


def read_batches(config: TrainConfig, model: PowerCLIP, *, number: int) -> list[Batch]:
    """Batches of generated scenes whose captions have as many tokens as ``TOKENS`` says, cut as in training."""
    tokenizer = make_tokenizer(model)
    scenes = (sample("train", i, seed=0, image_size=model.image_size[0]) for i in count())
    chosen = (scene for scene in scenes if (tokenizer(scene.caption) != 0).sum() in TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(islice(chosen, number * config.batch_size), Path(folder) / "data")
        loader = build_loader(config, model, open_data(Path(folder) / "data"))
        return [batch for (batch,) in islice(loader.steps(0), number)]


def own_step(engine: Engine) -> Callable[[Batch], Tensor]:
    numbers = count()
    return lambda batch: engine.step([batch], next(numbers))[0].total


def main(options: Options) -> None:
    config = TrainConfig(
        model=ModelConfig(name=options.model, image_pool="tower", text_pool="tower"),
        objective=ObjectiveConfig(regions=options.regions),
        data=DataConfig(workers=0),
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=10_000),  # open_clip's defaults
        batch_size=options.batch_size,
        steps=(options.rounds + WARM_UP) * options.steps_per_round + 1,  # the last one is logged
        log_every_steps=100,
        device=options.device,
    )
    torch.manual_seed(0)
    model, device = build_model(config), torch.device(options.device)
    batches = read_batches(config, model, number=options.batches)
    theirs = copy.deepcopy(model.backbone).to(device)
    trainers = {}
    for name in options.objectives:
        own = config.with_objective(name)
        engine = Engine(own, copy.deepcopy(model), device=device, steps=config.steps, output=Path("nowhere"))
        trainers[name] = Trainer(step=own_step(engine))
    turns = Turns(batches, trainers, options, model.context_length)
    first = train_with_open_clip(theirs, turns, options)
    if "clip" in trainers:
        torch.testing.assert_close(trainers["clip"].loss, first, rtol=1e-4 if device.type == "cpu" else 1e-2, atol=0)
    print_table(options, {"open_clip": turns.open_clip, **trainers}, tokens=batches[0].tokens.shape[1])


def print_table(options: Options, trainers: dict[str, Trainer], *, tokens: int) -> None:
    cpu = options.device == "cpu"
    table = Table(
        title=f"{options.model}, {options.batch_size} pairs, {tokens} tokens, {options.device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    columns = ("trainer", "ms per step", "lowest-highest", "CPU ms per step", "relative to open_clip", "quartiles")
    for name in columns:
        table.add_column(name, justify="left" if name == "trainer" else "right")
    reference = trainers["open_clip"]
    for name, trainer in trainers.items():
        wall, own, others = (
            [1e3 * s / options.steps_per_round for s in seconds[WARM_UP:]]
            for seconds in (trainer.wall_s, trainer.cpu_s, reference.cpu_s if cpu else reference.wall_s)
        )
        ratios = [a / b for a, b in zip(own if cpu else wall, others, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        table.add_row(
            name,
            f"{statistics.median(wall):.1f}",
            f"{min(wall):.0f}-{max(wall):.0f}",
            f"{statistics.median(own):.1f}",
            f"{middle:.3f}",
            f"{low:.3f}-{high:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
