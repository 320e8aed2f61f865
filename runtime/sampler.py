"""Sampling: the loop from noise to picture, and every rule by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from ..engines.binding import Array
from ..engines.engine import check_finite
from ..errors import Cancelled, ParameterError
from .arithmetic import Arithmetic, placed
from .denoiser import Denoiser, Prediction
from .rng import Noise
from .samplers.ddim import DDIM
from .samplers.ddpm import DDPM
from .samplers.dpmpp_2m import DPMSolverPP2M
from .samplers.euler import Euler
from .samplers.euler_ancestral import EulerAncestral
from .samplers.heun import Heun
from .samplers.lcm import LCM
from .samplers.plms import PLMS
from .samplers.rule import Rule, Run
from .samplers.unipc import UniPC
from .schedule import Schedule

__all__ = [
    "DDIM",
    "DDPM",
    "LCM",
    "PLMS",
    "SAMPLERS",
    "DPMSolverPP2M",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Rule",
    "Run",
    "Sampler",
    "StepInfo",
    "UniPC",
    "make_sampler",
    "plan_run",
    "sample",
]

SAMPLERS = ("ddim", "ddpm", "plms", "euler", "euler_ancestral", "heun", "dpmpp_2m", "unipc", "lcm")
"""Names that `make_sampler` takes."""


class Sampler(Protocol):
    """A stepping rule. It holds no state: one object may serve many trajectories, at once or in turn."""

    @property
    def schedule(self) -> Schedule: ...

    def plan(self, timesteps: Any) -> Run:
        """A run: the (t, s) pairs of its network calls, their weights, and the memory of one trajectory.

        Arguments:
            timesteps: Timestep indices (n,), descending.
        """
        ...

    def step(self, x_t: Array, t: float, s: float, prediction: Prediction, noise: Array | None = None) -> Array:
        """One update on its own, from x at t to x at s; rules with memory have none here, and are then of order 1."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """Where a run stands after a network call. **Later steps overwrite the arrays: copy what you keep.**

    Arguments:
        index: Number of this call, from 0.
        total: Number of calls of the run.
        t: Timestep index of the call.
        s: Timestep index that x stands at now, -1 when clean.
        x: x at s.
        prediction: The prediction at t; its x0 is what a preview shows.
    """

    index: int
    total: int
    t: float
    s: float
    x: Array
    prediction: Prediction


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    x: Array,
    timesteps: Any,
    *,
    rng: Noise | None = None,
    on_step: Callable[[StepInfo], Any] | None = None,
    prepare: Callable[[Array, float], Array] | None = None,
) -> Array:
    """Run a sampler.

    Arguments:
        denoiser: Predicts.
        sampler: Steps.
        x: Where to start, float32 (B, C, h, w) at the first timestep; left unchanged.
        timesteps: Timestep indices (n,), descending; see `Schedule.timesteps`.
        rng: Source of noise, drawn from in order; needed by samplers that add noise.
        on_step: Called after every network call; returning False (not None) stops the run. On a GPU it is given copies,
            which makes every step wait for the last one.
        prepare: Called with (x, t) before each step, second evaluations apart, and returns the x to step from; see
            `blend.MaskBlend`.

    Returns:
        x after the last step, shape and dtype of `x`.

    Raises:
        ParameterError: `x`, the timesteps or a missing `rng` do not allow the run.
        NonFiniteError: A step made NaN or infinity; names the network, the step and the tensor. On a GPU it is raised
            at the end, or before `on_step` is called.
        Cancelled: `on_step` returned False.

    Everything is calculated where the denoiser's network keeps its arrays, see `arithmetic.placed`: on a GPU x goes up
    once, noise is drawn here and follows through pinned memory, and the result comes back once.
    """
    run = plan_run(sampler, x, timesteps, rng)
    network = getattr(denoiser, "network", "denoiser")
    check_finite(network, None, x=x)
    math = placed(x, denoiser, prepare)
    watch = math.watch(network)
    x = math.sent(x)
    for index, rule in enumerate(run.rules):
        if prepare is not None and rule.opens:
            x = prepare(x, rule.t)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found and named below
            prediction = denoiser(x, rule.t)
            noise = rng.randn(x.shape) if rule.draws and rng is not None else None
            noise = math.staged(noise) if noise is not None and rule.needs_noise else None
            x = run.step(x, rule.t, rule.s, prediction, noise)
        watch.look(index, x, prediction.eps)
        if on_step is not None:
            watch.report()
            info = StepInfo(index, len(run), rule.t, rule.s, math.host(x), _seen(math, prediction))
            if on_step(info) is False:
                raise Cancelled(f"stopped by on_step after call {index + 1} of {len(run)}")
    watch.report()
    return math.host(x)


def plan_run(sampler: Sampler, x: Array, timesteps: Any, rng: Noise | None) -> Run:
    """The run of `sampler` through `timesteps`, from an x and a source of noise that allow it.

    Raises:
        ParameterError: They do not.
    """
    if x.dtype.kind != "f" or x.itemsize < 4:
        raise ParameterError(f"x is {x.dtype}, samplers work in float32; pass x.astype(np.float32)")
    run = sampler.plan(timesteps)
    if rng is None and any(rule.needs_noise for rule in run.rules):
        raise ParameterError(f"{type(sampler).__name__} adds noise and rng is None; pass rng=TorchGenerator(seed)")
    return run


def make_sampler(name: str, schedule: Schedule, **options: Any) -> Sampler:
    """A sampler by name, one of `SAMPLERS`; `options` are the fields of its class."""
    match name:
        case "ddim":
            make: Callable[..., Sampler] = DDIM
        case "ddpm":
            make = DDPM
        case "plms":
            make = PLMS
        case "euler":
            make = Euler
        case "euler_ancestral":
            make = EulerAncestral
        case "heun":
            make = Heun
        case "dpmpp_2m":
            make = DPMSolverPP2M
        case "unipc":
            make = UniPC
        case "lcm":
            make = LCM
        case _:
            raise ParameterError(f"no sampler is named {name!r}, there are {', '.join(SAMPLERS)}; use one of them")
    known = [field for field in getattr(make, "__dataclass_fields__", {}) if field != "schedule"]
    for option in options:
        if option not in known:
            raise ParameterError(f"sampler {name!r} has no option {option!r}, it has {', '.join(known)}; leave it out")
    return make(schedule, **options)


def _seen(math: Arithmetic, prediction: Prediction) -> Prediction:
    """A prediction in host memory."""
    if isinstance(cast(object, prediction.eps), np.ndarray):
        return prediction
    variance = None if prediction.log_variance is None else math.host(prediction.log_variance)
    extra = {name: math.host(array) for name, array in prediction.extra.items()}
    return Prediction(math.host(prediction.eps), math.host(prediction.x0), variance, extra)
