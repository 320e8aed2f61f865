"""The data set's rules, on pictures made here."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.training import emoji
from sfumato.training.emoji import Emoji


def named(*names: str, set_name: str = "noto") -> list[Emoji]:
    return [Emoji(set_name, name, np.zeros((2, 2, 4), np.uint8)) for name in names]


def test_over_is_the_background_where_transparent_and_the_colour_where_opaque():
    rgba = np.zeros((1, 1, 3, 4), dtype=np.uint8)
    rgba[0, 0, 1] = (255, 0, 51, 255)
    rgba[0, 0, 2] = (255, 0, 0, 51)
    x = emoji.over(rgba, np.array([[0, 255, 102]]))
    assert x.dtype == np.float32 and x.shape == (1, 3, 1, 3)
    np.testing.assert_allclose((x[0, :, 0].T + 1) * 127.5, [[0, 255, 102], [255, 0, 51], [51, 204, 81.6]], atol=1e-3)


def test_over_stays_in_range_for_every_alpha():
    rng = np.random.default_rng(0)
    x = emoji.over(rng.integers(0, 256, (4, 8, 8, 4), dtype=np.uint8), rng.integers(0, 256, (4, 3)))
    assert x.min() >= -1 and x.max() <= 1


def test_tellable_leaves_out_what_differs_by_gender_alone():
    pictures = named("person-running", "woman-running", "man-running", "man-dancing", "genie", "woman-genie", "woman")
    assert [e.name for e in emoji.tellable(pictures)] == ["person-running", "man-dancing", "genie", "woman"]


def test_a_twin_in_the_other_set_is_no_twin():
    pictures = [*named("person-running"), *named("woman-running", set_name="fluent-emoji-flat")]
    assert len(emoji.tellable(pictures)) == 2


def test_tellable_leaves_out_letters_clocks_and_families():
    names = ("letter-a", "keycap-1", "three-oclock", "two-thirty", "family-man-woman-boy", "4", "up-button", "owl")
    assert [e.name for e in emoji.tellable(named(*names))] == ["owl"]


def test_a_name_is_held_out_in_both_sets_or_in_none_and_one_in_twenty_is():
    names = [f"thing-{i}" for i in range(4000)]
    noto, flat = named(*names), named(*names, set_name="fluent-emoji-flat")
    assert [e.held_out for e in noto] == [e.held_out for e in flat]
    assert 0.04 < np.mean([e.held_out for e in noto]) < 0.06


def test_pictures_come_from_the_cache_without_the_packages(tmp_path):
    pixels = np.arange(2 * 16, dtype=np.uint8).reshape(2, 2, 2, 4)
    categories = ["Objects", "Animals & Nature"]
    np.savez(
        tmp_path / "emoji-2.npz",
        sets=["noto", "noto"],
        names=["axe", "owl"],
        pixels=pixels,
        categories=categories,
    )
    axe, owl = emoji.load(tmp_path, size=2)
    assert (axe.caption, owl.name) == ("axe", "owl")
    np.testing.assert_array_equal(owl.rgba, pixels[1])
    assert [axe.category, owl.category] == categories


def test_things_are_neither_people_nor_signs():
    rgba = np.zeros((2, 2, 4), np.uint8)
    names = {"owl": "Animals & Nature", "cook": "People & Body", "axe": "Objects", "minus": "Symbols", "x": ""}
    pictures = [Emoji("noto", name, rgba, category) for name, category in names.items()]
    assert [e.name for e in emoji.things(pictures)] == ["owl", "axe"]


def test_missing_packages_are_told_with_the_command_that_brings_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="npm install --prefix .*@iconify-json/noto@"):
        emoji.load(tmp_path)
