"""Boxes of images: FG-OVD's attributes, and the object classes of COCO and LVIS."""

from functools import partial
from pathlib import Path, PurePath

from powerclip.evaluate.datasets.benchmark import Benchmark
from powerclip.evaluate.datasets.prompts import imagenet_templates
from powerclip.evaluate.datasets.release import NUMBER, TEXT, Release, answerable, corners, in_format, release_json
from powerclip.tasks import Classification, HardNegative, Region, Task

FG_OVD = {
    "hard": "h_attributes_llava.jsonl",
    "medium": "m_attributes_llava.jsonl",
    "easy": "e_attributes_llava.jsonl",
    "trivial": "shuffle_negatives_llava.jsonl",
}
"""FG-OVD's four levels: what the wrong descriptions of a box differ in."""


def read_fg_ovd(folder: Path, name: str) -> list[Task]:
    """FG-OVD (Bianchi et al., 2024) as FG-CLIP has it: a box of COCO's, one right and up to ten wrong texts."""
    release = Release(folder)
    columns = {"img_path": TEXT, "bbox": list, "pos_expression": list, "neg_expression": list}
    items = []
    for kind, file in FG_OVD.items():
        rows = release.rows(file, columns)
        with in_format(release.file(file)):
            for row, image in zip(rows, release.images([row["img_path"] for row in rows]), strict=True):
                region = Region(image=image, box=_box(row["bbox"]))
                right, wrong = row["pos_expression"][0].lower(), [text.lower() for text in row["neg_expression"]]
                items.append(HardNegative(image=region, positive=right, negatives=wrong, kind=kind))
    return [answerable(name, items)]


def read_boxes(folder: Path, name: str, *, file: str) -> list[Task]:
    """The boxes of annotations in COCO's format, each to be given its class; all boxes count, groups included."""
    release = Release(folder)
    with release_json(release.file(file), dict) as content:
        classes = {row["id"]: row["name"].replace("_", " ") for row in content["categories"]}
        names = {row["id"]: row.get("file_name") or PurePath(row["coco_url"]).name for row in content["images"]}
        rows = content["annotations"]
        number = {category: i for i, category in enumerate(classes)}
        labels = [number[row["category_id"]] for row in rows]
        images = release.images([names[row["image_id"]] for row in rows])
        regions = [Region(image=image, box=_box(row["bbox"])) for image, row in zip(images, rows, strict=True)]
    templates = imagenet_templates()
    return [
        Classification(
            name=name, images=regions, labels=labels, class_names=list(classes.values()), templates=templates
        )
    ]


def _box(bbox: list[float]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of COCO's left, top, width and height; ValueError if it is not such a box."""
    if len(bbox) != 4 or not all(isinstance(value, NUMBER) for value in bbox):
        raise ValueError(f"[x, y, width, height] expected, {bbox} found")
    return corners(*bbox)


REGIONS = (
    Benchmark(
        "fg-ovd",
        read_fg_ovd,
        "https://github.com/360CVGroup/FG-CLIP (data/fgovd/*.jsonl) with COCO's 2017 images",
        also_known_as=("fgovd",),
        items=(11357,),
    ),
    *(
        Benchmark(f"{name}-boxes", partial(read_boxes, file=file), source, also_known_as=(name,), items=(items,))
        for name, file, items, source in (
            ("coco", "instances_val2017.json", 36781, "https://cocodataset.org (instances_val2017.json, val2017)"),
            (
                "lvis",
                "lvis_v1_val.json",
                244707,
                "https://www.lvisdataset.org (lvis_v1_val.json) with COCO's 2017 images",
            ),
        )
    ),
)
"""Boxes of images against texts; there is no average."""
