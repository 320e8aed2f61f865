"""Constants of a graph: small integers that its operators take as inputs, each stored once under its name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

__all__ = ["integers_constant"]


def integers_constant(graph: ir.Graph, name: str, numbers: Sequence[int]) -> ir.Value:
    """The initializer `name` of `graph`, int64 (len(numbers),); made if it is not there."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(numbers, dtype=np.int64), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(numbers)]), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]
