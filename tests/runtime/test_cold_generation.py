"""Cold generation: the official trajectory, mixtures, starts."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import ParameterError
from sfumato.runtime.cold_generation import (
    GaussianMixture,
    break_symmetry,
    constant_pictures,
    generate,
    thumbnail_pictures,
)
from sfumato.runtime.degradations import Blur, ColourFade
from sfumato.runtime.rng import PhiloxGenerator, TorchGenerator


def close(result, reference) -> None:
    np.testing.assert_allclose(result, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_generation_from_blur_follows_the_official_trajectory(goldens) -> None:
    data = goldens("cold_blur_generation.npz")
    blur = Blur(6, "Exponential", 7, 0.2, discrete=True)
    answers, seen = list(data["net_out"]), []

    def network(x, index):
        seen.append(x.copy())
        assert index == data["net_t"][len(seen) - 1, 0]
        return answers[len(seen) - 1]

    result = generate(network, blur, data["start"], noise=data["noise_level"] * data["noise"])
    close(result.x_t, data["xt"])
    close(seen, data["net_in"])
    close(result.direct, data["direct"])
    close(result.image, data["out"])


def test_the_official_series_subtracts_its_noise_at_the_end(goldens) -> None:
    data = goldens("cold_blur_generation.npz")
    blur = Blur(6, "Exponential", 7, 0.2, discrete=True)
    noise = np.float32(0.001) * data["noise"]
    answers = iter(data["all_X0s"])
    result = generate(lambda x, index: next(answers), blur, data["all_x"], noise=noise, remove_noise=True, keep=True)
    predictions, seen = result.series()
    close(seen, data["all_Xts"])
    close(predictions, data["all_X0s"])


def test_a_mixture_has_its_moments() -> None:
    means = np.array([[0.0, 1.0], [4.0, -1.0]])
    covariances = np.array([[[1.0, 0.6], [0.6, 0.5]], [[0.2, 0.0], [0.0, 0.0]]])
    samples = GaussianMixture(np.array([0.25, 0.75]), means, covariances).sample(40_000, PhiloxGenerator(1))
    first = samples[:, 1] != -1
    assert samples.dtype == np.float32 and abs(first.mean() - 0.25) < 0.01
    np.testing.assert_allclose(samples[first].mean(axis=0), means[0], atol=0.05)
    np.testing.assert_allclose(np.cov(samples[first].T), covariances[0], atol=0.05)


@pytest.mark.parametrize("generator", [PhiloxGenerator, TorchGenerator])
def test_a_seed_names_a_sample(generator) -> None:
    mixture = GaussianMixture(np.ones(1), np.zeros((1, 3)), np.eye(3)[None])
    np.testing.assert_array_equal(mixture.sample(5, generator(3)), mixture.sample(5, generator(3)))


def test_mixtures_that_are_none_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"need \(K,\), \(K, D\) and \(K, D, D\)"):
        GaussianMixture(np.ones(2), np.zeros((1, 3)), np.eye(3)[None])
    with pytest.raises(ParameterError, match="sum to 2"):
        GaussianMixture(np.ones(2), np.zeros((2, 3)), np.stack([np.eye(3)] * 2))
    with pytest.raises(ParameterError, match="eigenvalue -1"):
        GaussianMixture(np.ones(1), np.zeros((1, 3)), -np.eye(3)[None]).sample(1, PhiloxGenerator(0))


def test_starts_keep_their_colours() -> None:
    colours = np.array([[0.1, -0.2, 0.3]], dtype=np.float32)
    picture = constant_pictures(colours, (8, 12))
    assert picture.shape == (1, 3, 8, 12)
    np.testing.assert_allclose(picture.mean(axis=(2, 3)), colours, rtol=1e-6)
    thumbnails = np.repeat(colours, 4, axis=1)
    np.testing.assert_allclose(thumbnail_pictures(thumbnails, 2, (8, 12)), picture, rtol=1e-6)
    with pytest.raises(ParameterError, match="thumbnails have shape"):
        thumbnail_pictures(thumbnails, 5, (8, 12))


def test_symmetry_is_broken_by_the_level_alone() -> None:
    x = constant_pictures(np.zeros((2, 3)), (16, 16))
    assert break_symmetry(x, 0, PhiloxGenerator(0)) is x
    assert abs(break_symmetry(x, 0.002, PhiloxGenerator(0)).std() - 0.002) < 2e-4


def test_generation_by_fading_starts_at_the_colour() -> None:
    fade = ColourFade(4, 16, ColourFade.colours(2, PhiloxGenerator(1)), 0.3, 1, reverse=True)
    target = PhiloxGenerator(2).randn((2, 3, 16, 16))
    result = generate(lambda x, index: target, fade, fade.end(), degrade_start=False)
    np.testing.assert_array_equal(result.x_t, fade.end())
    np.testing.assert_allclose(result.image, target, rtol=0, atol=1e-5)
    with pytest.raises(ParameterError, match="noise has shape"):
        generate(lambda x, index: target, fade, fade.end(), noise=target[:1])
