"""Self-checks: the ONNX checker on what was written, and ONNX Runtime against torch.

Tolerances are relative L2 errors against torch in float32 on the weights as they were before storage. They are a
compute part plus a storage part, each the rounding error of one layer times the root of some hundred layers, since
rounding errors of successive layers are independent, times a margin of three:

==========  ===================  ======================================================
part        per layer (rms)      allowed
==========  ===================  ======================================================
fp32        3e-8                 1e-4: summation orders differ too, by thousands of terms
fp16        1.4e-4 (2^-11 / √12) 1e-2 computing, 5e-3 stored (weights alone are rounded)
bf16        1.1e-3 (2^-8 / √12)  8e-2 computing, 4e-2 stored
int8 rows   4e-3 of a row        5e-2 stored: cosine 0.999
==========  ===================  ======================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from torch import Tensor

from ..calibration.parity import Deviation, compare
from ..engines.binding import Array
from ..engines.bundle import Bundle
from ..engines.engine import Engine, available_backends
from ..engines.manifest import Artifact, Manifest, NetworkSpec
from ..engines.onnxruntime import OnnxRuntimeEngine
from ..engines.openvino import OpenVinoEngine
from ..errors import ExportError

__all__ = ["Case", "check_graph", "measure", "tolerances", "write_reference"]

_COMPUTE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
_STORAGE = {"fp32": 0.0, "fp16": 5e-3, "bf16": 4e-2, "int8": 5e-2}


GRADIENT = 0.0998
"""Largest relative error allowed to a gradient: its cosine is then at least 0.995, whatever the error's direction."""


def tolerances(storage: str, *, gradient: bool = False) -> dict[str, float]:
    """Relative error allowed to an engine by its precision.

    Arguments:
        storage: How weights are stored: "fp32", "fp16", "bf16" or "int8".
        gradient: The network holds a backward pass, which is as deep again and ends in differences.
    """
    allowed = {precision: compute + _STORAGE[storage] for precision, compute in _COMPUTE.items()}
    return {precision: min(2 * limit, GRADIENT) for precision, limit in allowed.items()} if gradient else allowed


def check_graph(name: str, path: Path) -> None:
    """onnx.checker with full shape inference; ``ExportError`` if it objects."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # onnx raises several kinds
        raise ExportError(f"{name}: the ONNX checker objects to {path.name}: {error}") from error


def write_reference(path: Path, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
    """Store inputs and torch's outputs as ``in/<name>`` and ``out/<name>``; ``ExportError`` if one is not finite."""
    from safetensors.numpy import save

    arrays = {f"in/{name}": tensor.numpy() for name, tensor in inputs.items()}
    arrays |= {f"out/{name}": tensor.numpy() for name, tensor in outputs.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(
                f"{path.stem}: torch itself gives NaN or infinity in {name!r}; the checkpoint's weights are broken"
            )
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


Case: TypeAlias = "tuple[Mapping[str, Tensor], Mapping[str, Tensor]]"
"""Inputs, and torch's outputs for them, by name."""


def measure(folder: Path, spec: NetworkSpec, cases: Sequence[Case], *, gradient: bool = False) -> dict[str, float]:
    """Run a written network on ONNX Runtime, and a gradient on OpenVINO too, and compare with torch.

    Arguments:
        folder: Where the bundle is being written.
        spec: The network, its tolerance included.
        cases: One or more sizes.
        gradient: Whether it holds a backward pass. OpenVINO, if it is installed, has been seen to give garbage for
            those without a word (see `untie`), so it is held against the same numbers, in float32.

    Returns:
        The worst deviations on ONNX Runtime: ``max_abs``, ``relative``, ``cosine``; and of OpenVINO
        ``openvino_relative``.

    Raises:
        ExportError: The deviation exceeds ``spec.tolerance["fp32"]``.
        EngineError: An engine refuses the graph.
    """
    files = {path: Artifact("0" * 64, (folder / path).stat().st_size) for path in spec.files}
    networks = {spec.name: replace(spec, reference=None)}
    bundle = Bundle(folder, Manifest("export", "unfinished", "unknown", {}, networks, files=files))
    with OnnxRuntimeEngine(bundle, spec, optimize=False) as engine:
        worst = _worst("ONNX Runtime", engine, cases)
    parity = {key: asdict(worst)[key] for key in ("max_abs", "relative", "cosine")}
    if gradient and available_backends()["openvino"] is None:
        with OpenVinoEngine(bundle, spec, precision="fp32", cache=False) as engine:
            parity["openvino_relative"] = _worst("OpenVINO", engine, cases).relative
    return parity


def _worst(backend: str, engine: Engine, cases: Sequence[Case]) -> Deviation:
    """The worst deviation of all cases; ``ExportError`` if it is too large."""
    spec, found = engine.spec, list[Deviation]()
    for inputs, outputs in cases:
        feeds: dict[str, Array] = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        found.append(compare(engine(**feeds), {name: tensor.numpy() for name, tensor in outputs.items()}))
    worst = max(found, key=lambda d: d.relative if d.finite else math.inf)
    if not worst.finite or worst.relative > spec.tolerance["fp32"]:
        error = f"relative error {worst.relative:.2e}" if worst.finite else "NaN or infinity"
        raise ExportError(
            f"{spec.name}: {backend} and torch disagree, {error} where {spec.tolerance['fp32']:.2e} is allowed; "
            "export with precision='fp32' to tell rounding from a fault in the graph"
        )
    return worst
