"""The ONNX Runtime engine: the reference on a CPU, and the only file that meets onnxruntime."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import EngineError
from .binding import Array, check_feeds
from .engine import check_graph
from .manifest import NetworkSpec
from .precision import Precision

if TYPE_CHECKING:
    from .bundle import Bundle

__all__ = ["OnnxRuntimeEngine"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeEngine:
    """A network on ONNX Runtime's CPU provider, in float32.

    Stored half-precision weights are widened once, when the session folds their casts. Shapes stay dynamic. Outputs of
    the last `shapes` sets of input shapes are kept and written again.

    Arguments:
        bundle: The bundle.
        spec: The network.
        precision: Only "fp32": this backend is the reference.
        threads: Threads, None for one a core.
        shapes: How many sets of shapes keep their output buffers; the longest unused goes first.
        arena: Use ONNX Runtime's arena allocator: a little faster, up to twice the peak memory.
        optimize: Fuse operators and lay weights out for speed. Without it constants are folded and no more, which
            opens a large network in a fifth of the time: for runs that are few.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        spec: NetworkSpec,
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
        shapes: int = 4,
        arena: bool = False,
        optimize: bool = True,
    ) -> None:
        if precision != "fp32":
            raise EngineError(
                f"{spec.name}: ONNX Runtime computes in fp32 on a CPU, asked was {precision}; "
                "open it with backend='openvino', or leave the precision out"
            )
        self.spec = spec
        self.precision: Precision = precision
        self._shapes = max(1, shapes)
        self._kept: OrderedDict[tuple[tuple[int, ...], ...], dict[str, Array]] = OrderedDict()
        self._session: Any = _session(bundle, spec, threads, arena, optimize)
        check_graph(spec, "ONNX Runtime", _ports(self._session))

    def __call__(self, **feeds: Array) -> dict[str, Array]:
        """Run the network; see `Engine`."""
        check_feeds(self.spec, feeds)
        if self._session is None:
            raise EngineError(f"{self.spec.name}: the engine was closed; open it again with open_engine()")
        key = tuple(feeds[binding.name].shape for binding in self.spec.inputs)
        kept = self._kept.get(key)
        try:
            if kept is None:
                kept = self._first(key, feeds)
            else:
                self._kept.move_to_end(key)
                self._again(feeds, kept)
        except EngineError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            raise EngineError(f"{self.spec.name}: ONNX Runtime failed while running ({str(error)[:300]})") from error
        return dict(kept)

    def close(self) -> None:
        """Free the session; see `Engine`."""
        self._kept.clear()
        self._session = None

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first(self, key: tuple[tuple[int, ...], ...], feeds: dict[str, Array]) -> dict[str, Array]:
        """Run without knowing the shapes of the outputs, and keep the arrays that come out."""
        names = [binding.name for binding in self.spec.outputs]
        results = self._session.run(names, {name: np.ascontiguousarray(array) for name, array in feeds.items()})
        while len(self._kept) >= self._shapes:
            self._kept.popitem(last=False)
        # A result may be a view of something read-only or of an input that the graph hands through: then copy it.
        self._kept[key] = {
            name: array
            if array.flags.writeable and not any(np.may_share_memory(array, feed) for feed in feeds.values())
            else array.copy()
            for name, array in zip(names, results, strict=True)
        }
        return self._kept[key]

    def _again(self, feeds: dict[str, Array], kept: dict[str, Array]) -> None:
        """Run into the kept arrays."""
        binding = self._session.io_binding()
        held: list[Array] = []
        for name, array in feeds.items():
            aliased = any(np.may_share_memory(array, out) for out in kept.values())
            held.append(np.array(array, order="C") if aliased else np.ascontiguousarray(array))
            binding.bind_cpu_input(name, held[-1])
        for name, out in kept.items():
            binding.bind_output(name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)


def _session(bundle: Bundle, spec: NetworkSpec, threads: int | None, arena: bool, optimize: bool) -> Any:
    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise EngineError(f"ONNX Runtime is installed but does not load ({error}); reinstall onnxruntime") from error
    library = cast(Any, onnxruntime)
    options = library.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.enable_cpu_mem_arena = arena
    if not optimize:
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    # Weights stored as int8 rows are multiplied in float32; the default would quantise activations too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    graph = bundle.file(spec.graph)
    try:
        return library.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base but Exception
        raise EngineError(
            f"{spec.name}: ONNX Runtime cannot open {spec.graph!r} ({str(error)[:300]}); export the bundle again"
        ) from error


def _ports(session: Any) -> dict[str, Sequence[tuple[str, str, int | None]]]:
    return {"input": [_facts(a) for a in session.get_inputs()], "output": [_facts(a) for a in session.get_outputs()]}


def _facts(argument: Any) -> tuple[str, str, int | None]:
    kind = str(argument.type)
    return argument.name, _DTYPES.get(kind, kind), len(argument.shape)
