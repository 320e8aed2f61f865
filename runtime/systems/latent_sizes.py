"""Sizes of latent diffusion: what a bundle takes, and pictures padded to it and cropped back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..image import MAX_PIXELS, resize, to_float
from .latent_models import Models

__all__ = ["Frame", "check_size"]


def check_size(models: Models, size: Any, *, tile: int | None) -> tuple[int, int]:
    """Height and width if the bundle can make pictures of them.

    Arguments:
        models: The bundle.
        size: Height and width in pixels.
        tile: The option; pictures larger than the UNet takes need one.

    Raises:
        ParameterError: Not two whole numbers, not multiples, too small, or too large.
    """
    multiple, factor = models.settings.size_multiple, models.settings.factor
    whole = isinstance(size, Sequence) and len(size) == 2 and not isinstance(size, str)
    if not whole or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in size):
        raise ParameterError(
            f"size is {size!r}, need height and width in pixels; pass such as {models.settings.image_size}"
        )
    height, width = int(size[0]), int(size[1])
    told = f"size is height {height} and width {width}"
    least, most, _ = models.limits("unet")
    if height % multiple or width % multiple:
        near = tuple(max(multiple, round(n / multiple) * multiple) for n in (height, width))
        raise ParameterError(
            f"{told}, the bundle makes multiples of {multiple}; use height {near[0]} and width {near[1]}"
        )
    if min(height, width) < least * factor:
        raise ParameterError(f"{told}, the bundle makes {least * factor} or more; use a larger one")
    if height * width > MAX_PIXELS:
        raise ParameterError(f"{told}, more than {MAX_PIXELS} pixels; use a smaller one")
    if most and max(height, width) > most * factor and not tile:
        raise ParameterError(
            f"{told}, the bundle's UNet takes at most {most * factor} at once; use a smaller one, or pass tile={most}"
        )
    return height, width


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture made to fit a bundle.

    Arguments:
        picture: uint8 (H, W, 3), as asked for.
        padded: The same with its last rows and columns repeated up to the bundle's multiple.
    """

    picture: Array
    padded: Array

    @classmethod
    def of(
        cls, models: Models, picture: Array, size: tuple[int, int] | None, *, tile: int | None, scale: int = 1
    ) -> Frame:
        """A picture resized to `size`, or padded where none is given.

        Arguments:
            models: The bundle.
            picture: uint8 (H, W, 3).
            size: Height and width in pixels, multiples of the bundle's, or None.
            tile: The option; larger pictures are tiled by themselves, 0 forbids it.
            scale: Pixels that will be made of each of the picture's: 1, or the factor when enlarging.
        """
        automatic = None if tile == 0 else 1
        if size is not None:
            height, width = (n // scale for n in check_size(models, size, tile=automatic))
            picture = resize(picture, (height, width))
            return cls(picture, picture)
        multiple = models.settings.size_multiple
        least = -(-models.limits("unet")[0] * models.settings.factor // multiple) * multiple
        height, width = (max(least, -(-n * scale // multiple) * multiple) for n in picture.shape[:2])
        check_size(models, (height, width), tile=automatic)
        margins = ((0, height // scale - picture.shape[0]), (0, width // scale - picture.shape[1]), (0, 0))
        return cls(picture, np.pad(picture, margins, mode="edge") if any(sum(m) for m in margins) else picture)

    def grid(self, factor: int) -> tuple[int, int]:
        """Height and width in latents of `factor` pixels, padded."""
        return self.padded.shape[0] // factor, self.padded.shape[1] // factor

    def tensor(self) -> Array:
        """float32 (1, 3, H, W) in [-1, 1], padded."""
        return to_float(self.padded)

    def crop(self, images: Array, scale: int = 1) -> Array:
        """Pictures (…, H, W, 3) without what was padded."""
        height, width = self.picture.shape[:2]
        return images[..., : height * scale, : width * scale, :]
