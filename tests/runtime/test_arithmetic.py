"""The arithmetic on a GPU against that of NumPy, on a fake GPU whose kernels the host's C++ compiler compiles.

Both round a weighted sum to float32 after every term, but the GPU's multiply-adds do not round the product. So a step
differs by about a unit in the last place of its largest term, 6e-8 of it, and dividing by an alpha of 0.07 makes 15 of
that; over a run 5e-6 of the largest value is allowed.
"""

from __future__ import annotations

import fake_cuda as fake
import numpy as np
import pytest
from device_engine import DeviceEngine, HostEngine, network

from sfumato.engines.cuda import open_cuda
from sfumato.errors import Cancelled, EngineError, NonFiniteError
from sfumato.runtime.arithmetic import HostArithmetic, arithmetic, placed
from sfumato.runtime.blend import MaskBlend
from sfumato.runtime.denoiser import EngineDenoiser
from sfumato.runtime.guidance import ClassifierFree
from sfumato.runtime.projection import ClipX0
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.sampler import DDIM, DDPM, SAMPLERS, make_sampler, sample
from sfumato.runtime.schedule import Schedule
from sfumato.runtime.systems.timings import TimedEngine, Timings

pytestmark = pytest.mark.skipif(fake.compiler() is None, reason="no C++ compiler to run the kernels with")

SCHEDULE = Schedule.named("scaled_linear")
SHAPE = (2, 3, 5, 7)


@pytest.fixture
def cuda(fake_cuda):
    return open_cuda()


def close(made, expected, allowed=5e-6):
    np.testing.assert_allclose(made, expected, rtol=0, atol=allowed * np.abs(expected).max())


def noise(seed, shape=SHAPE):
    return TorchGenerator(seed).randn(shape)


def learned(x, t, **_):
    eps = network(x[:, :3], t)["prediction"]
    return {"prediction": np.concatenate([eps, np.cos(2 * eps)], axis=1)}


def both(function, cuda, machine):
    """The engine on the host and on the GPU."""
    return HostEngine(function), DeviceEngine(function, cuda, machine)


def run(engine, sampler, *, steps=8, kind="eps", seed=3, guidance=None, blend=None, x=None, on_step=None, **options):
    denoiser = EngineDenoiser(engine, SCHEDULE, kind, **options)
    if guidance is not None:
        denoiser = ClassifierFree(denoiser, guidance)
    generator = TorchGenerator(seed)
    prepare = None if blend is None else MaskBlend(*blend, SCHEDULE, generator)
    x = noise(0) if x is None else x
    return sample(denoiser, sampler, x, SCHEDULE.timesteps(steps), rng=generator, prepare=prepare, on_step=on_step)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_what_it_gives_in_numpy(cuda, fake_cuda, name, kind):
    sampler = make_sampler(name, SCHEDULE)
    host, device = both(network, cuda, fake_cuda)
    expected = run(host, sampler, kind=kind)
    made = run(device, sampler, kind=kind)
    assert fake_cuda.launches
    assert isinstance(made, np.ndarray)
    close(made, expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_is_allocated_after_the_first_step(cuda, fake_cuda, name):
    _, device = both(network, cuda, fake_cuda)
    context = noise(9, (4, 2, 3))
    counts = []

    def counted(x, t, **feeds):
        counts.append(fake_cuda.allocations)
        return network(x, t, **feeds)

    device.network = counted
    run(
        device,
        make_sampler(name, SCHEDULE),
        guidance=3.0,
        blend=(noise(1), np.ones(SHAPE, np.float32)),
        context=context,
    )
    before_second, last = counts[2], counts[-1]  # the first count is the engine asking for its outputs' shapes
    assert len(counts) > 8
    assert last == before_second
    assert fake_cuda.allocations == last


def test_x_goes_up_once_and_comes_back_once(cuda, fake_cuda):
    _, device = both(network, cuda, fake_cuda)
    run(device, DDIM(SCHEDULE))
    size = 4 * np.prod(SHAPE)
    up = [n for kind, n in fake_cuda.copies if kind == "host-device" and n == size]
    down = [n for kind, n in fake_cuda.copies if kind == "device-host" and n == size]
    assert (len(up), len(down)) == (1, 1)


def test_a_step_of_ddim_is_two_sums_and_a_look(cuda, fake_cuda):
    _, device = both(network, cuda, fake_cuda)
    run(device, DDIM(SCHEDULE), steps=8)
    assert fake_cuda.launches == 8 * 3


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_guidance_with_conditions_and_concatenated_channels(cuda, fake_cuda, scale):
    host, device = both(lambda x, **feeds: network(x[:, :3] + 0.1 * x[:, 3:6], **feeds), cuda, fake_cuda)
    options = {"guidance": scale, "context": noise(9, (4, 2, 3)), "concat": noise(8, (1, 3, 5, 7))}
    expected = run(host, DDIM(SCHEDULE, eta=0.7), **options)
    close(run(device, DDIM(SCHEDULE, eta=0.7), **options), expected, 3e-5)  # guidance multiplies errors too


@pytest.mark.parametrize("variance", ["learned_range", "learned"])
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_learned_variance(cuda, fake_cuda, variance, guidance):
    host, device = both(learned, cuda, fake_cuda)
    sampler = DDPM(SCHEDULE, variance)
    options = {"learned_variance": True, "guidance": guidance}
    expected = run(host, sampler, **options)
    close(run(device, sampler, **options), expected)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun"])
def test_a_mask_is_blended_with_noise_of_the_same_stream(cuda, fake_cuda, name):
    mask = (noise(5, (1, 1, 5, 7)) > 0).astype(np.float32)
    host, device = both(network, cuda, fake_cuda)
    expected = run(host, make_sampler(name, SCHEDULE), blend=(noise(1), mask))
    close(run(device, make_sampler(name, SCHEDULE), blend=(noise(1), mask)), expected)


def test_on_step_is_given_copies_in_host_memory(cuda, fake_cuda):
    host, device = both(network, cuda, fake_cuda)
    seen: dict[str, list] = {"host": [], "device": []}
    for name, engine in (("host", host), ("device", device)):

        def keep(info, name=name):
            seen[name].append(
                (info.index, info.t, info.x.copy(), info.prediction.eps.copy(), info.prediction.x0.copy())
            )

        run(engine, DDIM(SCHEDULE), on_step=keep)
    for expected, made in zip(seen["host"], seen["device"], strict=True):
        assert made[:2] == expected[:2]
        for a, b in zip(made[2:], expected[2:], strict=True):
            close(a, b, 2e-5)  # eps is steep in x, which is 8 times as large


def test_on_step_may_stop_a_run(cuda, fake_cuda):
    _, device = both(network, cuda, fake_cuda)
    with pytest.raises(Cancelled, match="call 3 of 8"):
        run(device, DDIM(SCHEDULE), on_step=lambda info: info.index < 2)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named_with_its_step(cuda, fake_cuda, bad, observed):
    calls = []

    def broken(x, t, **_):
        calls.append(t[0])
        prediction = network(x, t)["prediction"]
        if len(calls) == 6:  # the first call asks for the outputs' shapes
            prediction[1, 2, 4, 6] = bad
        return {"prediction": prediction}

    _, device = both(broken, cuda, fake_cuda)
    with pytest.raises(NonFiniteError, match="prediction") as caught:
        run(device, DDIM(SCHEDULE), on_step=(lambda info: None) if observed else None)
    assert (caught.value.network, caught.value.step) == ("unet", 4)


def test_a_wrapper_that_knows_numpy_alone_keeps_the_run_on_the_host(cuda, fake_cuda):
    host, device = both(network, cuda, fake_cuda)
    x, times = noise(0), SCHEDULE.timesteps(4)
    made, expected = (
        sample(ClipX0(EngineDenoiser(engine, SCHEDULE), SCHEDULE), DDIM(SCHEDULE), x, times)
        for engine in (device, host)
    )
    np.testing.assert_array_equal(made, expected)
    assert not fake_cuda.launches


def test_a_foreign_prepare_keeps_the_run_on_the_host(cuda, fake_cuda):
    _, device = both(network, cuda, fake_cuda)
    denoiser = EngineDenoiser(device, SCHEDULE)
    assert isinstance(placed(noise(0), denoiser, lambda x, t: x), HostArithmetic)
    assert isinstance(placed(noise(0).astype(np.float64), denoiser), HostArithmetic)
    assert not isinstance(placed(noise(0), denoiser), HostArithmetic)
    assert isinstance(placed(noise(0), EngineDenoiser(HostEngine(network), SCHEDULE)), HostArithmetic)


def test_one_denoiser_serves_runs_of_several_shapes_and_both_places(cuda, fake_cuda):
    host, device = both(network, cuda, fake_cuda)
    on_device, on_host = EngineDenoiser(device, SCHEDULE), EngineDenoiser(host, SCHEDULE)
    times = SCHEDULE.timesteps(3)
    for shape in (SHAPE, (1, 3, 4, 4), SHAPE):
        x = noise(0, shape)
        expected = sample(on_host, DDIM(SCHEDULE), x, times)
        close(sample(on_device, DDIM(SCHEDULE), x, times), expected)
        np.testing.assert_array_equal(on_device(x, 500).x0, on_host(x, 500).x0)


OPERATIONS = {
    "linear": lambda math, out, a, b, c: math.linear(out, ((a, 0.5), (b, -1.25), (c, 3.0))),
    "one term": lambda math, out, a, b, c: math.linear(out, ((a, 0.5),)),
    "eight terms": lambda math, out, a, b, c: math.linear(out, [(a, 0.1), (b, 2), (c, -0.5), (a, 3)] * 2),
    "solve": lambda math, out, a, b, c: math.solve(out, a, 0.7, b, 0.3),
    "guide": lambda math, out, a, b, c: math.guide(out, a, b, 7.5),
    "deviate": lambda math, out, a, b, c: math.deviate(out, a, 0.3, -1.0, b),
    "blend": lambda math, out, a, b, c: math.blend(out, a, (b, 0.6), (c, 0.8), (a, b)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_agree_to_a_few_units_in_the_last_place(cuda, name):
    arrays = [noise(seed) for seed in range(3)]
    host = HostArithmetic(arrays[0])
    expected = OPERATIONS[name](host, np.empty_like(arrays[0]), *arrays)
    math = cuda.arithmetic(cuda.stream()).like(arrays[0])
    sent = [math.sent(array) for array in arrays]
    assert math.fits(sent[0])
    assert arithmetic(sent[0]).fits(sent[1])
    made = math.host(OPERATIONS[name](math, math.empty(sent[0]), *sent))
    np.testing.assert_allclose(made, expected, rtol=2e-6, atol=4e-6)


def test_a_sum_of_nine_terms_is_refused(cuda):
    x = noise(0)
    math = cuda.arithmetic(cuda.stream()).like(x)
    there = math.sent(x)
    with pytest.raises(EngineError, match="9 terms"):
        math.linear(math.empty(there), [(there, 1.0)] * 9)


def test_noise_waits_in_pinned_memory_until_it_was_read(cuda):
    math = cuda.arithmetic(stream := cuda.stream()).like(noise(0))
    kept = [math.empty(noise(0)) for _ in range(5)]
    for seed, out in enumerate(kept):
        math.copy(out, math.staged(noise(seed)))
    for seed, out in enumerate(kept):
        np.testing.assert_array_equal(out.numpy(stream), noise(seed))


def test_networks_on_a_gpu_are_timed_there(cuda, fake_cuda):
    host, device = both(network, cuda, fake_cuda)
    timings = Timings()
    made = run(TimedEngine(device, timings), DDIM(SCHEDULE))
    assert fake_cuda.launches
    close(made, run(host, DDIM(SCHEDULE)))
    stage = timings.summary()["unet"]
    assert stage["calls"] == 8
    assert stage["mean"] > 0
    assert not hasattr(TimedEngine(host, timings), "cuda")
