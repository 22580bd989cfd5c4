"""Compositionality sets that are not in the paper's average, in the releases' own files; images in any folders."""

import ast
import re
import warnings
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.benchmark import HUB, Benchmark
from powerclip.evaluate.datasets.clip_benchmark import retrieval_tasks
from powerclip.evaluate.datasets.images import key_of
from powerclip.evaluate.datasets.release import (
    TEXT,
    Release,
    answerable,
    by_image,
    distinct,
    in_format,
    pixel_corners,
    quadruples,
    release_json,
    release_text,
    texts_in,
)
from powerclip.tasks import HardNegative, HardNegatives, Quadruple, Quadruples, Task

Item = TypeVar("Item")

SUGARCREPE_PP = ("replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
"""SugarCrepe++'s five subsets."""

WHATSUP = {
    "controlled_images": "controlled_images_dataset.json",
    "controlled_clevr": "controlled_clevr_dataset.json",
    "coco_one": "coco_qa_one_obj.json",
    "coco_two": "coco_qa_two_obj.json",
    "vg_one": "vg_qa_one_obj.json",
    "vg_two": "vg_qa_two_obj.json",
}
"""What'sUp's six files: photos of two household objects (A and B), and images of COCO and Visual Genome."""

SPEC = ("absolute_size", "absolute_spatial", "count", "existence", "relative_size", "relative_spatial")
"""SPEC's six subsets, each a folder."""

VL_CHECKLIST = ("Attribute", "Object", "Relation")
"""VL-CheckList's parts, each a folder."""

NEGBENCH = {
    "coco": "COCO_val_mcq_llama3.1_rephrased.csv",
    "voc2007": "VOC2007_mcq_llama3.1_rephrased.csv",
    "synthetic": "synthetic_mcq_llama3.1_rephrased.csv",
    "coco-retrieval": "COCO_val_retrieval.csv",
    "coco-negated-retrieval": "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv",
    "synthetic-retrieval": "synthetic_retrieval_v1.csv",
    "synthetic-negated-retrieval": "synthetic_retrieval_v2.csv",
}
"""NegBench's files of images."""

CREPE = ("productivity", "systematicity-cc12m", "systematicity-yfcc", "systematicity-laion")
"""CREPE's tasks."""

CREPE_NEGATIVES = ("atom", "comp", "combined")
"""What the wrong captions of CREPE's systematicity differ in."""


def read_sugarcrepe_pp(folder: Path, name: str) -> list[Task]:
    """SugarCrepe++ (Dumpala et al., 2024): two right captions and a wrong one, over COCO's val2017.

    An item is right if the image scores both higher than the wrong one (ITT). ``NAME-text`` asks the text tower alone:
    the right captions must be closer to each other than either to the wrong one (TOT).
    """
    release = Release(folder)
    columns = ("filename", "caption", "caption2", "negative_caption")
    rows = [(kind, row) for kind in SUGARCREPE_PP for row in release.rows(f"{kind}.json", columns)]
    pictures = release.images([row["filename"] for _, row in rows])
    images, texts = [], []
    for number, ((kind, row), picture) in enumerate(zip(rows, pictures, strict=True)):
        first, second, wrong = (row[key] for key in ("caption", "caption2", "negative_caption"))
        same: dict[str, Any] = {"negatives": [wrong], "kind": kind, "group": str(number)}
        images += [HardNegative(image=picture, positive=right, **same) for right in (first, second)]
        texts += [HardNegative(image=a, positive=b, **same) for a, b in ((first, second), (second, first))]
    return [HardNegatives(name=name, items=images), HardNegatives(name=f"{name}-text", items=texts)]


def read_whatsup(folder: Path, name: str) -> list[Task]:
    """What'sUp (Kamath et al., 2023): captions that differ in a preposition, the right first; the files that are there.

    ``NAME-pairs`` and ``NAME-sets`` count the photos of the same two objects in opposite and in all four places
    together; incomplete ones are left out with a warning.
    """
    release = Release(folder)
    items: list[HardNegative] = []
    pairs, sets = [], []
    for kind, file in WHATSUP.items():
        if not release.files(file):
            continue
        with release_json(release.file(file), list) as rows:
            if kind.startswith("controlled"):
                images, captions = [row["image_path"] for row in rows], [row["caption_options"] for row in rows]
            else:
                digits = 12 if kind.startswith("coco") else 0
                images, captions = [f"{str(row[0]).zfill(digits)}.jpg" for row in rows], [row[1:3] for row in rows]
            for image, picture, options in zip(images, release.images(images), captions, strict=True):
                right, wrong, *others = texts_in(options)
                asked: dict[str, Any] = {"image": picture, "positive": right, "negatives": [wrong, *others]}
                items.append(HardNegative(kind=kind, **asked))
                if kind.startswith("controlled"):  # mug_left_of_plate.jpeg
                    first, place, *_, last = PurePath(image).stem.split("_")
                    side = "sides" if place in ("left", "right") else "others"
                    pairs.append(HardNegative(kind=kind, group=f"{first} {last} {side}", **asked))
                    sets.append(HardNegative(kind=kind, group=f"{first} {last}", **asked))
    if not items:
        raise PowerclipError(f"{folder} lacks What'sUp's files; expected some of {', '.join(WHATSUP.values())}")
    tasks = [
        answerable(name, items),
        *(
            HardNegatives(name=f"{name}-{what}", items=_complete(name, what, of, photos))
            for what, of, photos in (("pairs", pairs, 2), ("sets", sets, 4))
        ),
    ]
    return [task for task in tasks if task.items]


def _complete(name: str, what: str, items: Sequence[HardNegative], photos: int) -> list[HardNegative]:
    """The items of groups with this many different photos; a warning says how many groups have fewer or more."""
    groups: dict[tuple[str, str], list[Hashable]] = {}
    for item in items:
        groups.setdefault((item.kind, item.group), []).append(key_of(item.image))
    others = {key for key, images in groups.items() if not len(images) == len(set(images)) == photos}
    if others:
        warnings.warn(
            f"{name}: {len(others)} of {len(groups)} {what} do not have {photos} photos and are left out", stacklevel=3
        )
    return [item for item in items if (item.kind, item.group) not in others]


def read_colorswap(folder: Path, name: str) -> list[Task]:
    """ColorSwap (Burapacheep et al., 2024): ``test.json`` and images, or the hub's Parquet files of that split."""
    release, columns = Release(folder), ("image_1", "image_2", "caption_1", "caption_2")
    if release.files("test.json"):
        items = quadruples(release, release.rows("test.json", columns), columns)
    else:
        items = _in_cells(release, columns, split="test")
    return [Quadruples(name=name, items=items)]


def read_cola(folder: Path, name: str) -> list[Task]:
    """COLA's multi-object set (Ray et al., 2023), with URLs of Visual Genome; its accuracy is the image score."""
    release = Release(folder)
    with release_json(release.file("COLA_multiobjects_matching_benchmark.json"), list) as rows:
        captions = [texts_in([row[1], row[3]]) for row in rows]
        named = [
            (PurePath(row[0]).name, PurePath(row[2]).name, *texts) for row, texts in zip(rows, captions, strict=True)
        ]
    return [Quadruples(name=name, items=quadruples(release, named, range(4)))]


def read_bivlc(folder: Path, name: str) -> list[Task]:
    """BiVLC (Miranda et al., 2024), as on the hub: SugarCrepe with images for the wrong captions.

    Its I2T, T2I and group scores are the text, image and group score.
    """
    columns = ("image", "negative_image", "caption", "negative_caption")
    return [Quadruples(name=name, items=_in_cells(Release(folder), columns, kind="type"))]


def _in_cells(release: Release, columns: Iterable[str], *, kind: str = "", split: str = "") -> list[Quadruple]:
    """The items in Parquet files, by the names of their columns: two images, their captions, and the kind."""
    a, b, c, d = columns
    rows = release.parquet([c, d, *([kind] if kind else [])], (a, b), split=split)
    return [
        Quadruple(images=(row[a], row[b]), captions=(row[c], row[d]), kind=row[kind] if kind else "") for row in rows
    ]


def read_eqben(folder: Path, name: str) -> list[Task]:
    """EqBen (Wang et al., 2023) in the form of Winoground: its 10 % subset, or all; kinds are its image folders."""
    release = Release(folder)
    found = release.files("*eqben*.json", "all_select.json")
    if len(found) != 1:
        raise PowerclipError(
            f"{folder} holds {len(found)} annotations; expected one, eqben_subset_10percent_final.json"
        )
    columns = ("image0", "image1", "caption0", "caption1")
    rows = release.rows(found[0].name, columns)
    kinds = [PurePath(row["image0"]).parts[0] for row in rows]
    return [Quadruples(name=name, items=quadruples(release, rows, columns, kinds, exact=True))]


def read_mmvp(folder: Path, name: str) -> list[Task]:
    """MMVP-VLM (Tong et al., 2024): ``Questions.csv``, two rows a pair; its accuracy is the image score."""
    release = Release(folder)
    with release_json(release.file("Questions.csv")) as rows:
        lines = [
            (f"{kind}/{n}.jpg", f"a photo of {text}", kind, int(n)) for n, kind, text, *_ in map(dict.values, rows)
        ]
        pairs = [(*first, *second) for first, second in zip(lines[::2], lines[1::2], strict=True)]
        if other := next((p for p in pairs if p[2] != p[6] or p[3] % 2 == 0 or p[7] != p[3] + 1), None):
            raise ValueError(f"questions 2k - 1 and 2k of one type expected, {other[0]} and {other[4]} found")
    items = quadruples(release, pairs, (0, 4, 1, 5), [pair[2] for pair in pairs])
    return [Quadruples(name=name, items=items)]


def read_crepe(folder: Path, name: str) -> list[Task]:
    """CREPE (Ma et al., 2023), over Visual Genome images cut to a box: many wrong captions an image, R@1.

    ``NAME-productivity`` has the kinds ``atom-4`` ... ``swap-12``; ``NAME-systematicity-CORPUS`` is for models that
    were trained on that corpus alone, with the kinds ``seen-atom``, ...
    """
    release = Release(folder)
    wanted: list[tuple[str, str, str, str]] = []  # task, kind, file, column of the wrong captions
    for file in sorted({path.name for path in release.files("prod_vg_hard_negs_*.csv", "syst_vg_hard_negs_*.csv")}):
        match = re.fullmatch(r"(prod|syst)_vg_hard_negs_([a-z]+)_(?:[a-z]+_)+([a-z0-9]+)\.csv", file)
        if match is None:
            raise PowerclipError(f"{folder} has {file}, which is not a name of CREPE's files; rename or remove it")
        what, first, last = match.groups()
        if what == "prod":
            wanted.append((f"{name}-productivity", f"{first}-{last}", file, "hard_negs"))
            continue
        for kind in CREPE_NEGATIVES:
            wanted.append((f"{name}-systematicity-{last}", f"{first}-{kind}", file, f"valid_hard_negs_{kind}"))
    if not wanted:
        raise PowerclipError(
            f"{folder} lacks CREPE's files prod_vg_hard_negs_*.csv or syst_vg_hard_negs_*.csv; add them"
        )
    tasks: dict[str, list[HardNegative]] = {}
    for task, kind, file, column in wanted:
        box = ("x", "y", "width", "height")
        rows = release.rows(file, ("image_id", "caption", column, *box))
        with in_format(release.file(file)):
            crops = [pixel_corners(*(row[side] for side in box)) for row in rows]
            lists = [texts_in(ast.literal_eval(row[column])) for row in rows]
        pictures = release.images([f"{row['image_id']}.jpg" for row in rows], crops)
        tasks.setdefault(task, []).extend(
            HardNegative(image=image, positive=row["caption"], negatives=wrong, kind=kind)
            for image, row, wrong in zip(pictures, rows, lists, strict=True)
        )
    return [answerable(task, items) for task, items in tasks.items()]


def read_spec(folder: Path, name: str) -> list[Task]:
    """SPEC (Peng et al., 2024): of several captions that of an image, and of several images that of a caption."""
    release = Release(folder)
    tasks: list[Task] = []
    for short, file in (("i2t", "image2text.json"), ("t2i", "text2image.json")):
        items = []
        for kind in SPEC:
            rows = release.rows(f"{kind}/{file}", {"query": TEXT, "keys": list, "label": int})
            with in_format(release.file(f"{kind}/{file}")):
                texts_in([key for row in rows for key in row["keys"]])
            for number, row in enumerate(rows):
                if not 0 <= row["label"] < len(row["keys"]):
                    raise PowerclipError(
                        f"row {number} of {release.file(f'{kind}/{file}')} has the label {row['label']} and "
                        f"{len(row['keys'])} keys; download it again"
                    )
            names = [name for row in rows for name in ([row["query"]] if short == "i2t" else row["keys"])]
            images = iter(release.images([f"{kind}/{image}" for image in names], exact=True))
            for row in rows:
                query = next(images) if short == "i2t" else row["query"]
                keys: list[Any] = row["keys"] if short == "i2t" else [next(images) for _ in row["keys"]]
                wrong = [key for i, key in enumerate(keys) if i != row["label"]]
                items.append(HardNegative(image=query, positive=keys[row["label"]], negatives=wrong, kind=kind))
        tasks.append(answerable(f"{name}-{short}", items))
    return tasks


def read_vl_checklist(folder: Path, name: str) -> list[Task]:
    """VL-CheckList (Zhao et al., 2022): a right and a wrong phrase for an image; each part is a task, each file a kind.

    As by its authors, the first of several phrases is taken, and items without an image are left out with a warning.
    """
    release = Release(folder)
    rows: list[tuple[str, str, str, str, str]] = []  # part, kind, image, right and wrong phrase
    parts_of = {path: set(VL_CHECKLIST) & set(path.relative_to(folder).parts) for path in release.files("*.json")}
    files = [path for path, of in parts_of.items() if of and release_text(path).strip() != "[]"]  # three are empty
    for path in distinct(files):
        part = min(parts_of[path])
        kind = f"{path.parent.name}-{path.stem}"
        with release_json(path, list) as content:
            pairs = [(image, texts_in(texts["POS"])[0], texts_in(texts["NEG"])[0]) for image, texts in content]
            rows += [(part, kind, *pair) for pair in pairs]
    kept = _with_images(release, name, rows, [(row[2],) for row in rows])
    pictures = release.images([row[2] for row in kept], exact=True)
    parts: dict[str, list[HardNegative]] = {}
    for (part, kind, _, right, wrong), picture in zip(kept, pictures, strict=True):
        item = HardNegative(image=picture, positive=right, negatives=[wrong], kind=kind)
        parts.setdefault(part, []).append(item)
    return [answerable(f"{name}-{part.lower()}", items) for part, items in sorted(parts.items())]


def read_svo_probes(folder: Path, name: str) -> list[Task]:
    """SVO-Probes (Hendricks and Nematzadeh, 2021): which of two images, ``IMAGE_ID.jpg``, fits a sentence.

    The kinds are what differs: subject, verb or object. Items without both images are left out with a warning.
    """
    release = Release(folder)
    differs = ("subj_neg", "verb_neg", "obj_neg")
    columns = ("sentence", "pos_image_id", "neg_image_id", *differs)
    rows = release.rows("svo_probes.csv", columns)
    names = [(f"{row['pos_image_id']}.jpg", f"{row['neg_image_id']}.jpg") for row in rows]
    pairs = _with_images(release, name, list(zip(rows, names, strict=True)), names)
    pictures = release.images([image for _, pair in pairs for image in pair])
    truth = {"True": True, "False": False}
    with in_format(release.file("svo_probes.csv")):
        kinds = [[kind.removesuffix("_neg") for kind in differs if truth[row[kind]]] for row, _ in pairs]
    items = [
        HardNegative(image=row["sentence"], positive=right, negatives=[wrong], kind=[*kind, "other"][0])
        for (row, _), right, wrong, kind in zip(pairs, pictures[::2], pictures[1::2], kinds, strict=True)
    ]
    return [answerable(name, items)]


def _with_images(release: Release, name: str, rows: Sequence[Item], images: Sequence[Sequence[str]]) -> list[Item]:
    """The rows whose images are there, as by authors whose images are gone in part; a warning says how many are not."""
    kept = [row for row, of_row in zip(rows, images, strict=True) if all(release.find(x, exact=True) for x in of_row)]
    if not kept:
        raise PowerclipError(f"{release.folder} holds no item of {name} with its images; add them")
    if len(kept) < len(rows):
        lacking = f"{len(rows) - len(kept)} of {len(rows)} items lack an image under {release.folder}"
        warnings.warn(f"{name}: {lacking}", stacklevel=3)
    return kept


def read_negbench(folder: Path, name: str) -> list[Task]:
    """NegBench's images (Alhamoud et al., 2025), those files that are there: retrieval, and one of four captions.

    The kinds of the latter are its authors': the right caption affirms, negates, or does both ("hybrid").
    """
    release, tasks = Release(folder), list[Task]()
    choices = [f"caption_{i}" for i in range(4)]
    choice_of: dict[float, str] = dict(enumerate(choices))
    for part, file in NEGBENCH.items():
        if not release.files(file):
            continue
        if "retrieval" in part:
            rows = release.rows(file, ("filepath", "captions"))
            with in_format(release.file(file)):
                captions = by_image((row["filepath"], ast.literal_eval(row["captions"])) for row in rows)
            pictures = release.images(list(captions))
            tasks += retrieval_tasks(f"{name}-{part}", list(pictures), list(captions.values()))[:1]
            continue
        columns = ("image_path", "correct_answer", "correct_answer_template", *choices)
        rows = release.rows(file, columns)
        with in_format(release.file(file)):
            right = [choice_of[float(row["correct_answer"])] for row in rows]  # 2, or 2.0
        items = [
            HardNegative(
                image=picture,
                positive=row[answer],
                negatives=[row[choice] for choice in choices if choice != answer],
                kind=row["correct_answer_template"],
            )
            for row, answer, picture in zip(
                rows, right, release.images([row["image_path"] for row in rows]), strict=True
            )
        ]
        tasks.append(answerable(f"{name}-{part}", items))
    if not tasks:
        raise PowerclipError(f"{folder} lacks NegBench's files; expected some of {', '.join(NEGBENCH.values())}")
    return tasks


SOURCES = {
    "sugarcrepe++": "https://github.com/Sri-Harsha/scpp (data/*.json) with COCO's val2017 images",
    "whatsup": "https://github.com/amitakamath/whatsup_vlms (its six JSON files and images)",
    "colorswap": f"{HUB}/stanfordnlp/colorswap (its Parquet files, or test.json and images)",
    "cola": "https://github.com/arijitray1993/COLA (data/COLA_multiobjects_matching_benchmark.json) with Visual Genome",
    "bivlc": f"{HUB}/imirandam/BiVLC (its Parquet files)",
    "eqben": "https://github.com/Wangt-CN/EqBen (the 10 % subset, or all)",
    "mmvp-vlm": f"{HUB}/MMVP/MMVP_VLM (Questions.csv, images)",
    "crepe": "https://github.com/RAIVNLab/CREPE (data/*.zip, unpacked) with Visual Genome",
    "spec": f"{HUB}/wjpoom/SPEC (data.zip, unpacked)",
    "vl-checklist": "https://github.com/om-ai-lab/VL-CheckList (data) with the images of Visual Genome, HAKE and SWiG",
    "svo-probes": "https://github.com/google-deepmind/svo_probes (svo_probes.csv) with the images of its URLs",
    "negbench": "https://github.com/m1k2zoo/negbench (its CSV files of images) "
    "with COCO's val2017, VOC2007 and the synthetic images",
}
"""Where to get each."""

FINE_GRAINED = tuple(
    Benchmark(name, read, SOURCES[name], also_known_as=names, tasks=tuple(name + end for end in ends), items=items)
    for name, read, names, ends, items in (
        ("sugarcrepe++", read_sugarcrepe_pp, ("SugarCrepe_pp", "scpp"), ("", "-text"), (4757, 4757)),
        ("whatsup", read_whatsup, ("whatsup_vlms",), ("", "-pairs", "-sets"), (4958, 410, 205)),
        ("colorswap", read_colorswap, (), (), (300,)),
        ("cola", read_cola, ("COLA",), (), (210,)),
        ("bivlc", read_bivlc, ("BiVLC",), (), (2933,)),
        ("eqben", read_eqben, ("EqBen",), (), ()),
        ("mmvp-vlm", read_mmvp, ("MMVP_VLM", "MMVP-VLM"), (), (135,)),
        ("crepe", read_crepe, ("CREPE",), tuple(f"-{part}" for part in CREPE), ()),
        ("spec", read_spec, ("SPEC",), ("-i2t", "-t2i"), ()),
        ("vl-checklist", read_vl_checklist, ("VL-CheckList",), tuple(f"-{part.lower()}" for part in VL_CHECKLIST), ()),
        ("svo-probes", read_svo_probes, ("svo_probes",), (), ()),
        ("negbench", read_negbench, ("NegBench",), tuple(f"-{part}" for part in NEGBENCH), ()),
    )
)
"""Compositionality sets beyond the paper's; their metrics are of several kinds, and there is no average."""
