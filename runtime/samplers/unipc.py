"""UniPC: a multistep predictor whose result is corrected by the next network call, at no further calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..schedule import Schedule
from .pairs import pairs
from .rule import Remembering, Rule, Run, Terms, terms

__all__ = ["UniPC"]


@dataclass(frozen=True)
class UniPC(Remembering):
    """UniP-p and UniC-p on the clean picture with B(h) = e^h - 1 ("bh2").

    When the prediction at t arrives, the x that stood at t is first corrected with it (the corrected x is the
    run's anchor), then the step to s starts from the corrected x. Order p + 1, held to 3 by
    the first step; the last step, which nothing corrects, is of order 1 when it goes to the clean picture.
    diffusers' ``UniPCMultistepScheduler`` with its defaults (p = 2).

    Arguments:
        schedule: The schedule.
        order: p, 1 … 3.
        final: Where the last step goes, -1 for clean.

    References:
        Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023,
        https://arxiv.org/abs/2302.04867
    """

    schedule: Schedule
    order: int = 2
    final: float = -1

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ParameterError(f"order is {self.order}, UniPC has 1, 2 and 3 here; 2 is usual for guided sampling")

    def plan(self, timesteps: Any) -> Run:
        """A run through a strictly descending list of timesteps, then to ``final``."""
        steps = pairs(timesteps, self.schedule, self.final, strict=True)
        visited = [t for t, _ in steps]
        clean = self.schedule.sigma(self.final) == 0
        rules: list[Rule] = []
        before = 0
        for i, (t, s) in enumerate(steps):
            order = min(self.order, i + 1, len(steps) - i if clean else self.order)
            anchor = terms(x=1.0) if i == 0 else self._corrector(visited[: i + 1], before)
            rules.append(Rule(t, s, self._predictor(visited[: i + 1], s, order), anchor=anchor, push="x0"))
            before = order
        return Run(rules)

    def _predictor(self, visited: list[float], s: float, order: int) -> Terms:
        """Weights of the new x at s over anchor (at t), x0 (at t), past1, past2 (at earlier timesteps)."""
        t = visited[-1]
        alpha, ratio = self.schedule.alpha(s), self.schedule.sigma(s) / self.schedule.sigma(t)
        if ratio == 0:
            return terms(x0=alpha)
        h, nodes, matrix, right = self._system(visited, s, order)
        weights = [0.5] if order == 2 else np.linalg.solve(matrix[:-1, :-1], right[:-1]).tolist() if order > 1 else []
        scale = -alpha * math.expm1(-h)
        bends = [scale * weight / node for weight, node in zip(weights, nodes, strict=True)]
        past = {f"past{k}": bend for k, bend in enumerate(bends, 1)}
        return terms(anchor=ratio, x0=scale - sum(bends), **past)

    def _corrector(self, visited: list[float], order: int) -> Terms:
        """Weights of the corrected x at t over the old anchor, x0 (at t), past1 (where it came from) …."""
        *earlier, t = visited
        h, nodes, matrix, right = self._system(earlier, t, order)
        weights = [0.5] if order == 1 else np.linalg.solve(matrix, right).tolist()
        alpha = self.schedule.alpha(t)
        scale = -alpha * math.expm1(-h)
        bends = [scale * weight / node for weight, node in zip(weights, [*nodes, 1.0], strict=True)]
        past = {f"past{k}": bend for k, bend in enumerate(bends[:-1], 2)}
        return terms(
            anchor=self.schedule.sigma(t) / self.schedule.sigma(earlier[-1]),
            x0=bends[-1],
            past1=scale - sum(bends),
            **past,
        )

    def _system(self, visited: list[float], s: float, order: int) -> tuple[float, list[float], Array, Array]:
        """The step h, the relative places of earlier predictions, and the linear system for their weights."""
        start = self.schedule.log_snr(visited[-1])
        h = self.schedule.log_snr(s) - start
        nodes = [(self.schedule.log_snr(t) - start) / h for t in visited[-2 : -order - 1 : -1]]
        places = np.array([*nodes, 1.0])
        matrix = np.stack([places**k for k in range(order)])
        right: list[float] = []
        phi, factorial = math.expm1(-h) / -h - 1, 1
        for k in range(1, order + 1):
            right.append(phi * factorial / math.expm1(-h))
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        return h, nodes, matrix, np.array(right)
