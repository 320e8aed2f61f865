"""Masks of latent diffusion: one convention outside, the two of the original code inside.

Outside, white (True) is the hole to repaint. Latent Diffusion's inpainting script agrees (1 = hole); the mask of its
samplers does not (1 = keep), and `Hole.keep` is that one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..image import from_float, resize_mask
from .latent_sizes import Frame

__all__ = ["Hole"]


@dataclass(frozen=True, eq=False)
class Hole:
    """A hole in a framed picture.

    Arguments:
        frame: The picture.
        mask: bool (H, W) of the padded picture, True = repaint.
        factor: Pixels to one latent.
    """

    frame: Frame
    mask: Array
    factor: int

    @classmethod
    def of(cls, frame: Frame, mask: Array, shape: tuple[int, ...], factor: int) -> Hole:
        """The hole of a mask that has the size of the picture as it was read, `shape`."""
        if mask.shape != shape:
            raise ParameterError(
                f"the mask is {mask.shape[0]}x{mask.shape[1]}, the picture {shape[0]}x{shape[1]}; give both one size"
            )
        height, width = frame.picture.shape[:2]
        fitted = mask if mask.shape == (height, width) else resize_mask(mask, (height, width))
        padded = np.zeros(frame.padded.shape[:2], dtype=np.bool_)
        padded[:height, :width] = fitted
        return cls(frame, padded, factor)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to repaint."""
        return not bool(self.mask.any())

    def keep(self) -> Array:
        """float32 (1, 1, h, w): 1 where no pixel of a latent is in the hole, 0 elsewhere (the samplers' mask)."""
        height, width = (n // self.factor for n in self.mask.shape)
        blocks = self.mask.reshape(height, self.factor, width, self.factor)
        known: Array = np.where(blocks.any(axis=(1, 3)), np.float32(0), np.float32(1))
        return known[None, None]

    def masked(self, hole: float) -> Array:
        """float32 (1, 3, H, W): the picture in [-1, 1] with `hole` where it is to be repainted."""
        return np.asarray(np.where(self.mask, np.float32(hole), self.frame.tensor()))

    def channel(self, known: float) -> Array:
        """float32 (1, 1, h, w): the mask at the latents' size by nearest neighbour, 1 in the hole, else `known`."""
        size = (self.mask.shape[0] // self.factor, self.mask.shape[1] // self.factor)
        small = resize_mask(self.mask, size)[None, None]
        return np.asarray(np.where(small, np.float32(1), np.float32(known)))

    def fill(self, images: Array, *, paste: bool, official: bool) -> Array:
        """Decoded pictures float32 (B, 3, H, W) -> uint8 (B, H, W, 3), with the known pixels put back if `paste`.

        `official` computes (1 - m) picture + m prediction in [0, 1] in float32 and truncates, as the script does, which
        may darken known pixels by one level; by default known pixels come back exactly.
        """
        if not paste:
            made = from_float(images, official=official)
        elif official:
            one, two = np.float32(1), np.float32(2)
            hole = self.mask.astype(np.float32)
            picture, filling = (np.clip((x + one) / two, 0, 1) for x in (self.frame.tensor(), images))
            mixed = (one - hole) * picture + hole * filling
            made = np.moveaxis((mixed * np.float32(255)).astype(np.uint8), 1, -1)
        else:
            made = np.where(self.mask[..., None], from_float(images), self.frame.padded)
        return self.frame.crop(made)
