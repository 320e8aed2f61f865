"""Writing one network into a bundle: build, trace, clean, store, check, free."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..engines.bundle import BundleWriter
from ..engines.islands import ISLANDS
from ..engines.manifest import NetworkSpec
from ..engines.precision import Precision, PrecisionPlan
from ..errors import ExportError
from . import graph
from .check import check_graph, measure, tolerances, write_reference
from .gradient import Differentiated
from .network import Network
from .trace import trace
from .untie import cast_last, untie_square_weights

__all__ = ["Progress", "export_network", "quiet"]

Progress: TypeAlias = "Callable[[str], None]"
"""Told of every step in a few words, e.g. "unet: tracing"."""


def quiet(message: str) -> None:
    """The progress that tells nobody."""


def export_network(
    writer: BundleWriter, network: Network, precision: Precision, *, on_progress: Progress = quiet
) -> NetworkSpec:
    """Write ``<name>.onnx``, ``<name>.weights`` and ``<name>.reference.safetensors`` and describe them.

    The torch module is gone before ONNX Runtime opens what was written, so that only one copy of the weights in
    float32 is in memory at a time.

    Arguments:
        writer: The bundle in the making.
        network: What to export.
        precision: How large weights are stored.
        on_progress: Told of the steps.

    Raises:
        ExportError: It cannot be traced, the checker objects, or ONNX Runtime and torch disagree.
    """
    name = network.name
    path = writer.path(f"{name}.onnx")
    on_progress(f"{name}: loading")
    module = network.build()
    gradient = isinstance(module, Differentiated)
    examples = [network.example(module, network.sizes(variant), seed=variant) for variant in network.variants]
    cases = [(inputs, _run(network, module, inputs)) for inputs in examples]
    reference = writer.path(f"{name}.reference.safetensors")
    write_reference(reference, *cases[0])

    on_progress(f"{name}: tracing")
    model = trace(network, module, network.example(module, network.sizes(0)))
    graph.clean(model)
    graph.name_dimensions(model, network.inputs, network.outputs)
    on_progress(f"{name}: writing")
    kept = graph.store_rows_int8(model) if network.weights == "int8" else graph.store(model, precision)
    if gradient:
        untie_square_weights(model)
        cast_last(model)
    weights = graph.save(model, path, shares=_shared(writer, network))
    graph.release(model)
    del model, module
    gc.collect()

    on_progress(f"{name}: checking")
    check_graph(name, path)
    spec = NetworkSpec(
        name=name,
        graph=path.name,
        weights=tuple(p.name for p in weights),
        inputs=network.inputs,
        outputs=network.outputs,
        dimensions=dict(network.dimensions),
        precision=PrecisionPlan(
            "fp32" if network.weights else precision, (*((ISLANDS,) if network.islands else ()), *kept)
        ),
        reference=reference.name,
        tolerance=tolerances(network.weights or precision, gradient=gradient),
    )
    return replace(spec, parity=measure(path.parent, spec, cases, gradient=gradient))


def _shared(writer: BundleWriter, network: Network) -> Path | None:
    """The graph whose weights are used, if it has been written."""
    path = None if network.shares is None else writer.path(f"{network.shares}.onnx")
    return path if path is not None and path.is_file() else None


def _run(network: Network, module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    module.eval().requires_grad_(False)
    with torch.no_grad():
        result = module(*(inputs[b.name] for b in network.inputs))
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(network.outputs):
        names = ", ".join(b.name for b in network.outputs)
        raise ExportError(f"{network.name}: the module gives {len(results)} outputs, the bindings are {names}")
    # Copies, since a module may return a view of a weight.
    return {b.name: tensor.detach().clone() for b, tensor in zip(network.outputs, results, strict=True)}
