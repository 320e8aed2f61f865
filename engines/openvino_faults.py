"""Faults of OpenVINO's bf16 on a CPU, and the ways around them; both were seen in 2026.4 on a processor with AMX.

Both give noise or NaN without a word, and only for few pictures' sizes: narrow or very small ones. Neither way around
changes what is computed. They need fixed shapes, so they are taken when a network is compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["VERSION", "avoid_faults"]

VERSION = 1
"""Raised when more is avoided, so that networks compiled before are not taken from a cache."""


def avoid_faults(openvino: Any, model: Any) -> dict[str, str]:
    """Change a network of fixed shapes where its bf16 would be wrong; `openvino` is the module.

    Returns:
        What OpenVINO has to be told beside.
    """
    for node in model.get_ops():
        if _is_narrow(node):
            _widen(openvino, node)
    return {"SNIPPETS_MODE": "DISABLE"} if any(map(_mixes_heads, model.get_ops())) else {}


def _is_narrow(node: Any) -> bool:
    """A convolution with a stride that makes pictures one pixel wide."""
    if node.get_type_name() != "Convolution" or node.get_output_partial_shape(0).is_dynamic:
        return False
    return (
        len(node.get_output_shape(0)) == 4
        and node.get_output_shape(0)[3] == 1
        and node.get_attributes()["strides"][1] > 1
    )


def _widen(openvino: Any, node: Any) -> None:
    """Let a convolution make two columns, and keep the first."""
    opset, given = openvino.opset13, node.get_attributes()
    rows, columns = given["strides"]
    below, right = given["pads_end"]
    wider = opset.convolution(
        node.input_value(0),
        node.input_value(1),
        [rows, columns],
        list(given["pads_begin"]),
        [below, right + columns],
        list(given["dilations"]),
    )
    zero, one, axis = (opset.constant(np.array([value])) for value in (0, 1, 3))
    first = opset.slice(wider, zero, one, one, axis)
    for target in list(node.output(0).get_target_inputs()):
        target.replace_source_output(first.output(0))


def _mixes_heads(node: Any) -> bool:
    """Attention over as many tokens as it has heads: its fused form takes one axis for the other."""
    if node.get_type_name() != "Softmax" or node.get_output_partial_shape(0).is_dynamic:
        return False
    shape = node.get_output_shape(0)
    return len(shape) == 4 and shape[1] == shape[2] > 1
