"""What the GPU check runs: backends that work here, their plans, and every network with and without CUDA graphs."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.engines.backends import available_backends
from sfumato.engines.build import build_plan
from sfumato.engines.build_options import BuildOptions
from sfumato.engines.build_target import BuildTarget
from sfumato.engines.bundle import Bundle
from sfumato.engines.doctor import Environment
from sfumato.engines.engine import open_engine
from sfumato.engines.spec import NetworkSpec
from sfumato.engines.target import cpu_precision
from sfumato.errors import SfumatoError

__all__ = ["GPU_BACKENDS", "Variant", "build_missing", "missing", "open_variant", "variants"]

log = logging.getLogger(__name__)

GPU_BACKENDS = ("onnxruntime_cuda", "tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Variant:
    """One way to run a network.

    Arguments:
        backend: Name of the backend.
        precision: What it is asked to compute in.
        graphs: With CUDA graphs; None on a processor, which has none.
    """

    backend: str
    precision: Any
    graphs: bool | None = None

    def __str__(self) -> str:
        graphs = {None: "", True: ", CUDA graph", False: ", no graph"}[self.graphs]
        return f"{self.backend} {self.precision}{graphs}"


def missing(env: Environment) -> str:
    """What stands in the way of the check, in one line; "" if nothing does."""
    if env.nvidia.libcuda is None:
        return "no NVIDIA driver: libcuda is not found"
    if not env.gpus:
        return f"driver {env.nvidia.driver} names no GPU"
    if importlib.util.find_spec("cuda") is None:
        return "cuda-core is not installed: pip install 'sfumato[cuda]'"
    state = available_backends()
    if all(state[name] is not None for name in GPU_BACKENDS):
        return "no backend for this GPU works: " + "; ".join(f"{name}: {state[name]}" for name in GPU_BACKENDS)
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime, the reference, is not installed: pip install 'sfumato[cuda]'"
    return ""


def variants(spec: NetworkSpec, backends: Sequence[str]) -> list[Variant]:
    """Every way to run a network on these backends: the precisions that its manifest allows, graphs on and off."""
    found: list[Variant] = []
    fast = cpu_precision()
    for backend in backends:
        for precision in ("fp32", "fp16", "bf16"):
            if precision not in spec.tolerance:
                continue
            if backend in GPU_BACKENDS and precision != "bf16":
                found += [Variant(backend, precision, graphs) for graphs in (True, False)]
            elif backend not in GPU_BACKENDS and (precision == "fp32" or (backend, precision) == ("openvino", fast)):
                found.append(Variant(backend, precision))
    return found


def open_variant(bundle: Bundle, spec: NetworkSpec, variant: Variant) -> Any:
    """The engine; on a processor without a choice of graphs."""
    if variant.backend == "onnxruntime_cuda":
        from sfumato.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(
            bundle, spec, precision=variant.precision, device="cuda", graphs=variant.graphs is not False
        )
    if variant.backend in ("tensorrt", "tensorrt_rtx"):
        from sfumato.engines.tensorrt import TensorRTEngine

        kind: Any = variant.backend
        return TensorRTEngine(bundle, spec, kind, precision=variant.precision, cuda_graphs=variant.graphs is not False)
    backend: Any = variant.backend
    return open_engine(bundle, spec.name, backend=backend, precision=variant.precision)


def build_missing(
    bundle: Bundle, backends: Sequence[str], env: Environment, *, dry: bool, networks: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Build the plans that a bundle lacks for the GPU at hand; a row for each that is there or failed.

    Arguments:
        bundle: The bundle.
        backends: Those of which TensorRT and TensorRT for RTX get plans.
        env: Names the GPU.
        dry: Build nothing, and say what would be.
        networks: Those to build; None is all.
    """
    rows: list[dict[str, Any]] = []
    for backend in backends:
        if backend not in ("tensorrt", "tensorrt_rtx"):
            continue
        for name, spec in bundle.manifest.networks.items():
            if networks is not None and name not in networks:
                continue
            for precision in dict.fromkeys(v.precision for v in variants(spec, [backend])):
                row = {"bundle": bundle.path.name, "network": name, "backend": backend, "precision": precision}
                if dry:
                    rows.append({**row, "state": "would be built"})
                    continue
                gpu = env.gpus[0]
                target = BuildTarget(backend, (gpu.sm,), gpu.name if backend == "tensorrt" else "")  # type: ignore[arg-type]
                log.info("plan of %s/%s for %s in %s", bundle.path.name, name, backend, precision)
                try:
                    plan = build_plan(bundle, name, target, BuildOptions(precision=precision))
                except SfumatoError as error:
                    rows.append({**row, "state": "failed", "reason": str(error)})
                else:
                    rows.append({**row, "state": "there", "bytes": Path(plan.path).stat().st_size, **plan.built})
    return rows
