"""Animorphosis: a picture turns into another one.

References:
    Bansal et al., "Cold Diffusion", 2022, section 5.3 and appendix A.6, https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from ..degradation import Need
from .mixing import Mixing

__all__ = ["Animorphosis"]


class Animorphosis(Mixing):
    """D(x, t) = sqrt(a_t) x + sqrt(1 - a_t) z with z a second picture, float32 (B, C, H, W) in [-1, 1].

    Given z it is the original's ``gen_sample`` (z stays the start picture); without, its ``sample`` (z estimated).
    """

    needs: tuple[Need, ...] = ("picture",)
