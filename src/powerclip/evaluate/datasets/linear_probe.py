"""Linear probes: the training, validation and test images of a classification set."""

from collections.abc import Callable
from pathlib import Path

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.clip_benchmark import is_webdataset, read_webdataset
from powerclip.tasks import Classification, LinearProbe, Region, Task

PROBE = "-linear-probe"
"""At the end of the name of a data set: its linear probe."""

VALIDATION = ("val", "valid", "validation")


def read_linear_probe(folder: Path, name: str, *, release: Callable[[Path, str], list[Task]]) -> list[Task]:
    """The splits ``train``, ``test`` and, if there is one, ``val`` in clip_benchmark's layout.

    Otherwise ``release`` reads the folders ``train`` and ``val``, which is then what is tested on (ImageNet).
    PowerclipError as the readers, or if the images do not have one class each.
    """
    data = name.removesuffix(PROBE)
    if is_webdataset(folder):
        validation = [split for split in VALIDATION if is_webdataset(folder, split)][:1]
        tasks = [read_webdataset(folder, data, split)[0] for split in ("train", *validation, "test")]
    else:
        tasks = [release(folder / split, data)[0] for split in ("train", "val")]
    parts = [task for task in tasks if isinstance(task, Classification)]
    if len(parts) < len(tasks):
        kinds = ", ".join(type(task).__name__ for task in tasks)
        raise PowerclipError(f"{folder} holds {kinds} tasks; a linear probe needs images of one class each")
    train, *validated, test = (len(part.images) for part in parts)
    return [
        LinearProbe(
            name=name,
            images=[image for part in parts for image in part.images if not isinstance(image, Region)],
            labels=[label for part in parts for label in part.labels],
            counts=(train, sum(validated), test),
            classes=len(parts[0].class_names),
        )
    ]
