"""Inpainting and fading to a colour."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import ParameterError
from sfumato.runtime.degradations import ColourFade, Inpaint
from sfumato.runtime.rng import PhiloxGenerator

TAGS = ("Incremental_0.2_1", "Incremental_0.1_11", "Constant_3.0_1", "Random_Incremental_0.1_1")


@pytest.mark.parametrize("tag", TAGS)
def test_masks_give_the_official_series(goldens, tag) -> None:
    data = goldens("cold_inpaint_ops.npz")
    routine, std, first = tag.rsplit("_", 2)
    offsets = None
    if routine.startswith("Random"):
        offsets = np.stack([data[f"{tag}__rand_x"], data[f"{tag}__rand_y"]], axis=1)
    inpaint = Inpaint(6, 32, routine, float(std), int(first), offsets)
    result = [inpaint(data["x"], t) for t in range(7)]
    np.testing.assert_allclose(result, data[f"{tag}__seq"], rtol=0, atol=1e-6)
    if offsets is None:
        products = np.cumprod(data[f"{tag}__fade_kernels"], axis=0)
        np.testing.assert_allclose([inpaint.masks(t) for t in range(1, 7)], products, rtol=0, atol=1e-6)


def test_the_hole_is_at_the_pixel_before_the_centre_and_tends_to_grey() -> None:
    x = np.ones((1, 3, 32, 32), dtype=np.float32)
    inpaint = Inpaint(50, 32, "Incremental", 0.2, 1)
    first, last = inpaint(x, 1), inpaint(x, 50)
    assert np.argwhere(first[0, 0] == 0).tolist() == [[15, 15]]
    assert (last <= first).all() and (last[0, 0, 13:18, 13:18] == 0).all() and last[0, 0, 0, 0] > 0.4


def test_holes_are_drawn_once_for_each_picture() -> None:
    plain = Inpaint(6, 32, "Random_Incremental", 0.5, 1)
    drawn = plain.drawn(4, PhiloxGenerator(3))
    x = np.ones((4, 1, 32, 32), dtype=np.float32)
    assert not drawn.deterministic and drawn.needs == ("offsets",)
    assert drawn.offsets is not None and len(np.unique(drawn.offsets, axis=0)) > 1
    assert (drawn(x, 6) <= drawn(x, 3)).all()
    with pytest.raises(ParameterError, match="not drawn; use drawn"):
        plain(x, 1)
    with pytest.raises(ParameterError, match="4 holes were drawn for 2 pictures"):
        drawn(x[:2], 1)


def test_sizes_that_masks_do_not_fit_are_refused() -> None:
    with pytest.raises(ParameterError, match="side of 31 pixels has no centre"):
        Inpaint(6, 31)
    with pytest.raises(ParameterError, match=r"picture has \(16, 16\) pixels, the masks \(32, 32\)"):
        Inpaint(6, 32)(np.zeros((1, 3, 16, 16), dtype=np.float32), 1)
    with pytest.raises(ParameterError, match="offsets of shape"):
        Inpaint(6, 32, "Random_Incremental", offsets=np.array([[40, 0]]))


def test_fading_to_a_colour_ends_at_it_exactly_when_reversed() -> None:
    colour = ColourFade.colours(2, PhiloxGenerator(1))
    x = PhiloxGenerator(2).randn((2, 3, 16, 16))
    fade = ColourFade(8, 16, colour, std=0.3, first=1, reverse=True)
    np.testing.assert_array_equal(fade(x, 8), fade.end())
    centre, corner = np.abs(fade(x, 4) - x)[0, :, 7, 7].max(), np.abs(fade(x, 4) - x)[0, :, 15, 15].max()
    assert centre < corner  # it vanishes towards the centre
    assert np.abs(colour).max() <= 0.5


def test_fading_to_a_colour_is_inpainting_where_the_colour_is_grey() -> None:
    x = PhiloxGenerator(2).randn((2, 3, 16, 16))
    fade, inpaint = ColourFade(8, 16, np.zeros((2, 3)), 0.3, 1), Inpaint(8, 16, "Incremental", 0.3, 1)
    for t in range(9):
        np.testing.assert_allclose(fade(x, t), inpaint(x, t), rtol=0, atol=1e-6)
    black = ColourFade(8, 16, np.full((2, 3), -1.0), 0.3, 1)(x, 8)
    np.testing.assert_allclose(black[:, :, 7, 7], -1.0, rtol=0, atol=1e-6)
