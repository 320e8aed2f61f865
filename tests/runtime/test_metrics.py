"""Metrics against the official numbers, and what they must satisfy."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import ParameterError
from sfumato.runtime.metrics import frechet_distance, psnr, rmse, ssim


def test_metrics_are_the_official_ones(goldens) -> None:
    data = goldens("cold_metrics.npz")
    np.testing.assert_allclose(ssim(data["a"], data["b"]), data["ssim_each"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(ssim(data["a"], data["b"]).mean(), data["ssim"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(rmse(data["a"], data["b"]), data["rmse"], rtol=1e-6)
    moments = [data[name] for name in ("fd_mu1", "fd_s1", "fd_mu2", "fd_s2")]
    np.testing.assert_allclose(frechet_distance(*moments), data["frechet"], rtol=1e-6)


def test_psnr_is_the_logarithm_of_rmse_and_knows_its_range() -> None:
    a = np.zeros((2, 3, 4, 4), dtype=np.float32)
    b = np.full_like(a, 0.1)
    np.testing.assert_allclose(psnr(a, b), -20 * np.log10(rmse(a, b)), rtol=1e-6)
    np.testing.assert_allclose(psnr(a, b, data_range=2), psnr(a / 2, b / 2), rtol=1e-6)
    assert np.isinf(psnr(a, a)).all()


def test_equal_pictures_are_wholly_similar_and_equal_moments_are_no_distance_apart(goldens) -> None:
    data = goldens("cold_metrics.npz")
    np.testing.assert_allclose(ssim(data["a"], data["a"]), 1.0)
    assert abs(frechet_distance(data["fd_mu1"], data["fd_s1"], data["fd_mu1"], data["fd_s1"])) < 1e-4


def test_the_frechet_distance_of_commuting_gaussians_has_a_closed_form() -> None:
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 0.0])
    result = frechet_distance(np.zeros(3), np.diag(a), np.ones(3), np.diag(b))
    np.testing.assert_allclose(result, 3 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_pictures_that_do_not_compare_are_refused() -> None:
    with pytest.raises(ParameterError, match="cannot be compared"):
        rmse(np.zeros(3), np.zeros(4))
    with pytest.raises(ParameterError, match="11 pixels or more"):
        ssim(np.zeros((1, 3, 8, 8)), np.zeros((1, 3, 8, 8)))
