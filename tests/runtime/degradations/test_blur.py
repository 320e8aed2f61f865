"""Blur: every routine against the official numbers, and what all blurs have in common."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import ParameterError
from sfumato.runtime.degradation import degrade, quantise, severities
from sfumato.runtime.degradations import Blur

ROUTINES = ("Incremental", "Constant", "Constant_reflect", "Exponential", "Exponential_reflect", "Special_6_routine")
PAPER = {
    "mnist": Blur(20, "Constant", 11, 7.0),
    "cifar": Blur(50, "Special_6_routine"),
    "celeba": Blur(200, "Exponential_reflect", 15, 0.01),
    "gen": Blur(300, "Exponential", 27, 0.01),
}


def close(result, reference, tolerance=1e-5) -> None:
    np.testing.assert_allclose(result, reference, rtol=0, atol=tolerance * np.abs(reference).max())


@pytest.mark.parametrize("routine", [*ROUTINES, "Individual_Incremental"])
def test_routines_give_the_official_series(goldens, routine) -> None:
    data = goldens("cold_blur_ops.npz")
    steps, size, std = data[f"{routine}__cfg"]
    blur = Blur(int(steps), routine, int(size), round(float(std), 6))
    close([blur(data["x"], t) for t in range(int(steps) + 1)], data[f"{routine}__seq"])
    if routine == "Individual_Incremental":
        for i, kernel in enumerate(blur.kernels()):
            close(kernel, data[f"{routine}__kernel{i}"])
    else:
        close(blur.kernels(), data[f"{routine}__kernels"])


@pytest.mark.parametrize("routine", ["Linear_Accum_Std", "Linear_Dec_Std"])
def test_routines_that_aim_at_a_deviation_give_the_official_series(goldens, routine) -> None:
    data = goldens("cold_blur_linear_std.npz")
    blur = Blur(5, routine, start=0.01, target=1.5)
    close([blur(data["x"], t) for t in range(6)], data[f"{routine}__seq"])
    assert [len(kernel) for kernel in blur.kernels()] == data[f"{routine}__size"].tolist()
    variances = [(axis * (np.arange(axis.size) - axis.size // 2) ** 2).sum() for axis in map(blur.kernel, range(5))]
    assert sum(variances) < 1.5**2  # windows cut the tails


@pytest.mark.parametrize("name", PAPER)
def test_settings_of_the_paper_give_the_official_pictures(goldens, name) -> None:
    data = goldens("cold_blur_paper_configs.npz")
    close([PAPER[name](data["x"], int(t)) for t in data[f"{name}__t"]], data[f"{name}__out"])


def test_discrete_training_pictures_are_the_official_ones(goldens) -> None:
    data = goldens("cold_blur_paper_configs.npz")
    blur = Blur(300, "Exponential", 27, 0.01)
    result = quantise(severities(blur, data["x"], data["gen__q_sample_discrete_t"] + 1))
    np.testing.assert_array_equal(result, data["gen__q_sample_discrete"])
    np.testing.assert_array_equal(degrade(blur, data["x"][:1], 150, quantised=True), result[:1])


def test_training_pictures_have_a_severity_each(goldens) -> None:
    data = goldens("cold_blur_loss.npz")
    close(severities(Blur(6, "Exponential", 7, 0.2), data["x"], data["t"] + 1), data["q_sample"])


def test_the_worst_of_discrete_blur_is_the_mean_of_each_channel(goldens) -> None:
    x = goldens("cold_images.npz")["img"]
    blur = Blur(6, "Exponential", 7, 0.2, discrete=True)
    means = np.broadcast_to(x.mean(axis=(2, 3), keepdims=True), x.shape)
    close(blur(x, 6), means)
    assert np.abs(blur(x, 5) - means).max() > 0.01


@pytest.mark.parametrize("routine", ROUTINES)
def test_any_size_is_blurred_and_constants_stay(routine) -> None:
    x = np.full((1, 1, 17, 24), 0.37, dtype=np.float32)
    close(Blur(9, routine, 5, 0.3)(x, 9), x)


def test_blur_beyond_the_picture_is_refused_where_it_would_reflect_twice() -> None:
    x = np.zeros((1, 3, 8, 8), dtype=np.float32)
    with pytest.raises(ParameterError, match="a kernel of 17 pixels reflects 8 at the border, the picture has 8"):
        Blur(2, "Constant_reflect", 17, 3.0)(x, 1)
    assert Blur(2, "Constant", 17, 3.0)(x, 1).shape == x.shape


@pytest.mark.parametrize("given", [{"size": 4}, {"steps": 0}, {"std": 0.0}, {"routine": "Fast"}])
def test_settings_that_make_no_kernel_are_refused(given) -> None:
    with pytest.raises(ParameterError):
        Blur(**{"steps": 5, "std": 0.1, **given})
