"""ONNX models as the builder and the planner read them, without their weights. The only file that meets onnx."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import EngineError, MissingDependency
from .binding import Array

__all__ = ["External", "extents", "external", "onnx", "read_array", "read_model", "type_name", "with_shapes"]

_NAMES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}


def onnx(extra: str = "rtx", why: str = "building a plan") -> Any:
    """The library; without it `MissingDependency`, which names the extra and what wanted it."""
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise MissingDependency("onnx", extra, why) from error


def read_model(path: Path) -> Any:
    """The graph of an ONNX file, its external weights left where they are; `EngineError` if it is none."""
    library = onnx()
    try:
        return library.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's exceptions have no common base
        raise EngineError(f"{path}: is not an ONNX graph ({error}); export the bundle again") from error


def with_shapes(model: Any) -> Any:
    """The model with the types and, as far as they follow, the shapes of all its tensors."""
    try:
        return onnx().shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # as above
        raise EngineError(f"{model.graph.name}: shapes do not follow ({error}); export the bundle again") from error


def extents(value: Any) -> tuple[int | str | None, ...] | None:
    """The shape of a value_info: an int, a dimension's name, or None for each axis; None without a rank."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)


@dataclass(frozen=True)
class External:
    """Where the bytes of a weight lie."""

    location: str
    offset: int
    length: int


def external(tensor: Any) -> External | None:
    """Where a weight lies outside the graph, None for one inside."""
    if tensor.data_location != 1:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return External(entries["location"], int(entries.get("offset", 0)), int(entries.get("length", 0)))


def type_name(tensor: Any) -> str:
    """The dtype of a weight as it is stored, e.g. "float16" or "bfloat16"."""
    return "bfloat16" if tensor.data_type == _BF16 else _NAMES.get(tensor.data_type, f"type {tensor.data_type}")


def read_array(tensor: Any, folder: Path) -> Array:
    """The values of a weight; those of bfloat16 as float32.

    Arguments:
        tensor: A TensorProto.
        folder: Where its external data lies.
    """
    place = external(tensor)
    if place is None:
        data: Any = onnx().numpy_helper.to_array(tensor)
        return cast(Array, data.astype(np.float32) if tensor.data_type == _BF16 else data)
    with (folder / place.location).open("rb") as file:
        file.seek(place.offset)
        stored = file.read(place.length)
    if tensor.data_type == _BF16:
        data = np.frombuffer(stored, np.dtype("<u2")).astype(np.uint32) << np.uint32(16)
        stored, kind = data.tobytes(), np.dtype(np.float32)
    else:
        kind = np.dtype(_NAMES[tensor.data_type])
    array: Array = np.ndarray(tuple(tensor.dims), kind, stored)
    return array


_BF16 = 16
