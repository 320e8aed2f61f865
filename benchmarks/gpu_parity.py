"""Parity on a GPU: every network against ONNX Runtime in fp32 on the processor, and against what torch stored."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gpu_engines import Variant, open_variant, variants

from sfumato.calibration.parity import compare, stored_reference
from sfumato.engines.bundle import Bundle
from sfumato.engines.spec import NetworkSpec
from sfumato.errors import SfumatoError

__all__ = ["check_parity", "compare_with_polygraphy", "has_polygraphy"]

log = logging.getLogger(__name__)

CALLS = 3
"""Calls with the same shapes: the first allocates, the second may record a CUDA graph, the third replays it."""


def check_parity(bundle: Bundle, backends: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row for each network and variant: relative deviations, the manifest's limit, passed or why not."""
    for spec in bundle.manifest.networks.values():
        row: dict[str, Any] = {"bundle": bundle.path.name, "network": spec.name}
        try:
            feeds, stored = stored_reference(bundle, spec)
            reference = _run(bundle, spec, Variant("onnxruntime", "fp32"), feeds)[0]
        except SfumatoError as error:
            yield {**row, "variant": "reference", "status": "error", "reason": str(error)}
            continue
        for variant in variants(spec, backends):
            log.info("parity of %s/%s on %s", bundle.path.name, spec.name, variant)
            yield {**row, "variant": str(variant), **_judge(bundle, spec, variant, feeds, reference, stored)}


def _judge(bundle: Bundle, spec: NetworkSpec, variant: Variant, feeds: Any, reference: Any, stored: Any) -> Any:
    limit = spec.tolerance[variant.precision]
    try:
        calls = _run(bundle, spec, variant, feeds, CALLS)
        near = [compare(call, reference) for call in calls]
        true = compare(calls[-1], stored)
    except SfumatoError as error:
        return {"limit": limit, "status": "error", "reason": str(error)}
    worst = max((d.relative for d in near), default=0.0) if all(d.finite for d in near) else float("nan")
    numbers = {"limit": limit, "against_cpu": worst, "against_torch": true.relative, "cosine": near[-1].cosine}
    if not (worst <= limit and true.relative <= limit):  # NaN is not
        return {**numbers, "status": "failed", "reason": f"a relative error of {max(worst, true.relative):.2e}"}
    return {**numbers, "status": "passed", "reason": ""}


def _run(bundle: Bundle, spec: NetworkSpec, variant: Variant, feeds: Any, calls: int = 1) -> list[dict[str, Any]]:
    """Outputs of several calls with NumPy arrays and, on a GPU, of as many with device arrays."""
    with open_variant(bundle, spec, variant) as engine:
        found = [{name: array.copy() for name, array in engine(**feeds).items()} for _ in range(calls)]
        if hasattr(engine, "cuda"):
            given = {n: engine.cuda.upload(np.ascontiguousarray(a), engine.stream) for n, a in feeds.items()}
            for _ in range(calls):
                found.append({name: array.numpy(engine.stream) for name, array in engine(**given).items()})
    return found


def has_polygraphy() -> bool:
    """Whether Polygraphy is installed."""
    return importlib.util.find_spec("polygraphy") is not None


def compare_with_polygraphy(bundle: Bundle, backends: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Polygraphy's Comparator on our engines against ONNX Runtime: errors on average, as NVIDIA compares.

    A tensor passes if its mean absolute or its mean relative error is within the manifest's tolerance.
    """
    from polygraphy.comparator import Comparator, SimpleCompareFunc

    for spec in bundle.manifest.networks.values():
        try:
            feeds, _ = stored_reference(bundle, spec)
        except SfumatoError:
            continue  # said by check_parity
        for variant in variants(spec, backends):
            if variant.graphs is False:
                continue
            limit = spec.tolerance[variant.precision]
            row = {"bundle": bundle.path.name, "network": spec.name, "variant": str(variant), "limit": limit}
            runners = [_runner(bundle, spec, chosen) for chosen in (variant, Variant("onnxruntime", "fp32"))]
            log.info("Polygraphy: %s/%s, %s against ONNX Runtime", bundle.path.name, spec.name, variant)
            try:
                results = Comparator.run(runners, data_loader=[feeds])
                judge = SimpleCompareFunc(check_error_stat="mean", atol=limit, rtol=limit)
                passed = bool(Comparator.compare_accuracy(results, compare_func=judge))
            except Exception as error:  # what an engine raises passes through Polygraphy, whose own has no useful base
                yield {**row, "status": "error", "reason": " ".join(str(error).split())[:300]}
                continue
            yield {**row, "status": "passed" if passed else "failed", "reason": "" if passed else "see its output"}


def _runner(bundle: Bundle, spec: NetworkSpec, variant: Variant) -> Any:
    """An engine of ours as one of Polygraphy's runners."""
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata

    class EngineRunner(BaseRunner):
        def activate_impl(self) -> None:
            self._engine = open_variant(bundle, spec, variant)

        def get_input_metadata_impl(self) -> Any:
            metadata = TensorMetadata()
            for binding in spec.inputs:
                shape = tuple(-1 if isinstance(extent, str) else extent for extent in binding.shape)
                metadata.add(binding.name, np.dtype(binding.dtype), shape)
            return metadata

        def infer_impl(self, feed_dict: Any) -> Any:
            outputs = {name: array.copy() for name, array in self._engine(**feed_dict).items()}
            self.inference_time = 0.0
            return outputs

        def deactivate_impl(self) -> None:
            self._engine.close()

    return EngineRunner(name=str(variant))
