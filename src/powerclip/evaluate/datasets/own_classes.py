"""Zero-shot classification of your own images: a folder of images for each class, or clip_benchmark's layout."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.clip_benchmark import is_webdataset, own_prompts, read_webdataset
from powerclip.evaluate.datasets.images import FileImage, only_images
from powerclip.evaluate.datasets.prompts import imagenet_classes, imagenet_label_of_synset
from powerclip.evaluate.datasets.release import children, files_below
from powerclip.tasks import PLACE, Classification, MultiLabel

TEMPLATES = (f"a photo of a {PLACE}.",)
"""The prompt where the folder has no ``zeroshot_classification_templates.txt``."""

SPLITS = {"train", "val", "valid", "validation", "test"}


def classes_from_folder(folder: Path) -> Classification | MultiLabel:
    """The task "classes" of a folder's images, read as in training.

    A class is a sub-folder with images at any depth, called as the sub-folder with spaces for underscores, as ImageNet
    calls its WordNet id, or as ``classnames.txt`` says, a line for each sub-folder by name; by number if all names are
    numbers, which are then labels (10 comes after 9). PowerclipError if there are not two classes, there is
    no image, or a folder cannot be read.
    """
    if is_webdataset(folder):
        task = read_webdataset(folder, "classes")[0]
        if not isinstance(task, Classification | MultiLabel):
            raise PowerclipError(f"{folder} holds captions, not classes; prepare it and evaluate its pairs")
        return task
    within = children(folder) if folder.is_dir() else []
    places = [path for path in within if path.is_dir() or not path.exists()]  # a link to nowhere cannot be read
    if places and SPLITS.issuperset(path.name for path in places):
        found = ", ".join(path.name for path in places)
        raise PowerclipError(f"{folder} holds the parts {found}; name one: --data {places[-1]}")
    if all(path.name.isdecimal() for path in places):
        places.sort(key=lambda path: int(path.name))
    below = [files_below(path) for path in places]
    files = only_images(folder, below, ignored={".txt"})  # captions may be there, too
    if len(places) < 2 or not any(files):
        raise PowerclipError(
            f"{folder} has {len(places)} folders, with {sum(map(len, files))} images; expected a folder of images for "
            "each class, named after it, or clip_benchmark's layout (test/nshards.txt)"
        )
    if empty := [path.name for path, of_class in zip(places, files, strict=True) if not of_class]:
        warnings.warn(f"no image in {', '.join(empty)} of {folder}: classes to choose from alone", stacklevel=2)
    names, templates = own_prompts(folder)
    return Classification(
        name="classes",
        images=[FileImage(path, pixels="training", by_content=True) for of_class in files for path in of_class],
        labels=[label for label, of_class in enumerate(files) for _ in of_class],
        class_names=_class_names(folder, [path.name for path in places], given=names),
        templates=templates or TEMPLATES,
    )


def _class_names(folder: Path, places: Sequence[str], *, given: Sequence[str]) -> list[str]:
    """What the classes in sub-folders are called."""
    if given and len(given) != len(places):
        raise PowerclipError(
            f"{folder / 'classnames.txt'} has {len(given)} lines for {len(places)} folders; write one for each, by name"
        )
    synsets = imagenet_label_of_synset()
    if not given and all(place in synsets for place in places):
        return [imagenet_classes()[synsets[place]] for place in places]
    names = list(given) or [place.replace("_", " ") for place in places]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PowerclipError(f"several classes in {folder} are called {min(twice)!r}; name them in classnames.txt")
    return names
