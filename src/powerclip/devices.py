"""The device that a setting names."""

import os

import torch

from powerclip.errors import PowerclipError


def find_device(name: str) -> torch.device:
    """The device for "auto" (a GPU if there is one), "cuda", "cpu", "cuda:1", ...; PowerclipError if it is not here.

    A GPU without a number is this process's own: the one of its number in torchrun's job, else torch's current one.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    try:
        device = torch.device("cpu" if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PowerclipError(f"device {name!r} cannot be used here; use auto, cpu or a GPU that exists") from error
    return device
