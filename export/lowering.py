"""Lowering without a second trace: torch's exporter is spared its decompositions where there is nothing to decompose.

Before it translates a program, `torch.onnx.export` traces it anew, twice, to decompose operators that it has no ONNX
form of. Our networks hold one such operator, a change of dtype; the rest of that time, over a third of an export, is
spent on copying a graph. Anything else unknown, or an operator that writes in place, takes torch's own way.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

__all__ = ["direct_lowering", "without_collection", "without_stack_traces"]

_ASSERTIONS = ("aten._assert_scalar.default", "aten._assert_tensor_metadata.default")
"""What the exporter itself drops afterwards."""


@contextmanager
def direct_lowering() -> Generator[None]:
    """While open, `torch.onnx.export` decomposes only programs that need it.

    The function that is replaced is private to torch; where another version has it elsewhere, nothing is replaced.
    """
    passes, overloads = _torch_internals()
    original = getattr(passes, "decompose_with_registry", None)
    if passes is None or original is None or overloads is None:
        yield
        return

    def lower(program: ExportedProgram, registry: Any) -> ExportedProgram:
        _plain_casts(program)
        return program if _needs_nothing(program, set(overloads(registry))) else original(program, registry)

    passes.decompose_with_registry = lower  # type: ignore[attr-defined]
    try:
        yield
    finally:
        passes.decompose_with_registry = original  # type: ignore[attr-defined]


def _torch_internals() -> tuple[ModuleType | None, Callable[[Any], Any] | None]:
    """The module of the exporter's passes and the function that lists the operators it has an ONNX form of."""
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes  # pyright: ignore[reportPrivateUsage]
    except ImportError:
        return None, None
    return _fx_passes, getattr(_decomp, "get_onnx_implemented_overloads", None)


def _plain_casts(program: ExportedProgram) -> None:
    """``x.to(dtype)``, dropped where x has it already and `_to_copy` elsewhere, which is what torch makes of it."""
    graph, aten = program.graph, torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.to.dtype):
        source, dtype = node.args[0], node.args[1]
        if source.meta["val"].dtype == dtype:
            fresh = source
        else:
            with graph.inserting_before(node):
                fresh = graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})
            fresh.meta = dict(node.meta)
        node.replace_all_uses_with(fresh)
        for output in program.graph_signature.output_specs:
            if getattr(output.arg, "name", None) == node.name:
                output.arg.name = fresh.name
        graph.erase_node(node)
    program.graph_module.recompile()


def _needs_nothing(program: ExportedProgram, known: set[Any]) -> bool:
    """Whether every operator of the program has an ONNX form and none writes in place."""

    def writes(operator: Any) -> bool:
        return any(a.alias_info is not None and a.alias_info.is_write for a in operator._schema.arguments)

    for node in program.graph.nodes:
        target: Any = node.target
        if node.op in ("placeholder", "output"):
            continue
        if isinstance(target, OpOverload):
            if str(target) not in _ASSERTIONS and (target not in known or writes(target)):
                return False
        elif node.op != "call_function" or isinstance(target, HigherOrderOperator):
            return False  # a branch, say; the rest is arithmetic of sizes
    return True


@contextmanager
def without_stack_traces() -> Generator[None]:
    """While open, torch keeps no stack trace for the operators that it traces, which is a fourth of tracing's time."""
    config: Any = getattr(torch.fx, "config", None)
    before = getattr(config, "do_not_emit_stack_traces", None)
    if before is None:  # another version of torch
        yield
        return
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


@contextmanager
def without_collection() -> Generator[None]:
    """While open, Python looks for no reference cycles: tracing makes millions of objects, and nearly all of them stay
    until it ends, so looking is a sixth of its time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
