"""ONNX Runtime's CUDA provider: its options, the graph that it gets, and why it does not load.

It works on what `engines/onnxruntime.py` imports, and imports no library itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError
from .manifest import NetworkSpec
from .precision import Precision

if TYPE_CHECKING:
    from .bundle import Bundle

__all__ = ["PROVIDER", "check_precision", "graph_to_open", "preload", "provider_options", "refused"]

PROVIDER = "CUDAExecutionProvider"


def check_precision(spec: NetworkSpec, precision: Precision, device: str) -> None:
    """Refuse what a device does not compute in; `EngineError`."""
    if device == "cpu" and precision != "fp32":
        raise EngineError(
            f"{spec.name}: ONNX Runtime computes in fp32 on a CPU, asked was {precision}; "
            "open it with backend='openvino', or leave the precision out"
        )
    if precision == "bf16":
        raise EngineError(
            f"{spec.name}: ONNX Runtime computes in fp32 or fp16 on a GPU, asked was bf16; "
            "open it with backend='tensorrt', or leave the precision out"
        )


@contextlib.contextmanager
def graph_to_open(bundle: Bundle, spec: NetworkSpec, precision: Precision) -> Generator[Path]:
    """The graph to open: the bundle's, or for fewer bits the one that a builder of plans would get."""
    if precision == "fp32":
        yield bundle.file(spec.graph)
        return
    from .build_network import prepare_graph

    with tempfile.TemporaryDirectory(prefix=f"sfumato-{spec.name}-", ignore_cleanup_errors=True) as folder:
        yield prepare_graph(bundle, spec, precision, Path(folder), hard=True)[0]


def provider_options(device: int, stream: int, *, graphs: bool, tf32: bool) -> dict[str, str]:
    """What the CUDA provider is told.

    Arguments:
        device: Number of the GPU.
        stream: The cudaStream_t that everything is enqueued on.
        graphs: Record a CUDA graph for each set of shapes.
        tf32: Let float32 products drop to 10 bits of mantissa, which ONNX Runtime does unless told otherwise.
    """
    return {
        "device_id": str(device),
        "user_compute_stream": str(stream),
        "enable_cuda_graph": str(int(graphs)),
        "use_tf32": str(int(tf32)),
        # Convolutions are chosen without timing them all: shapes are dynamic, and somebody waits for the first call.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The arena grows by what is asked for and no more; doubling it would take memory that other engines need.
        "arena_extend_strategy": "kSameAsRequested",
    }


def preload(library: Any) -> str:
    """Let ONNX Runtime load CUDA's libraries from their wheels; what it complained about, for a message."""
    load: Callable[[], None] | None = getattr(library, "preload_dlls", None)
    if load is None:
        return ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints
        load()
    return said.getvalue()


def why_not(library: Any) -> str:
    """Why the CUDA provider does not load, as the system's loader says it; "" if it does load."""
    folder = Path(str(library.__file__)).parent / "capi"
    for stem in ("providers_shared", "providers_cuda"):
        found = sorted(folder.glob(f"*onnxruntime_{stem}.*"))
        if not found:
            return f"{folder} has no library onnxruntime_{stem}"
        try:
            ctypes.CDLL(str(found[0]))
        except OSError as error:
            return str(error)
    return ""


def refused(spec: NetworkSpec, library: Any, said: str) -> EngineError:
    """The error for a session that was opened on the processor although a GPU was asked for."""
    reason = why_not(library) or " ".join(said.split())[:300] or "it gives no reason; its driver or GPU may be too old"
    return EngineError(
        f"{spec.name}: ONNX Runtime {library.__version__} was asked for the GPU and opened the network on the "
        f"processor: {reason}; run: sfumato doctor"
    )
