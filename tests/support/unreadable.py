"""A folder that cannot be read, also by root, as whom the tests may run."""

import os
from pathlib import Path

import pytest


def unreadable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing the folder fails from now on."""
    real = os.scandir

    def scandir(path="."):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
