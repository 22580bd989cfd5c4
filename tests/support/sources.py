"""Samples for prepare to read: images, pairs and tars, valid and hostile."""

import io
import tarfile

from rich.console import Console

from powerclip.config import PrepareConfig
from powerclip.data.shards import read_shards
from powerclip.prepare import prepare
from tests.support.images import one_colour
from tests.support.tars import write_tar

WHOLE = {"height": 9, "width": 12, "masks": []}
"""Regions of an image as made here."""
FULL = {"rle": "\\3"}
"""A mask of that size, none of it on."""


def picture(i=0, kind="JPEG", size=(12, 9)):
    return one_colour((i * 30 % 256, 0, 0), kind, size=size)


def prepared(source, output, *, text=None, **settings):
    """The report of a job without phrases that no share of bad pairs stops, unless the settings say otherwise.

    Args:
        text: a StringIO for what is printed.
    """
    config = PrepareConfig(**{"parser": "none", "max_bad_share": 1.0, **settings})
    return prepare(source, output, config, console=Console(file=text or io.StringIO(), width=200))


def captions(folder):
    """Those of the usable samples in a folder of shards, in order."""
    return [sample.caption for sample in read_shards(folder)]


def pairs(number=20):
    """Members of valid samples."""
    return [(f"ok{i:02d}.{e}", d) for i in range(number) for e, d in (("jpg", picture(i)), ("txt", b"a dog"))]


def write_raw(path, blocks, number=20):
    """A tar of valid samples, then any blocks, then the end mark."""
    write_tar(path, pairs(number))
    with tarfile.open(path) as tar:
        list(tar)
        end = tar.offset
    path.write_bytes(path.read_bytes()[:end] + blocks + b"\0" * 1024)
