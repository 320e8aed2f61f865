"""Inpainting and fading to a colour: products of Gaussian masks that open a hole in the picture.

References:
    Bansal et al., "Cold Diffusion", 2022, section 4.2 (inpainting) and appendix A.2; fading to a colour is the
    original's defading-generation, https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..degradation import Need, check_severity
from ..rng import Shape
from .separable import gaussian

__all__ = ["ColourFade", "Inpaint", "InpaintRoutine", "Uniform", "mask"]

InpaintRoutine: TypeAlias = Literal["Incremental", "Constant", "Random_Incremental"]
"""The original's names."""


class Uniform(Protocol):
    """A source of uniform numbers; `rng.TorchGenerator` and `rng.PhiloxGenerator` are."""

    def rand(self, shape: Shape) -> Array:
        """float32 of `shape` in [0, 1)."""
        ...


def mask(size: int, std: float) -> Array:
    """1 - G / max G, float64 (size, size), G a Gaussian whose centre is pixel size/2 - 1; `size` is even."""
    if size < 2 or size % 2:
        raise ParameterError(f"the mask of a side of {size} pixels has no centre; inpainting takes even sizes")
    # The Gaussian has size + 1 entries, of which the first is dropped: exact zero at size/2 - 1.
    axis = gaussian(size + 1, std)[1:]
    axis = axis / axis.max()
    return np.asarray(1.0 - np.outer(axis, axis))


@dataclass(frozen=True)
class Inpaint:
    """D(x, t) = m_0 … m_{t-1} x with m_i = `mask` of standard deviation std (i + first): the hole tends to grey 0.

    Arguments:
        steps: T.
        size: Side of the square picture in pixels, even.
        routine: "Incremental"; "Constant", all masks of standard deviation `std`; "Random_Incremental", the hole
            anywhere: a mask of twice the size is cropped at `offsets`.
        std: Standard deviation in pixels, or its growth a step.
        first: The original's ``initial_mask``.
        offsets: Rows and columns (B, 2) int of the crops, each 0 … size, for "Random_Incremental"; see `drawn`.
    """

    steps: int
    size: int
    routine: InpaintRoutine = "Incremental"
    std: float = 0.1
    first: int = 11
    offsets: Array | None = field(default=None, compare=False)
    _masks: Array = field(init=False, repr=False, compare=False)

    linear = True

    def __post_init__(self) -> None:
        if self.routine not in get_args(InpaintRoutine):
            raise ParameterError(f"no fade is named {self.routine!r}; use one of {', '.join(get_args(InpaintRoutine))}")
        if self.steps < 1 or self.std <= 0 or self.first < 1:
            raise ParameterError(
                f"inpainting has {self.steps} steps of std {self.std} from mask {self.first}; pass positive numbers"
            )
        if self.offsets is not None:
            low, high, shape = self.offsets.min(), self.offsets.max(), self.offsets.shape
            if self.offsets.ndim != 2 or shape[1] != 2 or low < 0 or high > self.size:
                raise ParameterError(
                    f"offsets of shape {shape} run from {low} to {high}, need (B, 2) in 0 … {self.size}; use drawn()"
                )
        side = self.size * (2 if self.routine == "Random_Incremental" else 1)
        masks, product = np.empty((self.steps, side, side), dtype=np.float32), np.ones((side, side))
        for i, width in enumerate(self._widths()):
            product = product * mask(side, width)
            product[product < 1e-30] = 0.0  # subnormal numbers would cost time in every step
            masks[i] = product
        object.__setattr__(self, "_masks", masks)

    @property
    def deterministic(self) -> bool:
        """Whether the hole is at the centre."""
        return self.routine != "Random_Incremental"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Offsets, for "Random_Incremental"."""
        return () if self.deterministic else ("offsets",)

    def drawn(self, images: int, rng: Uniform) -> Inpaint:
        """The same with the hole of each of `images` pictures drawn anew: one for a whole restoration."""
        offsets = np.minimum((rng.rand((images, 2)) * (self.size + 1)).astype(np.int64), self.size)
        return Inpaint(self.steps, self.size, self.routine, self.std, self.first, offsets)

    def masks(self, t: int) -> Array:
        """What severity t = 1 … T multiplies by, float32 (size, size), or (B, 1, size, size) at offsets."""
        whole = self._masks[t - 1]
        if self.deterministic:
            return np.asarray(whole)
        if self.offsets is None:
            raise ParameterError("the holes of 'Random_Incremental' were not drawn; use drawn(images, rng)")
        n = self.size
        return np.stack([whole[None, row : row + n, column : column + n] for row, column in self.offsets])

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t)."""
        if check_severity(t, self.steps) == 0:
            return x0
        if x0.shape[-2:] != (self.size, self.size):
            raise ParameterError(
                f"the picture has {x0.shape[-2:]} pixels, the masks ({self.size}, {self.size}); make the pictures' own"
            )
        masks = self.masks(t)
        if masks.ndim == 4 and masks.shape[0] != x0.shape[0]:
            raise ParameterError(
                f"{masks.shape[0]} holes were drawn for {x0.shape[0]} pictures; use drawn(images, rng)"
            )
        return np.asarray(masks * x0)

    def _widths(self) -> list[float]:
        if self.routine == "Constant":
            return [self.std] * self.steps
        return [self.std * (i + self.first) for i in range(self.steps)]


@dataclass(frozen=True)
class ColourFade:
    """D(x, t) = a x + (1 - a) c with masks a of `Inpaint` and one colour c a picture: cold generation by inpainting.

    With P_j the product of the first j masks, a = P_t, a hole that grows; or with `reverse` a = 1 - P_{T-t}, which
    leaves the picture to vanish towards its centre and ends at c exactly.

    Arguments:
        steps: T.
        size: Side of the square picture in pixels, even.
        colour: End colours (B, C) float32; the original draws each channel from U(-0.5, 0.5), see `colours`.
        std: Growth of the masks' standard deviation a step.
        first: The original's ``initial_mask``.
        reverse: See above.
    """

    steps: int
    size: int
    colour: Array = field(compare=False)
    std: float = 0.15
    first: int = 11
    reverse: bool = False
    _inpaint: Inpaint = field(init=False, repr=False, compare=False)

    linear = True
    deterministic = False
    needs: tuple[Need, ...] = field(default=("colour",), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.colour.ndim != 2:
            raise ParameterError(f"end colours have shape {self.colour.shape}, need (B, C); pass one colour a picture")
        object.__setattr__(self, "_inpaint", Inpaint(self.steps, self.size, "Incremental", self.std, self.first))

    @staticmethod
    def colours(images: int, rng: Uniform, channels: int = 3) -> Array:
        """End colours float32 (images, channels), uniform in [-0.5, 0.5)."""
        return np.asarray(rng.rand((images, channels)) - np.float32(0.5))

    def end(self) -> Array:
        """The colours as pictures, float32 (B, C, size, size): where generation starts."""
        shape = (*self.colour.shape, self.size, self.size)
        return np.array(np.broadcast_to(self.colour[:, :, None, None], shape), dtype=np.float32)

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t)."""
        if check_severity(t, self.steps) == 0:
            return x0
        colour = self.colour.astype(np.float32)[:, :, None, None]
        if not self.reverse:
            keep = self._inpaint.masks(t)
        elif t == self.steps:
            keep = np.zeros((self.size, self.size), dtype=np.float32)
        else:
            keep = np.float32(1) - self._inpaint.masks(self.steps - t)
        return np.asarray(keep * x0 + (np.float32(1) - keep) * colour)
