"""One training step: batch -> features -> loss -> gradient -> weights, and the state that goes with it."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from powerclip.config import TrainConfig
from powerclip.config.values import Tower
from powerclip.distributed import (
    average_gradients,
    average_ignored_gradients,
    parallelize,
    rank,
    wait_for_all,
    world_size,
)
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.files import naming
from powerclip.loss import PowerCLIPLoss
from powerclip.model import PowerCLIP, hub
from powerclip.runs import RunFolder
from powerclip.train.build import autocast, batch_norms, build_loss
from powerclip.train.ema import EMA
from powerclip.train.gradcache import IMAGE, SHARED, backward
from powerclip.train.optim import gradient_norm, learning_rate, make_optimizer
from powerclip.train.prefetch import Prefetch
from powerclip.types import Batch, Features, LossOutput

MAX_LOGIT_SCALE = math.log(100)
"""The temperature stays at 1/100 or above, as in CLIP (Radford et al., 2021),
or at that of the weights at the start."""

MAX_BAD_STEPS = 10
"""Non-finite steps in a row after which a run stops."""


class Engine:
    """A model in training: weights, optimiser, loss, average, counters."""

    def __init__(
        self, config: TrainConfig, model: PowerCLIP, *, device: torch.device, steps: int, output: Path
    ) -> None:
        """Set everything up on a device; under a process group, spread over it.

        ``steps`` is the length of the run, for the schedule; nothing is written to the run folder ``output`` here.
        PowerclipError if there are more pieces than pairs.
        """
        self.config, self.device, self.steps, self.run = config, device, steps, RunFolder(output)
        pairs = config.batch_size // world_size()
        if config.parallel.accumulate > pairs:
            raise PowerclipError(
                f"parallel.accumulate is {config.parallel.accumulate} and each process takes {pairs} pairs of a batch; "
                f"make it at most {pairs}"
            )
        self.model = model.to(device)
        self.parallel = parallelize(
            self.model,
            blocks=model.blocks(),
            device=device,
            sharding=config.parallel.sharding,
            compiled=config.parallel.compile,
        )
        self.max_logit_scale = max(MAX_LOGIT_SCALE, model.logit_scale.item())
        self.loss: nn.Module = build_loss(config, self.model).to(device)
        self.optimizer = make_optimizer(self.model, config.optim)
        trained = any(True for _ in self.loss.parameters())
        self.loss_optimizer = make_optimizer(self.loss, config.optim) if trained else None
        self.ema = EMA(self.model, decay=config.ema_decay) if config.ema_decay is not None else None
        self.counters = {"samples_seen": 0, "bad_steps": 0}
        self.bad_in_a_row = 0
        self._batch_norms = batch_norms(self.model)
        self._prefetch = Prefetch(device)
        self._outcome: _Outcome | None = None  # of the last step, while it is on its way

    def step(self, pieces: Sequence[Batch], step: int) -> tuple[LossOutput, Tensor]:
        """One optimiser step on the pieces of a batch; a non-finite loss or gradient changes nothing and is counted.

        The gradient is that of the complete batch, over all processes; only the current piece and the images of the
        next are on the device. All that is random in a step is a function of the seed and its number, so a resumed run
        repeats it. Nothing here waits for this step: a flag on the device decides whether the weights move, and the
        host reads it one step later (``settle``).

        Returns the loss and its terms, of the batch of all processes and in logged steps with measures, and () the
        gradient's norm before clipping; both stay on their device. RunFailedError as ``settle``, for the step before.
        """
        rate = learning_rate(step, steps=self.steps, config=self.config.optim)
        optimizers = [self.optimizer] if self.loss_optimizer is None else [self.optimizer, self.loss_optimizer]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            optimizer.zero_grad(set_to_none=True)
        self.model.train()
        for layer in self._batch_norms:
            layer.eval()
        seed = partial(self._seed, step)
        measured = self.is_logged(step + 1) and isinstance(self.loss, PowerCLIPLoss)
        options = {"measure": True} if measured else {}
        output = backward(
            self.parallel, self.loss, pieces, forward=self.forward, seed=seed, trained=self._is_trained, **options
        )
        average_ignored_gradients(self.model)
        average_gradients(self.loss.parameters())
        norm = gradient_norm((self.model, self.loss)).detach()
        finite = torch.isfinite(norm + output.total.detach())
        limit = self.config.optim.max_gradient_norm
        for optimizer in optimizers:
            # AdamW takes both as from a GradScaler: it divides gradients by the one and does nothing if the other is 1.
            # So clipping needs no pass of its own over the gradients.
            scaled: Any = optimizer
            scaled.grad_scale = None if limit is None else ((norm + 1e-6) / limit).clamp(min=1).float()
            scaled.found_inf = (~finite).float()
            optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, self.max_logit_scale)
        if self.ema is not None:
            self.ema.update(where=finite)
        self.counters["samples_seen"] += self.config.batch_size
        # The only wait for the device, for the end of the step before: the device has all of this step to do meanwhile,
        # and the host is never more than a step ahead.
        self.settle()
        self._outcome = _Outcome(finite, step, [key for piece in pieces for key in piece.keys])
        return output, norm

    def settle(self) -> None:
        """Wait for the last step, and count it if it was not finite.

        RunFailedError after ``MAX_BAD_STEPS`` steps in a row that were not, or all of a shorter run.
        """
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            return
        if outcome.finite():
            self.bad_in_a_row = 0
            return
        self.counters["bad_steps"] += 1
        self.bad_in_a_row += 1
        path = self.run.bad_batches_file
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": outcome.step + 1, "process": rank(), "keys": outcome.keys}) + "\n")
        if self.bad_in_a_row >= min(MAX_BAD_STEPS, self.steps):
            raise RunFailedError(
                f"the loss or its gradient was not finite in {self.bad_in_a_row} steps in a row, up to step "
                f"{outcome.step + 1} (samples {', '.join(outcome.keys[:5])}, ...; all in {path}); lower "
                "optim.learning-rate or look at those samples"
            )

    def is_logged(self, steps: int) -> bool:
        """Whether the log gets a line after this many steps."""
        return steps % self.config.log_every_steps == 0 or steps == self.steps

    @property
    def fitted(self) -> dict[str, Any]:
        """Scoring settings that the loss fits or learns, as they stand: zeta and zero, where the run does so."""
        return self.loss.powerset.fitted if isinstance(self.loss, PowerCLIPLoss) else {}

    def save_model(self, folder: Path) -> None:
        """Write the model as users exchange it, with what its scoring needs as it stands; all processes take part."""
        self.model.scoring = replace(self.model.scoring, **self.fitted)
        if self.model.vector_means is not None and isinstance(self.loss, PowerCLIPLoss):
            self.model.vector_means.copy_(self.loss.powerset.zero.means.nan_to_num(0.0))
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(self.model, options=options)
        if rank() == 0:
            hub.save(self.model, folder, state=state)
        wait_for_all()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds in addition to the model and its optimiser; loading writes into it.

        RunFailedError as ``settle``.
        """
        self.settle()
        state: dict[str, Any] = {"loss": self.loss.state_dict(), "counters": dict(self.counters)}
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.loss_optimizer is not None:
            state["loss_optimizer"] = get_optimizer_state_dict(self.loss, self.loss_optimizer)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a loaded state."""
        self.loss.load_state_dict(state["loss"])
        if self.loss_optimizer is not None:
            set_optimizer_state_dict(self.loss, self.loss_optimizer, state["loss_optimizer"])
        self.counters = {name: int(state["counters"][name]) for name in self.counters}

    def forward(self, model: nn.Module, batch: Batch) -> Features:
        """A model's features, under autocast where the config asks for it."""
        with autocast(self.config, self.device):
            features: Features = model(self._prefetch(batch))
        return features

    def _is_trained(self, feature: str) -> bool:
        """Whether a feature depends on a trained parameter: itself, where it is the model's, or one of its tower."""
        if feature in SHARED:
            return bool(getattr(self.model, feature).requires_grad)
        return ("image" if feature in IMAGE else "text") in self._trained_towers

    @cached_property
    def _trained_towers(self) -> list[str]:
        towers: tuple[Tower, ...] = ("image", "text")
        return [tower for tower in towers if any(p.requires_grad for p in self.model.tower_parameters(tower))]

    def _seed(self, step: int, piece: int) -> None:
        state = np.random.SeedSequence((self.config.seed, step, rank(), piece)).generate_state(1, np.uint64)
        # Not torch.manual_seed: it formats a stack trace for every kind of device.
        torch.default_generator.manual_seed(int(state[0] >> 1))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(int(state[0] >> 1))


class _Outcome:
    """Whether a step was finite, on its way to the host."""

    def __init__(self, finite: Tensor, step: int, keys: list[str]) -> None:
        self.step, self.keys = step, keys
        self._flag = finite.to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream().record_event() if finite.is_cuda else None

    def finite(self) -> bool:
        """Wait until it is known."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._flag)
