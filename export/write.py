"""Writing one network into a bundle: build, trace, clean, store, check, free."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..engines.bundle import BundleWriter
from ..engines.islands import ISLANDS
from ..engines.manifest import NetworkSpec
from ..engines.precision import Precision, PrecisionPlan
from ..errors import ExportError
from . import graph
from .check import Case, check_graph, measure, tolerances, write_reference
from .gradient import Differentiated
from .network import Network
from .trace import trace
from .untie import cast_last, untie_square_weights

__all__ = ["Progress", "Traced", "export_network", "quiet", "trace_network", "write_network"]

Progress: TypeAlias = "Callable[[str], None]"
"""Told of every step in a few words, e.g. "unet: tracing"."""


def quiet(message: str) -> None:
    """The progress that tells nobody."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph in memory, its weights still those of the module, and what torch makes of a few inputs."""

    network: Network
    model: ir.Model
    cases: tuple[Case, ...]
    gradient: bool


def export_network(
    writer: BundleWriter, network: Network, precision: Precision, *, on_progress: Progress = quiet
) -> NetworkSpec:
    """Write ``<name>.onnx``, ``<name>.weights`` and ``<name>.reference.safetensors`` and describe them.

    Arguments:
        writer: The bundle in the making.
        network: What to export.
        precision: How large weights are stored.
        on_progress: Told of the steps.

    Raises:
        ExportError: It cannot be traced, the checker objects, or ONNX Runtime and torch disagree.
    """
    return write_network(writer, trace_network(network, on_progress=on_progress), precision, on_progress=on_progress)


def trace_network(network: Network, *, on_progress: Progress = quiet) -> Traced:
    """The first half of `export_network`, which is Python's work and keeps one core busy: build, run, trace.

    Raises:
        ExportError: It cannot be traced.
    """
    name = network.name
    on_progress(f"{name}: loading")
    module = network.build()
    gradient = isinstance(module, Differentiated)
    examples = [network.example(module, network.sizes(variant), seed=variant) for variant in network.variants]
    cases = tuple((inputs, _run(network, module, inputs)) for inputs in examples)

    on_progress(f"{name}: tracing")
    model = trace(network, module, network.example(module, network.sizes(0)))
    graph.clean(model)
    graph.name_dimensions(model, network.inputs, network.outputs)
    return Traced(network, model, cases, gradient)


def write_network(
    writer: BundleWriter, traced: Traced, precision: Precision, *, on_progress: Progress = quiet
) -> NetworkSpec:
    """The second half, which is the disk's and the engines' work: convert, write, check. `traced` loses its weights.

    They are gone before ONNX Runtime opens what was written, so that only one copy of them in float32 is in memory at
    a time.

    Raises:
        ExportError: The checker objects, or ONNX Runtime and torch disagree.
    """
    network, model, cases, gradient = traced.network, traced.model, traced.cases, traced.gradient
    name = network.name
    path = writer.path(f"{name}.onnx")
    on_progress(f"{name}: writing")
    reference = writer.path(f"{name}.reference.safetensors")
    write_reference(reference, *cases[0])
    kept = graph.store_rows_int8(model) if network.weights == "int8" else graph.store(model, precision)
    if gradient:
        untie_square_weights(model)
        cast_last(model)
    weights = graph.save(model, path, shares=_shared(writer, network))
    graph.release(model)
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
    # What a graph is held against must not share its forms: a gradient that recomputes is held against one that keeps.
    torchs = module.plain() if isinstance(module, Differentiated) else module
    with torch.no_grad():
        result = torchs(*(inputs[b.name] for b in network.inputs))
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(network.outputs):
        names = ", ".join(b.name for b in network.outputs)
        raise ExportError(f"{network.name}: the module gives {len(results)} outputs, the bindings are {names}")
    # Copies, since a module may return a view of a weight.
    return {b.name: tensor.detach().clone() for b, tensor in zip(network.outputs, results, strict=True)}
