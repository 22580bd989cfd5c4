"""The door to the scores and hardest negatives of all images and captions: Triton's kernel or plain PyTorch.

``fused`` is the kernel, ``tiled`` and ``search`` are PyTorch. The kernel is used where it can be, unless "torch" is
asked for: on a GPU, for the default aggregators, without gradient.
"""

from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import get_args

import torch
from torch import Tensor

from powerclip.alignment import search, tiled
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.vectors import MaskedVectors
from powerclip.config.values import Backend
from powerclip.errors import one_of

COMPUTE_CAPABILITY = (8, 0)
"""The oldest GPUs of NVIDIA that the kernel is for: the first with bfloat16 and tf32."""


def check_backend(backend: Backend) -> None:
    """Raise ValueError if there is no such backend, or it is "triton" and that is not installed."""
    one_of("backend", backend, get_args(Backend))
    if backend == "triton" and find_kernel() is None:
        _refuse(_MISSING)


def score_rows(
    regions: MaskedVectors,
    phrases: MaskedVectors,
    *,
    scoring: Scoring,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield slices of images with their T2R and R2T to all captions, each (images, J), without gradient.

    ``dtype`` is what the vectors were before they were float32; the kernel multiplies them as such.
    """
    fused = _kernel(regions, scoring)
    if fused:
        yield from fused.score_rows(regions, phrases, scoring=scoring, dtype=dtype)
    else:
        yield from tiled.score_rows(regions, phrases, scoring=scoring)


def hardest_negatives(
    regions: MaskedVectors,
    phrases: MaskedVectors,
    *,
    candidates: search.Candidates,
    scoring: Scoring,
) -> search.HardestNegatives:
    """The hardest negative of every row and column of I images and J captions; ties go to the lowest index.

    The kernel multiplies in float16, so that what it finds is within the rounding of that of the highest. It knows one
    id for each image: if images have several, PyTorch searches.
    """
    fused = _kernel(regions, scoring)
    if fused and candidates.image_id.ndim == 1:
        found: search.HardestNegatives = fused.hardest_negatives(
            regions, phrases, candidates=candidates, scoring=scoring
        )
        return found
    return search.hardest_negatives(regions, phrases, candidates=candidates, scoring=scoring)


_MISSING = "the package triton is not installed (it comes with torch on Linux)"


@cache
def find_kernel() -> ModuleType | None:
    """The module with the kernel; None without triton."""
    try:
        from powerclip.alignment import fused
    except ImportError:
        return None
    return fused


def _kernel(vectors: MaskedVectors, scoring: Scoring) -> ModuleType | None:
    """The kernel's module if it is to be used; ValueError if it is asked for and cannot be."""
    on_gpu, backend = vectors.values.device.type == "cuda", scoring.backend
    if backend == "torch" or (backend == "auto" and not on_gpu):
        return None
    fused = find_kernel()
    obstacle = None
    if fused is None:
        obstacle = _MISSING
    elif not scoring.fused:
        obstacle = "it has only method 'nla' over all subsets, with the activations softplus and tanh"
    elif vectors.values.dtype != torch.float32:
        obstacle = f"it has no {vectors.values.dtype}"
    elif not on_gpu and not fused.INTERPRETED:
        obstacle = f"it needs a GPU, and the vectors are on {vectors.values.device}"
    elif on_gpu and torch.version.cuda and torch.cuda.get_device_capability(vectors.values.device) < COMPUTE_CAPABILITY:
        obstacle = f"the GPU is older than compute capability {COMPUTE_CAPABILITY[0]}.{COMPUTE_CAPABILITY[1]}"
    if obstacle and backend == "triton":
        _refuse(obstacle)
    return None if obstacle else fused


def _refuse(obstacle: str) -> None:
    raise ValueError(f"backend 'triton' cannot be used: {obstacle}; use 'auto' or 'torch'")
