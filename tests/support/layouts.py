"""Small copies of public data sets in their own layouts, out of one-colour squares."""

import json

from tests.support.colours import NAMES, png
from tests.support.tars import write_tar


def webdataset(
    folder, samples, extension, *, per_shard=2, kind=None, split="test", classes=NAMES, templates=("a {c}",)
):
    """Write (colour, label file content) pairs as clip_benchmark does."""
    shards = [samples[i : i + per_shard] for i in range(0, len(samples), per_shard)]
    for number, shard in enumerate(shards):
        members = []
        for i, (colour, label) in enumerate(shard):
            members += [(f"s{number}{i}.png", png(colour)), (f"s{number}{i}.{extension}", label)]
        write_tar(folder / split / f"{number}.tar", members)
    (folder / split / "nshards.txt").write_text(f"{len(shards)}\n")
    if kind is not None:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return folder


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(colour))


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
