"""Runs and the sampling loop: what samplers refuse, share, keep and report."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest

from sfumato.errors import Cancelled, NonFiniteError, ParameterError
from sfumato.runtime.blend import MaskBlend
from sfumato.runtime.denoiser import FunctionDenoiser, Prediction
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.sampler import DDIM, DDPM, LCM, PLMS, SAMPLERS, Heun, UniPC, make_sampler, sample
from sfumato.runtime.schedule import Schedule

SCHEDULE = Schedule.named("scaled_linear")
WITH_MEMORY = {"plms", "heun", "dpmpp_2m", "unipc"}


def network(x, t):
    return (0.8 * np.sin(1.3 * x + 0.002 * t)).astype(np.float32)


def denoiser():
    return FunctionDenoiser(network, SCHEDULE)


def start(seed=0, shape=(1, 4, 8, 8)):
    return TorchGenerator(seed).randn(shape)


def run(name, seed, steps=12, **options):
    sampler = make_sampler(name, SCHEDULE)
    return sample(denoiser(), sampler, start(seed), SCHEDULE.timesteps(steps), rng=TorchGenerator(seed), **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_may_be_reused_and_shared_between_threads(name):
    sampler = make_sampler(name, SCHEDULE)
    times = SCHEDULE.timesteps(12)
    expected = [run(name, seed) for seed in range(4)]
    results: dict[int, np.ndarray] = {}
    gate = threading.Barrier(4)

    def work(seed):
        def wait(_info):
            gate.wait(timeout=60)

        results[seed] = sample(denoiser(), sampler, start(seed), times, rng=TorchGenerator(seed), on_step=wait)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        np.testing.assert_array_equal(results[seed], expected[seed])


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_timestep_is_a_run(name):
    x = start()
    times = np.array([999])
    out = sample(denoiser(), make_sampler(name, SCHEDULE), x, times, rng=TorchGenerator(0))
    if name not in ("plms", "lcm", "ddpm"):
        np.testing.assert_allclose(out, denoiser()(x, 999).x0, rtol=1e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_start_is_left_alone_and_types_are_kept(name):
    x = start()
    before = x.copy()
    out = sample(denoiser(), make_sampler(name, SCHEDULE), x, SCHEDULE.timesteps(5), rng=TorchGenerator(0))
    np.testing.assert_array_equal(x, before)
    assert out.dtype == np.float32
    assert out.shape == x.shape
    assert not np.shares_memory(out, x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_runs_list_their_network_calls(name):
    times = SCHEDULE.timesteps(5)
    plan = make_sampler(name, SCHEDULE).plan(times)
    calls = {"plms": 6, "heun": 9}.get(name, 5)
    assert len(plan) == calls
    assert list(plan)[-1] == (1, -1)
    assert plan[0] == (801, 601)
    assert plan[:2] == [plan[0], plan[1]]
    assert sum(rule.opens for rule in plan.rules) == 5
    assert all(isinstance(t, int) and isinstance(s, int) for t, s in plan)


def test_second_evaluations_are_plain_pairs():
    assert list(PLMS(SCHEDULE).plan([30, 20, 10])) == [(30, 20), (20, 20), (20, 10), (10, -1)]
    assert list(PLMS(SCHEDULE, final=0).plan([30])) == [(30, 0), (30, 0)]
    assert list(Heun(SCHEDULE).plan([30, 20])) == [(30, 20), (20, 20), (20, -1)]
    assert list(Heun(SCHEDULE, final=5).plan([30])) == [(30, 5), (5, 5)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_by_hand_is_the_loop(name):
    model, x = denoiser(), start(3)
    rng = TorchGenerator(3)
    plan = make_sampler(name, SCHEDULE).plan(SCHEDULE.timesteps(12))
    for rule in plan.rules:
        prediction = model(x, rule.t)
        noise = rng.randn(x.shape) if rule.draws else None
        x = plan.step(x, rule.t, rule.s, prediction, noise)
    np.testing.assert_array_equal(x, run(name, 3))


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - WITH_MEMORY - {"ddpm"}))
def test_memoryless_samplers_step_alone(name):
    sampler, x, noise = make_sampler(name, SCHEDULE), start(1), start(2)
    prediction = denoiser()(x, 500)
    plan = sampler.plan([500, 300])
    np.testing.assert_array_equal(
        sampler.step(x, 500, 300, prediction, noise), plan.step(x, 500, 300, prediction, noise)
    )


@pytest.mark.parametrize("name", sorted(WITH_MEMORY))
def test_samplers_with_memory_step_alone_as_their_runs_do_before_there_is_any(name):
    sampler, x = make_sampler(name, SCHEDULE), start()
    prediction = denoiser()(x, 500)
    alone = sampler.step(x, 500, 300, prediction)
    first = sampler.plan([500, 300]).step(x, 500, 300, prediction)
    np.testing.assert_allclose(alone, first, rtol=0, atol=2e-6)
    assert not np.shares_memory(alone, x)


def test_a_run_holds_its_caller_to_the_order():
    x = start()
    plan = DDIM(SCHEDULE).plan([30, 20])
    prediction = denoiser()(x, 30)
    with pytest.raises(ParameterError, match="goes from 30 to 20, asked for 20 to -1"):
        plan.step(x, 20, -1, prediction)
    x = plan.step(x, 30, 20, prediction)
    x = plan.step(x, 20, -1, prediction)
    with pytest.raises(ParameterError, match="has made its 2 steps; start another"):
        plan.step(x, 30, 20, prediction)


def test_a_prediction_of_another_shape_is_refused():
    x = start()
    small = Prediction(x[:, :1], x[:, :1])
    with pytest.raises(ParameterError, match=r"prediction has shape \(1, 1, 8, 8\), x_t \(1, 4, 8, 8\)"):
        DDIM(SCHEDULE).plan([30]).step(x, 30, -1, small)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], "need a list of 1 or more"),
        ([[3, 2]], "need a list of 1 or more"),
        ([10, 20], "must fall (strictly )?from noise to picture, but entry 0 is 10 and entry 1 is 20"),
        ([1000, 5], "the schedule has 0 … 999"),
        ([5, -1], "the schedule has 0 … 999"),
        ([np.nan, 3.0], "the schedule has 0 … 999"),
        (["a"], "the schedule has 0 … 999"),
    ],
)
def test_lists_that_no_sampler_takes(times, message):
    for name in SAMPLERS:
        with pytest.raises(ParameterError, match=message):
            make_sampler(name, SCHEDULE).plan(times)


@pytest.mark.parametrize("name", ["ddpm", "heun", "dpmpp_2m", "unipc"])
def test_repeats_that_would_divide_by_zero(name):
    with pytest.raises(ParameterError, match="strictly from noise to picture, but entry 1 is 20 and entry 2 is 20"):
        make_sampler(name, SCHEDULE).plan([30, 20, 20])


def test_the_quadratic_list_with_its_repeats_runs_on_ddim():
    times = SCHEDULE.timesteps(50, spacing="quad")
    assert len(set(times.tolist())) < 50
    assert np.isfinite(sample(denoiser(), DDIM(SCHEDULE, final=0), start(), times)).all()


def test_final_has_to_lie_below():
    with pytest.raises(ParameterError, match="goes from 10 to 30, which is not below"):
        DDIM(SCHEDULE, final=30).plan([20, 10])


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "lcm"])
def test_noise_needs_a_source(name):
    with pytest.raises(ParameterError, match="adds noise and rng is None; pass rng=TorchGenerator"):
        sample(denoiser(), make_sampler(name, SCHEDULE), start(), SCHEDULE.timesteps(5))


def test_unused_noise_needs_none():
    sampler = DDIM(SCHEDULE, draw_always=True)
    np.testing.assert_array_equal(sample(denoiser(), sampler, start(), SCHEDULE.timesteps(5)), run("ddim", 0, steps=5))


def test_names_and_options():
    with pytest.raises(ParameterError, match="no sampler is named 'dpm', there are ddim, ddpm"):
        make_sampler("dpm", SCHEDULE)
    with pytest.raises(ParameterError, match="sampler 'euler' has no option 'eta', it has final"):
        make_sampler("euler", SCHEDULE, eta=0.5)
    for make, options in [(DDIM, {"eta": 2}), (UniPC, {"order": 4}), (DDPM, {"variance": "tiny"})]:
        with pytest.raises(ParameterError):
            make(SCHEDULE, **options)
    with pytest.raises(ParameterError, match="inverts, which eta 0.5 cannot"):
        DDIM(SCHEDULE, eta=0.5).rule(10, 20)
    with pytest.raises(ParameterError, match="consistency sampling goes down"):
        LCM(SCHEDULE).rule(10, 20)


@pytest.mark.parametrize("dtype", [np.float16, np.int64])
def test_other_types_are_refused(dtype):
    with pytest.raises(ParameterError, match="samplers work in float32"):
        sample(denoiser(), DDIM(SCHEDULE), np.zeros((1, 1), dtype=dtype), [5])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_prediction_is_named_with_its_step(bad):
    def breaks(x, t):
        out = network(x, t)
        if t <= 417:
            out[0, 0, 3, 3] = bad
        return out

    with pytest.raises(NonFiniteError) as caught:
        sample(FunctionDenoiser(breaks, SCHEDULE), DDIM(SCHEDULE), start(), SCHEDULE.timesteps(12))
    assert (caught.value.network, caught.value.step, caught.value.tensor) == ("denoiser", 6, "prediction")


def test_a_broken_start_is_named():
    x = start()
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError) as caught:
        sample(denoiser(), DDIM(SCHEDULE), x, [500])
    assert (caught.value.step, caught.value.tensor) == (None, "x")


def test_on_step_sees_every_call_and_may_stop():
    seen = []

    def watch(info):
        seen.append((info.index, info.total, info.t, info.s))
        assert info.x.shape == info.prediction.x0.shape
        return None if info.index < 2 else False

    with pytest.raises(Cancelled, match="after call 3 of 12"):
        run("ddim", 0, on_step=watch)
    assert seen == [(0, 12, 914, 831), (1, 12, 831, 748), (2, 12, 748, 665)]


def test_what_on_step_raises_passes_through():
    def stop(_info):
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        run("ddim", 0, on_step=stop)


def test_temperature_scales_the_noise():
    still = sample(
        denoiser(),
        DDIM(SCHEDULE, eta=1.0, temperature=0.0),
        start(),
        SCHEDULE.timesteps(5),
        rng=TorchGenerator(0),
    )
    assert not np.array_equal(still, run("ddim", 0, steps=5))
    weights = [dict(DDIM(SCHEDULE, eta=1.0, temperature=k).rule(500, 300).out)["noise"] for k in (1.0, 0.5)]
    assert weights[1] == pytest.approx(weights[0] / 2)


def test_learned_variance_has_to_be_predicted():
    with pytest.raises(ParameterError, match="variance from the network, which predicts none"):
        sample(denoiser(), DDPM(SCHEDULE, "learned_range"), start(), [500, 200], rng=TorchGenerator(0))


def test_learned_variance_spans_small_to_large():
    x, noise = start(1), start(2)
    small, large = (DDPM(SCHEDULE, kind).step(x, 500, 300, denoiser()(x, 500), noise) for kind in ("small", "large"))
    for v, expected in ((-1.0, small), (1.0, large)):
        plain = denoiser()(x, 500)
        learned = Prediction(plain.eps, plain.x0, np.full_like(x, v))
        actual = DDPM(SCHEDULE, "learned_range").step(x, 500, 300, learned, noise)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_mask_blending_keeps_what_is_known():
    known = start(5)
    mask = np.zeros((1, 1, 8, 8), dtype=np.float32)
    mask[..., :4] = 1
    rng = TorchGenerator(1)
    times = SCHEDULE.timesteps(50)
    perfect = FunctionDenoiser(lambda x, t: known.copy(), SCHEDULE, "x0")
    blend = MaskBlend(known, mask, SCHEDULE, rng)
    out = sample(perfect, DDIM(SCHEDULE), start(6), times, rng=rng, prepare=blend)
    np.testing.assert_allclose(out, known, atol=1e-5)

    def wrong(x, t):
        return np.zeros_like(x)

    seen = []
    spy = FunctionDenoiser(lambda x, t: seen.append((x.copy(), t)) or wrong(x, t), SCHEDULE)
    sample(spy, DDIM(SCHEDULE), start(6), [500, 300], prepare=MaskBlend(known, mask, SCHEDULE, TorchGenerator(8)))
    replay = TorchGenerator(8)
    for x, t in seen:
        expected = SCHEDULE.noised(known, replay.randn(known.shape), t)
        np.testing.assert_allclose(x[..., :4], expected[..., :4], atol=1e-6)
    with pytest.raises(ParameterError, match="resize it to the latent"):
        MaskBlend(known, np.ones((1, 1, 16, 16), dtype=np.float32), SCHEDULE, rng)


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_allocate_no_pictures(name):
    """Once its buffers are there, a run neither grows nor makes a temporary of the picture's size.

    The picture is large, since what other threads and Python itself allocate meanwhile is counted too."""
    x = np.zeros((1, 4, 256, 256), dtype=np.float32)
    constant = Prediction(np.ones_like(x), np.ones_like(x))
    noise = np.ones_like(x)
    plan = make_sampler(name, SCHEDULE).plan(SCHEDULE.timesteps(12))
    peaks = []
    tracemalloc.start()
    for rule in plan.rules:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        x = plan.step(x, rule.t, rule.s, constant, noise)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert max(peaks[6:]) < x.nbytes / 4
