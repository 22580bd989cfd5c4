"""Weights as they are on disk; a packed file has half precision,
and of the token embeddings only the rows that are not 0."""

import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from powerclip.errors import PowerclipError

TOKENS = "token_embedding.weight"
"""How the name of the token embeddings ends: most of a small model's weights, and of words it may never have seen."""

PRESENT = ".present"
"""Added to that name: (V,) bool, which rows a packed file holds."""


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for ``powerclip.model.save`` that take less room; half precision rounds them, nothing else changes."""
    packed = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    for name in [name for name in packed if name.endswith(TOKENS)]:
        packed[name + PRESENT] = packed[name].any(dim=1)
        packed[name] = packed[name][packed[name + PRESENT]]
    return packed


def require_weights(path: Path) -> None:
    """Check that a file does not begin as what is often in the place of weights; PowerclipError says what to do."""
    what = ""
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        what = "a pointer of Git LFS to weights that are not here; fetch them with git lfs pull"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "a web page instead of weights; download the file itself"
    elif start.startswith(b"pk"):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                what = (
                    "a TorchScript archive, whose code is not run; of a model of OpenAI's give the tag openai in its "
                    "place, of another save the state_dict"
                )
    if what:
        raise PowerclipError(f"{path} is {what}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, packed or not; ValueError if rows are missing, or as safetensors raises."""
    state = load_file(path)
    for name in [name for name in state if name.endswith(PRESENT)]:
        present, of = state.pop(name), name.removesuffix(PRESENT)
        rows = state.get(of, torch.empty(0))
        if present.ndim != 1 or present.dtype != torch.bool or rows.ndim != 2 or int(present.sum()) != len(rows):
            raise ValueError(f"{path} says that {of} has other rows than it holds")
        state[of] = rows.new_zeros(len(present), rows.shape[1])
        state[of][present] = rows
    return state
