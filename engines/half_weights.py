"""Weights turned into half precision where a graph is made for a builder, one in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .binding import Array
from .onnx_model import onnx, read_array

__all__ = ["HalfWeights", "to_bits"]

_FLOAT16, _BFLOAT16 = 10, 16
_INLINE = 1024
"""Up to this many bytes a weight lies in the graph: shapes may depend on it."""


class HalfWeights:
    """New weights in one new file.

    Arguments:
        source: The folder where the stored weights lie.
        path: The file for the new ones; it appears with the first large one.
    """

    def __init__(self, source: Path, path: Path) -> None:
        self.source, self.path = source, path
        self.tensors: list[Any] = []
        self.sources: dict[str, str] = {}
        """The stored weight that each new one was made of, by its name."""

    def add(self, tensor: Any, name: str, kind: int) -> bool:
        """Turn a weight into float16 (10) or bfloat16 (16); False, and nothing is done, if float16 does not hold it.

        Arguments:
            tensor: The stored TensorProto, of floating point.
            name: The new one's name.
            kind: Number of TensorProto.DataType.
        """
        if name in self.sources:
            return True
        array = read_array(tensor, self.source).astype(np.float32)
        if kind == _FLOAT16 and not np.abs(array).max(initial=0) <= np.finfo(np.float16).max:
            return False
        data = to_bits(array, kind).tobytes()
        fresh = onnx().TensorProto(name=name, data_type=kind, dims=tensor.dims)
        if len(data) <= _INLINE:
            fresh.raw_data = data
        else:
            with self.path.open("ab") as file:
                offset = -(-file.tell() // 64) * 64
                file.write(b"\0" * (offset - file.tell()) + data)
            fresh.data_location = 1
            entries = {"location": self.path.name, "offset": offset, "length": len(data)}
            for key, value in entries.items():
                fresh.external_data.add(key=key, value=str(value))
        self.tensors.append(fresh)
        self.sources[name] = tensor.name
        return True


def to_bits(array: Array, kind: int) -> Array:
    """The bits of float16, or of bfloat16 rounded to the nearest, ties to even."""
    if kind == _FLOAT16:
        return array.astype("<f2")
    bits = np.frombuffer(array.tobytes(), np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    infinite_or_nan = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    half: Array = (np.where(infinite_or_nan, bits, rounded) >> np.uint32(16)).astype("<u2")
    return half
