"""One call of pix2pix-zero: inversion, the two passes in lock-step, decoding, timings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, cast

import numpy as np

from ...engines.binding import Array
from ...engines.engine import Engine
from ...engines.strict import JSON
from ...errors import ParameterError
from .. import image as pictures
from ..attention_guidance import AttentionEdit, EditStep, Guide
from ..denoiser import EngineDenoiser, Prediction
from ..inversion import Climb, diffusers_climbs, edit_timesteps, invert, official_climbs, plain_climbs
from ..regularization import NoiseRegularizer, random_shifts, torch_shifts
from ..sampler import DDIM, StepInfo
from .base import Edit, Progress, SfumatoWarning
from .first_stage import FirstStage
from .latent_models import Models
from .pix2pix_options import EditOptions
from .pix2pix_settings import GRADIENT, MAPS, Inversion
from .timings import TimedEngine, Timings

__all__ = ["Pix2PixCall", "climbs", "scaled"]


def climbs(models: Models, inversion: Inversion, steps: int) -> list[Climb]:
    """The climbs of an inversion."""
    match inversion:
        case "official":
            return official_climbs(models.schedule, steps)
        case "diffusers":
            return diffusers_climbs(models.schedule, steps)
        case "plain":
            if steps == 1:
                raise ParameterError("steps is 1, the plain inversion climbs from step to step; pass 2 or more")
            return plain_climbs(edit_timesteps(models.schedule, steps))
    raise ParameterError(f"inversion is {inversion!r}, need official, diffusers or plain; pass one of these")


def scaled(delta: Array, multiplier: float) -> Array:
    """A direction's float32 `delta` times the edit's multiplier.

    Raises:
        ParameterError: float32 does not hold it.
    """
    most = float(np.abs(delta).max())
    if abs(multiplier) * max(most, 1.0) > float(np.finfo(np.float32).max):
        raise ParameterError(
            f"edit_multiplier is {multiplier:g}, and the direction, of values up to {most:.3g}, is not finite when "
            "multiplied by it; pass a smaller one, 1 is usual"
        )
    return np.asarray(delta * np.asarray(multiplier, dtype=np.float32))


class Pix2PixCall:
    """A call in progress.

    Arguments:
        models: The bundle's networks.
        open_guide: Opens the gradient of the attention loss.
        options: The checked options.
        climbs: Network calls of the inversion to come, for progress.
    """

    def __init__(self, models: Models, open_guide: Callable[[], Guide], options: EditOptions, climbs: int = 0) -> None:
        self.models, self.options = models, options
        self.timings = Timings()
        self.first_stage = FirstStage(models.settings, self.engine)
        self.timesteps = edit_timesteps(models.schedule, options.steps)[::-1]
        self._quiet = FirstStage(models.settings, models.engine)
        self._open_guide = open_guide
        self._climbs = climbs
        self._began = perf_counter()

    def engine(self, name: str) -> Engine:
        """A network, its calls counted."""
        return TimedEngine(self.models.engine(name), self.timings)

    def _unet(self) -> Engine:
        """What predicts: to save memory, the network of the reference, whose weights are there anyway."""
        return self.engine(MAPS if self.options.apart else "unet")

    def invert(
        self,
        x0: Array,
        caption: Array,
        path: list[Climb],
        weights: tuple[float, float, int, int] | None,
        *,
        torch: bool,
    ) -> Array:
        """The noise that leads to x0 under its caption.

        Arguments:
            x0: float32 (1, C, h, w).
            caption: float32 (1, tokens, D).
            path: The climbs.
            weights: ac, kl, outer and rolls of the noise regularisation; None for none.
            torch: Draw shifts as diffusers does.
        """
        denoiser = EngineDenoiser(self._unet(), self.models.schedule, self.models.prediction, context=caption)
        regularize: Callable[[Array], Array] | None = None
        if weights is not None and (weights[0] or weights[1]):
            ac, kl, outer, rolls = weights
            shift = (torch_shifts if torch else random_shifts)(self.options.seed)
            regularize = self._timed(NoiseRegularizer(shift, ac=ac, kl=kl, outer=outer, rolls=rolls))

        def on_step(info: StepInfo) -> Any:
            return self._tell(info.index, info.t, info.s, info.x, info.prediction, "inversion")

        kind = self.models.prediction
        return invert(denoiser, self.models.schedule, x0, path, kind=kind, regularize=regularize, on_step=on_step)

    def edit(self, x: Array, context: Array, delta: Array) -> tuple[Array, Array]:
        """Latents of reference and edit, from noise x, conditions and scaled direction; see `AttentionEdit`."""
        options = self.options
        guide = self._guide() if options.amount else None
        passes = AttentionEdit(
            self._unet(),
            self.engine(MAPS),
            guide,
            self.models.schedule,
            self.models.prediction,
            context=context,
            delta=delta,
            scale=options.guidance_scale,
            amount=options.amount,
            kept=options.kept,
            apart=options.apart,
        )

        def on_step(step: EditStep) -> Any:
            return self._tell(self._climbs + step.index, step.t, step.s, step.x, step.prediction, "edit")

        # Of a list that begins at timestep 1 the last step goes to 0, where the authors' and diffusers' tables end.
        return passes.run(x, self.timesteps, DDIM(self.models.schedule, final=0), on_step=on_step)

    def result(
        self,
        reference: Array,
        edited: Array,
        parameters: Mapping[str, JSON],
        notes: tuple[str, ...],
        original: Array | None,
    ) -> Edit:
        """The pictures of both latents, and what made them.

        Arguments:
            reference: float32 (1, C, h, w).
            edited: float32 (1, C, h, w).
            parameters: What the verb adds to the picture's parameters.
            notes: What was done other than asked.
            original: uint8 (H, W, 3), the picture that was inverted.
        """
        image, reconstruction = self._decode(edited), self._decode(reference)
        self.timings.add("total", perf_counter() - self._began)
        for note in notes:
            warnings.warn(note, SfumatoWarning, stacklevel=4)
        unet = self.models.engine("unet")
        return Edit(
            image=image,
            seed=self.options.seed,
            parameters={
                "system": "pix2pix-zero",
                "model": self.models.manifest.name,
                "size": [int(image.shape[0]), int(image.shape[1])],
                "backend": unet.backend,
                "precision": unet.precision,
                **self.options.parameters(),
                **parameters,
            },
            reconstruction=reconstruction,
            latents=edited[0].copy(),
            timings=self.timings.summary(),
            warnings=notes,
            original=original,
        )

    def _decode(self, latents: Array) -> Array:
        return np.ascontiguousarray(self._images(self.first_stage, latents)[0])

    def _images(self, stage: FirstStage, latents: Array) -> Array:
        return pictures.from_float(stage.decode(latents), official=self.options.official)

    def _guide(self) -> Guide:
        return _TimedGuide(self._open_guide(), self.timings)

    def _timed(self, regularize: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def timed(eps: Array) -> Array:
            with self.timings.measure("regularization"):
                return regularize(eps)

        return timed

    def _tell(self, index: int, t: float, s: float, x: Array, prediction: Prediction, stage: str) -> Any:
        if self.options.on_step is None:
            return None
        return self.options.on_step(
            Progress(
                index=index,
                total=self._climbs + len(self.timesteps),
                t=t,
                s=s,
                images=range(1),
                x=x,
                x0=prediction.x0,
                project=lambda x0: self.models.colors(self._quiet.decode, x0.shape)(x0),
                decoder=lambda x0: self._images(self._quiet, x0),
                stage=stage,
            )
        )


class _TimedGuide:
    """A gradient whose calls are counted, and which is told the step."""

    def __init__(self, guide: Guide, timings: Timings) -> None:
        self._guide, self._timings = guide, timings
        self.step: int | None = None

    def __call__(self, x: Array, **condition: Any) -> tuple[float, Array]:
        if hasattr(self._guide, "step"):
            cast(Any, self._guide).step = self.step
        with self._timings.measure(GRADIENT):
            return self._guide(x, **condition)
