"""ImageNet and its variants as they are released: a folder of images for every class."""

from __future__ import annotations

import json
from pathlib import Path

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.images import FileImage, children, find_files
from powerclip.evaluate.datasets.prompts import imagenet_classes, imagenet_label_of_synset, imagenet_templates
from powerclip.tasks import Classification, Task

OTHER_V2 = ("threshold0.7", "threshold-0.7", "top-images")
"""Parts of the names of ImageNet-V2's other two releases, which are easier than the one that papers report."""

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def read_imagenet(folder: Path, name: str, *, classes: int) -> list[Task]:
    """A variant whose class folders are WordNet ids, or numbers from 0 to 999 (ImageNet-V2; folder 10 is class 10).

    The model chooses among the classes that have a folder (the variant's class mask).

    Args:
        folder: the unpacked release; the class folders are in it or in a sub-folder.
        name: of the task.
        classes: the number of class folders in the release: a copy with fewer would be an easier task.

    Raises:
        PowerclipError: there are other folders, or fewer.
    """
    found = _class_folders(folder)
    if len(found) != classes:
        raise PowerclipError(f"{folder} has {len(found)} class folders; the release has {classes}; download the rest")
    kept = sorted(found)
    place = {label: position for position, label in enumerate(kept)}
    names = imagenet_classes()
    return [_task(name, {place[label]: path for label, path in found.items()}, [names[label] for label in kept])]


def read_objectnet(folder: Path, name: str) -> list[Task]:
    """ObjectNet: the 113 of its classes that ImageNet has too, according to the release's own ``mappings``.

    Raises:
        PowerclipError: the mappings or some images are missing.
    """
    mappings = next((path.parent for path in find_files(folder, "folder_to_objectnet_label.json")), None)
    if mappings is None:
        raise PowerclipError(f"{folder} lacks mappings/folder_to_objectnet_label.json of the ObjectNet release; add it")
    label_of_folder: dict[str, str] = _json(mappings / "folder_to_objectnet_label.json")
    in_imagenet: dict[str, str] = _json(mappings / "objectnet_to_imagenet_1k.json")
    kept = sorted(name for name, label in label_of_folder.items() if label in in_imagenet)
    images = next((path for path in find_files(folder, "images") if path.is_dir()), folder)
    missing = [one for one in kept if not (images / one).is_dir()]
    if missing or not kept:
        raise PowerclipError(
            f"{images} lacks {len(missing)} of {len(kept)} class folders: {', '.join(missing[:3])}; add them"
        )
    folders = {position: images / one for position, one in enumerate(kept)}
    return [_task(name, folders, [label_of_folder[one].lower() for one in kept])]


def _task(name: str, folders: dict[int, Path], class_names: list[str]) -> Classification:
    paths, labels = [], []
    for label in sorted(folders):
        files = [path for path in children(folders[label]) if path.suffix.lower() in IMAGE_SUFFIXES]
        paths += files
        labels += [label] * len(files)
    return Classification(
        name=name,
        images=[FileImage(path) for path in paths],
        labels=labels,
        class_names=class_names,
        templates=imagenet_templates(),
    )


def _class_folders(folder: Path) -> dict[int, Path]:
    """The class folders by ImageNet label: those of one folder, at the first level that has any."""
    level = [folder]
    for _depth in range(3):
        below = {parent: [child for child in children(parent) if child.is_dir()] for parent in level}
        found = {
            parent: {label: child for child in folders if (label := _label(child.name)) is not None}
            for parent, folders in below.items()
        }
        holders = [parent for parent, labels in found.items() if labels]
        if holders:
            return found[_meant(holders)]
        level = [child for folders in below.values() for child in folders]
    raise PowerclipError(f"{folder} has no class folders named by WordNet ids (n01440764) or numbers (0 to 999)")


def _meant(holders: list[Path]) -> Path:
    """The one of several folders with classes that is evaluated: ImageNet's val, ImageNet-V2's matched-frequency."""
    named = [path for path in holders if path.name == "val" or "matched-frequency" in path.name]
    found = named if len(holders) > 1 else holders
    if len(found) != 1 or any(other in found[0].name for other in OTHER_V2):
        names = ", ".join(path.name for path in holders)
        raise PowerclipError(
            f"{holders[0].parent} has classes in {names}; expected one folder, or val (ImageNet) or matched-frequency "
            "(ImageNet-V2) among them"
        )
    return found[0]


def _label(name: str) -> int | None:
    if name.isdigit() and int(name) < 1000:
        return int(name)
    return imagenet_label_of_synset().get(name)


def _json(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PowerclipError(f"{path} cannot be read as JSON: {error}") from error
