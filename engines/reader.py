"""Reader: the parts of a manifest, strictly from JSON nodes; `ManifestError` names the path that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from .binding import Binding, Dimension
from .precision import PrecisionPlan, check_precision
from .spec import Artifact, Betas, NetworkSpec, PredictionKind, ScheduleSpec, relative_path
from .strict import Node

__all__ = [
    "read_artifact",
    "read_filled",
    "read_identifier",
    "read_network",
    "read_path",
    "read_schedule",
    "read_table",
]

T = TypeVar("T")


def read_filled(node: Node) -> str:
    return node.string() or node.fail("is empty; write something")


def read_identifier(text: str, node: Node) -> str:
    return text if text.isidentifier() and text.isascii() else node.fail("the name must be an ASCII identifier")


def read_path(node: Node) -> str:
    return node.build(lambda: relative_path(node.string()))


def _optional_path(node: Node) -> str | None:
    return None if node.is_null else read_path(node)


def read_table(node: Node, read: Callable[[Node], T]) -> dict[str, T]:
    return {key: read(item) for key, item in node.mapping().items()}


def read_artifact(node: Node) -> Artifact:
    sha256, size = node.record("sha256", "bytes")
    digest = sha256.string()
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        sha256.fail(f"is {digest[:80]!r}, need 64 lower-case hexadecimal digits")
    return Artifact(digest, size.integer(0))


def _extent(node: Node) -> int | str:
    return node.string() if isinstance(node.value, str) else node.integer(1)


def _binding(node: Node) -> Binding:
    name, dtype, shape = node.record("name", "dtype", "shape")
    return node.build(lambda: Binding(name.string(), dtype.string(), tuple(_extent(e) for e in shape.array())))


def _dimension(node: Node) -> Dimension:
    fields = [item.integer(1) for item in node.record("min", "opt", "max", "multiple")]
    return node.build(lambda: Dimension(*fields))


def _plan(node: Node) -> PrecisionPlan:
    default, keep, scales = node.record("default", "keep_fp32", "scales")
    kept = tuple(item.string() for item in keep.array())
    factors = read_table(scales, Node.number)
    return node.build(lambda: PrecisionPlan(check_precision(default.string()), kept, factors))


def _tolerance(node: Node) -> float:
    value = node.number()
    return value if value > 0 else node.fail(f"is {value}, need a positive number")


def read_network(name: str, node: Node) -> NetworkSpec:
    graph, weights, inputs, outputs, dimensions, precision, reference, tolerance, parity = node.record(
        "graph", "weights", "inputs", "outputs", "dimensions", "precision", "reference", "tolerance", "parity"
    )
    limits = read_table(tolerance, _tolerance)
    for key in limits:
        tolerance.build(lambda key=key: check_precision(key))  # type: ignore[misc]
    fields: dict[str, Any] = {
        "graph": read_path(graph),
        "weights": tuple(read_path(item) for item in weights.array()),
        "inputs": tuple(_binding(item) for item in inputs.array()),
        "outputs": tuple(_binding(item) for item in outputs.array()),
        "dimensions": read_table(dimensions, _dimension),
        "precision": _plan(precision),
        "reference": _optional_path(reference),
        "tolerance": limits,
        "parity": read_table(parity, Node.number),
    }
    return node.build(lambda: NetworkSpec(name=name, **fields))


def read_schedule(node: Node) -> ScheduleSpec:
    betas, steps, start, end, prediction, alphas_bar, learned = node.record(
        "betas", "steps", "start", "end", "prediction", "alphas_bar", "learned_variance"
    )
    fields: dict[str, Any] = {
        "betas": betas.choice(get_args(Betas)),
        "steps": steps.integer(1),
        "start": start.number(),
        "end": end.number(),
        "prediction": prediction.choice(get_args(PredictionKind)),
        "alphas_bar": _optional_path(alphas_bar),
        "learned_variance": learned.boolean(),
    }
    return node.build(lambda: ScheduleSpec(**fields))
