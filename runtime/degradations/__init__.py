"""The degradations of Cold Diffusion, a family a file; NumPy float32, composed ahead so that a step costs O(1) in t."""

from __future__ import annotations

from .animorphosis import Animorphosis
from .blur import Blur
from .decolor import Decolor
from .fades import ScalarFade, SpiralFade
from .inpaint import ColourFade, Inpaint
from .noise import HotNoise
from .resolution import Resolution
from .snow import Snow
from .spec import DegradationSpec

__all__ = [
    "Animorphosis",
    "Blur",
    "ColourFade",
    "Decolor",
    "DegradationSpec",
    "HotNoise",
    "Inpaint",
    "Resolution",
    "ScalarFade",
    "Snow",
    "SpiralFade",
]
