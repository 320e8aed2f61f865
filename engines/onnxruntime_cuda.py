"""ONNX Runtime's calls on a GPU: buffers of the engine's own, and a CUDA graph for each set of shapes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .binding import Binding, resolve
from .device_staging import Staging
from .manifest import NetworkSpec

if TYPE_CHECKING:
    from .cuda import Cuda, Stream
    from .device_array import DeviceArray

__all__ = ["DeviceRuns"]

_NO_GRAPH = -1
"""The graph's number that ONNX Runtime takes for "run this without recording"."""


@dataclass
class _Kept:
    """What one set of input shapes keeps.

    Arguments:
        binding: ONNX Runtime's IOBinding to the arrays below.
        run: Its RunOptions, with the number of its graph.
        inputs: What the network reads.
        staging: Pinned memory through which NumPy inputs go up and outputs come down.
        outputs: What it writes.
    """

    binding: Any
    run: Any
    inputs: dict[str, DeviceArray]
    staging: Staging
    outputs: dict[str, DeviceArray] = field(default_factory=dict[str, "DeviceArray"])


class DeviceRuns:
    """Calls of a session that computes on a GPU.

    ONNX Runtime records a CUDA graph with the addresses that it was bound to, so inputs are copied into arrays that
    stay where they are, one for each input and set of shapes.

    Arguments:
        session: ONNX Runtime's session.
        options: Makes a RunOptions.
        spec: The network.
        cuda: The GPU.
        stream: What the session enqueues on.
        shapes: How many sets of shapes are kept; the longest unused goes first.
        graphs: The session records graphs.
    """

    def __init__(
        self,
        session: Any,
        options: Callable[[], Any],
        spec: NetworkSpec,
        cuda: Cuda,
        stream: Stream,
        *,
        shapes: int,
        graphs: bool,
    ) -> None:
        self._session: Any = session
        self._options = options
        self._spec = spec
        self._cuda = cuda
        self._stream = stream
        self._shapes = shapes
        self._graphs = graphs
        self._recorded = 0
        self._kept: OrderedDict[tuple[tuple[int, ...], ...], _Kept] = OrderedDict()

    def __call__(self, feeds: Mapping[str, Any], symbols: Mapping[str, int]) -> dict[str, Any]:
        """Run; NumPy arrays if all feeds are, else device arrays that the stream will have written."""
        self._cuda.activate()
        key = tuple(tuple(feeds[b.name].shape) for b in self._spec.inputs)
        kept = self._kept.get(key)
        first = kept is None
        if kept is None:
            kept = self._prepare(key)
        self._kept.move_to_end(key)
        try:
            kept.staging.upload(feeds, kept.inputs)
            if first:
                self._bind_outputs(kept, symbols)
            self._session.run_with_iobinding(kept.binding, kept.run)
        except BaseException:
            if first:
                del self._kept[key]
            raise
        if all(isinstance(array, np.ndarray) for array in feeds.values()):
            return kept.staging.download(kept.outputs)
        return dict(kept.outputs)

    def close(self) -> None:
        """Wait for what is enqueued, then let go of graphs and memory."""
        try:
            self._stream.synchronize()
        finally:
            while self._kept:
                self._forget()
            self._session = None

    def _prepare(self, key: tuple[tuple[int, ...], ...]) -> _Kept:
        while len(self._kept) >= self._shapes:
            self._stream.synchronize()
            self._forget()
        inputs = {b.name: self._cuda.empty(shape, b.dtype) for b, shape in zip(self._spec.inputs, key, strict=True)}
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cuda", self._cuda.device, array.dtype, list(array.shape), array.pointer)
        self._recorded += 1  # never the number of a set that was forgotten: its graph has the addresses of freed memory
        options = self._run_options(self._recorded if self._graphs else None)
        kept = _Kept(binding, options, inputs, Staging(self._cuda, self._stream))
        self._kept[key] = kept
        return kept

    def _forget(self) -> None:
        _, old = self._kept.popitem(last=False)
        old.binding = None
        for array in (*old.inputs.values(), *old.outputs.values()):
            array.close()

    def _bind_outputs(self, kept: _Kept, symbols: Mapping[str, int]) -> None:
        """Give the outputs memory, of the shapes that follow from the inputs' or, where none do, that a run shows."""
        shapes = {b.name: _shape(b, symbols) for b in self._spec.outputs}
        if any(shape is None for shape in shapes.values()):
            for name in shapes:
                kept.binding.bind_output(name, "cuda", self._cuda.device)
            self._session.run_with_iobinding(kept.binding, self._run_options(_NO_GRAPH if self._graphs else None))
            self._stream.synchronize()
            found = zip(shapes, kept.binding.get_outputs(), strict=True)
            shapes = {name: tuple(int(extent) for extent in value.shape()) for name, value in found}
            kept.binding.clear_binding_outputs()
        for binding in self._spec.outputs:
            array = self._cuda.empty(shapes[binding.name] or (), binding.dtype)
            kept.outputs[binding.name] = array
            kept.binding.bind_output(
                binding.name, "cuda", self._cuda.device, array.dtype, list(array.shape), array.pointer
            )

    def _run_options(self, graph: int | None) -> Any:
        run = self._options()
        # Without this a run waits for the GPU.
        run.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if graph is not None:
            run.add_run_config_entry("gpu_graph_id", str(graph))
        return run


def _shape(binding: Binding, symbols: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of an output, None if the inputs' dimensions do not say it."""
    return resolve(binding, symbols) if all(name in symbols for name in binding.symbols) else None
