"""Pictures on their way into Cold Diffusion and back: sizes, grey and Lab pictures, masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...engines.binding import Array, Dimension
from ...engines.manifest import NetworkSpec
from ...errors import ParameterError
from .. import image as pictures
from ..degradations.lab import lab_from_rgb, rgb_from_lab
from ..degradations.spec import DegradationSpec
from .cold_settings import ColdDiffusionSettings

__all__ = ["Pictures", "check_size", "hole_offsets", "matching", "read_hole"]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Pictures:
    """Between uint8 RGB pictures and what the network sees: RGB, grey or Lab."""

    def __init__(self, settings: ColdDiffusionSettings) -> None:
        self._grey = settings.channels == 1
        self._lab = bool(settings.degradation.parameters.get("lab"))

    def to_network(self, images: Array) -> Array:
        """uint8 (B, H, W, 3) -> float32 (B, C, H, W); of colours, a grey network sees the brightness."""
        x = pictures.to_float(images)
        if self._grey:
            return np.ascontiguousarray(np.einsum("c,bchw->bhw", _LUMA, x)[:, None])
        return lab_from_rgb(x) if self._lab else x

    def from_network(self, x: Array) -> Array:
        """float32 (B, C, H, W) -> uint8 (B, H, W, 3), clipped."""
        if self._grey:
            x = np.broadcast_to(x, (len(x), 3, *x.shape[2:]))
        return pictures.from_float(rgb_from_lab(x) if self._lab else x)


def check_size(size: tuple[int, int], spec: NetworkSpec, degradation: DegradationSpec) -> None:
    """Refuse heights and widths that the network or the degradation cannot take, and name some that they can.

    Raises:
        ParameterError: They cannot.
    """
    named = zip(("height", "width"), size, strict=True)
    ranges = [spec.dimensions.get(name) or Dimension(1, extent, extent) for name, extent in named]
    fitting = [_below(extent, taken) for extent, taken in zip(size, ranges, strict=True)]
    if degradation.square:
        side = min(fitting)
        fitting = [side - side % 2] * 2
    if tuple(fitting) != tuple(size):
        if not degradation.square:
            fitting = _alike(size, ranges)
        multiple = max((d.multiple for n, d in spec.dimensions.items() if n in ("height", "width")), default=1)
        squares = ", square" if degradation.square else ""
        oblong = degradation.square and size[0] != size[1]
        squeezed = ", which squeezes it unless you crop it to a square first" if oblong else ""
        limits = spec.dimensions.get("height")
        reach = "" if limits is None else f" of {limits.min} to {limits.max} pixels"
        raise ParameterError(
            f"the picture has {size[0]}x{size[1]} pixels (height x width), the network takes multiples of {multiple}"
            f"{reach}{squares}; pass size=({fitting[0]}, {fitting[1]}){squeezed}"
        )


def _below(extent: float, taken: Dimension) -> int:
    """The largest extent that is taken and is not above this one, or the least one."""
    return max(taken.min, int(min(extent + 1e-6, taken.max)) // taken.multiple * taken.multiple)


def _alike(size: tuple[int, int], ranges: Sequence[Dimension]) -> list[int]:
    """Height and width that are taken and nearly have the proportions of `size`: the longer side leads the other."""
    size = max(1, size[0]), max(1, size[1])
    scale = min(1.0, *(taken.max / extent for extent, taken in zip(size, ranges, strict=True)))
    longer = int(size[1] > size[0])
    fitting = [_below(size[longer] * scale, ranges[longer])] * 2
    other = ranges[1 - longer]
    wanted = size[1 - longer] * fitting[longer] / size[longer]
    fitting[1 - longer] = _below(wanted + other.multiple / 2, other)
    return fitting


def matching(source: pictures.Source, size: tuple[int, int]) -> Array:
    """A picture brought to height and width `size`, uint8 (H, W, 3)."""
    return pictures.resize(pictures.read(source), size)


def read_hole(source: pictures.Source, size: tuple[int, int]) -> Array:
    """A mask bool (H, W), True (white) where the picture may change.

    Raises:
        ParameterError: It has another size than the picture.
    """
    mask = pictures.read_mask(source)
    if mask.shape != size:
        raise ParameterError(
            f"the mask has {mask.shape[0]}x{mask.shape[1]} pixels (height x width), the picture {size[0]}x{size[1]}; "
            "resize one to the other"
        )
    return mask


def hole_offsets(mask: Array) -> Array:
    """Offsets (1, 2) that put the hole of `degradations.Inpaint`'s "Random_Incremental" at the centre of a mask."""
    rows, columns = np.nonzero(mask)
    side = mask.shape[0]
    centre = np.array([rows.mean(), columns.mean()]) if rows.size else np.full(2, side / 2 - 1)
    return np.asarray(np.clip(np.rint(side - 1 - centre), 0, side)[None], dtype=np.int64)
