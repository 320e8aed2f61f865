"""Rewriting in linear time: what onnxscript's optimizer would look for at every node, looked for where it can begin.

For a pattern that ends in several nodes (two slices that are one split) onnxscript lists all nodes of the graph anew
for every node. In a gradient of 7,500 nodes that was 50 of 60 seconds, as long as tracing it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
from onnxscript import rewriter

__all__ = ["quick_patterns"]


@contextmanager
def quick_patterns() -> Generator[None]:
    """While open, the optimizer's patterns of several ends look at a node's operator first.

    The list of rules is private to onnxscript; where another version has it elsewhere, it is only slower.
    """
    changed: list[Any] = []
    for rule in getattr(rewriter, "_DEFAULT_REWRITE_RULES", ()):
        matcher: Any = getattr(rule, "_matcher", None)
        pattern = getattr(matcher, "pattern", None)
        if pattern is not None and not pattern.has_single_output_node and "match" not in vars(matcher):
            matcher.match = _from(pattern.output_nodes[0].op_identifier(), matcher.match)
            changed.append(matcher)
    try:
        yield
    finally:
        for matcher in changed:
            del matcher.match  # the class's own again


def _from(first: Any, match: Callable[..., Any]) -> Callable[..., Any]:
    def look(model: ir.Model, graph: ir.Graph | ir.Function, node: ir.Node, **options: Any) -> Any:
        if first is not None and node.op_identifier() != first:
            return None  # no match
        return match(model, graph, node, **options)

    return look
