"""The questions asked of the emoji model, on pictures and features whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.engines.target import CpuFacts
from sfumato.training import evaluate_emoji, judge_emoji
from sfumato.training.dinov2 import Features
from sfumato.training.emoji import Emoji


def picture(index: int, name: str | None = None, set_name: str = "noto") -> Emoji:
    rgba = np.random.default_rng(index).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    return Emoji(set_name, name or f"thing-{index}", rgba)


def features(*rows: int, width: int = 64) -> Features:
    """Unrelated directions, the same for the same number."""
    x = np.stack([np.random.default_rng(100 + row).standard_normal(width) for row in rows]).astype(np.float32)
    return Features(x, x.copy())


LIMITS = judge_emoji.CopyLimits(30.0, 0.95)


def test_a_draw_is_random_repeatable_and_without_two_of_one_look():
    twins = [picture(0, "a"), picture(0, "b"), *(picture(i) for i in range(1, 20))]
    first, second = (judge_emoji.draw(twins, 100, np.random.default_rng(7)) for _ in range(2))
    assert [e.name for e in first] == [e.name for e in second] != sorted(e.name for e in first)
    assert len(first) == 20
    assert len(judge_emoji.draw(twins, 5, np.random.default_rng(7))) == 5


def test_a_held_out_name_whose_look_was_trained_on_does_not_count_as_unseen():
    held_out = next(n for n in (f"x-{i}" for i in range(1000)) if picture(0, n).held_out)
    seen = next(n for n in (f"x-{i}" for i in range(1000)) if not picture(0, n).held_out)
    assert judge_emoji.unseen([picture(1, seen), picture(2, held_out)])[0].name == held_out
    assert judge_emoji.unseen([picture(1, seen), picture(1, held_out)]) == []


def test_retrieval_of_the_very_pictures_is_perfect_and_of_shuffled_ones_is_not():
    real = features(*range(20))
    found = judge_emoji.retrieval(real, real)
    assert (found["top1"]["share"], found["top5"]["share"], found["median_rank"]) == (1.0, 1.0, 1.0)
    assert judge_emoji.retrieval(features(*range(1, 20), 0), real)["top1"]["share"] < 0.3
    assert found["chance"] == 0.05


def test_the_autoencoder_is_judged_over_white_and_over_colours():
    pictures = [picture(i) for i in range(4)]
    perfect = judge_emoji.autoencoder(pictures, lambda x: x.copy(), np.random.default_rng(0))
    assert perfect["white"]["psnr"] == perfect["coloured"]["psnr"] == 99
    worse = judge_emoji.autoencoder(pictures, lambda x: x ^ 1, np.random.default_rng(0))
    assert worse["white"]["psnr"] == pytest.approx(48.13, abs=0.01)


def test_copies_are_found_and_new_pictures_are_not_called_copies():
    training = [picture(i) for i in range(6)]
    gallery, known = judge_emoji.on_white(training), features(*range(6))
    mirrored = gallery[2:3, :, ::-1].copy()
    fresh = judge_emoji.on_white([picture(50)])
    generated = np.concatenate([gallery[:1], mirrored, fresh])
    made = Features(*(np.concatenate([known.token[:1], features(80).token, features(81).token]) for _ in range(2)))
    asked = [training[0], training[2], training[3]]
    found = judge_emoji.copies(generated, made, asked, gallery, known, training, LIMITS)
    assert found["near_copies_by_pixels"]["share"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["near_copies_by_features"]["share"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["near_copies"]["share"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["nearest_in_pixels_is_own"]["share"] >= 0.6


def test_the_limits_are_those_of_the_round_trip():
    images = judge_emoji.on_white([picture(i) for i in range(10)])
    back = images ^ 1  # every value one off: 48.13 dB
    limits = judge_emoji.copy_limits(images, back, features(*range(10)), features(*range(10)))
    assert limits.psnr == pytest.approx(48.13 - 3.01, abs=0.01)
    assert limits.cosine == pytest.approx(1, abs=1e-6)


def test_neighbours_of_a_picture_are_others_than_itself():
    assert judge_emoji.real_neighbours(features(*range(20)))["p95"] < 0.9


@pytest.mark.parametrize(
    ("machine", "flags", "text"),
    [
        ("x86_64", ("amx_bf16", "avx2", "avx512f"), "2-core x86-64 with AMX"),
        ("x86_64", ("avx2",), "2-core x86-64 with AVX2"),
        ("aarch64", (), "2-core aarch64"),
    ],
)
def test_machines_are_told_by_class(machine, flags, text):
    assert evaluate_emoji.machine_class(CpuFacts("Some CPU", machine, 2, flags)) == text


def test_the_sheet_shows_pairs():
    asked = [picture(i) for i in range(3)]
    made, real = (judge_emoji.on_white(asked) for _ in range(2))
    shown = evaluate_emoji.sheet(asked, made, 255 - real)
    assert shown.dtype == np.uint8 and shown.shape[2] == 3
    assert shown.shape[1] == 3 * (2 * (8 + 2 + 8) + 8) + 8


def test_the_table_names_the_settings_that_were_used():
    real = features(*range(6))
    training = [picture(i) for i in range(6)]
    gallery = judge_emoji.on_white(training)
    part = judge_emoji.retrieval(real, real) | judge_emoji.copies(
        gallery, real, training, gallery, real, training, LIMITS
    )
    results = {
        "bundle": {"name": "x", "unet": "0", "precision": "bf16"},
        "machine": "2-core x86-64 with AMX",
        "options": {"seed": 3, "steps": 25},
        "defaults": {"steps": 50, "guidance_scale": 3.0, "sampler": "ddim", "eta": 0.0, "spacing": "leading"},
        "autoencoder": judge_emoji.autoencoder(training, lambda x: x, np.random.default_rng(0)),
        "near_copy": {"psnr": 30.0, "cosine": 0.95},
        "ceiling": judge_emoji.retrieval(real, real),
        "training_pictures": {"count": 6, "cosine": judge_emoji.real_neighbours(real)},
        "training": part,
        "held_out": dict(part),
    }
    text = evaluate_emoji.table(results)
    assert "ddim, 25 steps, guidance scale 3, seed 3" in text
    assert "| retrieves its own picture, top-1 | 100.0% (61% to 100%) | 100.0% (61% to 100%) |" in text
    assert "| nearest training picture is its own | 100.0% (61% to 100%) | has none |" in text
