"""Zero-shot evaluation while training: the same functions as ``powerclip evaluate``, on all processes."""

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from powerclip.config import TrainConfig
from powerclip.distributed import any_rank, rank, reshard
from powerclip.evaluate import as_metrics, evaluate_tasks, light_suite
from powerclip.evaluate.averages import HEADLINES
from powerclip.files import read_json, write_json
from powerclip.model import make_tokenizer, make_transforms
from powerclip.tasks import Task
from powerclip.train.step import Engine


class Evaluator:
    """Evaluates at intervals and keeps the best model next to the run's last one."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        """Read the tasks once: a missing suite or data set stops a run (PowerclipError) before its first step."""
        self.config, self.engine = config.evaluation, engine
        self.best = -1.0
        self.settings = {"suite": self.config.suite, "data": self.config.data, "size": self.config.size}
        self.tasks: Sequence[Task] = ()
        if self.config.every_steps is not None:
            data = None if self.config.data is None else Path(self.config.data)
            image_size = engine.model.image_size[0]
            self.tasks = list(light_suite(self.config.suite, data, size=self.config.size, image_size=image_size))

    def resume(self, step: int) -> str:
        """Take up the best model so far at a start from ``step``, or say in a line why it does not count.

        One of a later step is another run's, or will be reached again; one of other settings cannot be compared.
        """
        best = self.engine.run.model_best
        try:
            found = read_json(best / "evaluation.json")
            mean, at, settings = float(found["mean"]), int(found["step"]), found.get("settings", self.settings)
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        if self.config.every_steps is not None and (at > step or settings != self.settings):
            why = f"step {at}, and this continues from step {step}" if at > step else f"another evaluation ({settings})"
            return f"{best} is of {why}: the next evaluation replaces it"
        self.best = mean
        return ""

    def due(self, step: int) -> bool:
        """Whether to evaluate after this step."""
        every = self.config.every_steps
        return every is not None and (step % every == 0 or step == self.engine.steps)

    def evaluate(self, step: int) -> dict[str, float]:
        """All metrics as ``eval/TASK/METRIC``, and ``eval/mean``; the best model so far goes to ``model_best``.

        Every process takes part; training is not affected, as every step sets its own random state.
        """
        engine, model = self.engine, self.engine.model
        with engine.ema.applied() if engine.ema is not None else nullcontext():
            preprocess, tokenizer = make_transforms(model)[1], make_tokenizer(model)
            found = evaluate_tasks(model, preprocess, tokenizer, self.tasks, device=engine.device)
            reshard(model)  # else the next training step would use the average's gathered weights
            mean = statistics.fmean(metrics[name] for metrics in found.values() for name in _headlines(metrics))
            best = engine.run.model_best
            if any_rank(rank() == 0 and mean > self.best)[0]:
                self.best = mean
                engine.save_model(best)
                if rank() == 0:
                    kept = {"step": step, "mean": mean, "settings": self.settings, "tasks": found}
                    write_json(best / "evaluation.json", kept)
        return {**as_metrics(found), "eval/mean": mean}


def _headlines(metrics: dict[str, float]) -> list[str]:
    present = [name for name in HEADLINES if name in metrics]
    return [name for name in present if name.endswith("R@1")] or present[:1]
