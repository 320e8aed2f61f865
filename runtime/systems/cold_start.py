"""Where cold generation starts: a colour, a thumbnail, noise or a picture for each picture to be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...engines.binding import Array
from ...errors import ManifestError, ParameterError
from ..cold_generation import GaussianMixture, constant_pictures, thumbnail_pictures
from ..degradations.inpaint import ColourFade
from ..rng import TorchGenerator
from .cold_settings import ColdDiffusionSettings

__all__ = ["Starts", "starts"]


@dataclass(frozen=True, eq=False)
class Starts:
    """One row a picture.

    Arguments:
        pictures: float32 (B, C, H, W).
        end: What the degradation ends at: colours (B, C), noise or pictures (B, C, H, W); None if it has no such end.
        noise: Scaled noise float32 (B, C, H, W) to add, or None.
        degrade: Whether the pictures are pushed through the degradation first.
    """

    pictures: Array
    end: Array | None = None
    noise: Array | None = None
    degrade: bool = True

    def rows(self, begin: int, stop: int) -> Starts:
        """Some of them."""
        end = None if self.end is None else self.end[begin:stop]
        noise = None if self.noise is None else self.noise[begin:stop]
        return Starts(self.pictures[begin:stop], end, noise, self.degrade)


def starts(
    settings: ColdDiffusionSettings,
    size: tuple[int, int],
    seeds: range,
    *,
    mixture: GaussianMixture | None = None,
    given: Sequence[Array] | None = None,
    level: float | None = None,
) -> Starts:
    """Starts of pictures with these seeds, each from a generator of its own: first the start, then the noise.

    Arguments:
        settings: The bundle's, which can generate.
        size: Height and width in pixels.
        seeds: One a picture.
        mixture: For "means" and "thumbnails".
        given: For "picture", float32 (C, H, W) each.
        level: Of the noise; the bundle's if None.

    Raises:
        ManifestError: The mixture does not have the dimensions that the settings say.
    """
    plan, channels = settings.generation, settings.channels
    assert plan is not None
    level = plan.noise if level is None else level
    if not 0 <= level < float("inf"):
        raise ParameterError(f"noise is {level}, need 0 or more; the paper has 0.002")
    shape = (channels, *size)
    generators = [TorchGenerator(seed) for seed in seeds]
    match plan.start:
        case "means" | "thumbnails":
            wanted = channels * plan.side**2
            if mixture is None or mixture.means.shape[1] != wanted:
                found = "none" if mixture is None else f"one of {mixture.means.shape[1]} numbers"
                raise ManifestError(
                    f"$.assets.mixture: generation from {plan.start} needs a mixture of {wanted} numbers, there is "
                    f"{found}; export the bundle again"
                )
            drawn = np.concatenate([mixture.sample(1, generator) for generator in generators])
            if plan.start == "means":
                begin = Starts(constant_pictures(drawn, size))
            else:
                begin = Starts(thumbnail_pictures(drawn, plan.side, size, mode=plan.upscale))
        case "colour":
            colours = np.concatenate([ColourFade.colours(1, generator, channels) for generator in generators])
            begin = Starts(constant_pictures(colours, size), colours, degrade=False)
        case "noise":
            noise = np.stack([generator.randn(shape) for generator in generators])
            begin = Starts(noise, noise, degrade=False)
        case "picture":
            ends = np.stack(list(given or ()))
            begin = Starts(ends, ends, degrade=False)
    if not level:
        return begin
    noise = np.float32(level) * np.stack([generator.randn(shape) for generator in generators])
    return Starts(begin.pictures, begin.end, noise, begin.degrade)
