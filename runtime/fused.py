"""Fused sampling: every step is one call of a network that holds the UNet, guidance and the sampler's update.

The network ``step`` (`export.step`) computes, for the UNet's outputs o_k of K passes, 0 the unconditional or only one::

    prediction = o_0 + sum over k of guidance_k (o_k - o_0)        x_s = weights_0 x + weights_1 prediction + term

with the weights and the term of `folded.Folded`. A sampler without noise and memory has no term: the network is then
all that touches a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..engines.binding import Array
from ..engines.engine import Engine, check_finite
from ..errors import BindingError, Cancelled, ParameterError
from .arithmetic import Arithmetic, engine_arithmetic, placed
from .denoiser import Prediction, PredictionKind
from .folded import Folded, Pair, fold
from .rng import Noise
from .sampler import Sampler, StepInfo, plan_run
from .schedule import Schedule

__all__ = ["FusedStep", "sample_fused"]


class FusedStep:
    """The network ``step`` with its conditions and guidance, in buffers made once for a run; a step allocates none.

    Arguments:
        engine: The network.
        schedule: What the UNet was trained with.
        prediction: What it outputs.
        scale: Guidance scale; None for a single pass without guidance.
        condition: Further inputs by name, rows of the unconditional pass before those of the conditional one.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule,
        prediction: PredictionKind = "eps",
        *,
        scale: float | None = None,
        **condition: Array,
    ) -> None:
        if scale is not None and not np.isfinite(scale):
            raise ParameterError(f"guidance scale is {scale}, need a finite number; None is no guidance")
        self.schedule = schedule
        self.prediction: PredictionKind = prediction
        self._engine = engine
        self._guidance = np.array([0.0] if scale is None else [0.0, scale], dtype=np.float32)
        self._condition = {name: self._split(name, value) for name, value in condition.items()}
        self._fed: dict[str, Array] = {}
        self._table = np.empty((0, 2), dtype=np.float32)

    @property
    def network(self) -> str:
        """The engine's name, for messages."""
        return self._engine.spec.name

    @cached_property
    def arithmetic(self) -> Arithmetic | None:
        """See `engine_arithmetic`."""
        return engine_arithmetic(self._engine)

    def begin(self, math: Arithmetic, rules: Sequence[Folded]) -> None:
        """Bring what is fed beside x to where a run is calculated: conditions, guidance, every step's weights."""
        table = np.array([rule.weights for rule in rules], dtype=np.float32)
        self._table = math.sent(table)
        held = {"guidance": self._guidance, "t": np.zeros(1, np.float32), "weights": np.zeros(2, np.float32)}
        self._fed = {name: math.sent(value) for name, value in {**held, **self._condition}.items()}

    def __call__(self, math: Arithmetic, index: int, t: float, x: Array, term: Array) -> tuple[Array, Array]:
        """(x at s, guided output), float32 in x's shape. **They belong to the engine: its next call overwrites them.**

        Arguments:
            math: As given to `begin`.
            index: Number of the step, among the rules given to `begin`.
            t: Its timestep index.
            x: float32 (B, C, h, w) at t.
            term: What else enters the new x, float32 in x's shape.
        """
        math.fill(self._fed["t"], t)
        math.copy(self._fed["weights"], self._table[index : index + 1].reshape((2,)))
        found = self._engine(x=x, term=term, **self._fed)
        return found["x_s"], found["prediction"]

    def _split(self, name: str, rows: Array) -> Array:
        """(K B, …) as (K, B, …)."""
        passes = len(self._guidance)
        if len(rows) % passes:
            raise BindingError(
                f"{self.network}: {name} has {len(rows)} rows for {passes} passes; "
                "give it a row for each picture of every pass, unconditional rows first"
            )
        return np.ascontiguousarray(rows).reshape(passes, len(rows) // passes, *rows.shape[1:])


def sample_fused(
    step: FusedStep,
    sampler: Sampler,
    x: Array,
    timesteps: Any,
    *,
    rng: Noise | None = None,
    on_step: Callable[[StepInfo], Any] | None = None,
) -> Array:
    """Run a sampler, a network call for each of its calls, and next to nothing else that touches a picture.

    Arguments, result and errors are those of `sample`, whose latents these are but for rounding: the same sums in
    another order. There is no ``prepare``: what changes x between two steps needs the steps apart.

    Raises:
        ParameterError: `x`, the timesteps or a missing `rng` do not allow the run, or the sampler's rule is not linear.
        NonFiniteError: A step made NaN or infinity; names the network, the step and the tensor.
        Cancelled: `on_step` returned False.
    """
    run = plan_run(sampler, x, timesteps, rng)
    rules = [fold(rule, step.schedule, step.prediction) for rule in run.rules]
    check_finite(step.network, None, x=x)
    start = np.array(x, dtype=np.float32, order="C")
    math = placed(start, step)
    step.begin(math, rules)
    state = _State(math, start)
    watch = math.watch(step.network)
    for index, rule in enumerate(rules):
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found and named below
            noise = rng.randn(x.shape) if rule.draws and rng is not None else None
            new, output = step(math, index, rule.t, state.x, state.term(rule, noise))
            prediction = None if on_step is None else state.prediction(rule, output)
            watch.look(index, new, output)
            state.advance(rule, new, output)
        if on_step is not None and prediction is not None:
            watch.report()
            shown = Prediction(math.host(prediction.eps), math.host(prediction.x0))
            if on_step(StepInfo(index, len(rules), rule.t, rule.s, math.host(state.x), shown)) is False:
                raise Cancelled(f"stopped by on_step after call {index + 1} of {len(rules)}")
    watch.report()
    return math.host(state.x)


class _State:
    """x and what a trajectory remembers, with the arithmetic that is left beside the network."""

    def __init__(self, math: Arithmetic, x: Array) -> None:
        self._math = math
        self.x = math.sent(x)
        self._term = math.sent(np.zeros_like(x))
        self._still = True  # the term is zero
        self._anchor: Array | None = None
        self._spare: Array | None = None
        self._past: list[Array] = []
        self._shown: tuple[Array, Array] | None = None

    def term(self, rule: Folded, noise: Array | None) -> Array:
        """What enters the new x beside x and the network's output."""
        if rule.term:
            self._combine(self._term, rule.term, noise=noise)
        elif not self._still:
            self._math.fill(self._term, 0.0)
        self._still = not rule.term
        return self._term

    def prediction(self, rule: Folded, output: Array) -> Prediction:
        """The prediction at t, for whoever watches."""
        if self._shown is None:
            self._shown = self._math.empty(self.x), self._math.empty(self.x)
        eps, x0 = self._shown
        return Prediction(self._mix(eps, rule.eps, output), self._mix(x0, rule.x0, output))

    def advance(self, rule: Folded, new: Array, output: Array) -> None:
        """Remember what the rule asks for, and step on."""
        if rule.anchor:
            fresh = self._math.empty(self.x) if self._spare is None else self._spare
            self._combine(fresh, rule.anchor, output=output)
            self._anchor, self._spare = fresh, self._anchor
        if rule.push is not None:
            kept = self._past.pop() if len(self._past) == 3 else self._math.empty(self.x)
            self._past.insert(0, self._mix(kept, rule.push, output))
        self._math.copy(self.x, new)

    def _mix(self, out: Array, weights: Pair, output: Array) -> Array:
        return self._math.linear(out, ((self.x, weights[0]), (output, weights[1])))

    def _combine(
        self, out: Array, weights: Mapping[str, float], *, noise: Array | None = None, output: Array | None = None
    ) -> None:
        """out = sum of weight · source; `out` shares memory with no source."""
        sources = {"x": self.x, "output": output, "anchor": self._anchor}
        sources["noise"] = self._math.staged(noise) if noise is not None and "noise" in weights else None
        sources |= {f"past{i}": kept for i, kept in enumerate(self._past, 1)}
        pairs: list[tuple[Array, float]] = []
        for name, weight in weights.items():
            source = sources[name]
            assert source is not None, name  # a rule that reads what none has kept is a mistake in its sampler
            pairs.append((source, weight))
        self._math.linear(out, pairs)
