"""Reading torch.distributed.checkpoint's folders as plain values: nothing that a pickle in them names is run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as description
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

OTHERS = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("collections", "OrderedDict"),
}
"""What a checkpoint's description names beside the classes of ``torch.distributed.checkpoint.metadata``."""


class MisfitError(ValueError):
    """A checkpoint of another model or of other settings."""


class PlainReader(FileSystemReader):
    """Reads the description of a checkpoint without unpickling anything but its own classes."""

    def read_metadata(self, *_args: Any, **_options: Any) -> Metadata:
        """The description in ``.metadata``.

        Raises:
            OSError: it is not there.
            pickle.UnpicklingError: it names anything else, or is not whole.
        """
        with (Path(self.path) / ".metadata").open("rb") as file:
            try:
                found = _Unpickler(file).load()
            except (EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise pickle.UnpicklingError(f"its description is not whole: {error}") from error
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"it holds a {type(found).__name__} in place of its description")
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class PlainPlanner(DefaultLoadPlanner):
    """Takes numbers, strings and containers of them for what is no tensor, and nothing else."""

    def create_local_plan(self) -> LoadPlan:
        """What to read for the state to be filled.

        Raises:
            MisfitError: the checkpoint holds something else.
        """
        try:
            return super().create_local_plan()
        except (RuntimeError, ValueError) as error:
            raise MisfitError(str(error)) from error

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value in its place.

        Raises:
            pickle.UnpicklingError: it is of another type.
        """
        torch.load(value, weights_only=True)  # refuses what the next line would run
        value.seek(0)
        super().load_bytes(read_item, value)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == description.__name__ and "." not in name:
            found = getattr(description, name, None)
            if isinstance(found, type) and found.__module__ == module:
                return found
        elif module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        elif (module, name) in OTHERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint does")
