"""Engines: a network loaded and ready, whatever library runs it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np

from ..errors import EngineError, IntegrityError, NonFiniteError
from .backends import Backend, automatic_plan, available_backends, check_options
from .binding import Array, Binding
from .external import external_files
from .manifest import NetworkSpec
from .precision import Precision
from .target import cpu_precision

if TYPE_CHECKING:
    from .builder_library import BuilderKind
    from .bundle import Bundle

__all__ = [
    "Backend",
    "Engine",
    "available_backends",
    "check_external",
    "check_finite",
    "check_graph",
    "check_options",
    "default_precision",
    "open_engine",
]

E = TypeVar("E")


@runtime_checkable
class Engine(Protocol):
    """A network that runs: arrays in, arrays out, all float32 (indices int64).

    **Returned arrays belong to the engine: its next call with the same shapes overwrites them. Copy what you keep.**
    Inputs are read, not copied, where they are C-contiguous; they must not change during the call. One engine serves
    one thread at a time.

    A call raises `BindingError` when the feeds do not fit and `EngineError` when the library fails.
    """

    spec: NetworkSpec
    backend: str
    precision: Precision

    def __call__(self, **feeds: Array) -> dict[str, Array]:
        """Run the network on one array for each input; an array for each output, by name."""
        ...

    def close(self) -> None:
        """Free memory; further calls raise `EngineError`. Closing twice is harmless."""
        ...

    def __enter__(self: E) -> E: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def default_precision(spec: NetworkSpec) -> Precision:
    """What OpenVINO computes a network in unless told.

    It is bf16 where this processor has it and the manifest gives a tolerance for it, else fp32.
    """
    fast = cpu_precision()
    return fast if fast in spec.tolerance else "fp32"


def open_engine(
    bundle: Bundle,
    network: str,
    *,
    backend: Backend = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
) -> Engine:
    """Open a network of a bundle.

    Arguments:
        bundle: The bundle.
        network: Name of the network, e.g. "unet".
        backend: Library to run it; "auto" is TensorRT or TensorRT for RTX where there is a GPU and the bundle holds a
            plan of the network for it, else OpenVINO if installed, else ONNX Runtime.
        precision: What to compute in; None is the backend's default (`default_precision` for OpenVINO, the plan's for
            TensorRT, else fp32).
        threads: Threads to use on a processor; None is one for each core of the process.

    Raises:
        BundleError: The bundle has no such network.
        IntegrityError: The graph reads files that are not among its weights.
        MissingDependency: The library is not installed.
        EngineError: The backend is unknown, cannot work here, lacks the precision or a plan, or refuses the graph.
    """
    spec = bundle.network(network)
    chosen = check_options(backend, precision, threads)
    check_external(bundle, spec)
    found = automatic_plan(bundle, network, precision) if backend == "auto" else None
    if found is not None or chosen in ("tensorrt", "tensorrt_rtx"):
        from .tensorrt import TensorRTEngine

        kind, plan = found or (cast("BuilderKind", chosen), None)
        return TensorRTEngine(bundle, spec, kind, precision=precision, plan=plan)
    if chosen == "openvino":
        from .openvino import OpenVinoEngine

        return OpenVinoEngine(bundle, spec, precision=precision or default_precision(spec), threads=threads)
    from .onnxruntime import OnnxRuntimeEngine

    device: Any = {"device": "cuda"} if chosen == "onnxruntime_cuda" else {}
    return OnnxRuntimeEngine(bundle, spec, precision=precision or "fp32", threads=threads, **device)


def check_external(bundle: Bundle, spec: NetworkSpec) -> None:
    """Hold the files that a graph reads against those that the manifest gives it."""
    graph = bundle.file(spec.graph)
    allowed = {bundle.file(path).name for path in spec.weights}
    for location in sorted(external_files(graph)):
        if location not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise IntegrityError(
                f"{bundle.path}: {spec.graph!r} reads its weights from {location!r}, the manifest gives it {known}; "
                "export the bundle again"
            )


def check_graph(spec: NetworkSpec, backend: str, found: dict[str, Sequence[tuple[str, str, int | None]]]) -> None:
    """Hold what a library read from a graph against the manifest.

    Arguments:
        spec: The network.
        backend: Proper name of the library, for the message.
        found: For "input" and "output": name, NumPy name of the dtype, and number of axes (None if unknown).

    Raises:
        EngineError: They disagree.
    """
    declared: dict[str, tuple[Binding, ...]] = {"input": spec.inputs, "output": spec.outputs}
    for kind, bindings in declared.items():
        graph = {name: (dtype, rank) for name, dtype, rank in found[kind]}
        stated = {b.name: b for b in bindings}
        if graph.keys() != stated.keys():
            raise EngineError(
                f"{spec.name}: {backend} reads the {kind}s {', '.join(sorted(graph)) or 'none'} from {spec.graph!r}, "
                f"the manifest says {', '.join(sorted(stated)) or 'none'}; export the bundle again"
            )
        for name, (dtype, rank) in graph.items():
            binding = stated[name]
            if dtype != binding.dtype or rank not in (None, len(binding.shape)):
                raise EngineError(
                    f"{spec.name}: {backend} reads {kind} {name!r} as {dtype} of {rank} axes from {spec.graph!r}, "
                    f"the manifest says {binding}; export the bundle again"
                )


def check_finite(network: str, step: int | None = None, **tensors: Array) -> None:
    """Raise `NonFiniteError` for the first tensor that holds NaN or infinity.

    Arguments:
        network: Name of the network that made them.
        step: Index of the sampling step, None outside a loop.
        tensors: Arrays by name; those without floating point pass.
    """
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NonFiniteError(network, step, name)
