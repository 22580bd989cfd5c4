"""Winoground, SugarCrepe, ARO, VALSE and Karpathy's splits of COCO and Flickr, in the releases' own files.

The images are in a folder of any name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.clip_benchmark import retrieval_tasks
from powerclip.evaluate.datasets.images import FileImage, find_files, find_images
from powerclip.tasks import HardNegative, HardNegatives, Quadruple, Quadruples, Task

SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
"""SugarCrepe's seven subsets."""

VALSE_AGREEMENT = 2
"""Of VALSE's three annotators, this many must have chosen the caption: its authors' valid pairs."""

ARO_MIN_ITEMS = 25
"""Pairs of attributes with fewer items are not in ARO's average."""

SYMMETRIC = """
adjusting, around, attached to, beside, between, bigger than, biting, boarding, brushing, by, chewing, cleaning,
climbing, close to, coming from, coming out of, contain, crossing, dragging, draped over, drinking, drinking from,
driving, driving down, driving on, eating from, eating in, enclosing, exiting, facing, filled with, floating in,
floating on, flying, flying above, flying in, flying over, flying through, full of, going down, going into, going
through, grazing in, growing in, growing on, guiding, hanging from, hanging in, hanging off, hanging over, higher
than, holding onto, hugging, in between, jumping off, jumping on, jumping over, kept in, larger than, leading,
leaning over, leaving, licking, longer than, looking in, looking into, looking out, looking over, looking through,
lying next to, lying on top of, making, mixed with, mounted on, moving, near, next to, of, on the back of, on the
edge of, on the front of, on the other side of, on the side of, opening, painted on, parked at, parked beside,
parked by, parked in, parked in front of, parked near, parked next to, perched on, petting, piled on, playing,
playing in, playing on, playing with, pouring, reaching for, reading, reflected on, riding on, running in, running
on, running through, seen through, sitting behind, sitting beside, sitting by, sitting in front of, sitting near,
sitting next to, sitting under, skiing down, skiing on, sleeping in, sleeping on, smiling at, sniffing, splashing,
sprinkled on, stacked on, standing against, standing around, standing behind, standing beside, standing in front
of, standing near, standing next to, staring at, stuck in, surrounding, swimming in, swinging, talking to, topped
with, touching, traveling down, traveling on, tying, typing on, underneath, wading in, waiting for, walking
across, walking by, walking down, walking next to, walking through, with, working in, working on, worn on, wrapped
around, wrapped in
"""
"""The relations that ARO's authors leave out of the average, by their replication notebook: 157, which leaves 48."""

SYMMETRIC_RELATIONS = frozenset(" ".join(name.split()) for name in SYMMETRIC.split(","))


def read_sugarcrepe(folder: Path, name: str) -> list[Task]:
    """SugarCrepe (Hsieh et al., 2023): ``add_att.json`` and six more, over COCO's val2017."""
    items = []
    for kind in SUGARCREPE:
        rows = list(_json(_file(folder, f"{kind}.json")).values())
        with _form(f"{kind}.json"):
            paths = find_images(folder, [row["filename"] for row in rows])
            items += [
                HardNegative(
                    image=FileImage(path), positive=row["caption"], negative=row["negative_caption"], kind=kind
                )
                for row, path in zip(rows, paths, strict=True)
            ]
    return [HardNegatives(name=name, items=items)]


def read_winoground(folder: Path, name: str) -> list[Task]:
    """Winoground (Thrush et al., 2022): ``examples.jsonl`` and 800 images."""
    path = _file(folder, "examples.jsonl")
    with _form(path.name):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        names = [_png(row[key]) for row in rows for key in ("image_0", "image_1")]
        pictures = [FileImage(image) for image in find_images(folder, names)]
        items = [
            Quadruple(images=(pictures[2 * i], pictures[2 * i + 1]), captions=(row["caption_0"], row["caption_1"]))
            for i, row in enumerate(rows)
        ]
    return [Quadruples(name=name, items=items)]


def read_aro(folder: Path, name: str) -> list[Task]:
    """ARO's relation and attribution (Yuksekgonul et al., 2023), over Visual Genome images cut to the objects' box.

    The kinds are the relations, and the pairs of attributes. "macro" is the authors' mean over kinds: without symmetric
    relations, and without pairs of attributes that have few items.
    """
    tasks: list[Task] = []
    for part in ("relation", "attribution"):
        path = _file(folder, f"visual_genome_{part}.json")
        rows = _json(path)
        with _form(path.name):
            images = find_images(folder, [row["image_path"] for row in rows])
            items = [
                HardNegative(
                    image=FileImage(image, crop=_box(row)),
                    positive=row["true_caption"],
                    negative=row["false_caption"],
                    kind=row["relation_name"] if part == "relation" else "_".join(row["attributes"]),
                )
                for row, image in zip(rows, images, strict=True)
            ]
        counts = Counter(item.kind for item in items)
        averaged = (
            counts.keys() - SYMMETRIC_RELATIONS
            if part == "relation"
            else {kind for kind, count in counts.items() if count >= ARO_MIN_ITEMS}
        )
        tasks.append(HardNegatives(name=f"{name}-{part}", items=items, macro_kinds=frozenset(averaged)))
    return tasks


def read_valse(folder: Path, name: str) -> list[Task]:
    """VALSE (Parcalabescu et al., 2022): every ``*.json`` with pairs of caption and foil; each file is a kind.

    Like its authors, this leaves out pairs that fewer than two of three annotators understood.
    """
    items = []
    for path in find_files(folder, "*.json"):
        with _form(path.name):
            rows = [row for row in _json(path).values() if row["mturk"]["caption"] >= VALSE_AGREEMENT]
            images = find_images(folder, [row["image_file"] for row in rows])
            items += [
                HardNegative(image=FileImage(image), positive=row["caption"], negative=row["foil"], kind=path.stem)
                for row, image in zip(rows, images, strict=True)
            ]
    return [HardNegatives(name=name, items=items)]


def read_karpathy(folder: Path, name: str) -> list[Task]:
    """The test split of Karpathy's ``dataset_coco.json``, ``dataset_flickr30k.json`` or ``dataset_flickr8k.json``."""
    found = find_files(folder, "dataset_*.json")
    if len(found) != 1:
        raise PowerclipError(f"{folder} holds {len(found)} files dataset_*.json; expected one of Karpathy's splits")
    with _form(found[0].name):
        rows = [row for row in _json(found[0])["images"] if row["split"] == "test"]
        names = [str(Path(row.get("filepath", ""), row["filename"])) for row in rows]
        captions = [[sentence["raw"] for sentence in row["sentences"]] for row in rows]
    return retrieval_tasks(name, [FileImage(path) for path in find_images(folder, names)], captions)


def _box(row: dict[str, Any]) -> tuple[int, int, int, int]:
    x, y = int(row["bbox_x"]), int(row["bbox_y"])
    return x, y, x + int(row["bbox_w"]), y + int(row["bbox_h"])


def _png(name: str) -> str:
    return name if Path(name).suffix else f"{name}.png"


def _file(folder: Path, name: str) -> Path:
    found = find_files(folder, name)
    if not found:
        raise PowerclipError(f"{folder} lacks {name} of the release; add it")
    return found[0]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PowerclipError(f"{path} cannot be read as JSON: {error}") from error


@contextmanager
def _form(name: str) -> Iterator[None]:
    """Turn an error about missing content into a message that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise PowerclipError(
            f"{name} does not have its release's format ({type(error).__name__}: {error}); download it again"
        ) from error
