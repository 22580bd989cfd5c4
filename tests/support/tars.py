"""Tar files, well formed and by the block, and arrays to put into them."""

import io
import tarfile

import numpy as np
from hypothesis import strategies as st


def write_tar(path, members, *, mode="w", **options):
    """members: (name, bytes) or a TarInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


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


def npy(values):
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


def damaged(data, draw):
    """Some bytes of a file changed, or its end cut off."""
    raw = bytearray(data)
    for place in draw(st.lists(st.integers(0, len(raw) - 1), max_size=6)):
        raw[place] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)) | st.just(len(raw)))])
