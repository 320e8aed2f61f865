"""OpenVINO's form of a network: its ports, and the marks that it is given before it is compiled."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .islands import mark
from .manifest import NetworkSpec

__all__ = ["find_port", "keep_compressed", "port_facts", "with_islands"]

_DTYPES = {"f32": "float32", "i64": "int64", "i32": "int32", "u8": "uint8", "boolean": "bool"}


def keep_compressed(model: Any) -> None:
    """Mark the casts of half-precision weights, so that OpenVINO does not widen and keep them.

    Its readers of other formats set this mark themselves. It takes a third off the memory of a compiled network and
    halves its blob; the results are the same bits.
    """
    for node in model.get_ops():
        if node.get_type_name() == "Convert":
            half = node.input_value(0).get_element_type().get_type_name() in ("f16", "bf16")
            if half and _is_constant(node.input_value(0).get_node()):
                node.get_rt_info()["decompression_0"] = True


def with_islands(openvino: Any, core: Any, model: Any) -> Any:
    """The same network with marks, see `islands`; its weights are not copied. `openvino` is the module."""
    held: dict[str, Any] = {}
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_byte_size() > 1024:
            name, port = f"held_{len(held)}", node.output(0)
            stand = openvino.opset13.parameter(port.get_partial_shape(), port.get_element_type(), name=name)
            for target in list(port.get_target_inputs()):
                target.replace_source_output(stand.output(0))
            model.add_parameters([stand])
            held[name] = node
    with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
        path = Path(folder) / "network.xml"
        openvino.serialize(model, path)
        small = np.fromfile(path.with_suffix(".bin"), dtype=np.uint8)
        marked = core.read_model(mark(path.read_bytes()), openvino.Tensor(small))
    for stand in list(marked.get_parameters()):
        if (node := held.get(stand.get_friendly_name())) is not None:
            for target in list(stand.output(0).get_target_inputs()):
                target.replace_source_output(node.output(0))
            marked.remove_parameter(stand)
    return marked


def _is_constant(node: Any) -> bool:
    """A constant, or one that is turned or reversed, as the backward pass of a gradient uses it."""
    while node.get_type_name() in ("Slice", "Transpose"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def find_port(ports: Iterable[Any], name: str) -> Any:
    """The port that bears this name, maybe among others."""
    return next(port for port in ports if name in port.get_names())


def port_facts(model: Any, spec: NetworkSpec) -> dict[str, Sequence[tuple[str, str, int | None]]]:
    """Name, dtype and rank of every ``input`` and ``output``, as `engine.check_graph` takes them."""
    known = {binding.name for binding in (*spec.inputs, *spec.outputs)}
    return {"input": [_facts(p, known) for p in model.inputs], "output": [_facts(p, known) for p in model.outputs]}


def _facts(port: Any, known: set[str]) -> tuple[str, str, int | None]:
    kind = str(port.get_element_type().get_type_name())
    rank = port.partial_shape.rank
    # Once compiled, a port also bears the names of what was simplified into it, e.g. of x * 1.
    name = next((name for name in sorted(port.get_names()) if name in known), port.get_any_name())
    return name, _DTYPES.get(kind, kind), None if rank.is_dynamic else rank.get_length()
