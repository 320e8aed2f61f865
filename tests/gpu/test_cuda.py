"""Device memory, kernels and samplers on a real GPU: the comparisons that other tests make on a fake one."""

from __future__ import annotations

import numpy as np
import pytest
from device_engine import DeviceEngine, HostEngine, network

from sfumato.engines.cuda import DeviceArray, compile_cubin, open_cuda
from sfumato.engines.kernels import SOURCE
from sfumato.errors import EngineError, MissingDependency, NonFiniteError
from sfumato.runtime.blend import MaskBlend
from sfumato.runtime.denoiser import EngineDenoiser
from sfumato.runtime.guidance import ClassifierFree
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.sampler import DDIM, DDPM, SAMPLERS, make_sampler, sample
from sfumato.runtime.schedule import Schedule

pytestmark = pytest.mark.gpu

SCHEDULE = Schedule.named("scaled_linear")
SHAPE = (2, 4, 32, 32)


@pytest.fixture(scope="module")
def cuda():
    try:
        return open_cuda()
    except (EngineError, MissingDependency) as error:
        pytest.skip(str(error))


def noise(seed, shape=SHAPE):
    return TorchGenerator(seed).randn(shape)


def learned(x, t, **_):
    eps = network(x, t)["prediction"]
    return {"prediction": np.concatenate([eps, np.cos(2 * eps)], axis=1)}


def run(engine, sampler, *, guidance=None, blend=False, **options):
    generator = TorchGenerator(3)
    denoiser = EngineDenoiser(engine, SCHEDULE, **options)
    if guidance is not None:
        denoiser = ClassifierFree(denoiser, guidance)
    mask = (noise(5, (1, 1, *SHAPE[2:])) > 0).astype(np.float32)
    prepare = MaskBlend(noise(1), mask, SCHEDULE, generator) if blend else None
    return sample(denoiser, sampler, noise(0), SCHEDULE.timesteps(8), rng=generator, prepare=prepare)


def close(made, expected, allowed=2e-5):
    np.testing.assert_allclose(made, expected, rtol=0, atol=allowed * np.abs(expected).max())


def test_memory_goes_up_and_comes_back(cuda):
    stream = cuda.stream()
    array = cuda.upload(noise(0), stream)
    np.testing.assert_array_equal(array[1:].numpy(stream), noise(0)[1:])
    pinned = cuda.pinned(SHAPE, np.float32)
    array.copy_to(pinned, stream)
    stream.synchronize()
    np.testing.assert_array_equal(pinned, noise(0))
    array.fill(2.5, stream)
    np.testing.assert_array_equal(array.numpy(stream), np.full(SHAPE, 2.5, np.float32))


def test_another_librarys_memory_is_the_same_memory(cuda):
    stream = cuda.stream()
    array = cuda.upload(noise(0), stream)
    stream.synchronize()
    again = DeviceArray.view(Exported(array))
    assert again.pointer == array.pointer
    np.testing.assert_array_equal(again.numpy(stream), noise(0))
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        tensor = torch.from_dlpack(array)
        assert tensor.data_ptr() == array.pointer
        assert DeviceArray.view(tensor).pointer == array.pointer


class Exported:
    """An array through DLPack alone."""

    def __init__(self, array):
        self.__dlpack__ = array.__dlpack__
        self.__dlpack_device__ = array.__dlpack_device__


def test_events_order_streams_and_measure_time(cuda):
    first, second = cuda.stream(), cuda.stream()
    array = cuda.empty((1 << 22,), np.float32)
    begin = first.record()
    array.fill(3, first)
    end = first.record()
    second.wait(end)
    assert array.numpy(second).min() == 3
    assert end.elapsed(begin) > 0


def test_a_graph_does_again_what_was_recorded(cuda):
    math = cuda.arithmetic(stream := cuda.stream()).like(noise(0))
    a, b, out = math.sent(noise(0)), math.sent(noise(1)), math.sent(noise(2))
    math.linear(out, ((a, 1.0), (b, 1.0)))  # compiled and loaded before it is recorded
    graph = cuda.capture(stream, lambda: math.linear(a, ((a, 1.0), (b, 1.0))))
    np.testing.assert_array_equal(a.numpy(stream), noise(0))
    for _ in range(3):
        graph.launch(stream)
    np.testing.assert_allclose(a.numpy(stream), noise(0) + 3 * noise(1), rtol=1e-6, atol=1e-6)
    graph.close()


def test_nvrtc_compiles_for_this_gpu(cuda):
    assert compile_cubin(SOURCE, cuda.sm)[:4] == b"\x7fELF"


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_what_it_gives_in_numpy(cuda, name, kind):
    sampler = make_sampler(name, SCHEDULE)
    expected = run(HostEngine(network), sampler, prediction=kind)
    close(run(DeviceEngine(network, cuda), sampler, prediction=kind), expected)


def test_guidance_conditions_and_a_mask(cuda):
    options = {"guidance": 3.0, "context": noise(9, (4, 2, 3)), "blend": True}
    sampler = DDIM(SCHEDULE, eta=0.7)
    close(run(DeviceEngine(network, cuda), sampler, **options), run(HostEngine(network), sampler, **options), 5e-5)


def test_a_learned_variance(cuda):
    sampler = DDPM(SCHEDULE, "learned_range")
    expected = run(HostEngine(learned), sampler, learned_variance=True)
    close(run(DeviceEngine(learned, cuda), sampler, learned_variance=True), expected)


def test_what_is_not_finite_is_named_with_its_step(cuda):
    calls = []

    def broken(x, t, **_):
        calls.append(t)
        prediction = network(x, t)["prediction"]
        prediction[0, 0, 0, 0] = np.nan if len(calls) == 6 else 0
        return {"prediction": prediction}

    with pytest.raises(NonFiniteError) as caught:
        run(DeviceEngine(broken, cuda), DDIM(SCHEDULE))
    assert caught.value.step == 4
