"""Denoisers: what is predicted of a noisy picture, whatever the network was trained to output.

A denoiser takes x_t and t and gives a `Prediction`, which holds the noise *and* the clean picture. The
parametrisations of published checkpoints (eps, v, x0) end here; guidance, clipping and quantising are
denoisers around denoisers; samplers see none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np

from ..engines.binding import Array
from ..engines.engine import Engine
from ..errors import BindingError, ParameterError
from .arithmetic import Arithmetic, HostArithmetic, arithmetic, engine_arithmetic
from .schedule import Schedule

__all__ = [
    "Denoiser",
    "EngineDenoiser",
    "FunctionDenoiser",
    "Parametrization",
    "Prediction",
    "PredictionKind",
    "solve",
]

PredictionKind: TypeAlias = Literal["eps", "v", "x0"]

_NOTHING: Mapping[str, Array] = MappingProxyType({})


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x_t. **The arrays belong to the denoiser: its next call overwrites them.**

    Arguments:
        eps: The noise in x_t, float32, shape of x_t.
        x0: The clean picture, float32, shape of x_t.
        log_variance: The network's second half of channels, raw, where it has learned the variance, shape of x_t:
            Dhariwal and Nichol's interpolation v in [-1, 1], or a log-variance; the DDPM sampler is told which.
        extra: Further outputs of the network by name.
    """

    eps: Array
    x0: Array
    log_variance: Array | None = None
    extra: Mapping[str, Array] = field(default_factory=lambda: _NOTHING)


class Denoiser(Protocol):
    """Anything that predicts."""

    def __call__(self, x_t: Array, t: float) -> Prediction:
        """Predict from x_t (batch, channels, height, width) at timestep index t."""
        ...


class Parametrization:
    """Turns network outputs into predictions, in buffers that are reused.

    Arguments:
        schedule: Gives alpha and sigma.
        kind: What the network outputs: "eps", "v" (alpha eps - sigma x0) or "x0".
    """

    def __init__(self, schedule: Schedule, kind: PredictionKind = "eps") -> None:
        if kind not in get_args(PredictionKind):
            raise ParameterError(f"no parametrisation is named {kind!r}, there are eps, v and x0; use one of them")
        self.schedule = schedule
        self.kind = kind
        self._math: Arithmetic | None = None
        self._buffers: tuple[Array, Array] | None = None

    def __call__(
        self,
        output: Array,
        x_t: Array,
        t: float,
        *,
        log_variance: Array | None = None,
        extra: Mapping[str, Array] = _NOTHING,
    ) -> Prediction:
        """The prediction that `output` stands for; an "eps" or "x0" output is passed on uncopied."""
        if output.shape != x_t.shape:
            raise BindingError(
                f"the network predicts {output.shape} for a picture of {x_t.shape}; "
                "pass learned_variance=True if it has twice the channels, or its concat channels separately"
            )
        math = self._math
        if math is None or self._buffers is None or not math.fits(x_t):
            self._math = math = arithmetic(x_t)
            first = math.empty(x_t)
            self._buffers = first, math.empty(x_t) if self.kind == "v" else first
        first, second = self._buffers
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.kind == "v":
            eps = math.linear(first, ((output, alpha), (x_t, sigma)))
            x0 = math.linear(second, ((x_t, alpha), (output, -sigma)))
        elif self.kind == "eps":
            eps, x0 = output, math.solve(first, x_t, sigma, output, _solvable(alpha, t))
        else:
            eps, x0 = math.solve(first, x_t, alpha, output, _solvable(sigma, t)), output
        return Prediction(eps, x0, log_variance, extra)


class FunctionDenoiser:
    """A denoiser from any function (x_t, t) -> network output."""

    def __init__(
        self,
        function: Callable[[Array, float], Array],
        schedule: Schedule,
        prediction: PredictionKind = "eps",
    ) -> None:
        self._function = function
        self._parametrization = Parametrization(schedule, prediction)

    def __call__(self, x_t: Array, t: float) -> Prediction:
        return self._parametrization(self._function(x_t, t), x_t, t)


class EngineDenoiser:
    """A denoiser from an engine with inputs ``x``, ``t`` and conditions, and output ``prediction``.

    All feeds live in buffers made at the first call of a shape; a step allocates nothing. x may be NumPy's, or lie
    where the engine keeps its arrays if that is a GPU; then so do the prediction's.

    Arguments:
        engine: The network.
        schedule: What it was trained with.
        prediction: What it outputs.
        concat: Channels to append to x, float32 (batch or 1, C, height, width); for a batch that is a multiple of its
            rows they are repeated.
        learned_variance: The network outputs twice the channels; the second half becomes ``log_variance``.
        integer_t: Feed t rounded to a whole timestep, as diffusers does for DPM-Solver's Karras list; alpha and sigma
            stay those of t.
        condition: Further inputs by name, e.g. ``context`` float32 (batch, tokens, D) or ``y`` int64 (batch,).
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule,
        prediction: PredictionKind = "eps",
        *,
        concat: Array | None = None,
        learned_variance: bool = False,
        integer_t: bool = False,
        **condition: Array,
    ) -> None:
        self._engine = engine
        self._parametrization = Parametrization(schedule, prediction)
        self._concat = concat
        self._learned_variance = learned_variance
        self._integer_t = integer_t
        self._condition = {name: np.ascontiguousarray(value) for name, value in condition.items()}
        self._fed = self._condition
        self._math: Arithmetic | None = None
        self._t = np.empty(0, dtype=np.float32)
        self._x: Array | None = None
        self._halves: tuple[Array | None, Array | None] = None, None

    @property
    def network(self) -> str:
        """The engine's name, for messages."""
        return self._engine.spec.name

    @cached_property
    def arithmetic(self) -> Arithmetic | None:
        """See `engine_arithmetic`."""
        return engine_arithmetic(self._engine)

    def __call__(self, x_t: Array, t: float) -> Prediction:
        math = self._math
        if math is None or not math.fits(x_t):
            math = self._prepare(x_t)
        channels = x_t.shape[1]
        math.fill(self._t, round(t) if self._integer_t else t)
        if self._x is None:
            x = math.contiguous(x_t)
        else:
            x = self._x
            math.put(x, x_t)
        outputs = self._engine(x=x, t=self._t, **self._fed)
        output = outputs["prediction"]
        extra = (
            {name: array for name, array in outputs.items() if name != "prediction"} if len(outputs) > 1 else _NOTHING
        )
        variance = None
        if self._learned_variance:
            both, (first, second) = output, self._halves
            output = math.channels(both, 0, channels, first)
            variance = math.channels(both, channels, both.shape[1], second)
            self._halves = output, variance
        return self._parametrization(output, x_t, t, log_variance=variance, extra=extra)

    def _prepare(self, x_t: Array) -> Arithmetic:
        """Everything that is fed but x, where x is."""
        shape, batch = x_t.shape, x_t.shape[0]
        math = arithmetic(x_t)
        self._t = math.sent(np.zeros(batch, dtype=np.float32))
        self._fed = {name: math.sent(value) for name, value in self._condition.items()}
        if self._concat is not None:
            rows = self._concat.shape[0]
            if batch % rows or self._concat.shape[2:] != shape[2:]:
                raise BindingError(
                    f"{self.network}: concat has shape {self._concat.shape}, x has {shape}; "
                    "give it the same height and width, and one row or one for each picture"
                )
            wide = np.zeros((batch, shape[1] + self._concat.shape[1], *shape[2:]), dtype=np.float32)
            wide[:, shape[1] :] = np.tile(self._concat, (batch // rows, 1, 1, 1))
            self._x = math.sent(wide)
        self._halves = None, None
        self._math = math
        return math


def solve(out: Array, x: Array, a: float, y: Array, b: float, t: float) -> Array:
    """out = (x - a y) / b, in NumPy."""
    return HostArithmetic(x).solve(out, x, a, y, _solvable(b, t))


def _solvable(b: float, t: float) -> float:
    if b == 0:
        raise ParameterError(f"at timestep {t} the picture is all signal or all noise, nothing can be solved from it")
    return b
