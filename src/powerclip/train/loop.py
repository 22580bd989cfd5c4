"""The training loop: batches -> towers -> loss -> step, on one process."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import nn

from powerclip.config import TrainConfig, load_config, to_yaml
from powerclip.data.loader import Loader, make_loader, probe
from powerclip.loss import FILIPLoss, PowerCLIPLoss, PowersetAlignmentLoss, SigLIPLoss, SPARCLoss
from powerclip.loss.siglip import INIT_LOGIT_BIAS, INIT_LOGIT_SCALE
from powerclip.model import PowerCLIP, create_model, make_tokenizer, make_transforms, save
from powerclip.regions.boxes import random_boxes
from powerclip.train import checkpoint
from powerclip.train.log import MetricsLog, Reporter, progress_bar
from powerclip.train.optim import learning_rate, make_optimizer
from powerclip.types import Batch, LossOutput, PowerclipError, RunFailedError

MAX_LOGIT_SCALE = math.log(100)
"""The temperature stays at 1/100 or above, as in CLIP (Radford et al., 2021)."""

MAX_BAD_STEPS = 10
"""Non-finite steps in a row after which a run stops."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    output: Path
    """The run folder; ``output / "model"`` is what ``powerclip.load`` takes."""
    steps: int
    """Steps done in all."""
    interrupted: bool
    """True when a signal ended the run before its last step."""


def train(
    config: TrainConfig, *, data: Path, output: Path, resume: bool = False, console: Console | None = None
) -> TrainResult:
    """Train a model on shards and leave a run folder.

    The result is a function of the config and the data: the same seed gives the same weights, and a run
    resumed from its checkpoint goes on as if it had not stopped. SIGINT and SIGTERM end it after the step
    in progress, with a checkpoint and a loadable model.

    Args:
        config: every setting of the run.
        data: a folder of shards, one tar, or a pattern.
        output: the run folder to make.
        resume: go on from the newest checkpoint in ``output``, where there is one.
        console: where progress goes; standard error by default.

    Raises:
        PowerclipError: the data or the run folder cannot be used; the message says why and what to do.
    """
    console = console or Console(stderr=True)
    probe(data)
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    model = build_model(config).to(device)
    loader = build_loader(config, model, data)
    start = _open_run_folder(output, config, resume=resume)  # after all that can be refused
    steps = config.steps or (config.epochs or 0) * loader.batches_per_epoch
    optimizer = make_optimizer(model, config.optim)
    counters = {"samples_seen": 0, "bad_steps": 0}
    step = 0
    if start is not None:
        state = checkpoint.load(start, model=model, optimizer=optimizer, extra=counters)
        step, counters = int(state["step"]), {name: int(state[name]) for name in counters}
        console.print(f"Resuming {output} at step {step} of {steps}", highlight=False, soft_wrap=True)
    run = _Run(config=config, model=model, optimizer=optimizer, device=device, steps=steps, counters=counters)
    with (
        _stop_on_signal() as stop,
        _metrics(output, step) as metrics,
        progress_bar(output.name, steps=steps, done=step, console=console) as reporter,
    ):
        step = _steps(run, loader, step, output, metrics, reporter, stop)
    _save(run, output, step)
    if stop.requested:
        console.print(
            f"Stopped at step {step} of {steps}: {output} holds a usable model; run the same command with "
            "--resume auto to go on.",
            highlight=False,
            soft_wrap=True,
        )
    if loader.bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in loader.bad.most_common())
        console.print(f"Skipped samples that could not be read: {reasons}", highlight=False, soft_wrap=True)
    return TrainResult(output=output, steps=step, interrupted=stop.requested)


@dataclass(kw_only=True)
class _Run:
    """What a step needs, and the counters it moves."""

    config: TrainConfig
    model: PowerCLIP
    optimizer: torch.optim.AdamW
    device: torch.device
    steps: int
    counters: dict[str, int]
    bad_in_a_row: int = 0

    def __post_init__(self) -> None:
        self.loss = build_loss(self.config)
        self.bf16 = self.config.precision == "bf16" or (self.config.precision == "auto" and self.device.type == "cuda")


def build_model(config: TrainConfig) -> PowerCLIP:
    """The model a config describes."""
    m, start = config.model, {}
    if config.objective.name == "siglip":
        start = {"init_logit_scale": INIT_LOGIT_SCALE, "init_logit_bias": INIT_LOGIT_BIAS}
    return create_model(
        m.name,
        pretrained=m.pretrained,
        text_pool=m.text_pool,
        phrase_norm=m.phrase_norm,
        phrase_unit=m.phrase_unit,
        **start,
    )


def build_loss(config: TrainConfig) -> nn.Module:
    """The loss a config describes: ``Features`` to ``LossOutput``."""
    o = config.objective
    if o.name == "siglip":
        return SigLIPLoss()
    if o.name == "filip":
        return FILIPLoss()
    if o.name == "sparc":
        return SPARCLoss(global_weight=o.sparc_global_weight, local_weight=o.sparc_local_weight)
    if not o.uses_regions:
        return PowerCLIPLoss(weight=0.0)
    powerset = PowersetAlignmentLoss(
        margin=o.margin,
        tau=o.tau,
        zeta=o.zeta,
        method=o.method,
        samples=o.samples,
        direction=o.direction,
        subsets=o.subsets,
        t1_activation=o.t1_activation,
        t2_activation=o.t2_activation,
        normalise_by_regions=o.normalise_by_regions,
    )
    return PowerCLIPLoss(weight=o.powerset_weight, powerset=powerset, equal_captions=o.equal_captions)


def build_loader(config: TrainConfig, model: PowerCLIP, data: Path) -> Loader:
    """The loader a config describes, for a model's image size and tokenizer."""
    return make_loader(
        data,
        transform=make_transforms(model)[0],
        tokenizer=make_tokenizer(model),
        context_length=model.context_length,
        grid=model.grid_size,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.data.workers,
        shuffle=config.data.shuffle,
        max_bad_share=config.data.max_bad_share,
    )


def choose_device(name: str) -> torch.device:
    """The device a name stands for; "auto" takes a GPU where there is one.

    Raises:
        PowerclipError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PowerclipError(f"device {name!r} cannot be used here; use auto, cpu or a GPU that exists") from error
    return device


def _open_run_folder(output: Path, config: TrainConfig, *, resume: bool) -> Path | None:
    """Make the run folder and write its config; return the checkpoint to resume from."""
    start = checkpoint.latest(output / "checkpoints") if resume else None
    if output.exists() and not output.is_dir():
        raise PowerclipError(f"output {output} is a file; name a folder for the run")
    if output.is_dir() and any(output.iterdir()) and not resume:
        raise PowerclipError(f"output {output} is not empty; add --resume auto to go on, or name another folder")
    saved = output / "config.yaml"
    if start is not None and saved.exists():
        changed = _changed_settings(load_config(saved), config)
        if changed:
            raise PowerclipError(f"{output} was trained with other settings ({changed}); use those to resume it")
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / ".config.yaml.tmp"
    temporary.write_text(to_yaml(config), encoding="utf-8")
    temporary.replace(saved)
    return start


def _changed_settings(old: TrainConfig, new: TrainConfig) -> str:
    """Names of the top-level settings that decide the result and differ."""
    free = {"device", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints"}
    return ", ".join(
        f"{name}: {getattr(old, name)!r} then, {getattr(new, name)!r} now"
        for name in old.__dataclass_fields__
        if name not in free and getattr(old, name) != getattr(new, name)
    )


def _steps(
    run: _Run,
    loader: Loader,
    step: int,
    output: Path,
    metrics: MetricsLog,
    reporter: Reporter,
    stop: _Stop,
) -> int:
    """Train from ``step`` to the end or to a stop; return the step reached."""
    config, window = run.config, _Window()
    batches = _batches(loader, step)
    while step < run.steps and not stop.requested:
        batch = window.timed_next(batches)
        output_of_step = _train_step(run, batch, step)
        step += 1
        run.counters["samples_seen"] += len(batch)
        window.samples += len(batch)
        if step % config.log_every_steps == 0 or step == run.steps:
            line = _metrics_line(run, output_of_step, step, window)
            metrics.write(line)
            reporter.update(
                step,
                f"loss {line['loss']:.3f}, {line['samples_per_s']:.0f} samples/s, data {line['data_wait_share']:.0%}",
            )
            window = _Window()
        if step % config.checkpoint_every_steps == 0 and step < run.steps:
            _save_checkpoint(run, output, step)
    return step


def _batches(loader: Loader, step: int) -> Iterator[Batch]:
    """Batches from a step on, epoch after epoch: the position in the data is arithmetic."""
    epoch, start = divmod(step, loader.batches_per_epoch)
    while True:
        yield from loader.epoch(epoch, start_batch=start)
        epoch, start = epoch + 1, 0


def _train_step(run: _Run, batch: Batch, step: int) -> LossOutput:
    """One optimiser step; a non-finite loss or gradient changes nothing and is counted."""
    config = run.config
    rate = learning_rate(step, steps=run.steps, config=config.optim)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    batch = _with_boxes(run, batch, step).to(run.device, non_blocking=True)
    run.model.train()
    with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.bf16):
        features = run.model(batch)
    output: LossOutput = run.loss(features)
    run.optimizer.zero_grad(set_to_none=True)
    output.total.backward()  # type: ignore[no-untyped-call]
    limit = config.optim.max_gradient_norm
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), math.inf if limit is None else limit)
    if not torch.isfinite(norm + output.total.detach()):
        _count_bad_step(run, batch, step)
        return output
    run.bad_in_a_row = 0
    run.optimizer.step()
    with torch.no_grad():
        run.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    return output


def _with_boxes(run: _Run, batch: Batch, step: int) -> Batch:
    """The batch with M fresh random boxes an image, a function of the seed and the step."""
    if not run.config.objective.uses_regions:
        return batch
    generator = torch.Generator().manual_seed((run.config.seed << 32) + step)
    boxes = random_boxes(
        len(batch), regions=run.config.objective.regions, grid=run.model.grid_size, generator=generator
    )
    return batch.with_regions(boxes)


def _count_bad_step(run: _Run, batch: Batch, step: int) -> None:
    run.counters["bad_steps"] += 1
    run.bad_in_a_row += 1
    if run.bad_in_a_row >= MAX_BAD_STEPS:
        keys = ", ".join(batch.keys[:5])
        raise RunFailedError(
            f"the loss or its gradient was not finite in {run.bad_in_a_row} steps in a row, up to step "
            f"{step} (samples {keys}, ...); lower optim.learning-rate or look at those samples"
        )


def _metrics_line(run: _Run, output: LossOutput, step: int, window: _Window) -> dict[str, float]:
    elapsed = time.perf_counter() - window.start
    return {
        "step": step,
        "samples_seen": run.counters["samples_seen"],
        "loss": output.total.item(),
        **{f"loss_{name}": term.item() for name, term in output.terms.items()},
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "logit_scale": run.model.logit_scale.exp().item(),
        "samples_per_s": window.samples / elapsed,
        "data_wait_s": window.wait_s,
        "data_wait_share": window.wait_s / elapsed,
        "bad_steps": run.counters["bad_steps"],
    }


@dataclass
class _Window:
    """Time and samples since the last line of metrics."""

    samples: int = 0
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        self.start = time.perf_counter()

    def timed_next(self, batches: Iterator[Batch]) -> Batch:
        before = time.perf_counter()
        batch = next(batches)
        self.wait_s += time.perf_counter() - before
        return batch


def _save_checkpoint(run: _Run, output: Path, step: int) -> None:
    folder = output / "checkpoints"
    checkpoint.save(folder, step=step, model=run.model, optimizer=run.optimizer, extra=run.counters)
    checkpoint.prune(folder, keep=run.config.keep_checkpoints)


def _save(run: _Run, output: Path, step: int) -> None:
    """The last checkpoint, and the model as users exchange it."""
    _save_checkpoint(run, output, step)
    save(run.model, output / "model")


@contextmanager
def _metrics(output: Path, step: int) -> Iterator[MetricsLog]:
    log = MetricsLog(output, first_step=step)
    try:
        yield log
    finally:
        log.close()


@dataclass
class _Stop:
    """Set by a signal; the loop looks at it between steps."""

    requested: bool = False


@contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second one acts as usual."""
    stop = _Stop()
    old: dict[int, Any] = {}

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(number, old[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread: signals are the caller's
        old.clear()
    try:
        yield stop
    finally:
        for caught, previous in old.items():
            signal.signal(caught, previous)
