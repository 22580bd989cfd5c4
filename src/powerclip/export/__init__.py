"""Models in other libraries' forms, each compared with the original before it gets its name."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from powerclip.config.values import ExportTarget
from powerclip.data.images import decode_image
from powerclip.data.remote import is_remote
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.evaluate import retrieval_from_shards
from powerclip.evaluate.datasets.images import open_picture
from powerclip.export import hub_folder, onnx_files, open_clip_folder, transformers_folder
from powerclip.export.card import model_card
from powerclip.export.parity import Pairs, Parity, compare
from powerclip.files import SUMS, atomic_folder, atomic_write, checksums
from powerclip.model import load
from powerclip.runs import RunFolder, require_free
from powerclip.scenes import generate

TARGETS: Mapping[ExportTarget, ModuleType] = {
    "open_clip": open_clip_folder,
    "transformers": transformers_folder,
    "onnx": onnx_files,
    "hub-folder": hub_folder,
}
"""Each has ``write(model, tokenizer, folder)``, which raises PowerclipError for what the form cannot express,
``read(folder) -> Exported`` with the library that it is for, and ``usage(model)``, how to load it in Markdown."""

PAIRS = 16
"""Images, and captions, that an exported model is compared on."""

SCENES_SEED = 30_000
"""Seed of the scenes to compare on where there are no other images."""


def export(
    model: str, target: ExportTarget, *, output: Path | None = None, data: str | None = None, licence: str = ""
) -> tuple[Path, Parity]:
    """Write a model in a library's form, read it back with that library, and compare it with the original.

    Args:
        model: what ``powerclip.load`` takes.
        target: the library, or "hub-folder": powerclip's own form, to be uploaded.
        output: the folder to make; by default ``export/TARGET`` in the run or model folder.
        data: shards whose images and captions are compared; by default the run's own data, else generated scenes.
        licence: of the weights, as the hub spells it ("apache-2.0"), for the model card.

    Returns:
        The folder, and how far the exported model is from the original.

    Raises:
        PowerclipError: there is no such model or data, the output is not empty, the library is not installed, or its
            form cannot express the model (the message names another target).
        RunFailedError: the library cannot read the result or computes something else. Nothing is left.
    """
    model = str(Path(model).expanduser())
    loaded, preprocess, tokenizer = load(model)
    if "model" not in loaded.config:
        raise PowerclipError(f"{model} does not say how it is built; export a model of powerclip.create_model")
    parent = Path(model) / "export" if Path(model).is_dir() else Path()
    output = output or parent / (target if Path(model).is_dir() else f"{Path(model).name}-{target}")
    require_free(output)
    pairs = _pairs(model, data, image_size=2 * max(loaded.image_size))
    form = TARGETS[target]
    with atomic_folder(output) as temporary:
        form.write(loaded, tokenizer, temporary)
        try:
            exported = form.read(temporary)
            parity = compare(loaded, preprocess, tokenizer, exported, pairs)
        except Exception as error:  # of another library
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise RunFailedError(f"{target} does not take what was exported from {model}: {reason}") from error
        if not parity.holds:
            raise RunFailedError(f"not exported, {target} computes something else: {'; '.join(parity.lines())}")
        del exported  # it may hold files open
        card = model_card(model, loaded, usage=form.usage(loaded), parity=parity, licence=licence)
        atomic_write(temporary / "README.md", card)
        atomic_write(temporary / SUMS, checksums(temporary))
    return output, parity


def _pairs(model: str, data: str | None, *, image_size: int) -> Pairs:
    """Images and captions of the given data, of the run's own, or else of generated scenes of ``image_size``."""
    own = RunFolder(model).data()
    sources = [data] if data is not None else [] if own is None else [s for s in own.sources if not is_remote(s)]
    for source in sources:
        try:
            task = retrieval_from_shards(source, limit=PAIRS)
        except (PowerclipError, OSError):
            if data is not None:
                raise
            continue  # moved since
        return Pairs([open_picture(image) for image in task.images], [own[0] for own in task.captions], source)
    scenes = list(generate("test", count=PAIRS, seed=SCENES_SEED, image_size=max(image_size, 64)))
    pictures = [decode_image(scene.image) for scene in scenes]
    return Pairs(pictures, [scene.caption for scene in scenes], "generated scenes, as no data of the run are at hand")


__all__ = ["TARGETS", "Parity", "export"]
