"""One call of latent diffusion: batches, sampling, decoding, timings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import numpy as np

from ...engines.binding import Array
from ...engines.engine import Engine
from ...engines.strict import JSON
from ...errors import ParameterError
from .. import image as pictures
from ..denoiser import Denoiser, EngineDenoiser
from ..fused import sample_fused
from ..guidance import ClassifierFree
from ..sampler import StepInfo, sample
from .base import Edit, Progress, SfumatoWarning
from .first_stage import FirstStage
from .latent_condition import Condition, ConditionEncoder
from .latent_models import Models
from .latent_run import Plan, RunNoise, batches
from .latent_step import STEP, check_fused, fused_step, hindrance
from .timings import Timings

__all__ = ["Call", "Start"]

_BATCH_LATENTS = 16384
"""Latents (h · w) sampled at once unless told otherwise: four pictures of 64x64."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where the sampling of a batch starts.

    Arguments:
        x: float32 (B, C, h, w) at the first timestep.
        timesteps: Timestep indices (n,), descending.
        prepare: Passed to `sample`.
        finish: Applied to the last latents before they are decoded.
        concat: float32 (1 or B, C, h, w), channels to append to x; None leaves those of the call's condition.
    """

    x: Array
    timesteps: Array
    prepare: Callable[[Array, float], Array] | None = None
    finish: Callable[[Array], Array] | None = None
    concat: Array | None = None


class Call:
    """A call in progress.

    Arguments:
        models: The bundle's networks.
        plan: The checked options.

    Raises:
        ParameterError: Whole steps are asked for and the bundle has no network for them.
    """

    def __init__(self, models: Models, plan: Plan) -> None:
        check_fused(models, plan)
        self.models = models
        self.plan = plan
        self.timings = Timings()
        self._began = perf_counter()
        self.first_stage = FirstStage(models.settings, self._engine)
        self.conditions = ConditionEncoder(models.settings, self._engine, models.tokenizer)
        self._engines: dict[str, Engine] = {}
        self._network = "unet"
        self._quiet = FirstStage(models.settings, lambda name: models.tiled(name, None, plan.tile))

    def run(
        self,
        condition: Condition,
        grid: tuple[int, int],
        start: Callable[[RunNoise, range], Start],
        *,
        finish: Callable[[Array], Array] | None = None,
        parameters: Mapping[str, JSON],
        told: tuple[str, ...] = (),
        reconstruction: Array | None = None,
    ) -> list[Edit]:
        """Sample and decode every picture of the call.

        Arguments:
            condition: Condition of every picture.
            grid: Height and width in latents.
            start: Where a batch starts, given its noise and the numbers of its pictures.
            finish: Decoded pictures float32 (B, 3, H, W) -> uint8 (B, H, W, 3); by default `from_float`.
            parameters: What the verb adds to each picture's parameters.
            told: Warnings of the verb.
            reconstruction: For every `Edit`.
        """
        plan, images = self.plan, condition.images
        seeds = plan.seeds(images)
        parts = batches(images, self._most(grid))
        latents: list[Array] = []
        made: list[Array] = []
        for number, rows in enumerate(parts):
            noise = RunNoise(plan.seed, images, rows)
            begin = start(noise, rows)
            x = self._sample(condition, rows, begin, noise, self._observer(rows, number, len(parts)))
            x = x if begin.finish is None else begin.finish(x)
            decoded = self.first_stage.decode(x)
            made += list(pictures.from_float(decoded, official=plan.official) if finish is None else finish(decoded))
            latents += list(x.copy())
        self.timings.add("total", perf_counter() - self._began)
        timings = self.timings.summary()
        notes = condition.warnings + told
        for note in notes:
            warnings.warn(note, SfumatoWarning, stacklevel=4)
        return [
            Edit(
                image=np.ascontiguousarray(made[i]),
                seed=seeds[i],
                parameters=self._parameters(i, images, seeds[i], made[i], condition, parameters),
                reconstruction=reconstruction,
                latents=latents[i],
                timings=timings,
                warnings=notes,
            )
            for i in range(images)
        ]

    def reconstruct(self, latents: Array) -> Array:
        """The picture uint8 (H, W, 3) of latents (1, C, h, w)."""
        return np.asarray(pictures.from_float(self.first_stage.decode(latents), official=self.plan.official)[0])

    def _engine(self, name: str) -> Engine:
        engine = self._engines.get(name)
        if engine is None:
            engine = self._engines[name] = self.models.tiled(name, self.timings, self.plan.tile)
        return engine

    def _sample(
        self,
        condition: Condition,
        rows: range,
        begin: Start,
        noise: RunNoise,
        on_step: Callable[[StepInfo], Any] | None,
    ) -> Array:
        """The last latents of a batch, by whole steps where that can be."""
        models, plan = self.models, self.plan
        concat = condition.channels(rows) if begin.concat is None else begin.concat
        blends = begin.prepare is not None
        why = hindrance(models, plan, begin.x.shape[2:], blends=blends, concat=concat is not None)
        if plan.fused and why:
            raise ParameterError(f"fused is True, and steps cannot be taken whole: {why}; leave fused out")
        if why or plan.fused is False:
            denoiser = self._denoiser(condition, rows, concat)
            return sample(
                denoiser, plan.rule, begin.x, begin.timesteps, rng=noise, on_step=on_step, prepare=begin.prepare
            )
        self._network = STEP
        step = fused_step(models, plan, self._engine(STEP), condition, rows)
        return sample_fused(step, plan.rule, begin.x, begin.timesteps, rng=noise, on_step=on_step)

    def _denoiser(self, condition: Condition, rows: range, concat: Array | None) -> Denoiser:
        guided = self.plan.guided
        denoiser = EngineDenoiser(
            self._engine("unet"),
            self.models.schedule,
            self.models.prediction,
            concat=concat,
            learned_variance=self.models.learned_variance,
            **cast("dict[str, Any]", condition.feeds(rows, guided=guided)),
        )
        return ClassifierFree(denoiser, self.plan.guidance_scale) if guided else denoiser

    def _most(self, grid: tuple[int, int]) -> int:
        """Most pictures in a batch."""
        wanted = self.plan.batch_size or max(1, _BATCH_LATENTS // (grid[0] * grid[1]))
        networks, passes = self.models.manifest.networks, 2 if self.plan.guided else 1
        batch = networks["unet"].dimensions.get("batch")
        allowed = wanted if batch is None else batch.max // passes
        if STEP in networks and self.plan.fused is not False:
            allowed = min(allowed, networks[STEP].dimensions["batch"].max)
        return max(1, min(wanted, allowed))

    def _observer(self, rows: range, number: int, parts: int) -> Callable[[StepInfo], Any] | None:
        on_step = self.plan.on_step
        if on_step is None:
            return None

        def observe(info: StepInfo) -> Any:
            return on_step(
                Progress(
                    index=number * info.total + info.index,
                    total=parts * info.total,
                    t=info.t,
                    s=info.s,
                    images=rows,
                    x=info.x,
                    x0=info.prediction.x0,
                    project=self._project,
                    decoder=self._decode,
                    calls=info.total,
                )
            )

        return observe

    def _decode(self, x0: Array) -> Array:
        return pictures.from_float(self._quiet.decode(x0), official=self.plan.official)

    def _project(self, x0: Array) -> Array:
        return self.models.colors(self._quiet.decode, x0.shape)(x0)

    def _parameters(
        self, i: int, images: int, seed: int, image: Array, condition: Condition, parameters: Mapping[str, JSON]
    ) -> dict[str, JSON]:
        network = self._engine(self._network)
        return {
            "system": self.models.manifest.system,
            "model": self.models.manifest.name,
            "seed": seed,
            "image": i,
            "images": images,
            "size": [int(image.shape[0]), int(image.shape[1])],
            "backend": network.backend,
            "precision": network.precision,
            **self.plan.parameters(),
            **parameters,
            **condition.told[i],
        }
