"""Specs: what the manifest says of a network, of a noise schedule and of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..errors import ParameterError
from .binding import Binding, Dimension, Profile
from .precision import PrecisionPlan

__all__ = ["MOST_STEPS", "Artifact", "Betas", "NetworkSpec", "PredictionKind", "ScheduleSpec", "relative_path"]

Betas: TypeAlias = Literal["linear", "scaled_linear", "cosine", "sqrt_linear", "sqrt", "explicit"]
PredictionKind: TypeAlias = Literal["eps", "v", "x0"]

MOST_STEPS = 100_000
"""Most timesteps of a schedule, a hundred times the usual: a table of them is made before anything else is checked."""

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+")


def relative_path(text: str) -> str:
    """`text` if it may name a file of a bundle, else `ParameterError`.

    A path is parts joined by ``/``; a part is 1 to 100 of ``A-Z a-z 0-9 . _ - +`` and does not begin or end with a dot.
    So it is neither absolute nor climbing, and is the same file on every operating system.
    """
    parts = text.split("/")
    if text.startswith("/") or ".." in parts:
        raise ParameterError(f"{text!r} leads out of the bundle; name a file inside by its relative path")
    for part in parts:
        if not 1 <= len(part) <= 100 or not _LETTERS.issuperset(part) or part[0] == "." or part[-1] == ".":
            raise ParameterError(
                f"{text!r} is not a bundle path; use parts of A-Z a-z 0-9 . _ - + joined by '/', "
                "none beginning with a dot"
            )
    if len(text) > 250:
        raise ParameterError(f"{text[:40]!r}… has {len(text)} characters; use 250 or fewer")
    return text


@dataclass(frozen=True)
class Artifact:
    """One file: lower-case hexadecimal SHA-256 and length in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ScheduleSpec:
    """The noise schedule a system was trained with.

    Arguments:
        betas: Its law. ``scaled_linear`` is the field's name for Latent Diffusion's ``linear`` (a linspace of square
            roots, squared); ``linear`` is Latent Diffusion's ``sqrt_linear``. ``explicit``: `alphas_bar` says it all.
        steps: T, the number of timesteps, up to `MOST_STEPS`.
        start: First beta.
        end: Last beta.
        prediction: What the network predicts.
        alphas_bar: Path of a safetensors file with float64 ``alphas_bar`` (T,) for ``explicit``, else None.
        learned_variance: The network also outputs the log-variance interpolation in the second half of its channels.
    """

    betas: Betas
    steps: int
    start: float
    end: float
    prediction: PredictionKind
    alphas_bar: str | None = None
    learned_variance: bool = False

    def __post_init__(self) -> None:
        if (self.betas == "explicit") != (self.alphas_bar is not None):
            raise ParameterError(
                f"betas is {self.betas!r} and alphas_bar {self.alphas_bar!r}; only 'explicit' has a file"
            )
        if not 1 <= self.steps <= MOST_STEPS:
            raise ParameterError(f"steps is {self.steps}, a schedule has 1 to {MOST_STEPS}; is it another number?")


@dataclass(frozen=True)
class NetworkSpec:
    """One network: its graph, its bindings and how far an engine may stray.

    Arguments:
        name: Its name in the bundle.
        graph: Path of the ONNX graph.
        weights: Paths of its external data, in the same folder as the graph.
        inputs: Bindings it takes.
        outputs: Bindings it gives; a dimension that no input has is found by running.
        dimensions: Range of every symbolic dimension of the inputs.
        precision: How its weights are stored.
        reference: Path of a safetensors file with ``in/<name>`` and ``out/<name>`` from torch in float32, or None.
        tolerance: Largest relative L2 error against the reference, by the precision the engine computes in.
        parity: Deviation measured at export: ``max_abs``, ``relative``, ``cosine``.
    """

    name: str
    graph: str
    weights: tuple[str, ...]
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    dimensions: Mapping[str, Dimension] = field(default_factory=dict[str, Dimension])
    precision: PrecisionPlan = field(default_factory=PrecisionPlan)
    reference: str | None = None
    tolerance: Mapping[str, float] = field(default_factory=dict[str, float])
    parity: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        for kind, bindings in (("input", self.inputs), ("output", self.outputs)):
            names = [binding.name for binding in bindings]
            if len(set(names)) != len(names):
                raise ParameterError(f"network {self.name!r} has two {kind}s of one name in {names}; rename one")
        if not self.outputs:
            raise ParameterError(f"network {self.name!r} has no outputs; list them")
        needed = {s for binding in self.inputs for s in binding.symbols}
        known = needed | {s for binding in self.outputs for s in binding.symbols}
        for symbol in needed - self.dimensions.keys():
            raise ParameterError(
                f"network {self.name!r} has inputs over {symbol!r} but no range for it; add a dimension"
            )
        for symbol in self.dimensions.keys() - known:
            raise ParameterError(f"network {self.name!r} has a range for {symbol!r}, which no binding uses; remove it")

    @property
    def profile(self) -> Profile:
        """Minimal, optimal and maximal shapes of the inputs."""
        return Profile.of(self.inputs, self.dimensions)

    @property
    def files(self) -> tuple[str, ...]:
        """The files an engine reads: graph, then weights."""
        return (self.graph, *self.weights)
