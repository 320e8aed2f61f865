"""Sheets that the command writes: captioned pictures side by side, small ones enlarged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engines.binding import Array
from ..runtime import image as pictures

__all__ = ["captioned_sheet"]

SHOWN = 192
"""Least height in pixels of a picture on a sheet; smaller ones are enlarged."""


def captioned_sheet(images: Sequence[Array], captions: Sequence[str], *, columns: int) -> Array:
    """Pictures uint8 (H, W, 3) with their captions, `columns` in a row: uint8 (H, W, 3)."""
    return pictures.contact_sheet([_enlarged(image) for image in images], captions=captions, columns=columns)


def _enlarged(image: Array) -> Array:
    """Whole-number enlargement, so that small pictures are seen as they are."""
    factor = -(-SHOWN // image.shape[0])
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1) if factor > 1 else image
