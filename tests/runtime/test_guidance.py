"""Classifier-free guidance: its limits, its one engine call, its buffers."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import BindingError, ParameterError
from sfumato.runtime.denoiser import FunctionDenoiser, Prediction
from sfumato.runtime.guidance import ClassifierFree
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.sampler import DDIM, sample
from sfumato.runtime.schedule import Schedule

SCHEDULE = Schedule.named("scaled_linear")
X = TorchGenerator(0).randn((2, 4, 8, 8))


def conditional(*shifts):
    """A denoiser whose rows are conditioned on a number each."""
    rows = np.array(shifts, dtype=np.float32)[:, None, None, None]
    return FunctionDenoiser(lambda x, t: np.sin(x + rows), SCHEDULE)


def both():
    return conditional(0, 0, 1, 2)


def test_at_scale_1_it_is_the_conditional_to_the_last_bit():
    guided = ClassifierFree(both(), 1)(X, 500)
    alone = conditional(1, 2)(X, 500)
    np.testing.assert_array_equal(guided.eps, alone.eps)
    np.testing.assert_array_equal(guided.x0, alone.x0)


def test_at_scale_0_it_is_the_unconditional():
    guided = ClassifierFree(both(), 0)(X, 500)
    np.testing.assert_array_equal(guided.eps, conditional(0, 0)(X, 500).eps)


@pytest.mark.parametrize("scale", [7.5, -1.0, 0.3])
def test_between_and_beyond_it_is_linear_and_consistent(scale):
    guided = ClassifierFree(both(), scale)(X, 500)
    low, high = conditional(0, 0)(X, 500).eps, conditional(1, 2)(X, 500).eps
    np.testing.assert_allclose(guided.eps, low + scale * (high - low), atol=1e-5)
    alpha, sigma = SCHEDULE.alpha(500), SCHEDULE.sigma(500)
    np.testing.assert_allclose(alpha * guided.x0 + sigma * guided.eps, X, atol=2e-5)


def test_equal_conditions_make_guidance_void():
    for scale in (1, 3, 7.5):
        guided = ClassifierFree(conditional(1, 2, 1, 2), scale)(X, 500)
        np.testing.assert_allclose(guided.eps, conditional(1, 2)(X, 500).eps, atol=1e-6)


def test_a_whole_run_at_scale_1_is_the_conditional_run():
    times = SCHEDULE.timesteps(10)
    guided = sample(ClassifierFree(both(), 1.0), DDIM(SCHEDULE), X, times)
    np.testing.assert_array_equal(guided, sample(conditional(1, 2), DDIM(SCHEDULE), X, times))


def test_x_is_doubled_into_one_buffer_and_the_rest_is_halved():
    seen = []

    class Network:
        network = "unet"

        def __call__(self, x, t):
            seen.append(x)
            values = np.arange(4, dtype=np.float32)[:, None] * np.ones((1, 3), dtype=np.float32)
            return Prediction(x, x, x, {"rows": values, "scalar": np.float32(1)})

    guided = ClassifierFree(Network(), 2.0)
    first = guided(X, 5)
    second = guided(X + 1, 4)
    assert seen[0] is seen[1]
    assert first.eps is second.eps
    np.testing.assert_array_equal(seen[1], np.concatenate([X + 1, X + 1]))
    assert second.log_variance.shape == X.shape
    np.testing.assert_array_equal(second.extra["rows"][:, 0], [2, 3])
    assert guided.network == "unet"


def test_mistakes_are_named():
    with pytest.raises(ParameterError, match="guidance scale is nan"):
        ClassifierFree(both(), float("nan"))
    with pytest.raises(BindingError, match="conditions of twice the batch, unconditional rows first"):
        ClassifierFree(lambda x, t: Prediction(x[:2], x[:2]), 2.0)(X, 5)
