"""Sources made for the tests: pictures and tars, sound and hostile."""

import io
import tarfile

import numpy as np
from PIL import Image

WHOLE = {"height": 9, "width": 12, "masks": []}
"""Regions of a picture as made here."""
FULL = {"rle": "\\3"}
"""A mask of that size, none of it on."""


def picture(i=0, kind="JPEG", size=(12, 9)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (i * 30 % 256, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, members, **options):
    """members: (name, bytes) or a TarInfo."""
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pairs(number=20):
    """Members of sound samples."""
    return [(f"ok{i:02d}.{e}", d) for i in range(number) for e, d in (("jpg", picture(i)), ("txt", b"a dog"))]


def header(name="x.jpg", kind=tarfile.REGTYPE, size=0):
    """One header block."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def signed(block):
    """A header block with its checksum made right."""
    total = sum(block[:148]) + sum(block[156:512]) + 8 * ord(" ")
    return block[:148] + b"%06o\0 " % (total % 8**6) + block[156:]


def padded(data):
    return data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


def pax(**records):
    """A header of records on the next member."""
    body = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        body += str(len(record) + len(str(len(record) + 2))).encode() + record
    return header("p", tarfile.XHDTYPE, len(body)) + padded(body)


def write_raw(path, blocks, number=20):
    """A tar of sound samples, then any blocks, then the mark of the end."""
    write_tar(path, pairs(number))
    with tarfile.open(path) as tar:
        list(tar)
        end = tar.offset
    path.write_bytes(path.read_bytes()[:end] + blocks + b"\0" * 1024)


def npy(values, **changes):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    data = buffer.getvalue()
    for old, new in changes.items():
        data = data.replace(old.encode(), new)
    return data
