"""Weights out of the files that others write: what trainers and compilers put around them is taken off."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from powerclip.files import read_json
from powerclip.model.packed import read_weights, require_weights
from powerclip.model.start import INDEX, TRANSFORMERS

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which trainers keep weights in a checkpoint."""

WRAPPING_PREFIXES = ("module.", "model.")
"""What DistributedDataParallel, averages and Lightning put before the names of a model's weights."""

INNER = re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""What torch.compile, checkpointing and FSDP put into the names of the modules that they wrap."""

AVERAGED = re.compile(r"(?:.*[_.])?(?:ema|averaged|swa)(?:[_.].*)?", re.IGNORECASE)
"""Keys under which trainers keep averaged weights beside the others."""

OWN_PREFIX = "backbone."
"""What the names of a saved model's weights start with: where ``PowerCLIP`` keeps open_clip's model."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of weights that are read; those of other ones would need a scale, or an imaginary part, that is not here."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint by the names in the file, without what trainers wrap around them.

    If the file is the index of several, all are read. Of a checkpoint that holds averaged weights, too, a warning says
    that the others are taken.
    """
    if path.name.endswith(INDEX):
        shards = sorted(set(map(str, read_json(path)["weight_map"].values())))
        if any(Path(shard).name != shard for shard in shards):
            raise ValueError("its index names files in other folders")
        return {name: value for shard in shards for name, value in read_state(path.with_name(shard)).items()}
    require_weights(path)
    found: Any
    if _is_safetensors(path):
        found = read_weights(path)
    else:
        with path.open("rb") as file:  # torch goes by the suffix of a path
            found = torch.load(file, "cpu", weights_only=True)
    while isinstance(found, Mapping) and (key := next((k for k in WRAPPERS if isinstance(found.get(k), Mapping)), "")):
        averaged = [k for k, v in found.items() if isinstance(v, Mapping) and AVERAGED.fullmatch(str(k))]
        if averaged:
            warnings.warn(
                f"{path} also holds averaged weights ({averaged[0]}); those of {key} are taken; to take the averaged "
                "ones, save them in a file of their own",
                stacklevel=2,
            )
        found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise ValueError("the file holds no weights")
    state = {INNER.sub("", str(name)): value for name, value in found.items()}
    while prefix := next((p for p in WRAPPING_PREFIXES if any(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def _is_safetensors(path: Path) -> bool:
    """By the first bytes: names may say something else."""
    with path.open("rb") as file:
        start = file.read(9)
    other = start.startswith((b"PK\x03\x04", b"\x80\x02"))  # as torch.save begins
    return start[8:] == b"{" or (path.suffix.lower() == ".safetensors" and not other)


def without_own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by open_clip's names, of a file that powerclip saved, too."""
    own = {name.removeprefix(OWN_PREFIX): value for name, value in state.items() if name.startswith(OWN_PREFIX)}
    return own or state


def require_fitting(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Check that weights are those of a model, by their names and dtypes.

    Raises:
        ValueError: names are missing or unknown, or values are not floats where the model has floats.
    """
    missing, unknown = ([*(a.keys() - b.keys())] for a, b in ((expected, state), (state, expected)))
    if missing and any(name.startswith(("text_model.", "vision_model.")) for name in unknown):
        raise ValueError(f"they are {TRANSFORMERS}")
    if not state.keys() & (expected.keys() - {"logit_bias"}):
        raise ValueError(f"they have names such as {[*state][-1]}; expected {next(iter(expected))}")
    lists = ((missing, "lack"), (unknown, "have, and the model lacks,"))
    if parts := [f"{verb} {_some(names, of=[*expected, *state])}" for names, verb in lists if names]:
        raise ValueError(f"they {' and '.join(parts)}")
    for name, value in state.items():
        if expected[name].is_floating_point() and value.dtype not in FLOATS:
            raise ValueError(
                f"{name} is of {value.dtype}; expected float32, float64, float16 or bfloat16, so save the weights "
                "before they are quantised or converted"
            )


def _some(names: list[str], *, of: list[str]) -> str:
    """A few names in their order, and how many there are."""
    first = sorted(names, key=of.index)[:2]
    return f"{', '.join(first)}{'' if len(names) <= 2 else f', ... ({len(names)} tensors)'}"
