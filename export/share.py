"""Shared weights: a graph that reads what another network of the bundle has stored.

A weight is recognised by its bytes, so it does not matter what either graph calls it, and whatever a change of the
exporter or of the precision makes different is simply stored again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx_ir as ir

__all__ = ["THRESHOLD", "share_weights"]

THRESHOLD = 256
"""Initializers of at most this many bytes stay inside the graph."""


def share_weights(model: ir.Model, stored: Path) -> tuple[str, ...]:
    """Let every initializer of `model` that the graph `stored` keeps in external data be read from there.

    Arguments:
        model: Ready to be saved beside `stored`.
        stored: The ONNX file of the other network.

    Returns:
        Names of the files that are shared.
    """
    known: dict[tuple[str, int, str], ir.ExternalTensor] = {}
    for value in ir.load(stored).graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > THRESHOLD:
            known.setdefault(_key(tensor), tensor)
            tensor.release()
    used: set[str] = set()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= THRESHOLD:
            continue
        other = known.get(_key(tensor))
        if other is not None:
            location = str(other.location)
            value.const_value = ir.ExternalTensor(
                location,
                other.offset,
                other.length,
                tensor.dtype,
                shape=ir.Shape([int(n) for n in _extents(tensor)]),
                name=str(value.name),
                base_dir=stored.parent,
            )
            used.add(location)
    return tuple(sorted(used))


def _extents(tensor: Any) -> list[int]:
    return [n for n in tensor.shape if isinstance(n, int)]


def _key(tensor: ir.TensorProtocol) -> tuple[str, int, str]:
    """Type, length and hash of the bytes; the shape is each graph's own."""
    return str(tensor.dtype), int(tensor.nbytes), hashlib.blake2b(tensor.tobytes(), digest_size=20).hexdigest()
