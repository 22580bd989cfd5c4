"""ImageNet and its variants as they are released: a folder of images for every class."""

import warnings
from pathlib import Path

from powerclip.distributed import rank
from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.images import FileImage, only_images
from powerclip.evaluate.datasets.prompts import imagenet_classes, imagenet_label_of_synset, imagenet_templates
from powerclip.evaluate.datasets.release import Release, children, release_json
from powerclip.tasks import Classification, Task

OTHER_V2 = ("threshold0.7", "threshold-0.7", "top-images")
"""Parts of the names of ImageNet-V2's other two releases, which are easier than the one that papers report."""

PROMPT_FILES = ("classnames.txt", "zeroshot_classification_templates.txt")


def read_imagenet(folder: Path, name: str, *, classes: int) -> list[Task]:
    """A variant whose class folders are WordNet ids, or numbers from 0 to 999 (ImageNet-V2; folder 10 is class 10).

    The class folders are in the folder or in a sub-folder of it. The model chooses among the classes that have one (the
    variant's class mask). PowerclipError if there are not ``classes`` of them, as in the release: fewer would be an
    easier task.
    """
    found = _class_folders(folder)
    if len(found) != classes:
        raise PowerclipError(f"{folder} has {len(found)} class folders; the release has {classes}; download the rest")
    names = imagenet_classes()
    return [_task(folder, name, [(names[label], found[label]) for label in sorted(found)])]


def read_objectnet(folder: Path, name: str) -> list[Task]:
    """ObjectNet: the 113 of its classes that ImageNet has too, by its ``mappings``; PowerclipError if incomplete."""
    mappings = Release(folder).file("folder_to_objectnet_label.json").parent
    with (
        release_json(mappings / "folder_to_objectnet_label.json") as label_of_folder,
        release_json(mappings / "objectnet_to_imagenet_1k.json") as in_imagenet,
    ):
        kept = {folder: label.lower() for folder, label in sorted(label_of_folder.items()) if label in in_imagenet}
    images = next((place for place in (mappings.parent / "images", folder / "images") if place.is_dir()), folder)
    missing = [one for one in kept if not (images / one).is_dir()]
    if missing or not kept:
        raise PowerclipError(
            f"{images} lacks {len(missing)} of {len(kept)} class folders: {', '.join(missing[:3])}; add them"
        )
    return [_task(folder, name, [(label, images / one) for one, label in kept.items()])]


def _task(folder: Path, name: str, classes: list[tuple[str, Path]]) -> Classification:
    files = only_images(folder, [children(place) for _, place in classes])
    if (own := [file for file in PROMPT_FILES if (folder / file).exists()]) and rank() == 0:  # all processes read all
        warnings.warn(
            f"{' and '.join(own)} of {folder} have no effect: {name} is measured with its published class names and "
            "prompts; for your own, use the classes suite",
            stacklevel=2,
        )
    return Classification(
        name=name,
        images=[FileImage(path) for of_class in files for path in of_class],
        labels=[label for label, of_class in enumerate(files) for _ in of_class],
        class_names=[class_name for class_name, _ in classes],
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
