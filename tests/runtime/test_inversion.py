"""Inversion: official and diffusers trajectories, DDIM's own inverse, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import Cancelled, NonFiniteError, ParameterError
from sfumato.runtime.denoiser import FunctionDenoiser
from sfumato.runtime.inversion import (
    Climb,
    diffusers_climbs,
    edit_timesteps,
    invert,
    official_climbs,
    plain_climbs,
)
from sfumato.runtime.regularization import NoiseRegularizer
from sfumato.runtime.sampler import DDIM, sample
from sfumato.runtime.schedule import Schedule


@pytest.fixture(scope="module")
def schedule():
    return Schedule.named("scaled_linear", 1000, 0.00085, 0.012)


def replay(values):
    left = iter(values)
    return lambda *_: next(left)


def close(found, wanted, share=1e-4):
    return np.abs(found - wanted).max() <= share * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["reg", "klonly"])
def test_the_official_trajectory(goldens, schedule, name):
    g = goldens("p2p_inversion.npz")
    climbs = official_climbs(schedule, 8)
    assert [climb.t for climb in climbs] == list(g["reg__t"])
    denoiser = FunctionDenoiser(replay(g[f"{name}__eps_raw"]), schedule)
    shift = replay(g["reg__rolls"].ravel())
    regularize = NoiseRegularizer(shift) if name == "reg" else NoiseRegularizer(ac=0, outer=2)
    seen = []
    x = invert(
        denoiser,
        schedule,
        g["reg__x0_latent"],
        climbs,
        regularize=regularize,
        on_step=lambda info: seen.append((info.t, info.x.copy())),
    )
    for (t, at), wanted, time in zip(seen, g[f"{name}__x"][1:], g["reg__t"], strict=True):
        assert t == time
        assert close(at, wanted)
    assert close(x, g[f"{name}__x_inv"])
    assert x.dtype == np.float32


def test_the_trajectory_of_diffusers(goldens, schedule):
    g = goldens("p2p_diffusers042.npz")
    climbs = diffusers_climbs(schedule, 8)
    assert [climb.t for climb in climbs] == list(g["inv_t"])
    seen = []
    x = invert(
        FunctionDenoiser(replay(g["inv_eps_reg"]), schedule),
        schedule,
        g["x0"],
        climbs,
        on_step=lambda info: seen.append(info.x.copy()),
    )
    for at, wanted in zip(seen, g["inv_x"][1:], strict=True):
        assert close(at, wanted)
    assert close(x, g["inv_latents"])


def test_the_official_climb_is_one_index_beside_the_timestep_and_leaves_both_ends_out(schedule):
    climbs = official_climbs(schedule, 50)
    assert len(climbs) == 48
    assert climbs[0] == Climb(21, 20, 40)
    assert climbs[-1] == Climb(961, 960, 980)
    assert diffusers_climbs(schedule, 50)[0] == Climb(1, 0, 1)
    assert diffusers_climbs(schedule, 50)[-1] == Climb(981, 961, 981)


def gaussian(schedule, spread=0.5):
    """The exact noise in x_t of pictures N(0.3, spread²)."""

    def eps(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return ((x - alpha * 0.3) * sigma / (alpha**2 * spread**2 + sigma**2)).astype(x.dtype)

    return FunctionDenoiser(eps, schedule)


def test_inversion_then_sampling_returns_the_picture_the_better_the_finer(schedule):
    x0 = np.random.default_rng(0).standard_normal((2, 4, 4, 4)) * 0.5 + 0.3
    errors = []
    for steps in (25, 50, 100, 200):
        times = schedule.timesteps(steps, spacing="linspace")
        x = invert(gaussian(schedule), schedule, x0, times[::-1])
        back = sample(gaussian(schedule), DDIM(schedule, final=0), x, times)
        errors.append(np.abs(back - x0).max())
    assert errors[-1] < 0.04
    slopes = np.diff(np.log(errors)) / np.log(0.5)
    assert (slopes > 0.8).all()  # DDIM is of order 1


@pytest.mark.parametrize("climbs", [official_climbs, diffusers_climbs])
def test_published_lists_also_return_the_picture(schedule, climbs):
    x0 = np.random.default_rng(0).standard_normal((1, 4, 4, 4)) * 0.5 + 0.3
    x = invert(gaussian(schedule), schedule, x0, climbs(schedule, 200))
    back = sample(gaussian(schedule), DDIM(schedule, final=0), x, schedule.timesteps(200))
    assert np.abs(back - x0).max() < 0.15


def test_one_climb_and_one_step_down_with_the_same_noise_are_inverse(schedule):
    rng = np.random.default_rng(3)
    x0, eps = rng.standard_normal((1, 4, 4, 4)), rng.standard_normal((1, 4, 4, 4))
    denoiser = FunctionDenoiser(lambda x, t: eps, schedule)
    x = invert(denoiser, schedule, x0, [Climb(500, 100, 500)])
    back = DDIM(schedule).step(x, 500, 100, denoiser(x, 500))
    assert np.allclose(back, x0, atol=1e-12)


def test_the_start_is_left_unchanged_and_plain_lists_are_climbs(schedule):
    x0 = np.ones((1, 1, 2, 2))
    before = x0.copy()
    one = invert(gaussian(schedule), schedule, x0, [1, 300, 600])
    two = invert(gaussian(schedule), schedule, x0, plain_climbs([1, 300, 600]))
    assert np.array_equal(one, two)
    assert np.array_equal(x0, before)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("steps", [10, 50, 999])
def test_diffusers_own_steps_for_every_kind_of_network(schedule, kind, steps):
    torch = pytest.importorskip("torch")
    scheduler = pytest.importorskip("diffusers").DDIMInverseScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type={"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[kind],
    )
    scheduler.set_timesteps(steps)
    start = np.random.default_rng(0).standard_normal((1, 4, 4, 4))

    def network(x, t):
        return 0.4 * x * np.cos(t / 300) + 0.1

    wanted = torch.from_numpy(start)
    for t in scheduler.timesteps:
        output = network(wanted.numpy(), float(t))
        wanted = scheduler.step(torch.from_numpy(output), t, wanted).prev_sample
    denoiser = FunctionDenoiser(network, schedule, kind)
    found = invert(denoiser, schedule, start, diffusers_climbs(schedule, steps), kind=kind)
    assert close(found, wanted.numpy())


def test_a_thousand_steps_are_climbed_by_the_official_list_alone(schedule):
    climbs = official_climbs(schedule, 1000)
    assert [climb.t for climb in climbs] == list(range(2, 1000))
    assert climbs[-1] == Climb(999, 998, 999)
    assert edit_timesteps(schedule, 999) == list(range(1, 1000))
    for refused in (diffusers_climbs, edit_timesteps):
        with pytest.raises(ParameterError, match=r"the last would be 1000, .* 0 … 999; pass 999 steps or fewer"):
            refused(schedule, 1000)
        for steps in (0, 1001):
            with pytest.raises(ParameterError, match="pass 1 to 1000"):
                refused(schedule, steps)


@pytest.mark.parametrize(
    ("times", "words"),
    [([], "no timestep;"), ([5], r"1 timesteps \(5\)"), ([600, 300, 1], r"\(600, 300, 1\)"), ([1] * 5, "1, 1 …")],
)
def test_lists_that_do_not_climb_are_refused(schedule, times, words):
    with pytest.raises(ParameterError, match=rf"inversion runs upwards and was given .*{words}"):
        invert(gaussian(schedule), schedule, np.ones((1, 1, 2, 2)), times)


def test_too_few_official_steps_are_refused(schedule):
    with pytest.raises(ParameterError, match="pass 3 or more"):
        official_climbs(schedule, 2)


def test_half_precision_is_refused(schedule):
    with pytest.raises(ParameterError, match="float16"):
        invert(gaussian(schedule), schedule, np.ones((1, 1, 2, 2), np.float16), [1, 500])


def test_nan_is_told_with_its_step_and_tensor(schedule):
    calls = []

    def broken(x, t):
        calls.append(t)
        return np.full_like(x, np.nan) if len(calls) == 3 else x

    with pytest.raises(NonFiniteError) as caught:
        invert(FunctionDenoiser(broken, schedule), schedule, np.ones((1, 1, 2, 2)), [1, 100, 200, 300, 400])
    assert (caught.value.step, caught.value.tensor) == (2, "prediction")


def test_regularisation_that_breaks_the_noise_is_named(schedule):
    with pytest.raises(ParameterError, match=r"noise regularisation diverges at step 0: .*'denoiser' is finite"):
        invert(gaussian(schedule), schedule, np.ones((1, 1, 2, 2)), [1, 500], regularize=lambda e: e * np.inf)
    with pytest.raises(NonFiniteError) as caught:  # not its fault
        broken = FunctionDenoiser(lambda x, t: x * np.nan, schedule)
        invert(broken, schedule, np.ones((1, 1, 8, 8)), [1, 500], regularize=NoiseRegularizer())
    assert caught.value.tensor == "prediction"


def test_on_step_can_stop_the_run(schedule):
    with pytest.raises(Cancelled, match="call 1 of 2"):
        invert(gaussian(schedule), schedule, np.ones((1, 1, 2, 2)), [1, 300, 600], on_step=lambda info: False)
