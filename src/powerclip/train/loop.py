"""The training loop: batches -> engine -> logs, checkpoints, evaluation; on one process or many."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from powerclip.config import TrainConfig, load_config, to_yaml
from powerclip.data.loader import Data, Loader, count_data, probe_data
from powerclip.distributed import agree, process_group, rank, wait_for_all, world_size
from powerclip.train import checkpoint
from powerclip.train.engine import Engine, StepResult
from powerclip.train.evaluation import Evaluator
from powerclip.train.log import MetricsLog, Reporter, metrics_log, progress_bar
from powerclip.train.setup import build_copies, build_loader, build_model
from powerclip.train.signals import Stop, stop_on_signal
from powerclip.types import Batch, PowerclipError

FREE = frozenset(
    {
        "device",
        "log_every_steps",
        "checkpoint_every_steps",
        "checkpoint_every_minutes",
        "keep_checkpoints",
        "parallel",
        "evaluation",
        "wandb_project",
    }
)
"""Settings that may change when a run is resumed: they do not decide what is learnt."""


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
    config: TrainConfig, *, data: Data, output: Path, resume: bool = False, console: Console | None = None
) -> TrainResult:
    """Train a model on shards and leave a run folder.

    The result is a function of the config and the data: the same seed gives the same weights, and a run
    resumed from its checkpoint goes on as if it had not stopped. SIGINT, SIGTERM and SIGUSR1 end it after the step
    in progress, with a checkpoint and a loadable model.

    Started by torchrun, every process takes its part of each batch, and the run is that of one process up to
    rounding; so it may be resumed on another number of them.

    Args:
        config: every setting of the run.
        data: a folder of shards, one tar, a pattern or a URL; or several of them.
        output: the run folder to make.
        resume: go on from the newest checkpoint in ``output``, where there is one.
        console: where progress goes; standard error by default. Only the first process writes to it.

    Raises:
        PowerclipError: the data or the run folder cannot be used; the message says why and what to do.
    """
    with process_group(config.device) as device:
        console = (console or Console(stderr=True)) if rank() == 0 else Console(quiet=True)
        probe_data(data, copies=build_copies(config))
        if rank() == 0:
            count_data(data, copies=build_copies(config))  # the others find the index that this leaves
        wait_for_all()
        torch.manual_seed(config.seed)
        model = build_model(config)
        loader = build_loader(config, model, data)
        start = _open_run_folder(output, config, resume=resume)  # after all that can be refused
        steps = config.steps or (config.epochs or 0) * loader.batches_per_epoch
        engine = Engine(config, model, device=device, steps=steps, output=output)
        console.print(engine.estimate, highlight=False, soft_wrap=True)
        step = 0
        if start is not None:
            step = _resume(engine, start, console)
        evaluator = Evaluator(config, engine)
        first = rank() == 0
        logs: AbstractContextManager[MetricsLog | None] = (
            metrics_log(output, first_step=step, config=config) if first else nullcontext()
        )
        with (
            stop_on_signal() as stop,
            logs as metrics,
            progress_bar(output.name, steps=steps, done=step, console=console) as reporter,
        ):
            run = _Run(engine=engine, loader=loader, evaluator=evaluator, metrics=metrics, reporter=reporter)
            step = run.steps(step, stop)
        _save(engine, step)
        interrupted = step < steps
        if interrupted:
            console.print(
                f"Stopped at step {step} of {steps}: {output} holds a usable model; run the same command with "
                "--resume auto to go on.",
                highlight=False,
                soft_wrap=True,
            )
        if loader.bad:
            reasons = ", ".join(f"{count} {reason}" for reason, count in loader.bad.most_common())
            console.print(f"Skipped samples that could not be read: {reasons}", highlight=False, soft_wrap=True)
        return TrainResult(output=output, steps=step, interrupted=interrupted)


@dataclass(kw_only=True)
class _Run:
    """The loop, and what it talks to."""

    engine: Engine
    loader: Loader
    evaluator: Evaluator
    metrics: MetricsLog | None
    """None on all processes but the first."""
    reporter: Reporter

    def steps(self, step: int, stop: Stop) -> int:
        """Train from ``step`` to the end or to a stop; return the step reached."""
        config, steps, window = self.engine.config, self.engine.steps, _Window()
        batches = _batches(self.loader, step)
        saved = time.monotonic()
        minutes = config.checkpoint_every_minutes
        stopping = agree(stop.requested)[0]
        while step < steps and not stopping:
            batch = window.timed_next(batches)
            result = self.engine.step(batch, step)
            step += 1
            window.samples += config.batch_size
            if step % config.log_every_steps == 0 or step == steps:
                self._log(result, step, window)
                window = _Window()
            if self.evaluator.due(step):
                values = self.evaluator.evaluate(step)
                if self.metrics is not None:
                    self.metrics.write({"step": step, **values})
                window = _Window()
            late = minutes is not None and time.monotonic() - saved > 60 * minutes
            # Every process leaves the loop, or saves, after the same step.
            stopping, late = agree(stop.requested, late)
            if step < steps and not stopping and (late or step % config.checkpoint_every_steps == 0):
                _save_checkpoint(self.engine, step)
                saved = time.monotonic()
        return step

    def _log(self, result: StepResult, step: int, window: _Window) -> None:
        if self.metrics is None:
            return
        line = _metrics_line(self.engine, result, step, window)
        self.metrics.write(line)
        self.reporter.update(
            step,
            f"loss {line['loss']:.3f}, {line['samples_per_s']:.0f} samples/s, data {line['data_wait_share']:.0%}",
        )


def _resume(engine: Engine, start: Path, console: Console) -> int:
    """Take a checkpoint over; return its step."""
    state = {"step": 0, "processes": world_size(), **engine.state()}
    loaded = checkpoint.load(start, model=engine.model, optimizer=engine.optimizer, extra=state)
    engine.restore(loaded)
    console.print(
        f"Resuming {engine.output} at step {loaded['step']} of {engine.steps}", highlight=False, soft_wrap=True
    )
    if loaded["processes"] != world_size():
        console.print(
            f"It ran on {loaded['processes']} processes and goes on with {world_size()}: the same batches and "
            "schedule; sums are rounded in another order.",
            highlight=False,
            soft_wrap=True,
        )
    return int(loaded["step"])


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
    wait_for_all()  # all have looked before one writes
    if rank() == 0:
        output.mkdir(parents=True, exist_ok=True)
        temporary = output / ".config.yaml.tmp"
        temporary.write_text(to_yaml(config), encoding="utf-8")
        temporary.replace(saved)
    wait_for_all()
    return start


def _changed_settings(old: TrainConfig, new: TrainConfig) -> str:
    """Names of the top-level settings that decide the result and differ."""
    return ", ".join(
        f"{name}: {getattr(old, name)!r} then, {getattr(new, name)!r} now"
        for name in old.__dataclass_fields__
        if name not in FREE and getattr(old, name) != getattr(new, name)
    )


def _batches(loader: Loader, step: int) -> Iterator[Batch]:
    """Batches from a step on, epoch after epoch: the position in the data is arithmetic."""
    epoch, start = divmod(step, loader.batches_per_epoch)
    while True:
        yield from loader.epoch(epoch, start_batch=start)
        epoch, start = epoch + 1, 0


def _metrics_line(engine: Engine, result: StepResult, step: int, window: _Window) -> dict[str, float]:
    elapsed = time.perf_counter() - window.start
    output = result.output
    line = {
        "step": step,
        "samples_seen": engine.counters["samples_seen"],
        "loss": output.total.item(),
        **{f"loss_{name}": term.item() for name, term in output.terms.items()},
        "gradient_norm": result.gradient_norm.item(),
        "learning_rate": max(group["lr"] for group in engine.optimizer.param_groups),
        "logit_scale": engine.model.logit_scale.exp().item(),
        "samples_per_s": window.samples / elapsed,
        "data_wait_s": window.wait_s,
        "data_wait_share": window.wait_s / elapsed,
        "bad_steps": engine.counters["bad_steps"],
    }
    if engine.device.type == "cuda":
        line["gpu_memory_peak_bytes"] = torch.cuda.max_memory_allocated(engine.device)
    zeta = engine.loss.state_dict().get("powerset.zeta_estimate")
    if zeta is not None and not zeta.isnan():
        line["zeta"] = zeta.item()
    return line


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


def _save_checkpoint(engine: Engine, step: int) -> None:
    folder = engine.output / "checkpoints"
    state = {"step": step, "processes": world_size(), **engine.state()}
    checkpoint.save(folder, step=step, model=engine.model, optimizer=engine.optimizer, extra=state)
    if rank() == 0:
        checkpoint.prune(folder, keep=engine.config.keep_checkpoints)


def _save(engine: Engine, step: int) -> None:
    """The last checkpoint, and the model as users exchange it."""
    _save_checkpoint(engine, step)
    checkpoint.save_model(engine.model, engine.output / "model")
    if engine.ema is not None:
        with engine.ema.applied():
            checkpoint.save_model(engine.model, engine.output / "model_ema")
