"""Winoground, SugarCrepe, ARO, VALSE and Karpathy's splits of COCO and Flickr, in the releases' own files.

The images are in a folder of any name.
"""

from collections import Counter
from pathlib import Path

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.clip_benchmark import retrieval_tasks
from powerclip.evaluate.datasets.release import (
    NUMBER,
    TEXT,
    Release,
    answerable,
    by_image,
    hard_negatives,
    in_format,
    pixel_corners,
    quadruples,
    release_json,
    release_text,
    texts_in,
)
from powerclip.tasks import Quadruples, Task

SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
"""SugarCrepe's seven subsets."""

VALSE = (
    "actant-swap",
    "action-replacement",
    "coreference-hard",
    "coreference-standard",
    "counting-adversarial",
    "counting-hard",
    "counting-small-quant",
    "existence",
    "foil-it",
    "plurals",
    "relations",
)
"""VALSE's eleven pieces."""

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


KARPATHY = ("dataset_*.json", "*karpathy_test.json", "flickr*_test.json", "*_test_karpathy.json", "*_test_karpathy.txt")
"""The names of Karpathy's own files, of BLIP's and of clip_benchmark's."""


def read_sugarcrepe(folder: Path, name: str) -> list[Task]:
    """SugarCrepe (Hsieh et al., 2023): ``add_att.json`` and six more, over COCO's val2017."""
    release = Release(folder)
    columns = ("filename", "caption", "negative_caption")
    rows = {kind: release.rows(f"{kind}.json", columns, form=dict) for kind in SUGARCREPE}
    items = [item for kind in SUGARCREPE for item in hard_negatives(release, rows[kind], columns, kind)]
    return [answerable(name, items)]


def read_winoground(folder: Path, name: str) -> list[Task]:
    """Winoground (Thrush et al., 2022): ``examples.jsonl`` and 800 images."""
    release, columns = Release(folder), ("image_0", "image_1", "caption_0", "caption_1")
    rows = [[row[column] for column in columns] for row in release.rows("examples.jsonl", columns)]
    named = [[*(image if Path(image).suffix else f"{image}.png" for image in row[:2]), *row[2:]] for row in rows]
    return [Quadruples(name=name, items=quadruples(release, named, range(4)))]


def read_aro(folder: Path, name: str) -> list[Task]:
    """ARO's relation and attribution (Yuksekgonul et al., 2023), over Visual Genome images cut to the objects' box.

    The kinds are the relations, and the pairs of attributes. "macro" is the authors' mean over kinds: without symmetric
    relations, and without pairs of attributes that have few items.
    """
    release = Release(folder)
    columns = {"image_path": TEXT, "true_caption": TEXT, "false_caption": TEXT}
    box = {f"bbox_{side}": NUMBER for side in "xywh"}
    tasks: list[Task] = []
    for part, kind in (("relation", {"relation_name": TEXT}), ("attribution", {"attributes": list})):
        rows = release.rows(f"visual_genome_{part}.json", columns | box | kind)
        with in_format(release.file(f"visual_genome_{part}.json")):
            kinds = ["_".join(texts_in(row[key])) for row in rows for key in kind]
            boxes = [pixel_corners(*(row[side] for side in box)) for row in rows]
        items = hard_negatives(release, rows, columns, kinds, boxes)
        counts = Counter(kinds)
        few = {kind for kind, count in counts.items() if count < ARO_MIN_ITEMS}
        averaged = counts.keys() - (SYMMETRIC_RELATIONS if part == "relation" else few)
        tasks.append(answerable(f"{name}-{part}", items, frozenset(averaged)))
    return tasks


def read_valse(folder: Path, name: str) -> list[Task]:
    """VALSE (Parcalabescu et al., 2022): its eleven files with pairs of caption and foil; each file is a kind.

    Like its authors, this leaves out pairs that fewer than two of three annotators understood.
    """
    release, items = Release(folder), []
    columns = {"image_file": TEXT, "caption": TEXT, "foil": TEXT}
    rows = {piece: release.rows(f"{piece}.json", columns | {"mturk": dict}, form=dict) for piece in VALSE}
    for piece in VALSE:
        valid = [row for row in rows[piece] if row["mturk"].get("caption", 0) >= VALSE_AGREEMENT]
        items += hard_negatives(release, valid, columns, piece)
    return [answerable(name, items)]


def read_karpathy(folder: Path, name: str) -> list[Task]:
    """The test split of Karpathy's splits of COCO and Flickr, in any of three forms.

    Karpathy's ``dataset_coco.json``; BLIP's ``coco_karpathy_test.json`` or ``flickr30k_test.json``, a list of images
    with their captions; clip_benchmark's ``coco_test_karpathy.json``, in COCO's format, or
    ``flickr30k_test_karpathy.txt``, a line for each image and caption. The images may be in one folder.
    """
    release = Release(folder)
    found = release.files(*KARPATHY)
    own = [path for path in found if next((key for key in ("coco", "8k", "30k") if key in name), "") in path.name]
    if len(found) != 1 and len(own) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise PowerclipError(f"{folder} must hold one of {', '.join(KARPATHY)}; found: {names}")
    path = own[0] if len(own) == 1 else found[0]
    rows: list[tuple[str, object]] = []
    if path.suffix == ".txt":
        for number, line in enumerate(release_text(path).splitlines(), start=1):
            image, comma, caption = line.strip().partition(".jpg,")
            if line.strip() and not comma and number > 1:  # the first names the columns
                raise PowerclipError(f"line {number} of {path} is {line[:60]!r}; expected IMAGE.jpg,CAPTION")
            if comma:
                rows.append((f"{image}.jpg", caption))
    else:
        with release_json(path) as content:
            if isinstance(content, list):
                rows = [(row["image"], row["caption"]) for row in content]
            elif "annotations" in content:
                names_by_id = {image["id"]: image["file_name"] for image in content["images"]}
                rows = [(name, []) for name in names_by_id.values()]  # in the order of the images
                rows += [(names_by_id[row["image_id"]], row["caption"]) for row in content["annotations"]]
            else:
                images = [row for row in content["images"] if row["split"] == "test"]
                places = [str(Path(row.get("filepath", ""), row["filename"])) for row in images]
                rows = [(at, [one["raw"] for one in row["sentences"]]) for at, row in zip(places, images, strict=True)]
    with in_format(path):
        captions = by_image(rows)
    return retrieval_tasks(name, list(release.images(list(captions))), list(captions.values()))
