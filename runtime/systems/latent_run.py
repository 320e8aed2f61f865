"""How a call of latent diffusion runs: its options checked against the bundle's defaults, its sampler, its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import numpy as np

from ...engines.binding import Array
from ...engines.strict import JSON
from ...errors import ParameterError
from ..rng import PerImage, TorchGenerator
from ..sampler import SAMPLERS, Sampler, make_sampler
from ..schedule import Schedule, Spacing
from .base import OnStep
from .latent_settings import Defaults
from .options import number, stated, whole

__all__ = ["Plan", "RunNoise", "RunOptions", "batches", "make_plan"]

_WITH_ETA = ("ddim", "euler_ancestral")
_WITH_FINAL = ("ddim", "plms")
_DROPS_LAST = ("dpmpp_2m", "unipc")
_FROM_SIGMA = ("euler", "euler_ancestral", "heun")


class RunOptions(TypedDict, total=False):
    """Options that every verb takes; what is left out comes from the bundle's defaults.

    Arguments:
        steps: Sampling steps, 1 to the schedule's length. PLMS and Heun call the network more often.
        guidance_scale: s in e_u + s (e_c - e_u); at 1 and below the unconditional half is not computed.
        sampler: ddim, ddpm, plms, euler, euler_ancestral, heun, dpmpp_2m, unipc or lcm.
        eta: Noise of ddim and euler_ancestral, 0 to 1.
        spacing: leading, trailing, linspace, official, quad, karras or lcm; see `Schedule.timesteps`.
        seed: One seed, from which all pictures are drawn in order as torch and diffusers draw a batch, or a seed for
            each picture. 0 by default.
        num_images: Pictures for each prompt, label, segmentation or input.
        batch_size: Most pictures to make at once; by default as many as memory is usual for.
        tile: Latents along a side of a tile, for pictures larger than the networks take; by default tiles are used
            only for those. 0 forbids them.
        fused: Whether every step is one call of the bundle's network ``step``, guidance and the sampler's update
            included. By default it is where the bundle has that network and nothing else touches x between steps; True
            asks for it, False takes steps apart. The pictures are the same but for rounding.
        official: Do as the authors' scripts do where they differ from diffusers: their timesteps, their noise drawn at
            every step, their strength, pictures truncated to 8 bits.
        on_step: Called with `Progress` after every network call; returning False stops.
    """

    steps: int
    guidance_scale: float
    sampler: str
    eta: float
    spacing: str
    seed: int | Sequence[int]
    num_images: int
    batch_size: int
    tile: int
    fused: bool
    official: bool
    on_step: OnStep


@dataclass(frozen=True)
class Plan:
    """Checked options of a call, its sampler and its timesteps (descending indices)."""

    steps: int
    guidance_scale: float
    sampler: str
    eta: float | None
    spacing: str
    seed: int | tuple[int, ...]
    num_images: int
    batch_size: int | None
    tile: int | None
    fused: bool | None
    official: bool
    on_step: OnStep | None
    rule: Sampler
    timesteps: Array
    start: float

    @property
    def guided(self) -> bool:
        """Whether the unconditional half is computed."""
        return self.guidance_scale > 1

    def seeds(self, images: int) -> list[int]:
        """The seed of each of `images` pictures; `ParameterError` when as many were not given."""
        if isinstance(self.seed, int):
            return [self.seed] * images
        if len(self.seed) != images:
            raise ParameterError(
                f"{len(self.seed)} seeds for {images} pictures; pass one seed, or one for each picture"
            )
        return list(self.seed)

    def parameters(self) -> dict[str, JSON]:
        """What of it makes the picture, as JSON."""
        return {
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "sampler": self.sampler,
            "eta": self.eta,
            "spacing": self.spacing,
            "official": self.official,
            **({} if self.tile is None else {"tile": self.tile}),
            **({} if self.fused is None else {"fused": self.fused}),
        }


def make_plan(options: RunOptions, defaults: Defaults, schedule: Schedule) -> Plan:
    """Options checked and completed.

    Raises:
        ParameterError: A value is out of range or of the wrong kind.
        TypeError: An option does not exist.
    """
    given = stated(options, RunOptions)
    official = bool(given.get("official", False))
    sampler = given.get("sampler", defaults.sampler)
    if sampler not in SAMPLERS:
        raise ParameterError(f"no sampler is named {sampler!r}, there are {', '.join(SAMPLERS)}; use one of them")
    usual = "official" if official else "lcm" if sampler == "lcm" else defaults.spacing
    spacing = given.get("spacing", usual)
    steps = given.get("steps", defaults.steps)
    scale = number("guidance_scale", given.get("guidance_scale", defaults.guidance_scale), (0, 1000))
    eta = _eta(sampler, given.get("eta"), defaults)
    rule, timesteps = _rule(schedule, sampler, spacing, steps, eta, official)
    return Plan(
        steps=int(steps),
        guidance_scale=scale,
        sampler=sampler,
        eta=eta,
        spacing=spacing,
        seed=_seed(given.get("seed", 0)),
        num_images=whole("num_images", given.get("num_images", 1), 1),
        batch_size=whole("batch_size", given["batch_size"], 1) if "batch_size" in given else None,
        tile=whole("tile", given["tile"], 0) if "tile" in given else None,
        fused=bool(given["fused"]) if "fused" in given else None,
        official=official,
        on_step=given.get("on_step"),
        rule=rule,
        timesteps=timesteps,
        # diffusers starts these at k · noise in variables scaled by 1 / alpha, which is sigma · noise in ours.
        start=schedule.sigma(float(timesteps[0])) if sampler in _FROM_SIGMA and spacing != "leading" else 1.0,
    )


def _rule(
    schedule: Schedule, sampler: str, spacing: str, steps: int, eta: float | None, official: bool
) -> tuple[Sampler, Array]:
    options: dict[str, Any] = {}
    if eta is not None:
        options["eta"] = eta
    if sampler in _WITH_FINAL:
        # Lists that begin at timestep 1 end at 0 (alphas_prev[0] = alphas_bar[0]), the authors' and diffusers' habit.
        options["final"] = 0 if spacing in ("leading", "official", "quad") else -1
        options["draw_always"] = official
    timesteps = schedule.timesteps(
        steps,
        spacing=cast("Spacing", spacing),
        drop_last=int(sampler in _DROPS_LAST and spacing in ("leading", "linspace")),
        fractional=sampler in _FROM_SIGMA and spacing == "linspace",
    )
    return make_sampler(sampler, schedule, **options), timesteps


def _eta(sampler: str, eta: Any, defaults: Defaults) -> float | None:
    if sampler not in _WITH_ETA:
        if eta:
            raise ParameterError(f"sampler {sampler!r} takes no eta, {eta} was given; leave it out, or use 'ddim'")
        return None
    if eta is None:
        return defaults.eta if sampler == "ddim" else 1.0
    return number("eta", eta, (0, 1))


def _seed(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Sequence) and value and not isinstance(value, str):
        return tuple(whole("seed", item, -(2**63)) for item in value)
    raise ParameterError(f"seed is {value!r}, need a whole number or a list of them; pass such a one")


def batches(images: int, most: int) -> list[range]:
    """Batches of at most `most`, of one size where that costs little, since engines compile every size."""
    even = max(size for size in range(1, min(images, most) + 1) if images % size == 0)
    size = even if 2 * even > most else math.ceil(images / math.ceil(images / most))
    return [range(begin, min(begin + size, images)) for begin in range(0, images, size)]


class RunNoise:
    """The noise of one batch of a call.

    One seed: every draw is made for all pictures of the call and this batch keeps its rows, so that batches of any size
    give the pictures that torch gives for the whole. A seed for each picture: each has its own generator, as in
    diffusers.

    Arguments:
        seed: One seed, or one for each picture of the call.
        images: Pictures of the call.
        rows: Those in this batch.
    """

    def __init__(self, seed: int | tuple[int, ...], images: int, rows: range) -> None:
        self._images, self._rows = images, rows
        self._one = TorchGenerator(seed) if isinstance(seed, int) else None
        self._each = None if isinstance(seed, int) else PerImage.torch(seed[rows.start : rows.stop])

    def randn(self, shape: Any) -> Array:
        """float32 of `shape` (batch, …)."""
        if self._each is not None:
            return self._each.randn(shape)
        assert self._one is not None
        values = self._one.randn((self._images, *shape[1:]))
        return values if len(self._rows) == self._images else values[self._rows.start : self._rows.stop]

    def shared(self, shape: Any) -> Array:
        """float32 of `shape`, drawn once for the call where there is one seed: diffusers' posterior noise."""
        if self._one is None:
            return self.randn(shape)
        return np.broadcast_to(self._one.randn((1, *shape[1:])), shape)
