"""Noise regularisation: the official losses and gradients, and what they are for."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sfumato.errors import ParameterError
from sfumato.runtime.regularization import (
    NoiseRegularizer,
    auto_correlation,
    kl_divergence,
    random_shifts,
    torch_shifts,
)
from sfumato.runtime.rng import TorchGenerator


def replay(values):
    left = iter(values)
    return lambda height: int(next(left))


def close(found, wanted, share=1e-5):
    return np.abs(found - wanted).max() <= share * np.abs(wanted).max()


@pytest.mark.parametrize("side", ["64", "16"])
def test_losses_and_gradients_are_the_authors(goldens, side):
    g = goldens("p2p_regularisers.npz")
    noise = g[f"{side}__noise"]
    loss, gradient = auto_correlation(noise, replay(g[f"{side}__rolls"]))
    assert loss == pytest.approx(float(g[f"{side}__ac_loss"]), rel=1e-5)
    assert close(gradient, g[f"{side}__ac_grad"])
    loss, gradient = kl_divergence(noise)
    assert loss == pytest.approx(float(g[f"{side}__kl_loss"]), rel=1e-4)
    assert close(gradient, g[f"{side}__kl_grad"], 1e-4)
    assert gradient.dtype == np.float32


@pytest.mark.parametrize("side", ["64", "16"])
def test_a_fixed_shift_gives_the_fixed_variant(goldens, side):
    g = goldens("p2p_regularisers.npz")
    loss, gradient = auto_correlation(g[f"{side}__noise"], lambda height: 1)
    assert loss == pytest.approx(float(g[f"{side}__ac1_loss"]), rel=1e-5)
    assert close(gradient, g[f"{side}__ac1_grad"])


@pytest.mark.parametrize("shape", [(1, 2, 20, 12), (1, 1, 9, 16), (1, 3, 4, 2)])
def test_gradients_are_the_derivatives_of_the_losses(shape):
    rng = np.random.default_rng(0)
    noise, direction = rng.standard_normal(shape), rng.standard_normal(shape)
    for function in (lambda x: auto_correlation(x, random_shifts(3)), kl_divergence):
        slope = (function(noise + 1e-6 * direction)[0] - function(noise - 1e-6 * direction)[0]) / 2e-6
        assert (function(noise)[1] * direction).sum() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("name", ["reg", "klonly"])
def test_every_step_of_the_official_regularisation(goldens, name):
    g = goldens("p2p_inversion.npz")
    for step, raw in enumerate(g[f"{name}__eps_raw"]):
        if name == "reg":
            regularize = NoiseRegularizer(replay(g["reg__rolls"][step]))
        else:
            regularize = NoiseRegularizer(ac=0, outer=2)
        before = raw.copy()
        assert close(regularize(raw), g[f"{name}__eps_reg"][step])
        assert np.array_equal(raw, before)


def test_correlated_noise_becomes_whiter_and_standard():
    white = np.random.default_rng(1).standard_normal((1, 4, 32, 32), dtype=np.float32)
    noise = (white + np.roll(white, 3, 2) + np.roll(white, 5, 3)) * np.float32(0.9) + np.float32(0.3)

    def correlation(x):
        return np.mean([auto_correlation(x, random_shifts(seed))[0] for seed in range(8)])

    result = noise
    for seed in range(20):
        result = NoiseRegularizer(random_shifts(seed))(result)
    assert correlation(result) < 0.6 * correlation(noise)
    assert kl_divergence(result)[0] < 0.5 * kl_divergence(noise)[0]


def test_shifts_are_those_of_python_and_of_torch():
    random.seed(7)
    draw = random_shifts(7)
    assert [draw(h) for h in (64, 32, 16, 8)] == [random.randrange(1, h // 2) for h in (64, 32, 16, 8)]
    generator = TorchGenerator(7)
    draw = torch_shifts(7)
    assert [draw(64) for _ in range(50)] == [int(generator.randint(0, 32, 1)[0]) for _ in range(50)]
    assert 0 in [draw(8) for _ in range(100)]


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (4, 16, 16), (1, 4, 3, 16), (1, 4, 16, 1)])
def test_shapes_that_cannot_be_regularised_are_refused(shape):
    with pytest.raises(ParameterError, match=r"noise has"):
        auto_correlation(np.zeros(shape, np.float32), random_shifts(0))


@pytest.mark.parametrize("shape", [(64, 4), (32, 2), (128, 8), (18, 2)])
def test_noise_too_narrow_for_its_height_is_refused(shape):
    with pytest.raises(ParameterError, match=rf"{shape[0]} rows and {shape[1]} columns; .* no column is; .*wider"):
        NoiseRegularizer()(np.ones((1, 4, *shape), np.float32))
    noise = np.random.default_rng(0).standard_normal((1, 4, shape[0], 2 * shape[1])).astype(np.float32)
    assert np.isfinite(auto_correlation(noise, random_shifts(0))[1]).all()


@pytest.mark.parametrize(
    ("shape", "spread"), [((1, 1, 4, 4), 1), ((1, 4, 4, 2), 1), ((1, 4, 16, 16), 1e3), ((1, 4, 16, 16), 1e30)]
)
def test_divergence_is_told_as_what_it_is(shape, spread):
    noise = (spread * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    for given in (noise, noise.astype(np.float64)):
        with pytest.raises(ParameterError, match=r"noise regularisation diverges.*regularize=False.*larger picture"):
            NoiseRegularizer()(given)


def test_noise_that_was_broken_before_is_left_to_whoever_made_it():
    assert np.isnan(NoiseRegularizer()(np.full((1, 4, 8, 8), np.nan, np.float32))).all()


def test_one_value_has_no_divergence_and_huge_ones_an_infinite_one():
    with pytest.raises(ParameterError, match="needs two values"):
        kl_divergence(np.ones((1, 1, 1, 1)))
    assert kl_divergence(np.full((1, 1, 4, 4), 1e200))[0] == np.inf


@pytest.mark.parametrize("options", [{"ac": -1}, {"kl": np.nan}, {"outer": 0}, {"rolls": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ParameterError, match=r"noise regularisation has"):
        NoiseRegularizer(**options)
