"""Captions: what they say is what `render` draws."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.training import captions
from sfumato.training.emoji import Emoji


def picture(name: str, set_name: str = "noto", size: int = 8) -> Emoji:
    rgba = np.zeros((size, size, 4), dtype=np.uint8)
    rgba[:, : size // 2] = (200, 10, 20, 255)  # the left half is red, the right half transparent
    return Emoji(set_name, name, rgba)


@pytest.mark.parametrize(
    ("name", "set_name", "options", "text"),
    [
        ("red-apple", "noto", {}, "red apple"),
        ("red-apple", "fluent-emoji-flat", {}, "red apple, flat"),
        ("red-apple", "noto", {"article": True}, "a red apple"),
        ("axe", "noto", {"article": True}, "an axe"),
        ("axe", "fluent-emoji-flat", {"article": True, "background": "pink"}, "an axe on a pink background, flat"),
    ],
)
def test_caption_names_the_picture_its_background_and_its_style(name, set_name, options, text):
    assert captions.caption(picture(name, set_name), **options) == text


def test_every_picture_has_two_white_examples_and_some_coloured():
    rows = captions.examples([picture("axe"), picture("red-apple")], np.random.default_rng(0), coloured=3)
    for index in (0, 1):
        mine = [r for r in rows if r.index == index]
        assert [r.background for r in mine[:2]] == ["white", "white"]
        assert len({r.background for r in mine[2:]} - {"white"}) == 3
        assert all(f"on a {r.background} background" in r.caption for r in mine[2:])
        assert not mine[0].mirrored


def test_examples_depend_on_the_generator_alone():
    first, second = (captions.examples([picture("axe")], np.random.default_rng(5)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["right-arrow", "alarm-clock", "left-facing-fish", "red-question-mark"])
def test_pictures_whose_words_have_a_side_are_never_mirrored(name):
    rows = captions.examples([picture(name)], np.random.default_rng(0), coloured=8)
    assert not any(r.mirrored for r in rows)


def test_render_draws_the_background_and_the_mirror_image():
    rows = [captions.Example(0, "white", False, ""), captions.Example(0, "green", True, "")]
    plain, mirrored = captions.render([picture("axe")], rows)
    green = np.array(captions.BACKGROUNDS["green"]) / 127.5 - 1
    assert plain.shape == (3, 8, 8)
    np.testing.assert_allclose(plain[:, 0, -1], 1.0, atol=1e-6)
    np.testing.assert_allclose(mirrored[:, 0, 0], green, atol=1e-6)
    np.testing.assert_array_equal(plain[:, :, 0], mirrored[:, :, -1])
