"""A network that OpenVINO has compiled for one set of shapes, and the buffers that it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .binding import Array
from .manifest import NetworkSpec
from .openvino_model import find_port

__all__ = ["Compiled"]


@dataclass
class Compiled:
    """A compiled network with its request.

    Arguments:
        openvino: The module.
        model: OpenVINO's compiled model.
        request: Its one request.
        inputs: Ports by name.
        outputs: Arrays that the request writes, by name; None where only a run tells the shape.
        payload: The blob that it was read from, which must live as long; None if it was compiled.
        ports: Ports of the outputs by name.
        fed: What the request reads at present.
        own: Copies of what it cannot read where it lies.
    """

    openvino: Any
    model: Any
    request: Any
    inputs: dict[str, Any]
    outputs: dict[str, Array | None]
    payload: Array | None
    ports: dict[str, Any]
    fed: dict[str, Array] = field(default_factory=dict[str, Array])
    own: dict[str, Array] = field(default_factory=dict[str, Array])

    @classmethod
    def of(cls, openvino: Any, model: Any, spec: NetworkSpec, payload: Array | None) -> Compiled:
        """With a request whose outputs of known shape are arrays of ours."""
        request = model.create_infer_request()
        outputs: dict[str, Array | None] = {}
        ports: dict[str, Any] = {}
        for binding in spec.outputs:
            port = ports[binding.name] = find_port(model.outputs, binding.name)
            if port.partial_shape.is_dynamic:
                outputs[binding.name] = None
                continue
            array = np.zeros(tuple(port.shape), dtype=binding.dtype)
            request.set_tensor(port, openvino.Tensor(array, shared_memory=True))
            outputs[binding.name] = array
        inputs = {binding.name: find_port(model.inputs, binding.name) for binding in spec.inputs}
        return cls(openvino, model, request, inputs, outputs, payload, ports)

    def feed(self, name: str, array: Array) -> None:
        """Show the request an array where it lies; a copy if it lies badly, is read-only or is one of the outputs."""
        if self.fed.get(name) is array:
            return
        kept = array
        aliased = any(out is not None and np.may_share_memory(array, out) for out in self.outputs.values())
        if aliased or not (array.flags.c_contiguous and array.flags.writeable):
            kept = self.own.setdefault(name, np.empty(array.shape, array.dtype))
            np.copyto(kept, array)
        if self.fed.get(name) is not kept:
            self.request.set_tensor(self.inputs[name], self.openvino.Tensor(kept, shared_memory=True))
            self.fed[name] = kept

    def output(self, name: str) -> Array:
        """What the last run gave: an array that the next run writes, or a copy."""
        array = self.outputs[name]
        return np.array(self.request.get_tensor(self.ports[name]).data) if array is None else array
