"""Hot diffusion: the noise that Cold Diffusion does without, one fixed draw for a whole trajectory.

References:
    Bansal et al., "Cold Diffusion", 2022, section 5.2, https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from ..degradation import Need
from ..rng import Noise, Shape
from .mixing import Mixing

__all__ = ["HotNoise"]


class HotNoise(Mixing):
    """D(x, t) = sqrt(a_t) x + sqrt(1 - a_t) z with z ~ N(0, 1).

    Given z it is the original's "x0_step_down" (fixed noise); without, its "ddim" (estimated noise).
    """

    needs: tuple[Need, ...] = ("noise",)

    @classmethod
    def drawn(cls, steps: int, shape: Shape, rng: Noise) -> HotNoise:
        """With z of `shape` (B, C, H, W) from `rng`; ``.end`` is where generation starts."""
        return cls(steps, rng.randn(shape))
