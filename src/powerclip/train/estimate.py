"""How much memory a training step will take, before the first one:
from a run of fake tensors, which have no numbers."""

import copy
import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from powerclip.config import TrainConfig
from powerclip.distributed import world_size
from powerclip.model import PowerCLIP
from powerclip.train.build import autocast, regions_of
from powerclip.types import Batch

PROBED = 1024
"""Pairs of the run; so many that what does not grow with them (gradients of parameters) is a few percent of theirs."""

PHRASES = 16
"""Phrases of a caption, about the most; CC12M's have 8 on average."""

VECTOR_COPIES = 4
"""Copies of the regions and phrases that the powerset loss holds: packed for the search, fetched, and two gradients."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on one process."""

    state: int
    """Weights, gradients, optimiser, average."""
    pair: int
    """A pair of the piece that is on the device: two buffers of images,
    and activations of captions that fill the context."""
    features: int
    """A pair of the batch if it comes in pieces: its features and their gradients."""
    vectors: int
    """A pair in the powerset loss."""
    dimension: int
    """D"""

    def step(self, pairs: int, *, piece: int) -> int:
        """Of a step with this many pairs on this process, ``piece`` at a time."""
        kept = pairs * self.features if piece < pairs else 0
        loss = pairs * self.vectors + _loss_bytes(pairs, pairs * world_size(), self.dimension)
        return self.state + piece * self.pair + kept + loss

    def most(self, memory: int, *, piece: int | None = None) -> int:
        """The most pairs whose step fits into ``memory`` bytes: all at once, or ``piece`` at a time; 0 if none does."""
        low, high = 0, 2**24  # of them, ``low`` fits and ``high`` does not
        while high - low > 1:
            pairs = (low + high) // 2
            fits = self.step(pairs, piece=min(pairs, piece or pairs)) <= memory
            low, high = (pairs, high) if fits else (low, pairs)
        return low


def step_memory(config: TrainConfig, model: PowerCLIP, *, tokens: int | None = None) -> StepMemory:
    """What a step of a config takes of a model that is not yet spread over processes, on the device that it is on.

    ``tokens`` is the length that captions are cut to, by default the context length. Allocated bytes are counted; what
    an allocator keeps beyond them, and libraries' workspaces, are not. The model's ``phrase_context`` is "caption":
    phrases that are read alone take as much as their own tokens, which only the data show.
    """
    peak = _peak_bytes(config, model, PROBED, tokens or model.context_length)
    used = config.objective.uses_regions
    captions = config.data.captions
    vectors = 4 * model.embed_dim * (regions_of(config, model) + PHRASES * captions) if used else 0
    return StepMemory(
        state=state_bytes(config, model),
        pair=peak // PROBED + 4 * 3 * math.prod(model.image_size),  # one of the two buffers is in the count
        features=2 * (vectors + 4 * model.embed_dim * (1 + captions)),
        vectors=VECTOR_COPIES * vectors,
        dimension=model.embed_dim,
    )


def state_bytes(config: TrainConfig, model: PowerCLIP) -> int:
    """Bytes on one process of weights, gradients, optimiser and average."""
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    shards = world_size() if config.parallel.sharding == "fsdp" else 1
    kept = sum(p.nbytes for p in model.parameters()) + (3 + (config.ema_decay is not None)) * gradients
    return kept // shards


def estimate(config: TrainConfig, model: PowerCLIP) -> str:
    """One line: parameters, what they and the optimiser take, what pairs and their activations will, and what fits.

    Of a model that reads phrases alone, what pairs take is not said.
    """
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    pairs = config.batch_size // world_size()
    piece = -(-pairs // config.parallel.accumulate)
    averaged = config.ema_decay is not None
    state = (
        f"{parameters / 1e6:.1f} M parameters, {trainable / 1e6:.4g} M of them trained; "
        f"{piece} pairs at a time on each process; about {state_bytes(config, model) / 2**30:.2f} GiB for "
        f"weights, gradients and optimiser{', average included,' * averaged} and"
    )
    if model.phrase_context == "alone":
        return f"{state} more for pairs and activations, not estimated: phrases are read alone, each a text of its own"
    memory = step_memory(config, model)
    device, fits = model.logit_scale.device, ""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        most = memory.most(total) if piece == pairs else memory.most(total, piece=piece)
        fits = f"; up to about {most} pairs a process fit into the GPU's {total / 2**30:.0f} GiB"
    step = memory.step(pairs, piece=piece) - memory.state
    return f"{state} {step / 2**30:.2f} GiB for pairs and activations{fits}"


class _Peak(TorchDispatchMode):
    """The most bytes that tensors which are made within take at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0
        self._now: int = 0
        self._live: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        found = function(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and id(storage := x.untyped_storage()) not in given | self._live.keys():
                self._now += storage.nbytes()
                self._live[id(storage)] = weakref.finalize(storage, self._free, id(storage), storage.nbytes())
        self.bytes = max(self.bytes, self._now)
        return found

    def _free(self, storage: int, size: int) -> None:
        del self._live[storage]
        self._now -= size


def _peak_bytes(config: TrainConfig, model: PowerCLIP, pairs: int, T: int) -> int:
    """Bytes that the towers' forward and backward pass make at most, of this many pairs."""
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        fake = copy.deepcopy(model)
    device = model.logit_scale.device
    peak = _Peak()
    with mode, peak:
        captions = pairs * config.data.captions
        tokens = torch.ones(captions, T, dtype=torch.int64, device=device)
        batch = Batch(
            images=torch.zeros(pairs, 3, *model.image_size, device=device),
            tokens=tokens,
            leaf_of_token=torch.zeros_like(tokens),
            phrase_spans=torch.zeros(captions, PHRASES, 2, dtype=torch.int64, device=device),
            region_masks=torch.ones(
                pairs, config.drawn_regions, math.prod(model.grid_size), dtype=torch.bool, device=device
            ),
        )
        with autocast(config, device):
            features = fake(batch)
        used = [features.image, features.text]
        used += [features.regions, features.phrases] if config.objective.uses_regions else []
        torch.autograd.backward([x.sum() for x in used if x.requires_grad])  # not those of a frozen tower
    return peak.bytes


def _loss_bytes(pairs: int, batch: int, dimension: int) -> int:
    """Bytes that CLIP's loss makes at most, of this many pairs of a batch; the matrices of logits above all."""
    peak = _Peak()
    with FakeTensorMode(), peak:
        mine, all_pairs = (torch.zeros(n, dimension, requires_grad=True) for n in (pairs, batch))
        logits = [mine @ all_pairs.T for _ in range(2)]
        labels = torch.zeros(pairs, dtype=torch.int64)
        losses = [torch.nn.functional.cross_entropy(x, labels, reduction="sum") for x in logits]
        torch.autograd.backward(losses)
    return peak.bytes
