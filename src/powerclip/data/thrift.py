"""Structs in Thrift's compact protocol, in which Parquet's metadata and page headers are written."""

from typing import Any, BinaryIO

MAX_BINARY = 2**24
"""Bytes of a text or statistic in them; pyarrow refuses larger headers."""


INT32, INT64, LIST, STRUCT = 5, 6, 9, 12

Struct = dict[tuple[int, int], Any]
"""Values by the number and the type of their fields:
other readers pass over a field whose type is not the expected one."""


def read_struct(file: BinaryIO) -> Struct:
    """The struct that begins at a file's position; nested ones are such dicts, lists are lists.

    ValueError, LookupError or RecursionError if there is none, or a field comes twice. Source: Apache Thrift,
    doc/specs/thrift-compact-protocol.md.
    """
    fields: Struct = {}
    numbers: set[int] = set()
    number = 0
    while (head := _byte(file)) & 15:
        number = number + (head >> 4) if head >> 4 else _integer(file)
        if number in numbers:
            raise ValueError(f"field {number} comes twice")
        numbers.add(number)
        fields[number, head & 15] = _value(file, head & 15)
    return fields


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in (1, 2):  # true and false
        return kind == 1
    if kind == 3:
        return _byte(file)
    if kind in (4, INT32, INT64):
        return _integer(file)
    if kind in (7, 8):  # a float, and bytes
        if (size := 8 if kind == 7 else _varint(file)) > MAX_BINARY:
            raise ValueError(f"a text of {size} bytes")
        return file.read(size)
    if kind in (LIST, 10):  # list and set, in which a boolean takes a byte
        head = _byte(file)
        count, kind = head >> 4, max(3, head & 15)
        return [_value(file, kind) for _ in range(_varint(file) if count == 15 else count)]
    if kind == STRUCT:
        return read_struct(file)
    raise ValueError(f"a field of type {kind}")


def _byte(file: BinaryIO) -> int:
    return file.read(1)[0]


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while (byte := _byte(file)) & 128:
        value |= (byte & 127) << shift
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return value | byte << shift


def _integer(file: BinaryIO) -> int:
    number = _varint(file)
    return number >> 1 ^ -(number & 1)
