"""Capturing a gradient: torch's autograd over a module becomes a program of forward operators.

`torch.export.export` cannot trace autograd. The function under it can, told to trace after dispatch; it is private to
torch, so torch's version is pinned.

Tracing with symbolic sizes is slow. What makes it bearable: arithmetic on sizes is traced where a size is used, and not
wherever torch asks whether a tensor is contiguous; and what torch's ONNX exporter would take apart is taken apart while
tracing, so that it need not trace again (see `lowering`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..errors import ExportError
from .gradient import Differentiated
from .gradient_backward import decompositions
from .gradient_forward import DifferentiableForms

__all__ = ["capture"]

Table = Mapping[Any, Callable[..., Any]]


class _Traced(nn.Module):
    """`Differentiated` with its operators replaced, backward ones too; they must be so while tracing, see `capture`."""

    def __init__(self, module: Differentiated, table: Table, outputs: int) -> None:
        super().__init__()
        self.objective = module.objective  # the names of the weights in the graph begin with this
        self._module = [module]  # in a list, so that the weights are not seen twice
        self._table, self._outputs = table, outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        from torch.fx.experimental.proxy_tensor import decompose, get_proxy_mode, maybe_enable_thunkify

        if get_proxy_mode() is None:
            # torch runs a module once before it traces it, to see whether outputs are views and inputs are written to.
            # Neither happens in a gradient, so that run, nearly as long as tracing, is spared.
            return tuple(inputs[0].new_zeros(()) for _ in range(self._outputs))
        with DifferentiableForms(), decompose(self._table), maybe_enable_thunkify():
            return self._module[0](*inputs)


def capture(
    module: Differentiated, inputs: tuple[Tensor, ...], axes: tuple[dict[int, Any], ...], outputs: int
) -> ExportedProgram:
    """A `Differentiated` as a program of forward operators.

    Arguments:
        module: The gradient.
        inputs: An example.
        axes: Symbolic axes of every input, as `torch.export` takes them.
        outputs: How many tensors it gives.

    Raises:
        ExportError: This torch lacks the function.
    """
    try:
        from torch.export._trace import _export  # pyright: ignore[reportPrivateUsage]
    except ImportError:
        raise ExportError(
            f"torch {torch.__version__} has no torch.export._trace._export, which traces gradients; "
            "install a version that has it: pip install 'torch==2.13.*'"
        ) from None

    module.eval().requires_grad_(False)
    program = _export(
        _Traced(module, {**_exporters_table(), **decompositions()}, outputs),
        inputs,
        dynamic_shapes=(axes,),
        strict=False,
        pre_dispatch=False,
        # As torch.onnx does: diffusers asks whether a batch has 64 rows or more, which must not bound the batch.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    _remove_aliases(program)
    return program


def _exporters_table() -> Table:
    """What torch's ONNX exporter decomposes: private, and nothing where it is not found; the exporter then does it."""
    try:
        from torch.onnx._internal.exporter import _decomp, _registration  # pyright: ignore[reportPrivateUsage]

        registry = _registration.ONNXRegistry.from_torchlib()
        return _decomp.create_onnx_friendly_decomposition_table(set(_decomp.get_onnx_implemented_overloads(registry)))
    except (ImportError, AttributeError):
        return {}


def _remove_aliases(program: ExportedProgram) -> None:
    """Drop what autograd leaves: operators that only rename."""
    aten = torch.ops.aten
    graph = program.graph
    for node in list(graph.nodes):
        names = (aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)
        if node.op == "call_function" and node.target in names:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    results: Any = graph.output_node().args[0]
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if hasattr(spec.arg, "name") and hasattr(result, "name"):
            spec.arg.name = result.name
    graph.eliminate_dead_code()
    program.graph_module.recompile()
