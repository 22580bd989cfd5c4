"""The training loop: batches -> steps -> logs, checkpoints, evaluation; on one process or many."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from powerclip.config import TrainConfig
from powerclip.cores import available_cores, cores_left_to
from powerclip.data.loader import Data, Loader, OpenedData, open_data
from powerclip.distributed import any_rank, process_group, rank, rank0_first, world_size
from powerclip.errors import PowerclipError, counted
from powerclip.model import describe
from powerclip.progress import Report, print_line, progress_bar
from powerclip.runs import RunFolder, read_metrics, step_of
from powerclip.train import checkpoint
from powerclip.train.build import batch_norms, build_cache, build_loader, build_model
from powerclip.train.estimate import estimate
from powerclip.train.evaluator import Evaluator
from powerclip.train.log import MetricsLog, find_tracker
from powerclip.train.signals import Stop, stop_on_signal
from powerclip.train.step import Engine
from powerclip.types import Batch, LossOutput

LONG_WAIT = 0.2
"""Share of the time for which reading without workers is worth a line."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    output: Path
    """The run folder; ``output / "model"`` is what ``powerclip.load`` takes."""
    steps: int
    interrupted: bool
    """True when a signal ended the run before its last step."""


def train(
    config: TrainConfig,
    *,
    data: Data,
    output: Path,
    resume: bool = False,
    console: Console | None = None,
    look: bool = True,
) -> TrainResult:
    """Train a model on shards and leave a run folder.

    The result is a function of the config, the data and the number of CPU threads: the same seed gives the same
    weights, and a run resumed from its checkpoint continues as if it had not stopped. SIGINT, SIGTERM and SIGUSR1 end
    it after the step in progress, with a checkpoint and a loadable model.

    Under torchrun every process takes its part of each batch, and the run equals that of one process up to rounding; it
    may also be resumed on another number of processes.

    ``data`` is a folder of shards, one tar, a pattern or a URL, or several of them; ``output`` is the run folder to
    make, whose newest checkpoint, if there is one, ``resume`` continues from; one training at a time writes to it.
    Progress goes to ``console``, standard error by default, from the first process alone; with ``look``, before the
    first step, what the model sees of some samples (``powerclip.data.look``). PowerclipError if the data or the run
    folder cannot be used; the message says why and what to do. RunFailedError if training started and could not be
    finished.
    """
    with (
        process_group(config.device) as device,
        stop_on_signal() as stop,
        cores_left_to(config.data.workers if device.type == "cpu" else 0),
    ):
        console = (console or Console(stderr=True)) if rank() == 0 else Console(quiet=True)
        say = partial(print_line, console)
        if world_size() == 1 and (tasks := os.environ.get("SLURM_STEP_NUM_TASKS", "1")) != "1":
            say(
                f"srun has started {tasks} tasks and this one trains alone; to train as one, set RANK, LOCAL_RANK, "
                "WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each (docs/training.md, Slurm)"
            )
        run = RunFolder(output)
        changed = run.check(config, resume=resume)
        opened = rank0_first(lambda: open_data(data, cache=build_cache(config)))
        opened.check_present()
        torch.manual_seed(config.seed)
        model = build_model(config).to(device)
        loader = build_loader(config, model, opened)
        steps = config.steps or (config.epochs or 0) * loader.batches_per_epoch
        # Before the model is spread over processes.
        about = [describe(model), estimate(config, model) if rank() == 0 else ""]
        if norms := batch_norms(model):
            about.append(f"The running statistics of {len(norms)} batch normalisations stay as they are")
        engine = Engine(config, model, device=device, steps=steps, output=output)
        evaluator, tracker = Evaluator(config, engine), find_tracker(config)
        with run.locked(config, resume=resume):  # after all that can be refused
            began = run.config_file.exists()
            start = run.open(config, opened.provenance, resume=resume)
            first = 0 if start is None else step_of(start)
            if first > steps:
                raise PowerclipError(
                    f"{output} has done {first} steps and this asks for {steps}; ask for more than {first} to "
                    "continue it, or name another folder"
                )
            if start is not None:
                about[0] = about[0].replace(" from scratch", "")
            elif began:
                about.append(f"{output} stopped before its first checkpoint, so its run starts again")
            for line in (*about, *config.objective.without_effect, *config.objective.starts_too_late(steps)):
                say(line)
            if start is not None:
                _resume(engine, start, opened, changed, say)
            elif look and rank() == 0:
                for line in loader.look():
                    say(line)
            if said := evaluator.resume(first):
                say(said)
            run.write_status(step=first, steps=steps)
            logs: AbstractContextManager[MetricsLog | None] = nullcontext()
            if rank() == 0:
                logs = closing(MetricsLog(output, config=config, first_step=first, tracker=tracker))
            with logs as metrics, progress_bar(output.name, steps=steps, done=first, console=console) as report:
                loop = _Loop(
                    engine=engine,
                    data=opened,
                    loader=loader,
                    evaluator=evaluator,
                    metrics=metrics,
                    report=report,
                    say=say,
                )
                step = loop.steps(first, stop)
            _finish(engine, step, loader.bad, say)
        return TrainResult(output=output, steps=step, interrupted=step < steps)


@dataclass(kw_only=True)
class _Loop:
    """The loop, and what it uses."""

    engine: Engine
    data: OpenedData
    loader: Loader
    evaluator: Evaluator
    metrics: MetricsLog | None
    """None on all processes but the first."""
    report: Report
    say: Callable[[str], None]
    logged: int = 0
    """Lines of metrics so far."""
    evaluated: str = ""
    """The last evaluation, for the terminal."""

    def steps(self, step: int, stop: Stop) -> int:
        """Train from ``step`` to the end or to a stop; return the step reached."""
        config, steps, window = self.engine.config, self.engine.steps, _Window()
        batches = self.loader.steps(step, pieces=config.parallel.accumulate)
        saved, minutes = time.monotonic(), config.checkpoint_every_minutes
        stopping, missed = any_rank(stop.requested, self._missed_evaluation(step))
        if missed:
            self._evaluate(step)
        while step < steps and not stopping:
            pieces = window.timed_next(batches)
            output, norm = self.engine.step(pieces, step)
            step += 1
            window.samples += config.batch_size
            if self.engine.is_logged(step):
                self.engine.settle()  # on all processes, which may stop here together
                self._log(output, norm, step, window)
                window = _Window()
            late = minutes is not None and time.monotonic() - saved > 60 * minutes
            # Every process leaves the loop, or saves, after the same step.
            stopping, late = any_rank(stop.requested, late)
            if late or stopping or step == steps or step % config.checkpoint_every_steps == 0:
                self._save(step)  # before the evaluation, which may fail
                saved = time.monotonic()
            if self.evaluator.due(step):
                self._evaluate(step)
                window = _Window()
        return step

    def _missed_evaluation(self, step: int) -> bool:
        """Whether a run was killed between a checkpoint and the evaluation due there; the first process looks."""
        if step == 0 or not self.evaluator.due(step) or rank() > 0:
            return False
        lines = read_metrics(self.engine.run.metrics_file)
        return not any(line["step"] == step and "eval/mean" in line for line in lines)

    def _evaluate(self, step: int) -> None:
        self.report(step, "evaluating ...")
        values = self.evaluator.evaluate(step)
        self.evaluated = f", {values['eval/mean']:.1%} in the evaluation after step {step}"
        self.report(step, self.evaluated.removeprefix(", "))
        if self.metrics is not None:
            self.metrics.write({"step": step, **values})

    def _log(self, output: LossOutput, gradient_norm: Tensor, step: int, window: _Window) -> None:
        if self.metrics is None:
            return
        engine, elapsed = self.engine, time.perf_counter() - window.start
        line = {
            "step": step,
            "samples_seen": engine.counters["samples_seen"],
            "loss": output.total.item(),
            **{f"loss_{name}": term.item() for name, term in output.terms.items()},
            **{name: value.item() for name, value in output.measures.items()},
            "gradient_norm": gradient_norm.item(),
            "learning_rate": max(group["lr"] for group in engine.optimizer.param_groups),
            "logit_scale": engine.model.logit_scale.exp().item(),
            "samples_per_s": window.samples / elapsed,
            "data_wait_s": window.wait_s,
            "data_wait_share": window.wait_s / elapsed,
            "bad_steps": engine.counters["bad_steps"],
            **engine.fitted,
        }
        bias = engine.model.logit_bias
        if bias is not None and bias.requires_grad:
            line["logit_bias"] = bias.item()
        if engine.device.type == "cuda":
            line["gpu_memory_peak_bytes"] = torch.cuda.max_memory_allocated(engine.device)
        self.metrics.write(line)
        speed, waited = line["samples_per_s"], line["data_wait_share"]
        self.report(step, f"loss {line['loss']:.3f}, {speed:.0f} samples/s, data {waited:.0%}{self.evaluated}")
        self.logged += 1
        # Once, and of a window in which nothing had to be started.
        if self.logged == 2 and waited > LONG_WAIT and not engine.config.data.workers and available_cores() > 1:
            share = f"{waited:.0%} of the time goes to reading samples"
            self.say(f"{share}: --data.workers 1, or more, reads them while the model trains")

    def _save(self, step: int) -> None:
        engine, run = self.engine, self.engine.run
        if self.metrics is not None:
            self.metrics.sync()  # a checkpoint comes after the lines of its steps
        state = _state(engine, self.data, step)
        checkpoint.save(run.checkpoints, step=step, model=engine.model, optimizer=engine.optimizer, extra=state)
        if rank() == 0:
            checkpoint.prune(run.checkpoints, keep=engine.config.keep_checkpoints)
        run.write_status(step=step, steps=engine.steps)


def _resume(engine: Engine, start: Path, data: OpenedData, changed: str, say: Callable[[str], None]) -> None:
    """Continue from a checkpoint; ``changed`` says which settings have changed since the run started."""
    run, state = engine.run, _state(engine, data, 0)
    here = dict(state["data"])
    loaded = checkpoint.load(start, model=engine.model, optimizer=engine.optimizer, extra=state)
    if loaded["data"] != here:
        raise PowerclipError(
            f"{run.path} was trained on {loaded['data']['samples']} samples in {loaded['data']['shards']} shards, "
            f"and these data are {here['samples']} in {here['shards']}, or in shards of other names or sizes; resume "
            "it on the same data, or start another run from its model"
        )
    engine.restore(loaded)
    say(f"Resuming {run.path} at step {loaded['step']} of {engine.steps}")
    if loaded["processes"] != world_size():
        say(
            f"It ran on {loaded['processes']} processes and continues on {world_size()}: the batches and the schedule "
            "are the same, but sums are rounded in another order."
        )
    threads = torch.get_num_threads()
    if engine.device.type == "cpu" and loaded.get("threads", threads) != threads:
        say(
            f"It ran on {loaded['threads']} CPU threads and continues on {threads}, which round sums in another order: "
            f"for the same bits, set OMP_NUM_THREADS={loaded['threads']}."
        )
    if run.data() is None:
        say(f"{run.path} does not say which data it was trained on; these are recorded as its data")
    run.record(engine.config, data.provenance)
    if changed:
        say(f"Changed since the run started: {changed}")


def _finish(engine: Engine, step: int, bad: Counter[str], say: Callable[[str], None]) -> None:
    """Write the models, and say how the run ended; ``bad`` counts samples that could not be used, by reason."""
    run = engine.run
    if step:
        engine.save_model(run.model)
        if engine.ema is not None:
            with engine.ema.applied():
                engine.save_model(run.model_ema)
    run.write_status(step=step, steps=engine.steps, finished=step >= engine.steps)
    if step < engine.steps:
        holds = f"{run.path} holds a usable model" if step else "nothing was trained yet"
        say(f"Stopped at step {step} of {engine.steps}: {holds}; run the same command with --resume auto to continue.")
    if bad:
        say(f"Skipped samples that could not be used: {counted(bad)}")
    if left_out := engine.counters["bad_steps"]:
        why = f"the loss or its gradient was not finite (their samples: {run.bad_batches_file})"
        say(f"{left_out} of {step} steps changed nothing: {why}; a lower optim.learning-rate may help")


def _state(engine: Engine, data: OpenedData, step: int) -> dict[str, Any]:
    """What a checkpoint holds in addition to the model and its optimiser."""
    numbers = {"step": step, "processes": world_size(), "threads": torch.get_num_threads()}
    return {**numbers, "data": data.identity, **engine.state()}


@dataclass
class _Window:
    """Time and samples since the last line of metrics."""

    samples: int = 0
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        self.start = time.perf_counter()

    def timed_next(self, batches: Iterator[list[Batch]]) -> list[Batch]:
        before = time.perf_counter()
        pieces = next(batches)
        self.wait_s += time.perf_counter() - before
        return pieces
