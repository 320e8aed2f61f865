"""One set of shapes of a TensorRT engine: an execution context, buffers at fixed addresses, and a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import BindingError, EngineError
from .binding import DTYPES, Array
from .cuda import DeviceArray, Graph
from .device_staging import Staging
from .manifest import NetworkSpec
from .tensorrt_shared import Shared

__all__ = ["Run", "Shapes", "choose_profile"]

_log = logging.getLogger(__name__)

Shapes = Mapping[str, "tuple[int, ...]"]


def choose_profile(engine: Any, spec: NetworkSpec, shapes: Shapes, command: str) -> int:
    """The optimisation profile of an engine that holds these shapes; of several, the one tuned nearest to them.

    Raises:
        BindingError: None does; the message says what they hold, and how to build one that does.
    """
    best: tuple[float, int] | None = None
    ranges: list[str] = []
    for index in range(engine.num_optimization_profiles):
        inside, distance, held = True, 0.0, list[str]()
        for name, shape in shapes.items():
            low, tuned, high = (tuple(s) for s in engine.get_tensor_profile_shape(name, index))
            inside &= all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
            distance += sum(abs(np.log(n / t)) for n, t in zip(shape, tuned, strict=True) if t > 0)
            held.append(f"{name} {low} to {high}")
        ranges.append(", ".join(held))
        if inside and (best is None or distance < best[0]):
            best = (distance, index)
    if best is not None:
        return best[1]
    given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise BindingError(
        f"{spec.name}: its plan has no profile for {given}, it holds {' or '.join(ranges)}; "
        f"run: {command} {' '.join(f'--range {r}' for r in _ranges(spec, shapes))}".rstrip()
    )


def _ranges(spec: NetworkSpec, shapes: Shapes) -> list[str]:
    """What ``--range`` has to say so that a plan holds these shapes."""
    values = {
        symbol: extent
        for binding in spec.inputs
        for symbol, extent in zip(binding.shape, shapes[binding.name], strict=True)
        if isinstance(symbol, str)
    }
    return [f"{name}={extent}" for name, extent in values.items()]


class Run:
    """An engine at one set of shapes.

    It has a context of its own: a CUDA graph is bound to the shapes, addresses and context that it was recorded with.
    Contexts bring no activations of their own, these are in the arena (see `Shared`), so many cost little.

    Arguments:
        shared: What the engines of the bundle share.
        engine: The ICudaEngine.
        spec: The network.
        shapes: Of every input.
        profile: The optimisation profile that holds them.
        graphs: Record the run as a CUDA graph, and launch that.
    """

    def __init__(
        self, shared: Shared, engine: Any, spec: NetworkSpec, shapes: Shapes, profile: int, graphs: bool
    ) -> None:
        self.shared, self.spec = shared, spec
        self._graphs, self._warm = graphs, False
        self._graph: Graph | None = None
        self._arena: DeviceArray | None = None
        self._staging = Staging(shared.cuda, shared.stream)
        shared.logger.forget()
        self.context: Any = self._context(engine)
        handle = shared.stream.handle
        self._must(self.context.set_optimization_profile_async(profile, handle), f"profile {profile}")
        self.inputs = {b.name: self._empty(b.name, shapes[b.name], DTYPES[b.dtype]) for b in spec.inputs}
        for name, array in self.inputs.items():
            self._must(self.context.set_input_shape(name, array.shape), f"{name} {array.shape}")
            self._must(self.context.set_tensor_address(name, array.pointer), f"the address of {name}")
        unknown = list(self.context.infer_shapes())
        self._must(not unknown, f"shapes without {', '.join(unknown)}")
        self.outputs = {b.name: self._empty(b.name, self._shape(b.name), DTYPES[b.dtype]) for b in spec.outputs}
        calculus = shared.cuda.arithmetic(shared.stream)
        for name, array in self.outputs.items():
            array.arithmetic = calculus
            self._must(self.context.set_tensor_address(name, array.pointer), f"the address of {name}")
        need = self.context.update_device_memory_size_for_shapes()  # 0: none, or this network's cannot be said
        self.need = int(need or engine.get_device_memory_size_for_profile_v2(profile))

    def stage(self, feeds: Mapping[str, Array | DeviceArray]) -> None:
        """Enqueue copies of the feeds into the buffers that the context reads."""
        self._staging.upload(feeds, self.inputs)

    def enqueue(self) -> None:
        """Enqueue the network: plainly at first, then recorded as a graph, then as that graph.

        The first run does what cannot be recorded: it loads kernels, or compiles them, and allocates.
        """
        arena = self.shared.reserve(self.spec.name, self.need)
        if arena is not self._arena:
            self.forget()  # a graph computes where it was recorded
            self.context.set_device_memory(arena.pointer, arena.nbytes)
            self._arena = arena
        if self._graph is None and self._graphs and self._warm:
            self._graph = self._record()
        if self._graph is not None:
            self._graph.launch(self.shared.stream)
        else:
            self._execute()
        self._warm = True

    def fetch(self) -> dict[str, Array]:
        """The outputs in pinned host memory, which is written again by the next run. Waits."""
        return self._staging.download(self.outputs)

    def forget(self) -> None:
        """Drop the graph; the next run is a plain one."""
        self._warm = False
        if self._graph is not None:
            self.shared.stream.synchronize()
            self._graph.close()
            self._graph = None

    def close(self) -> None:
        """Free context and graph once the GPU is done with them; buffers go with their last reader."""
        self.shared.stream.synchronize()
        self.forget()
        self.context = None
        for array in self.inputs.values():
            array.close()
        self.outputs, self._arena = {}, None

    def _context(self, engine: Any) -> Any:
        trt, strategy = self.shared.api.trt, self.shared.api.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.shared.api.library.compiles_at_run:
            # Compiled in the background, a kernel would be another in one run than in the next, and so its last bits.
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        self._must(context is not None, "an execution context")
        return context

    def _record(self) -> Graph | None:
        handle = self.shared.stream.handle
        if self.shared.api.library.compiles_at_run and not self.context.is_stream_capturable(handle):
            self._graphs = False
            return None
        try:
            return self.shared.cuda.capture(self.shared.stream, self._execute)
        except EngineError as error:
            _log.info("%s runs without a CUDA graph: %s", self.spec.name, error)
            self._graphs = False
            return None

    def _execute(self) -> None:
        self.shared.logger.forget()
        if not self.context.execute_async_v3(self.shared.stream.handle):
            raise EngineError(
                f"{self.spec.name}: {self.shared.api.library.title} failed while running "
                f"({self.shared.logger.said() or 'it gives no reason'}); run: sfumato doctor"
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(int(extent) for extent in self.context.get_tensor_shape(name))
        if any(extent < 0 for extent in shape):
            raise EngineError(
                f"{self.spec.name}: the shape {shape} of output {name!r} depends on values; "
                "export the network so that it follows from the shapes of its inputs"
            )
        return shape

    def _empty(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        try:
            return self.shared.cuda.empty(shape, dtype)
        except EngineError as error:
            raise EngineError(
                f"{self.spec.name}: no GPU memory for {name!r}, {dtype} {shape} ({error}); "
                "close other engines or use smaller shapes"
            ) from error

    def _must(self, done: Any, what: str) -> None:
        if done is False:
            raise EngineError(
                f"{self.spec.name}: {self.shared.api.library.title} refuses {what} "
                f"({self.shared.logger.said() or 'it gives no reason'}); report it"
            )
