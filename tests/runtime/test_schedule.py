"""Schedules and lists of timesteps: Latent Diffusion's, guided-diffusion's and diffusers' numbers, and edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sfumato.errors import ParameterError
from sfumato.runtime import spacings
from sfumato.runtime.schedule import Schedule

diffusers_warns = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # NumPy 2, in diffusers

FAMILIES = {
    "txt2img_sd": (0.00085, 0.012),
    "ffhq_cin": (0.0015, 0.0195),
    "inpaint_layout": (0.0015, 0.0205),
    "sr_church": (0.0015, 0.0155),
    "rdm": (0.0015, 0.015),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_released_families_have_their_betas_to_the_last_bit(goldens, family):
    golden = goldens("ldm_schedules.npz")
    start, end = FAMILIES[family]
    betas = golden[f"{family}__betas_f64"].view(np.float64)
    schedule = Schedule.named("scaled_linear", start=start, end=end)
    np.testing.assert_array_equal(schedule.alphas_bar, np.cumprod(1 - betas))
    np.testing.assert_array_equal(schedule.alphas_bar.astype(np.float32), golden[f"{family}__alphas_cumprod"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("linear", "scaled_linear"), ("sqrt_linear", "sqrt_linear"), ("sqrt", "sqrt"), ("cosine", "cosine")],
)
def test_named_laws_of_latent_diffusion(goldens, theirs, ours):
    ends = {} if ours == "cosine" else {"start": 1e-4, "end": 2e-2}
    betas = Schedule.named(ours, **ends).betas
    np.testing.assert_allclose(betas, goldens("ldm_schedules.npz")[f"schedule_{theirs}"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("tag", "ends"), [("t2i", (0.00085, 0.012)), ("unc", (0.0015, 0.0195))])
def test_the_buffers_of_latent_diffusion(goldens, tag, ends):
    golden = goldens("ldm_model_buffers.npz")
    schedule = Schedule.named("scaled_linear", start=ends[0], end=ends[1])
    posterior = schedule.posterior(np.arange(999, -1, -1))
    for name, array in {
        "betas": posterior.betas,
        "posterior_variance": posterior.variance,
        "posterior_mean_coef1": posterior.x0_coef,
        "posterior_mean_coef2": posterior.x_coef,
    }.items():
        np.testing.assert_allclose(array[::-1], golden[f"{tag}__{name}"], rtol=2e-6, err_msg=name)
    logs = posterior.log_variance[::-1]
    np.testing.assert_allclose(logs[1:], golden[f"{tag}__posterior_log_variance_clipped"][1:], rtol=2e-6)


@pytest.mark.parametrize(
    ("tag", "name", "respacing"),
    [
        ("linear_full", "linear", ""),
        ("linear_100", "linear", "100"),
        ("linear_200", "linear", "200"),
        ("linear_10", "linear", "10"),
        ("linear_ddim50", "linear", "ddim50"),
        ("linear_sections", "linear", "10,15,20"),
        ("cosine_50", "cosine", "50"),
    ],
)
def test_guided_diffusion_arrays(goldens, tag, name, respacing):
    golden = goldens("schedule.npz")
    schedule = Schedule.named(name)
    steps = schedule.sections(respacing)
    np.testing.assert_array_equal(steps[::-1], golden[f"{tag}/timestep_map"])
    posterior = schedule.posterior(steps)
    bar = schedule.alphas_bar[steps]
    for key, array in {
        "betas": posterior.betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": np.append(bar[1:], 1.0),
        "sqrt_alphas_cumprod": [schedule.alpha(t) for t in steps],
        "sqrt_one_minus_alphas_cumprod": [schedule.sigma(t) for t in steps],
        "sqrt_recipm1_alphas_cumprod": [schedule.noise_ratio(t) for t in steps],
        "posterior_variance": posterior.variance,
        "posterior_log_variance_clipped": posterior.log_variance,
        "posterior_mean_coef1": posterior.x0_coef,
        "posterior_mean_coef2": posterior.x_coef,
    }.items():
        # Theirs are cumulative products of the new betas; ours look the originals up: the same up to rounding.
        np.testing.assert_allclose(np.asarray(array)[::-1], golden[f"{tag}/{key}"], rtol=1e-10, err_msg=key)
    if not respacing:
        np.testing.assert_array_equal(bar[::-1], golden[f"{tag}/alphas_cumprod"])


def test_every_respacing_accumulates_as_guided_diffusion_does(goldens):
    golden = goldens("schedule.npz")
    schedule = Schedule.named("linear")
    for key in (k for k in golden if k.startswith("space/")):
        np.testing.assert_array_equal(schedule.sections(key[6:])[::-1], golden[key], err_msg=key)


def test_forward_and_posterior_of_guided_diffusion(goldens):
    golden = goldens("q_sample_posterior.npz")
    schedule = Schedule.named("linear")
    steps = np.array([999, 856, 714, 571, 428, 285, 143, 0])
    posterior = schedule.posterior(steps)
    for i, index in enumerate(golden["t"]):
        t, place = steps[7 - index], 7 - index
        x0, noise = golden["x0"][i], golden["noise"][i]
        np.testing.assert_allclose(schedule.noised(x0, noise, t), golden["xt"][i], atol=2e-6)
        mean = posterior.x0_coef[place] * x0 + posterior.x_coef[place] * golden["xt"][i]
        np.testing.assert_allclose(mean, golden["post_mean"][i], atol=2e-6)
        np.testing.assert_allclose(posterior.variance[place], golden["post_var"][i].item(), atol=1e-7)
        np.testing.assert_allclose(posterior.log_variance[place], golden["post_logvar"][i].item(), rtol=1e-6)
        if index:
            np.testing.assert_allclose(
                math.log(posterior.betas[place]), golden["fixedlarge_logvar"][i].item(), rtol=1e-5
            )


@pytest.mark.parametrize("steps", [10, 20, 30, 50, 200, 250])
def test_official_lists(goldens, steps):
    golden = goldens("ldm_schedules.npz")[f"ddim_t_uniform_{steps}"]
    times = Schedule.named("scaled_linear").timesteps(steps, spacing="official")
    np.testing.assert_array_equal(times[::-1], golden)
    assert times.dtype == np.int64


def test_official_quadratic_list(goldens):
    times = Schedule.named("scaled_linear").timesteps(50, spacing="quad")
    np.testing.assert_array_equal(times[::-1], goldens("ldm_schedules.npz")["ddim_t_quad_50"])


def test_official_and_leading_agree_for_divisors_only():
    schedule = Schedule.named("scaled_linear")
    for steps in range(1, 501):
        if 999 % (1000 // steps) == 0:
            with pytest.raises(ParameterError, match="from timestep 1000"):
                schedule.timesteps(steps, spacing="official")
            continue
        official = schedule.timesteps(steps, spacing="official")
        leading = schedule.timesteps(steps, spacing="leading")
        assert len(leading) == steps
        assert (1000 % steps == 0) == np.array_equal(official, leading)


@diffusers_warns
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("multistep", [False, True])
def test_lists_of_diffusers(spacing, multistep):
    # For 62 step counts, 61 the first, rounding gives its "trailing" list one entry more, -1: cut off here.
    diffusers = pytest.importorskip("diffusers")
    kind = diffusers.DPMSolverMultistepScheduler if multistep else diffusers.DDIMScheduler
    theirs = kind(timestep_spacing=spacing, steps_offset=1)
    schedule = Schedule.named("scaled_linear")
    for steps in [*range(1 + multistep, 60), 77, 99, 61, 100, 128, 199, 250, 300, 333, 499]:
        theirs.set_timesteps(steps)
        drop = int(multistep and spacing != "trailing")
        ours = schedule.timesteps(steps, spacing=spacing, drop_last=drop)
        np.testing.assert_array_equal(ours, theirs.timesteps.numpy()[:steps], err_msg=f"{steps} steps")


def test_consistency_lists_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.LCMScheduler()
    for steps in range(1, 51):
        theirs.set_timesteps(steps)
        ours = Schedule.named("scaled_linear").timesteps(steps, spacing="lcm")
        np.testing.assert_array_equal(ours, theirs.timesteps.numpy())


@diffusers_warns
def test_karras_levels_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, use_karras_sigmas=True
    )
    schedule = Schedule(theirs.alphas_cumprod.double().numpy())
    for steps in (1, 2, 5, 20, 50):
        theirs.set_timesteps(steps)
        times = schedule.timesteps(steps, spacing="karras")
        levels = [schedule.noise_ratio(t) for t in times]
        np.testing.assert_allclose(levels, theirs.sigmas.numpy()[:-1], rtol=1e-5)
        np.testing.assert_allclose(times, theirs.timesteps.numpy(), atol=0.51)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "official", "quad", "karras", "lcm"])
@pytest.mark.parametrize("steps", [1, 2, 7, 25, 50])
def test_every_list_descends_within_the_schedule(spacing, steps):
    schedule = Schedule.named("cosine", 200)
    times = schedule.timesteps(steps, spacing=spacing)
    assert times.dtype == (np.float64 if spacing == "karras" else np.int64)
    assert times.flags.c_contiguous
    assert 0 <= times[-1] <= times[0] <= 199
    assert (np.diff(times) <= 0).all()


@pytest.mark.parametrize("steps", [0, -3, 10_000, 2.5, True, "20"])
def test_step_counts_that_make_no_sense(steps):
    with pytest.raises(ParameterError, match="pass (an int from )?1 to 1000"):
        Schedule.named("scaled_linear").timesteps(steps)


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 1000), ("official", 300), ("official", 501)])
def test_lists_that_would_index_past_the_schedule(goldens, spacing, steps):
    assert goldens("ldm_schedules.npz")["ddim_t_uniform_300"][-1] == 1000  # the original's list, which it cannot sample
    with pytest.raises(ParameterError, match=r"runs from timestep 1000 to 1, the schedule has 0 … 999; use"):
        Schedule.named("scaled_linear").timesteps(steps, spacing=spacing)


def test_names_that_do_not_exist():
    schedule = Schedule.named("linear")
    with pytest.raises(ParameterError, match="no spacing is named 'even', there are leading"):
        schedule.timesteps(10, spacing="even")
    with pytest.raises(ParameterError, match="no schedule is named 'quadratic', there are linear"):
        Schedule.named("quadratic")
    with pytest.raises(ParameterError, match="consistency models know 50"):
        schedule.timesteps(51, spacing="lcm")


@pytest.mark.parametrize("respacing", ["ddim600", "ddim", "ten", "2000", "0", "10,-1", "ddim0"])
def test_respacings_that_cannot_be(respacing):
    with pytest.raises(ParameterError):
        Schedule.named("linear").sections(respacing)


@pytest.mark.parametrize("bar", [[], [[0.5]], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [0.9, np.nan]])
def test_alphas_bar_has_to_fall_within_the_unit_interval(bar):
    with pytest.raises(ParameterError):
        Schedule(bar)


def test_ends_and_between():
    schedule = Schedule.named("scaled_linear")
    assert (schedule.alpha(-1), schedule.sigma(-1)) == (1.0, 0.0)
    assert (schedule.alpha(1000), schedule.sigma(1000)) == (0.0, 1.0)
    assert math.isinf(schedule.log_snr(-1))
    for t in (-0.5, 0.25, 17.75, 998.5):
        assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1)
        assert schedule.sigma(t) / schedule.alpha(t) == pytest.approx(schedule.noise_ratio(t))
        assert schedule.time(schedule.noise_ratio(t)) == pytest.approx(t)
        assert schedule.noise_ratio(math.floor(t)) < schedule.noise_ratio(t) < schedule.noise_ratio(math.ceil(t))
    for t in (-1.5, 999.5, 1001):
        with pytest.raises(ParameterError, match="outside the schedule's -1 … 999"):
            schedule.alpha(t)
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_bar[0] = 0.5


def test_strength_starts_where_diffusers_starts():
    times = Schedule.named("scaled_linear").timesteps(20)
    start, rest = spacings.strength(times, 0.75)
    assert (start, len(rest)) == (701, 15)
    assert start == rest[0]
    start, rest = spacings.strength(times, 1.0)
    assert (start, len(rest)) == (951, 20)


def test_official_strength_samples_from_one_entry_below_the_noise():
    times = Schedule.named("scaled_linear").timesteps(20, spacing="official")
    start, rest = spacings.strength(times, 0.75, official=True)
    assert (start, rest[0], len(rest)) == (751, 701, 15)
    with pytest.raises(ParameterError, match="noises to entry 20 of 20"):
        spacings.strength(times, 1.0, official=True)


@pytest.mark.parametrize("amount", [0, -1, 1.5, math.nan])
def test_strength_is_a_share(amount):
    with pytest.raises(ParameterError, match="strength is"):
        spacings.strength(np.arange(9, -1, -1), amount)


def test_a_strength_that_leaves_no_step():
    with pytest.raises(ParameterError, match="leaves no step to run; use 0.1 or more"):
        spacings.strength(np.arange(9, -1, -1), 0.05)
