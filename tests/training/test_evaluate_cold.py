"""Evaluation of cold-diffusion bundles: scores of known pictures, the table, the sheet."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.training import evaluate_cold
from sfumato.training.evaluate_cold import CEILING, evaluate, frechet, scores, sheet, table

CLEAN = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def test_equal_pictures_have_the_ceiling_and_no_error() -> None:
    assert scores(CLEAN, CLEAN) == {
        "psnr": CEILING,
        "psnr_low": CEILING,
        "ssim": pytest.approx(1.0),
        "rmse": 0.0,
    }
    other = CLEAN.copy()
    other[0] = np.where(other[0] > 127, other[0] - 51, other[0] + 51)
    found = scores(other, CLEAN)
    assert found["rmse"] == pytest.approx(0.2 / 4) and found["psnr"] == pytest.approx(
        (3 * CEILING - 20 * np.log10(0.2)) / 4
    )


def test_the_distance_of_features_is_zero_of_themselves_and_grows_with_the_mean() -> None:
    features = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    assert abs(frechet(features, features)) < 1e-6
    assert frechet(features + np.float32(3), features) == pytest.approx(4 * 9, rel=1e-4)


def test_every_row_is_measured_and_shown(cold_bundle) -> None:
    import sfumato

    with sfumato.load(cold_bundle) as system:
        results, made = evaluate(system, CLEAN, features=lambda x: x.reshape(len(x), -1)[:, ::97].astype(np.float32))
        lower, _ = evaluate(system, CLEAN[:1], severity=1)
    assert list(results["rows"]) == list(evaluate_cold.ROWS) and results["pictures"] == 4
    assert lower["severity"] == 1 and lower["rows"]["degraded"]["psnr"] > results["rows"]["degraded"]["psnr"]
    text = table(results)
    assert text.count("\n") == 5 and "| algorithm 2 |" in text
    assert sheet(made, 3).shape == (4 * 20 + 4, 3 * 20 + 4, 3)
