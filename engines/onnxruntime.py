"""The ONNX Runtime engine: the reference, on a CPU or a GPU. The only file that meets onnxruntime."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ..errors import EngineError, SfumatoError
from .binding import Array, check_feeds
from .engine import check_graph
from .manifest import NetworkSpec
from .onnxruntime_cuda import DeviceRuns
from .onnxruntime_provider import PROVIDER, check_precision, graph_to_open, preload, provider_options, refused
from .precision import Precision

if TYPE_CHECKING:
    from .bundle import Bundle
    from .cuda import Cuda, Stream

__all__ = ["OnnxRuntimeEngine"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeEngine:
    """A network on ONNX Runtime's CPU provider in float32, or on its CUDA provider in float32 or fp16.

    Stored half-precision weights are widened once, when the session folds their casts. Shapes stay dynamic. Outputs of
    the last `shapes` sets of input shapes are kept and written again. On a GPU each of these sets has a CUDA graph.

    Arguments:
        bundle: The bundle.
        spec: The network.
        precision: None is "fp32", as this backend is the reference. "fp16" on a GPU opens the graph that TensorRT would
            build: products in half precision, with islands of float32.
        threads: Threads of the processor, None for one a core.
        device: Where to compute.
        shapes: How many sets of shapes keep their buffers; the longest unused goes first.
        arena: Use ONNX Runtime's arena allocator on the CPU: a little faster, up to twice the peak memory.
        optimize: Fuse operators and lay weights out for speed. Without it constants are folded and no more, which
            opens a large network in a fifth of the time: for runs that are few.
        graphs: On a GPU, record CUDA graphs. A network of which some operator computes on the processor has none.
        tf32: On a GPU, let float32 products drop to 10 bits of mantissa.

    Raises:
        MissingDependency: cuda-core is not installed.
        EngineError: The library or the GPU cannot be used, the precision is not to be had, or the graph is refused.
    """

    backend: str
    cuda: Cuda
    """The GPU; a CPU's engine has no such attribute, nor the next."""
    stream: Stream
    """What calls with device arrays are enqueued on."""

    def __init__(
        self,
        bundle: Bundle,
        spec: NetworkSpec,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
        shapes: int = 4,
        arena: bool = False,
        optimize: bool = True,
        graphs: bool = True,
        tf32: bool = False,
    ) -> None:
        self.spec = spec
        self.precision: Precision = precision or "fp32"
        self.backend = "onnxruntime" if device == "cpu" else "onnxruntime_cuda"
        self._shapes = max(1, shapes)
        self._kept: OrderedDict[tuple[tuple[int, ...], ...], dict[str, Array]] = OrderedDict()
        self._runs: DeviceRuns | None = None
        self._also: tuple[type[Any], ...] = ()
        check_precision(spec, self.precision, device)
        library = _load()
        options = _options(library, threads, arena, optimize)
        if device == "cpu":
            self._session: Any = _session(library, spec, bundle.file(spec.graph), options, ["CPUExecutionProvider"])
        else:
            self._open_cuda(library, bundle, options, graphs, tf32)
        check_graph(spec, "ONNX Runtime", _ports(self._session))

    def __call__(self, **feeds: Any) -> dict[str, Any]:
        """Run the network; see `Engine`.

        On a GPU, NumPy arrays give NumPy arrays, and nothing is left to wait for. If any input is a `DeviceArray` the
        outputs are, and the work is only enqueued on `stream`.
        """
        symbols = check_feeds(self.spec, feeds, also=self._also)
        if self._session is None:
            raise EngineError(f"{self.spec.name}: the engine was closed; open it again with open_engine()")
        try:
            if self._runs is not None:
                return self._runs(feeds, symbols)
            key = tuple(feeds[binding.name].shape for binding in self.spec.inputs)
            kept = self._kept.get(key)
            if kept is None:
                kept = self._first(key, feeds)
            else:
                self._kept.move_to_end(key)
                self._again(feeds, kept)
        except SfumatoError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            raise EngineError(f"{self.spec.name}: ONNX Runtime failed while running ({str(error)[:300]})") from error
        return dict(kept)

    def close(self) -> None:
        """Free the session; see `Engine`."""
        self._kept.clear()
        if self._runs is not None:
            self._runs.close()
            self._runs = None
        self._session = None

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_cuda(self, library: Any, bundle: Bundle, options: Any, graphs: bool, tf32: bool) -> None:
        if PROVIDER not in library.get_available_providers():
            raise EngineError(
                f"{self.spec.name}: onnxruntime {library.__version__} is made for processors alone; run: "
                "pip uninstall -y onnxruntime && pip install 'sfumato[cuda]'"
            )
        from .cuda import DeviceArray, open_cuda

        self._also = (DeviceArray,)
        self.cuda = open_cuda()
        self.stream = self.cuda.stream()
        said = preload(library)
        # Patterns of memory are learnt in one run and allocated in the next, which would be the one that is recorded.
        options.enable_mem_pattern = not graphs
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        with graph_to_open(bundle, self.spec, self.precision) as path:
            for attempt in (True, False) if graphs else (False,):
                told = provider_options(self.cuda.device, self.stream.handle, graphs=attempt, tf32=tf32)
                try:
                    self._session = _session(
                        library, self.spec, path, options, [(PROVIDER, told), "CPUExecutionProvider"]
                    )
                    graphs = attempt
                    break
                except EngineError as error:
                    if not (attempt and "graph capture" in str(error)):
                        raise
        if PROVIDER not in self._session.get_providers():
            self._session = None
            raise refused(self.spec, library, said)
        self._runs = DeviceRuns(
            self._session, library.RunOptions, self.spec, self.cuda, self.stream, shapes=self._shapes, graphs=graphs
        )

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


def _load() -> Any:
    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise EngineError(f"ONNX Runtime is installed but does not load ({error}); reinstall onnxruntime") from error
    return cast(Any, onnxruntime)


def _options(library: Any, threads: int | None, arena: bool, optimize: bool) -> Any:
    options = library.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.enable_cpu_mem_arena = arena
    if not optimize:
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    # Weights stored as int8 rows are multiplied in float32; the default would quantise activations too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return options


def _session(library: Any, spec: NetworkSpec, graph: Path, options: Any, providers: Sequence[Any]) -> Any:
    try:
        # Without enable_fallback=0 a provider that fails is replaced by the processor's, with a word on stdout.
        return library.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common base but Exception
        raise EngineError(
            f"{spec.name}: ONNX Runtime cannot open {spec.graph!r} ({_gist(error)}); "
            f"{'export the bundle again' if len(providers) == 1 else 'run: sfumato doctor'}"
        ) from error


def _gist(error: Exception) -> str:
    """What went wrong on the GPU, without the C++ types that ONNX Runtime says first; else the beginning."""
    text = " ".join(str(error).split())
    found = re.search(r"CUDA failure \d+: [^;]+", text)
    return found[0].strip() if found else text[:300]


def _ports(session: Any) -> dict[str, Sequence[tuple[str, str, int | None]]]:
    return {"input": [_facts(a) for a in session.get_inputs()], "output": [_facts(a) for a in session.get_outputs()]}


def _facts(argument: Any) -> tuple[str, str, int | None]:
    kind = str(argument.type)
    return argument.name, _DTYPES.get(kind, kind), len(argument.shape)
