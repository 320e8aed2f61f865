"""Fused sampling with arrays on a fake GPU: the numbers of NumPy, one launch a step, x up and down once."""

from __future__ import annotations

from typing import Any

import fake_cuda as fake
import numpy as np
import pytest
from device_engine import DeviceEngine, HostEngine

from sfumato.engines.cuda import open_cuda
from sfumato.errors import NonFiniteError
from sfumato.runtime.fused import FusedStep, sample_fused
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.sampler import DDIM, SAMPLERS, make_sampler
from sfumato.runtime.schedule import Schedule

pytestmark = pytest.mark.skipif(fake.compiler() is None, reason="no C++ compiler to run the kernels with")

SCHEDULE = Schedule.named("scaled_linear")
SHAPE = (2, 3, 5, 7)
CONTEXT = TorchGenerator(9).randn((4, 2, 3))


def network(x: Any, t: Any, guidance: Any, weights: Any, term: Any, context: Any) -> dict[str, Any]:
    """The network ``step`` of a smooth and bounded UNet."""
    shift = context.mean(axis=(2, 3))[:, :, None, None, None] + 0.002 * t[0]
    outputs = 0.8 * np.sin(1.3 * x[None] + shift)
    led = (outputs[0] + (guidance[:, None, None, None, None] * (outputs - outputs[0])).sum(0)).astype(np.float32)
    return {"x_s": (weights[0] * x + weights[1] * led + term).astype(np.float32), "prediction": led}


def run(engine: Any, sampler: Any, *, kind: Any = "eps", scale: float | None = 3.0, on_step: Any = None) -> Any:
    context = CONTEXT if scale is not None else CONTEXT[:2]
    step = FusedStep(engine, SCHEDULE, kind, scale=scale, context=context)
    x = TorchGenerator(0).randn(SHAPE)
    return sample_fused(step, sampler, x, SCHEDULE.timesteps(8), rng=TorchGenerator(3), on_step=on_step)


@pytest.fixture
def device(fake_cuda: Any) -> DeviceEngine:
    return DeviceEngine(network, open_cuda(), fake_cuda)


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_what_it_gives_in_numpy(
    fake_cuda: Any, device: Any, name: str, scale: float | None, kind: str
) -> None:
    sampler = make_sampler(name, SCHEDULE)
    expected = run(HostEngine(network), sampler, kind=kind, scale=scale)
    made = run(device, sampler, kind=kind, scale=scale)
    assert isinstance(made, np.ndarray)
    np.testing.assert_allclose(made, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


def test_a_step_of_ddim_is_the_network_and_a_look(fake_cuda: Any, device: Any) -> None:
    run(device, DDIM(SCHEDULE))
    launches = fake_cuda.launches
    size = 4 * np.prod(SHAPE)
    pictures = [kind for kind, bytes in fake_cuda.copies if bytes == size]
    assert pictures.count("host-device") == 2  # x, and the term, which stays zero
    assert pictures.count("device-host") == 1
    assert launches == 8


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_is_allocated_once_all_is_remembered(fake_cuda: Any, device: Any, name: str) -> None:
    counts: list[int] = []

    def counted(**feeds: Any) -> dict[str, Any]:
        counts.append(fake_cuda.allocations)
        return network(**feeds)

    device.network = counted
    run(device, make_sampler(name, SCHEDULE))
    assert len(counts) > 8
    assert counts[-1] == counts[6]  # three predictions are remembered, two anchors take turns


def test_what_is_shown_is_in_host_memory(fake_cuda: Any, device: Any) -> None:
    seen: dict[str, list[Any]] = {"host": [], "device": []}
    for name, engine in (("host", HostEngine(network)), ("device", device)):

        def look(info: Any, into: list[Any] = seen[name]) -> None:
            into.append([array.copy() for array in (info.x, info.prediction.eps, info.prediction.x0)])

        run(engine, make_sampler("ddim", SCHEDULE, eta=0.5), on_step=look)
    for one, other in zip(seen["host"], seen["device"], strict=True):
        for a, b in zip(one, other, strict=True):
            assert isinstance(b, np.ndarray)
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * max(1, np.abs(a).max()))


def test_what_goes_wrong_is_named_at_the_end(fake_cuda: Any, device: Any) -> None:
    device.network = lambda **feeds: {name: array * np.nan for name, array in network(**feeds).items()}
    with pytest.raises(NonFiniteError, match="unet"):
        run(device, DDIM(SCHEDULE))
