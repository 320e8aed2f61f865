"""Rules and runs: a sampler as a table of linear updates, and the loop body that carries one out.

Every sampler here is linear in what it has seen: x_s is a weighted sum of x_t, the prediction, noise, and a
few arrays kept from earlier steps. So a sampler is a function from a list of timesteps to a table of weights,
worked out in float64 before the first network call, and carrying it out takes a few multiply-adds on buffers
that are made once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

from ...engines.binding import Array
from ...errors import ParameterError
from ..arithmetic import Arithmetic, arithmetic
from ..denoiser import Prediction
from ..schedule import Schedule
from .pairs import pairs

__all__ = ["OneStep", "Remembering", "Rule", "Run", "Source", "Terms", "terms"]

Source: TypeAlias = Literal["x", "eps", "x0", "noise", "anchor", "past1", "past2", "past3"]
"""x_t; the prediction; fresh noise; the anchor (an earlier x); what was pushed one, two, three pushes ago."""

Terms: TypeAlias = tuple[tuple[Source, float], ...]


@dataclass(frozen=True)
class Rule:
    """One network call at t and the update made from it.

    Arguments:
        t: Timestep index of the call, where x stands before it.
        s: Timestep index where x stands after it; -1 is clean.
        out: Weights of the new x.
        anchor: Weights of the new anchor, formed before the new x; empty leaves it.
        push: Which prediction is remembered afterwards.
        draws: Whether a noise tensor is taken from the generator, used or not.
        opens: False for a second evaluation inside a step (Heun, PLMS).
        log_range: Log-variances that a network's learned v = -1 and v = +1 stand for; the noise is then scaled by
            exp(log-variance / 2) element by element.
    """

    t: float
    s: float
    out: Terms
    anchor: Terms = ()
    push: Literal["eps", "x0"] | None = None
    draws: bool = False
    opens: bool = True
    log_range: tuple[float, float] | None = None

    @property
    def needs_noise(self) -> bool:
        """Whether noise enters the new x."""
        return any(source == "noise" for source, _ in self.out)


def terms(**weights: float) -> Terms:
    """Weights by source, those that are zero left out."""
    kept = tuple((source, float(weight)) for source, weight in weights.items() if weight != 0)
    return kept or (("x", 0.0),)  # type: ignore[return-value]


class Run(Sequence["tuple[float, float]"]):
    """One pass of a sampler: the (t, s) pairs of its network calls, in order, and the state between them.

    A run serves one trajectory: `step` has to be called once for each pair, in order. Make a new one with
    ``sampler.plan(timesteps)`` for every trajectory; samplers themselves hold no state and may be shared.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._index = 0
        self._math: Arithmetic | None = None
        self._spare: list[Array] = []
        self._deviation: Array | None = None
        self._anchor: Array | None = None
        self._past: list[Array] = []
        self._unused: list[Array] = []

    def __len__(self) -> int:
        return len(self.rules)

    @overload
    def __getitem__(self, index: int) -> tuple[float, float]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[float, float]]: ...
    def __getitem__(self, index: int | slice) -> tuple[float, float] | list[tuple[float, float]]:
        if isinstance(index, slice):
            return [(rule.t, rule.s) for rule in self.rules[index]]
        return self.rules[index].t, self.rules[index].s

    def step(self, x_t: Array, t: float, s: float, prediction: Prediction, noise: Array | None = None) -> Array:
        """x at s, calculated where x_t is.

        Arguments:
            x_t: x at t, as it was given to the denoiser; a NumPy array, or one on a GPU and the others too.
            t: Timestep index of this pair.
            s: Timestep index of this pair's end.
            prediction: The denoiser's word on x_t.
            noise: Standard normals of x_t's shape, where the rule draws.

        Returns:
            An array of x_t's shape and dtype; the run overwrites it in the step after next.
        """
        rule = self._next(t, s)
        if prediction.eps.shape != x_t.shape:
            raise ParameterError(
                f"the prediction has shape {prediction.eps.shape}, x_t {x_t.shape}; pass the prediction made from x_t"
            )
        if rule.needs_noise and noise is None:
            raise ParameterError(f"the step from {t} to {s} adds noise and none is given; pass noise of x_t's shape")
        math = self._math
        if math is None or not math.fits(x_t):
            math = self._prepare(x_t, prediction)
        sources: dict[str, Array | None] = {
            "x": x_t,
            "eps": prediction.eps,
            "x0": prediction.x0,
            "noise": noise if rule.log_range is None else self._scaled_noise(math, rule.log_range, prediction, noise),
            "anchor": self._anchor,
            **{f"past{i}": kept for i, kept in enumerate(self._past, 1)},
        }
        if rule.anchor:
            fresh = self._free(math, x_t)
            _combine(math, fresh, rule.anchor, sources)
            self._anchor = sources["anchor"] = fresh
        out = self._free(math, x_t)
        _combine(math, out, rule.out, sources)
        if rule.push is not None:
            self._remember(math, prediction.eps if rule.push == "eps" else prediction.x0)
        self._index += 1
        return out

    def _next(self, t: float, s: float) -> Rule:
        if self._index >= len(self.rules):
            raise ParameterError(
                f"this run has made its {len(self.rules)} steps; start another with sampler.plan(timesteps)"
            )
        rule = self.rules[self._index]
        if (rule.t, rule.s) != (t, s):
            raise ParameterError(
                f"step {self._index} of this run goes from {rule.t} to {rule.s}, asked for {t} to {s}; "
                "take the pairs in the run's order"
            )
        return rule

    def _prepare(self, x_t: Array, prediction: Prediction) -> Arithmetic:
        """All arrays of the run: later steps make none."""
        self._math = math = arithmetic(x_t)
        anchored = any(rule.anchor for rule in self.rules)
        self._spare = [math.empty(x_t) for _ in range(4 if anchored else 2)]
        reach = [int(source[4:]) for rule in self.rules for source, _ in rule.anchor + rule.out if source[:4] == "past"]
        self._past = []
        if reach:
            kept = prediction.x0 if any(rule.push == "x0" for rule in self.rules) else prediction.eps
            self._unused = [math.empty(kept) for _ in range(max(reach))]
        return math

    def _free(self, math: Arithmetic, x_t: Array) -> Array:
        """An array of ours that neither holds x_t nor the anchor."""
        busy = (x_t,) if self._anchor is None else (x_t, self._anchor)
        return next(kept for kept in self._spare if not any(math.overlaps(kept, array) for array in busy))

    def _remember(self, math: Arithmetic, value: Array) -> None:
        """Copy `value` into the oldest of the arrays that later rules look back at, and put it first."""
        if not self._unused and not self._past:  # nothing looks back
            return
        kept = self._unused.pop() if self._unused else self._past.pop()
        math.copy(kept, value)
        self._past.insert(0, kept)

    def _scaled_noise(
        self, math: Arithmetic, log_range: tuple[float, float], prediction: Prediction, noise: Array | None
    ) -> Array | None:
        if noise is None:
            return None
        if prediction.log_variance is None:
            raise ParameterError(
                "this DDPM takes its variance from the network, which predicts none; use variance='small' or 'large'"
            )
        low, high = log_range
        if self._deviation is None or self._deviation.shape != noise.shape:
            self._deviation = math.empty(noise)
        return math.deviate(self._deviation, prediction.log_variance, (high - low) / 4, (high + low) / 4, noise)


class OneStep:
    """What samplers without memory share: each pair (t, s) has its rule, whatever came before."""

    schedule: Schedule
    final: float

    def rule(self, t: float, s: float) -> Rule:
        """The update from t to s."""
        raise NotImplementedError

    def plan(self, timesteps: Any) -> Run:
        """A run through a descending list of timesteps, then to ``final``."""
        return Run(self.rule(t, s) for t, s in pairs(timesteps, self.schedule, self.final))

    def step(self, x_t: Array, t: float, s: float, prediction: Prediction, noise: Array | None = None) -> Array:
        """x at s from x at t, in a new array; see `Run.step`."""
        return Run([self.rule(t, s)]).step(x_t, t, s, prediction, noise)


class Remembering:
    """What samplers with memory share: a step on its own has nothing to remember, and is of order 1."""

    schedule: Schedule

    def step(self, x_t: Array, t: float, s: float, prediction: Prediction, noise: Array | None = None) -> Array:
        """x at s from x at t, in a new array, by the rule's first-order form x_s = alpha_s x0 + sigma_s eps.

        The order that the sampler is chosen for comes from memory: step the run that ``plan(timesteps)`` returns, or
        call `sample`.
        """
        rule = Rule(t, s, terms(x0=self.schedule.alpha(s), eps=self.schedule.sigma(s)))
        return Run([rule]).step(x_t, t, s, prediction, noise)


def _combine(math: Arithmetic, out: Array, weights: Terms, sources: dict[str, Array | None]) -> None:
    """out = sum of weight · source; `out` shares memory with no source."""
    parts: list[tuple[Array, float]] = []
    for name, weight in weights:
        source = sources[name]
        assert source is not None, name  # a rule that reads what no earlier rule has kept is a mistake in its sampler
        parts.append((source, weight))
    math.linear(out, parts)
