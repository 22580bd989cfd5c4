"""Small copies of public data sets in their own layouts, out of one-colour squares."""

import io
import json
import tarfile

import numpy as np

from tests.support.colours import NAMES, png


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def webdataset(folder, samples, extension, *, per_shard=2, kind=None, classes=NAMES, templates=("a {c}",)):
    """Write (colour, label file content) pairs as clip_benchmark does."""
    shards = [samples[i : i + per_shard] for i in range(0, len(samples), per_shard)]
    for number, shard in enumerate(shards):
        members = []
        for i, (colour, label) in enumerate(shard):
            members += [(f"s{number}{i}.png", png(colour)), (f"s{number}{i}.{extension}", label)]
        write_tar(folder / "test" / f"{number}.tar", members)
    (folder / "test" / "nshards.txt").write_text(f"{len(shards)}\n")
    if kind is not None:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return folder


def npy(row):
    buffer = io.BytesIO()
    np.save(buffer, np.array(row))
    return buffer.getvalue()


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(colour))


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
