"""Samplers against a closed form: Gaussian data, whose denoiser and trajectories are known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sfumato.runtime.denoiser import FunctionDenoiser
from sfumato.runtime.rng import PhiloxGenerator
from sfumato.runtime.sampler import (
    DDIM,
    DDPM,
    PLMS,
    DPMSolverPP2M,
    Euler,
    EulerAncestral,
    Heun,
    UniPC,
    sample,
)
from sfumato.runtime.schedule import Schedule

MEAN, DEVIATION = 0.7, 0.4
SCHEDULE = Schedule.named("scaled_linear")


def spread(t):
    """Standard deviation of x_t."""
    return math.hypot(SCHEDULE.alpha(t) * DEVIATION, SCHEDULE.sigma(t))


def clean(x, t):
    """E[x0 | x_t]."""
    alpha = SCHEDULE.alpha(t)
    return MEAN + alpha * DEVIATION**2 / spread(t) ** 2 * (x - alpha * MEAN)


def exact(x, t, s):
    """Where the probability-flow ODE takes x from t to s."""
    return SCHEDULE.alpha(s) * MEAN + (x - SCHEDULE.alpha(t) * MEAN) * spread(s) / spread(t)


GAUSSIAN = FunctionDenoiser(clean, SCHEDULE, "x0")


def nodes(steps, start=999, end=30):
    """Timesteps whose log signal-to-noise ratios are equally far apart."""
    levels = np.linspace(SCHEDULE.log_snr(start), SCHEDULE.log_snr(end), steps + 1)
    return [start, *(SCHEDULE.time(math.exp(-level)) for level in levels[1:])]


def measured_order(make, counts):
    x = np.array([[-1.5, -0.3, 0.8, 2.0]])
    errors = []
    for steps in counts:
        times = nodes(steps)
        out = sample(GAUSSIAN, make(final=times[-1]), x, times[:-1])
        errors.append(np.abs(out - exact(x, times[0], times[-1])).max())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (DDIM, 1),
        (Euler, 1),
        (Heun, 2),
        (PLMS, 2),
        (DPMSolverPP2M, 2),
        (lambda schedule, final: UniPC(schedule, order=1, final=final), 2),
        (UniPC, 3),
    ],
    ids=["ddim", "euler", "heun", "plms", "dpmpp_2m", "unipc1", "unipc2"],
)
def test_measured_order_is_the_claimed_order(make, order):
    slope, errors = measured_order(lambda final: make(SCHEDULE, final=final), [64, 96, 128, 192, 256])
    assert slope == pytest.approx(order, abs=0.25), errors


def test_unipc_of_order_3_is_held_to_3_by_its_start():
    slope, errors = measured_order(lambda final: UniPC(SCHEDULE, order=3, final=final), [64, 96, 128, 192, 256])
    assert slope > 2.75, errors
    assert errors[-1] < measured_order(lambda final: UniPC(SCHEDULE, final=final), [256, 300])[1][0]


@pytest.mark.parametrize("make", [DDIM, Euler, Heun, PLMS, DPMSolverPP2M, UniPC])
def test_runs_to_the_clean_picture_arrive_there(make):
    x = exact(np.array([[-1.5, -0.3, 0.8, 2.0]]), 999, 999)
    out = sample(GAUSSIAN, make(SCHEDULE), x, SCHEDULE.timesteps(200, spacing="trailing"))
    np.testing.assert_allclose(out, exact(x, 999, -1), atol=2e-2)


def test_higher_order_pays_at_twenty_calls():
    x = np.array([[-1.5, -0.3, 0.8, 2.0]])

    def error(make, steps):
        times = nodes(steps)
        out = sample(GAUSSIAN, make(SCHEDULE, final=times[-1]), x, times[:-1])
        return np.abs(out - exact(x, times[0], times[-1])).max()

    for make in (UniPC, DPMSolverPP2M, PLMS):
        assert error(make, 20) < error(Euler, 20) / 10
    assert error(Heun, 10) < error(Euler, 20)


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(SCHEDULE),
        DDPM(SCHEDULE, "large"),
        DDIM(SCHEDULE, eta=1.0),
        DDIM(SCHEDULE, eta=0.5),
        EulerAncestral(SCHEDULE),
        EulerAncestral(SCHEDULE, eta=0.3),
    ],
    ids=["ddpm", "ddpm_large", "ddim_eta1", "ddim_eta0.5", "euler_ancestral", "euler_ancestral_eta0.3"],
)
def test_stochastic_samplers_draw_from_the_data(sampler):
    rng = PhiloxGenerator(11)
    x = (SCHEDULE.alpha(999) * MEAN + spread(999) * rng.randn((1, 40_000))).astype(np.float32)
    times = SCHEDULE.timesteps(250, spacing="trailing")
    out = sample(GAUSSIAN, sampler, x, times, rng=rng)
    assert out.dtype == np.float32
    assert out.mean() == pytest.approx(MEAN, abs=0.01)
    assert out.std() == pytest.approx(DEVIATION, rel=0.03)


def test_ddpm_mean_and_variance_are_those_of_its_linear_recursion():
    """Every step is affine in x, so the law of the result is known without sampling."""
    times = SCHEDULE.timesteps(40, spacing="trailing")
    posterior = SCHEDULE.posterior(times)
    mean, variance = SCHEDULE.alpha(999) * MEAN, spread(999) ** 2
    for i, t in enumerate(times):
        alpha = SCHEDULE.alpha(t)
        gain = alpha * DEVIATION**2 / spread(t) ** 2
        slope = posterior.x0_coef[i] * gain + posterior.x_coef[i]
        mean = slope * mean + posterior.x0_coef[i] * (1 - gain * alpha) * MEAN
        variance = slope**2 * variance + posterior.variance[i]
    rng = PhiloxGenerator(3)
    x = (SCHEDULE.alpha(999) * MEAN + spread(999) * rng.randn((1, 200_000))).astype(np.float32)
    out = sample(GAUSSIAN, DDPM(SCHEDULE), x, times, rng=rng)
    assert out.mean() == pytest.approx(mean, abs=4e-3)
    assert out.var() == pytest.approx(variance, rel=1e-2)


def test_ddim_with_eta_1_and_euler_ancestral_are_one_rule():
    ddim, ancestral = DDIM(SCHEDULE, eta=1.0), EulerAncestral(SCHEDULE)
    for t, s in [(999, 700), (700, 41), (41, 40), (40, -1)]:
        ours, theirs = dict(ddim.rule(t, s).out), dict(ancestral.rule(t, s).out)
        assert ours.keys() == theirs.keys()
        for source, weight in ours.items():
            assert weight == pytest.approx(theirs[source], rel=1e-9, abs=1e-12)


def test_ddim_inverts_itself_on_a_linear_model():
    x = np.array([[-1.5, -0.3, 0.8, 2.0]])
    times = np.linspace(20, 999, 4000)
    sampler = DDIM(SCHEDULE, final=20)
    up = x
    for t, s in zip(times[:-1], times[1:], strict=True):
        up = sampler.step(up, t, s, GAUSSIAN(up, t))
    down = sample(GAUSSIAN, sampler, up, times[:0:-1])
    np.testing.assert_allclose(down, x, atol=2e-3)


def test_ddim_step_undoes_itself_exactly_where_the_prediction_is_kept():
    x = np.array([[-1.5, -0.3, 0.8, 2.0]])
    sampler = DDIM(SCHEDULE)
    prediction = GAUSSIAN(x, 500)
    up = sampler.step(x, 500, 700, prediction)
    again = FunctionDenoiser(lambda _x, _t: prediction.eps.copy(), SCHEDULE)
    np.testing.assert_allclose(sampler.step(up, 700, 500, again(up, 700)), x, rtol=1e-12)
