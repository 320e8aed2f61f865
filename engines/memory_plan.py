"""Memory before it is needed: what building and running a bundle will take at most, and on which devices it fits.

Weights and activations follow from the graph (`liveness`). What a library adds to them was measured, and is held
against new measurements by a test where the library can run without a GPU: OpenVINO in float32, and the builder of
TensorRT for RTX. What a GPU takes to run is the same arithmetic with a context added, and has not been measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import ParameterError
from .build_options import BuildOptions, build_precision, build_profile
from .bundle import Bundle
from .liveness import footprint
from .manifest import NetworkSpec
from .onnx_model import onnx, read_model

__all__ = ["DEVICES", "MemoryPlan", "NetworkMemory", "TargetKind", "fits", "plan_memory", "target_kind"]

TargetKind: TypeAlias = Literal["cpu", "rtx", "jetson"]

MB = 1_000_000
DEVICES = (8, 16, 32, 64)
"""Memory of usual devices in GB; on a Jetson the GPU shares it."""

_SYSTEM = {"cpu": 700 * MB, "rtx": 700 * MB, "jetson": 1500 * MB}
"""What the system and its desktop keep for themselves."""

_OPENVINO, _PACKED = 51 * MB, 2
"""OpenVINO on a CPU: its own memory per network, and how often float32 weights are there while it packs them."""

_BUILDER, _PER_WEIGHT, _PER_NODE = 280 * MB, 3.1, 0.28 * MB
"""The builder of TensorRT for RTX: its libraries, copies of the weights as the plan has them, kernels for each node."""

_CONTEXT = 350 * MB
"""What a CUDA context and the runtime library take. Not measured here."""


@dataclass(frozen=True)
class NetworkMemory:
    """One network, in bytes.

    Arguments:
        name: The network.
        weights: As the engine keeps them.
        activations: The most that is alive at once.
        build: Highest resident memory while its plan is built; 0 where there is nothing to build.
        at: The extents that this is for.
    """

    name: str
    weights: int
    activations: int
    build: int
    at: Mapping[str, int]


@dataclass(frozen=True)
class MemoryPlan:
    """A bundle on one kind of target, in bytes.

    Arguments:
        kind: The target.
        networks: Each network.
        build: The highest of their builds, which come one after another.
        run: All weights, the largest activations (networks run one after another), and what the library adds.
    """

    kind: TargetKind
    networks: tuple[NetworkMemory, ...]
    build: int
    run: int


def target_kind(text: str) -> TargetKind:
    """ "cpu", "rtx" or "rtx:sm89", "sm87" or another Jetson -> the kind; `ParameterError` for anything else."""
    word = text.strip().lower()
    if word == "cpu":
        return "cpu"
    if word in ("sm72", "sm87", "sm110", "tensorrt"):
        return "jetson"
    if word == "rtx" or word.startswith("rtx:") or word in ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"):
        return "rtx"
    raise ParameterError(f"target is {text!r}; write cpu, rtx:sm89, or sm87 for a Jetson")


def plan_memory(
    bundle: Bundle, kind: TargetKind, options: BuildOptions | None = None, networks: Sequence[str] = ()
) -> MemoryPlan:
    """Predict what a bundle takes, at the largest shapes of the profile that it would be built for.

    Arguments:
        bundle: The bundle; only its graphs are read.
        kind: The target.
        options: Ranges and precision, as for `build_plan`.
        networks: Names of those to count; all by default.

    Raises:
        MissingDependency: onnx, which reads the graphs, is not installed.
    """
    onnx("plan", "reading graphs for plan-memory")  # no plan is built, so no builder's extra is asked for
    options = options or BuildOptions()
    specs = [bundle.network(name) for name in networks or bundle.manifest.networks]
    found = tuple(_network(bundle, spec, kind, options) for spec in specs)
    weights, most = sum(n.weights for n in found), max((n.activations for n in found), default=0)
    own = _OPENVINO * len(found) if kind == "cpu" else _CONTEXT
    return MemoryPlan(kind, found, max((n.build for n in found), default=0), weights + most + own)


def fits(plan: MemoryPlan, gigabytes: int) -> tuple[bool, bool]:
    """Whether a device of so many GB can build the plans, and run them."""
    room = gigabytes * 1000 * MB - _SYSTEM[plan.kind]
    return plan.build <= room, plan.run <= room


def _network(bundle: Bundle, spec: NetworkSpec, kind: TargetKind, options: BuildOptions) -> NetworkMemory:
    profile = build_profile(spec, options)
    symbols = {
        extent: profile.max[binding.name][axis]
        for binding in spec.inputs
        for axis, extent in enumerate(binding.shape)
        if isinstance(extent, str)
    }
    model = read_model(bundle.file(spec.graph))
    taken = footprint(model, symbols)
    if kind == "cpu":
        return NetworkMemory(spec.name, _PACKED * taken.widened + taken.integers, taken.peak, 0, symbols)
    half = build_precision(spec, options) != "fp32"
    weights = (taken.widened // 2 if half else taken.widened) + taken.integers
    activations = taken.peak // 2 if half else taken.peak
    build = _build(len(model.graph.node), weights)
    # A Jetson's GPU shares the memory: while kernels are timed, weights and activations are there once more.
    shared = weights + activations if kind == "jetson" else 0
    return NetworkMemory(spec.name, weights, activations, build + shared, symbols)


def _build(nodes: int, weights: int) -> int:
    return int(_BUILDER + _PER_WEIGHT * weights + _PER_NODE * nodes)
