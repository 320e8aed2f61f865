"""Tracing: a torch module becomes an ONNX graph with named, ranged dimensions."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Collection, Generator, Mapping
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..engines.binding import Binding, Dimension
from ..errors import ExportError
from .capture import capture
from .gradient import Differentiated
from .lowering import direct_lowering, without_collection, without_stack_traces
from .network import Network
from .units import Multiples, join, joined, place, split

__all__ = ["OPSET", "trace"]

OPSET = 20
"""The newest opset whose attention and group norm are plain operators in every engine that we target."""


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silences remarks of the exporter on itself (absent torchvision, names it renames)."""
    names = ("torch.onnx", "torch.onnx._internal.exporter._registration", "torch.export", "torch.__trace", "onnxscript")
    levels = [(logger, logger.level) for logger in map(logging.getLogger, names)]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def trace(network: Network, module: nn.Module, inputs: Mapping[str, Tensor]) -> ir.Model:
    """The graph of `module` in float32, its weights shared with the module and not yet copied.

    Arguments:
        network: Names and ranges.
        module: What `network.build` gave.
        inputs: An example, by name; extents of symbolic dimensions are not kept.

    Raises:
        ExportError: The exporter cannot follow the module, or specialises a dimension that should stay free.
    """
    module.eval().requires_grad_(False)
    inferred = {name for name, d in network.dimensions.items() if d.multiple == 1}
    names = inferred if isinstance(module, Differentiated) else network.derived.keys()
    axes, multiples = _dynamic_axes(network.inputs, network.dimensions, names)
    given = tuple(split(inputs[b.name], parts) for b, parts in zip(network.inputs, multiples, strict=True))
    try:
        with (
            _quiet(),
            torch.no_grad(),
            direct_lowering(),
            without_stack_traces(),
            without_collection(),
            joined(module, multiples),
        ):
            count = len(network.outputs)
            gradient = capture(module, given, axes, count) if isinstance(module, Differentiated) else None
            if gradient is not None:
                _check_free(network, gradient, multiples)
            program = torch.onnx.export(
                module if gradient is None else gradient,
                given if gradient is None else (),
                input_names=[b.name for b in network.inputs],
                output_names=[b.name for b in network.outputs],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=axes if gradient is None else None,
                optimize=False,
                verbose=False,
            )
        model = cast("ir.Model", cast(Any, program).model)
        join(model.graph, multiples)
        return model
    except ExportError as error:
        raise ExportError(f"{network.name}: {error}") from error
    except Exception as error:  # the exporter raises many kinds of its own
        raise ExportError(
            f"{network.name}: torch cannot trace it over {', '.join(network.dimensions)} ({_reason(error)}); "
            "see the chained error, or give the dimension a multiple that the network can halve"
        ) from error


_NO_FORM = "No ONNX function found"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def _reason(error: BaseException) -> str:
    """The line of a chain of errors that says what is wrong: the operator without a form, else how it begins."""
    chain, at = list[str](), cast("BaseException | None", error)
    while at is not None:
        chain += [_COLOURS.sub("", line).strip() for line in str(at).splitlines()] or [type(at).__name__]
        at = at.__cause__ or at.__context__
    lines = [line for line in chain if line]
    return next((line for line in lines if _NO_FORM in line), lines[0] if lines else type(error).__name__)


def _check_free(network: Network, program: ExportedProgram, multiples: tuple[Multiples, ...]) -> None:
    """Refuse a dimension that the module made a number of: torch does that without a word where it infers ranges."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    found = [values[str(name)] for name in program.graph_signature.user_inputs]
    for binding, value, parts in zip(network.inputs, found, multiples, strict=True):
        for axis, extent in enumerate(binding.shape):
            allowed = network.dimensions.get(extent) if isinstance(extent, str) else None
            if allowed is None or allowed.min == allowed.max:
                continue
            at = value.shape[place(axis, parts)]
            bounds = None if isinstance(at, int) else program.range_constraints.get(at.node.expr)
            if isinstance(at, int) or (bounds is not None and bounds.lower == bounds.upper):
                raise ExportError(
                    f"the module takes {extent} of {binding.name!r} for a number, by int(…) of a size perhaps; "
                    "calculate with the size itself, or give the dimension one extent"
                )


def _dynamic_axes(
    inputs: tuple[Binding, ...], dimensions: Mapping[str, Dimension], inferred: Collection[str]
) -> tuple[tuple[dict[int, Any], ...], tuple[Multiples, ...]]:
    """torch's symbolic dimension for every symbolic axis, and the axes that are traced in units, see `units`.

    Arguments:
        inputs: The inputs.
        dimensions: Their dimensions.
        inferred: Those of which torch finds out relations and ranges itself: products of others, and in a
            gradient all that it can, since it holds a branch of diffusers (64 rows or more) against a stated range.
    """
    symbols: dict[str, object] = {}
    for name, d in dimensions.items():
        if d.min == d.max:
            continue
        if name in inferred:
            symbols[name] = torch.export.Dim.AUTO
        else:
            symbols[name] = torch.export.Dim(name, min=-(-d.min // d.multiple), max=d.max // d.multiple)
    axes, multiples = list[dict[int, Any]](), list[Multiples]()
    for b in inputs:
        free = {axis: e for axis, e in enumerate(b.shape) if isinstance(e, str) and e in symbols}
        parts = {axis: dimensions[e].multiple for axis, e in free.items() if dimensions[e].multiple > 1}
        parts = {axis: multiple for axis, multiple in parts.items() if free[axis] not in inferred}
        axes.append({place(axis, parts): symbols[e] for axis, e in free.items()})
        multiples.append(parts)
    return tuple(axes), tuple(multiples)
