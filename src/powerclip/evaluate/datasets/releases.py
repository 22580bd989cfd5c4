"""Winoground, SugarCrepe, ARO, VALSE and Karpathy's splits of COCO and Flickr, in the releases' own files.

The images are in a folder of any name.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.clip_benchmark import retrieval_tasks
from powerclip.evaluate.datasets.images import Box, FileImage, find_files, find_images, release_json
from powerclip.tasks import HardNegative, HardNegatives, Quadruple, Quadruples, Task

Row = dict[str, Any]

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
        with release_json(_file(folder, f"{kind}.json")) as content:
            rows = list(content.values())
            items += _items(folder, rows, "filename", "caption", "negative_caption", [kind] * len(rows))
    return [HardNegatives(name=name, items=items)]


def read_winoground(folder: Path, name: str) -> list[Task]:
    """Winoground (Thrush et al., 2022): ``examples.jsonl`` and 800 images."""
    with release_json(_file(folder, "examples.jsonl")) as rows:
        names = [row[key] for row in rows for key in ("image_0", "image_1")]
        names = [name if Path(name).suffix else f"{name}.png" for name in names]
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
        with release_json(_file(folder, f"visual_genome_{part}.json")) as rows:
            kinds = [row["relation_name"] if part == "relation" else "_".join(row["attributes"]) for row in rows]
            items = _items(folder, rows, "image_path", "true_caption", "false_caption", kinds, crop=_box)
        counts = Counter(kinds)
        few = {kind for kind, count in counts.items() if count < ARO_MIN_ITEMS}
        averaged = counts.keys() - (SYMMETRIC_RELATIONS if part == "relation" else few)
        tasks.append(HardNegatives(name=f"{name}-{part}", items=items, macro_kinds=frozenset(averaged)))
    return tasks


def read_valse(folder: Path, name: str) -> list[Task]:
    """VALSE (Parcalabescu et al., 2022): every ``*.json`` with pairs of caption and foil; each file is a kind.

    Like its authors, this leaves out pairs that fewer than two of three annotators understood.
    """
    items = []
    for path in find_files(folder, "*.json"):
        with release_json(path) as content:
            rows = [row for row in content.values() if row["mturk"]["caption"] >= VALSE_AGREEMENT]
            items += _items(folder, rows, "image_file", "caption", "foil", [path.stem] * len(rows))
    return [HardNegatives(name=name, items=items)]


def read_karpathy(folder: Path, name: str) -> list[Task]:
    """The test split of Karpathy's ``dataset_coco.json``, ``dataset_flickr30k.json`` or ``dataset_flickr8k.json``."""
    found = find_files(folder, "dataset_*.json")
    if len(found) != 1:
        raise PowerclipError(f"{folder} holds {len(found)} files dataset_*.json; expected one of Karpathy's splits")
    with release_json(found[0]) as content:
        rows = [row for row in content["images"] if row["split"] == "test"]
        names = [str(Path(row.get("filepath", ""), row["filename"])) for row in rows]
        captions = [[sentence["raw"] for sentence in row["sentences"]] for row in rows]
    return retrieval_tasks(name, [FileImage(path) for path in find_images(folder, names)], captions)


def _items(
    folder: Path,
    rows: Sequence[Row],
    image: str,
    positive: str,
    negative: str,
    kinds: Sequence[str],
    *,
    crop: Callable[[Row], Box | None] = lambda row: None,
) -> list[HardNegative]:
    """An item of each row; the names of the columns are given."""
    paths = find_images(folder, [row[image] for row in rows])
    return [
        HardNegative(image=FileImage(path, crop(row)), positive=row[positive], negative=row[negative], kind=kind)
        for row, path, kind in zip(rows, paths, kinds, strict=True)
    ]


def _box(row: Row) -> Box:
    x, y = int(row["bbox_x"]), int(row["bbox_y"])
    return x, y, x + int(row["bbox_w"]), y + int(row["bbox_h"])


def _file(folder: Path, name: str) -> Path:
    found = find_files(folder, name)
    if not found:
        raise PowerclipError(f"{folder} lacks {name} of the release; add it")
    return found[0]
