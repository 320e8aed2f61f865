"""External data: the files that an ONNX graph says it reads its weights from, found without the onnx library.

A bundle's graph is opened by libraries that follow the locations written in it. So they are read here first, by
walking the Protocol Buffers wire format along the fields that can lead to a tensor (onnx.proto, IR version 3 to 13).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from ..errors import IntegrityError

__all__ = ["external_files"]

Span: TypeAlias = "tuple[int, int]"

# Message -> {field number: message that it holds}. Only fields on a path to TensorProto.external_data appear.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_files(path: Path) -> set[str]:
    """The distinct locations of external data in the ONNX file `path`.

    Raises:
        IntegrityError: The file is not a Protocol Buffers message.
    """
    if path.stat().st_size == 0:
        raise IntegrityError(f"{path}: is empty, so it is not an ONNX graph; export the bundle again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _locations(data)
        except (IndexError, ValueError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{path}: is not an ONNX graph ({error}); export the bundle again") from None


def _locations(data: mmap.mmap) -> set[str]:
    found: set[str] = set()
    stack: list[tuple[str, Span]] = [("model", (0, len(data)))]
    while stack:
        message, span = stack.pop()
        if message == "entry":
            entry = {number: data[start:end] for number, (start, end) in _fields(data, span)}
            if entry.get(1) == b"location":
                found.add(entry.get(2, b"").decode())
            continue
        inner = _FIELDS[message]
        stack += [(inner[number], part) for number, part in _fields(data, span) if number in inner]
    return found


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"broken number at byte {at}")


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, Span]]:
    """Field number and span of every length-delimited field of a message."""
    at, end = span
    while at < end:
        key, at = _varint(data, at, end)
        wire, start = key & 7, at
        if wire == 0:
            _, at = _varint(data, at, end)
        elif wire == 1:
            at += 8
        elif wire == 2:
            length, start = _varint(data, at, end)
            at = start + length
        elif wire == 5:
            at += 4
        else:
            raise ValueError(f"wire type {wire} at byte {start}")
        if at > end:
            raise ValueError(f"field at byte {start} runs past its message")
        if wire == 2:
            yield key >> 3, (start, at)
