"""OpenVINO's form of a network: its ports, and the marks that it is given before it is compiled."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .binding import Array
from .islands import mark
from .manifest import NetworkSpec

__all__ = ["find_port", "keep_compressed", "port_facts", "turn_weights", "with_islands"]

_log = logging.getLogger(__name__)

_DTYPES = {"f32": "float32", "i64": "int64", "i32": "int32", "u8": "uint8", "boolean": "bool"}


def keep_compressed(model: Any) -> None:
    """Mark the casts of half-precision weights, so that OpenVINO does not widen and keep them.

    Its readers of other formats set this mark themselves. It takes a third off the memory of a compiled network and
    halves its blob; the results are the same bits.
    """
    for node in model.get_ops():
        if node.get_type_name() == "Convert":
            source = node.input_value(0)
            if source.get_node().get_type_name() == "Constant" and _is_half(source):
                node.get_rt_info()["decompression_0"] = True


def turn_weights(openvino: Any, model: Any, folder: Path) -> Turned | None:
    """Reverse and transpose half-precision weights ahead of OpenVINO, as the backward pass of a gradient uses them.

    It would do so in float32 and keep that beside what it packs, twice the weights of Stable Diffusion's gradient. Here
    they stay half, in a file that has no name any more, whose pages are given back like those of the bundle's weights.

    Arguments:
        openvino: The module.
        model: Its network; changed.
        folder: Where the file is made.

    Returns:
        What must live as long as the network and all that is compiled of it; None if nothing is turned, or if there is
        no room in the folder: then OpenVINO does it.
    """
    found = [(node, turned) for node in model.get_ops() if (turned := _turned(node)) is not None]
    if not found:
        return None
    try:
        kept, offsets = _write((turned for _, turned in found), folder)
    except OSError as error:
        _log.info("weights are turned in memory: %s", error)
        return None
    for (node, turned), offset in zip(found, offsets, strict=True):
        view: Array = np.ndarray(turned.shape, turned.dtype, kept.bytes, offset)
        tensor = openvino.Tensor(view, list(turned.shape), node.input_value(0).get_element_type())
        node.input(0).replace_source_output(openvino.op.Constant(tensor, shared_memory=True).output(0))
    return kept


@dataclass(frozen=True)
class Turned:
    """Turned weights.

    Arguments:
        path: Of the file, which has no name any more, as `resident.mapped_pages` finds it.
        bytes: The file, mapped.
    """

    path: Path
    bytes: Array


def _turned(node: Any) -> Array | None:
    """The view of half-precision weights that is cast here, if it is reversed or transposed; 16 bits of any kind."""
    steps = list[Any]()
    if node.get_type_name() != "Convert":
        return None
    source = node.input_value(0).get_node()
    while source.get_type_name() in ("Slice", "Transpose"):
        steps.append(source)
        source = source.input_value(0).get_node()
    if not steps or source.get_type_name() != "Constant" or not _is_half(source.output(0)):
        return None
    array: Array = source.data.view(np.uint16)
    for step in reversed(steps):
        given = [step.input_value(index).get_node() for index in range(1, step.get_input_size())]
        if any(other.get_type_name() != "Constant" for other in given):
            return None
        values = [[int(value) for value in other.data.ravel()] for other in given]
        array = np.transpose(array, values[0]) if step.get_type_name() == "Transpose" else _sliced(array, *values)
    return array


def _sliced(array: Array, starts: list[int], stops: list[int], steps: list[int], axes: Sequence[int] = ()) -> Array:
    index = [slice(None)] * array.ndim
    for axis, *ends in zip(axes or range(len(starts)), starts, stops, steps, strict=True):
        start, stop, step = slice(*ends).indices(array.shape[axis])
        index[axis] = slice(start, None if stop < 0 else stop, step)
    return array[tuple(index)]


def _write(arrays: Iterable[Array], folder: Path) -> tuple[Turned, list[int]]:
    """Arrays one after another in a file that is mapped and then deleted, and where each begins."""
    offsets = list[int]()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # It never has a name where the system can do that, so that a process that is killed leaves nothing.
    with tempfile.TemporaryFile(dir=folder) as file:
        for array in arrays:
            offsets.append(file.tell())
            file.write(np.ascontiguousarray(array).data)
            file.write(bytes(-file.tell() % 64))
        file.flush()
        return Turned(_mapped_as(file.fileno()), np.memmap(file, dtype=np.uint8, mode="r")), offsets


def _mapped_as(descriptor: int) -> Path:
    """What the system calls a file without a name in its list of mappings; "." where it has no such list."""
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)"))
    except OSError:
        return Path()


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


def _is_half(output: Any) -> bool:
    return output.get_element_type().get_type_name() in ("f16", "bf16")


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
