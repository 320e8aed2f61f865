"""Folded rules: a sampler's update in terms of x and of what the network outputs, whatever it was trained to output.

A `Rule` is linear, and so are the parametrisations of a network's output o (eps, v or x0) at a timestep::

    eps = p x + q o        x0 = r x + u o

so that whatever the sampler, the new x is a weighted sum of x, o and what is known before the network call (noise,
earlier predictions, an earlier x)::

    x_s = a x + b o + term

The weights are worked out in float64. Guidance may be applied to o itself, since p, q, r and u are the same under every
condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import ParameterError
from .denoiser import PredictionKind
from .samplers.rule import Rule, Terms
from .schedule import Schedule

__all__ = ["Folded", "Pair", "fold", "outputs"]

Pair: TypeAlias = "tuple[float, float]"
"""Weights of x and of the network's output."""


@dataclass(frozen=True)
class Folded:
    """A `Rule` in terms of x, the network's output, and what is known before the call.

    Arguments:
        t: Timestep index of the call.
        s: Timestep index where x stands after it.
        weights: Of x and the output in the new x.
        term: Weights of everything else in the new x: "noise", "anchor", "past1" ….
        anchor: Weights of the new anchor, over "x", "output" and the same; empty leaves it.
        push: Weights of x and the output in what is remembered afterwards, if anything is.
        draws: Whether a noise tensor is taken from the generator, used or not.
        eps: Weights of x and the output in the noise.
        x0: Weights of x and the output in the clean picture.
    """

    t: float
    s: float
    weights: Pair
    term: Mapping[str, float]
    anchor: Mapping[str, float]
    push: Pair | None
    draws: bool
    eps: Pair
    x0: Pair


def outputs(schedule: Schedule, kind: PredictionKind, t: float) -> tuple[Pair, Pair]:
    """Weights of x and of the network's output in eps and in x0 at timestep index t.

    Raises:
        ParameterError: One of them cannot be solved for: alpha is 0, or sigma for a network that predicts x0.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if (kind == "eps" and alpha == 0) or (kind == "x0" and sigma == 0):
        raise ParameterError(f"at timestep {t} the picture is all signal or all noise, nothing can be solved from it")
    if kind == "v":
        return (sigma, alpha), (alpha, -sigma)
    if kind == "eps":
        return (0.0, 1.0), (1 / alpha, -sigma / alpha)
    return (1 / sigma, -alpha / sigma), (0.0, 1.0)


def fold(rule: Rule, schedule: Schedule, kind: PredictionKind) -> Folded:
    """A rule for networks that output `kind`.

    Raises:
        ParameterError: Its noise is scaled by a variance that the network predicts, or see `outputs`.
    """
    if rule.log_range is not None:
        raise ParameterError("a step with a learned variance is not linear in the network's output; step it unfused")
    eps, x0 = outputs(schedule, kind, rule.t)
    anchor = _expand(rule.anchor, eps, x0)
    out = _expand(rule.out, eps, x0)
    if anchor and (weight := out.pop("anchor", 0.0)):  # the new anchor, which is not known before the call
        for source, inner in anchor.items():
            out[source] = out.get(source, 0.0) + weight * inner
    weights = out.pop("x", 0.0), out.pop("output", 0.0)
    push = {None: None, "eps": eps, "x0": x0}[rule.push]
    return Folded(rule.t, rule.s, weights, out, anchor, push, rule.draws, eps, x0)


def _expand(terms: Terms, eps: Pair, x0: Pair) -> dict[str, float]:
    """Weights over x, the output and the rest; those that are zero are left out."""
    sums: dict[str, float] = {}
    for source, weight in terms:
        parts = {"eps": eps, "x0": x0}.get(source)
        pairs = [(source, 1.0)] if parts is None else [("x", parts[0]), ("output", parts[1])]
        for name, inner in pairs:
            sums[name] = sums.get(name, 0.0) + weight * inner
    return {name: value for name, value in sums.items() if value != 0}
