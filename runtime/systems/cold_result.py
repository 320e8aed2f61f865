"""What Cold Diffusion returns: the restored picture beside what it was made of, and how close it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from ...engines.binding import Array
from .. import image as pictures
from ..metrics import psnr, rmse, ssim
from .base import Edit

__all__ = ["Quality", "Restored", "quality"]


class Quality(TypedDict):
    """How close a picture is to the original, both as 8-bit pictures in [0, 1].

    Arguments:
        psnr: Peak signal-to-noise ratio in dB; None where they are equal.
        ssim: Structural similarity, at most 1; None for pictures below 11 pixels.
        rmse: Root of the mean squared difference.
    """

    psnr: float | None
    ssim: float | None
    rmse: float


@dataclass(frozen=True, eq=False)
class Restored(Edit):
    """A picture that was restored or generated; ``image`` is the result.

    Arguments:
        original: uint8 (H, W, 3), the clean picture, where there is one.
        degraded: uint8 (H, W, 3), what the network was given first.
        direct: uint8 (H, W, 3), its first prediction: restoration in one step.
        stages: Its predictions at every step, uint8 (H, W, 3) each, if they were kept.
        severity: The severity it started from.
        quality: Of "degraded", "direct" and "restored", where there is an original.
    """

    original: Array | None = None
    degraded: Array | None = None
    direct: Array | None = None
    stages: tuple[Array, ...] = ()
    severity: int = 0
    quality: Mapping[str, Quality] = field(default_factory=dict[str, Quality])

    @property
    def restored(self) -> Array:
        """``image`` by its other name."""
        return self.image

    def sheet(self) -> Array:
        """Original, degraded, direct and restored picture side by side, uint8 (H, W, 3), captioned if they are wide."""
        found = {"original": self.original, "degraded": self.degraded, "direct": self.direct, "restored": self.image}
        shown = {name: picture for name, picture in found.items() if picture is not None}
        captions = None
        if self.image.shape[1] >= 48:
            captions = [f"{name} {_decibels(self.quality.get(name))}".strip() for name in shown]
        return pictures.contact_sheet(list(shown.values()), captions=captions, columns=len(shown))


def quality(picture: Array, original: Array) -> Quality:
    """How close `picture` is to `original`, both uint8 (H, W, 3)."""
    a, b = (np.moveaxis(p, -1, 0)[None].astype(np.float64) / 255 for p in (picture, original))
    decibels = float(psnr(a, b)[0])
    return Quality(
        psnr=decibels if np.isfinite(decibels) else None,
        ssim=float(ssim(a, b)[0]) if min(picture.shape[:2]) >= 11 else None,
        rmse=rmse(a, b),
    )


def _decibels(found: Quality | None) -> str:
    if found is None:
        return ""
    return "equal" if found["psnr"] is None else f"{found['psnr']:.1f}"
