"""Whole steps in one network call: when a call of latent diffusion can take them, and how they are set up."""

from __future__ import annotations

from typing import Any, cast

from ...engines.engine import Engine
from ...errors import ParameterError
from ..fused import FusedStep
from .latent_condition import Condition
from .latent_models import Models
from .latent_run import Plan

__all__ = ["STEP", "check_fused", "fused_step", "hindrance"]

STEP = "step"
"""Name of the network."""


def hindrance(models: Models, plan: Plan, grid: tuple[int, ...], *, blends: bool, concat: bool) -> str:
    """Why steps cannot be taken whole, "" where they can.

    Arguments:
        models: The bundle's networks.
        plan: The checked options.
        grid: Height and width in latents.
        blends: Something is done to x between steps.
        concat: The UNet sees channels beside x.
    """
    if STEP not in models.manifest.networks:
        return f"the bundle has no network {STEP!r}"
    if concat or models.learned_variance:
        return "channels beside x" if concat else "a learned variance"
    if blends:
        return "the known part is put back between steps"
    least, most, multiple = models.limits(STEP)
    most = min(most or max(grid), plan.tile or max(grid))
    if any(not least <= extent <= most or extent % multiple for extent in grid):
        return f"{grid[0]}x{grid[1]} latents are worked on in tiles of {most}"
    return ""


def check_fused(models: Models, plan: Plan) -> None:
    """Raise `ParameterError` for steps that were asked for whole from a bundle without the network."""
    if plan.fused and STEP not in models.manifest.networks:
        raise ParameterError(
            f"fused is True and the bundle has no network {STEP!r}; leave fused out, or add the network with "
            "sfumato export latent-diffusion --checkpoint BUNDLE --out BUNDLE --step"
        )


def fused_step(models: Models, plan: Plan, engine: Engine, condition: Condition, rows: range) -> FusedStep:
    """The network with guidance and the conditions of some of the call's pictures."""
    return FusedStep(
        engine,
        models.schedule,
        models.prediction,
        scale=plan.guidance_scale if plan.guided else None,
        **cast("dict[str, Any]", condition.feeds(rows, guided=plan.guided)),
    )
