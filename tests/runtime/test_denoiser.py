"""Denoisers: parametrisations agree, engines are fed from reused buffers, wrappers change what they say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sfumato.errors import BindingError, ParameterError
from sfumato.runtime.denoiser import EngineDenoiser, FunctionDenoiser, Parametrization, Prediction
from sfumato.runtime.projection import ClipX0, QuantizeX0
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.schedule import Schedule

SCHEDULE = Schedule.named("scaled_linear")
X0, EPS = TorchGenerator(0).randn((2, 4, 8, 8)), TorchGenerator(1).randn((2, 4, 8, 8))


class FakeEngine:
    """Remembers its feeds and returns what it is told to."""

    spec = SimpleNamespace(name="unet")

    def __init__(self, answer):
        self.answer, self.feeds, self.buffers = answer, [], []

    def __call__(self, **feeds):
        self.buffers.append({name: array.__array_interface__["data"][0] for name, array in feeds.items()})
        self.feeds.append({name: array.copy() for name, array in feeds.items()})
        return self.answer(**feeds)


@pytest.mark.parametrize("t", [0, 1, 500, 999, 123.4])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_every_parametrisation_tells_noise_and_picture(kind, t):
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    x_t = SCHEDULE.noised(X0, EPS, t)
    output = {"eps": EPS, "x0": X0, "v": (alpha * EPS - sigma * X0).astype(np.float32)}[kind]
    prediction = FunctionDenoiser(lambda x, _t: output, SCHEDULE, kind)(x_t, t)
    np.testing.assert_allclose(prediction.eps, EPS, atol=1e-5 / sigma)
    np.testing.assert_allclose(prediction.x0, X0, atol=2e-6 / alpha)
    assert prediction.eps.dtype == prediction.x0.dtype == np.float32
    assert prediction.log_variance is None
    assert not prediction.extra


def test_unknown_parametrisation():
    with pytest.raises(ParameterError, match="no parametrisation is named 'epsilon', there are eps, v and x0"):
        Parametrization(SCHEDULE, "epsilon")


def test_nothing_can_be_solved_at_the_ends():
    with pytest.raises(ParameterError, match="all signal or all noise"):
        FunctionDenoiser(lambda x, t: x, SCHEDULE, "x0")(X0, -1)


def test_outputs_of_another_shape_say_what_to_do():
    model = FunctionDenoiser(lambda x, t: np.concatenate([x, x], axis=1), SCHEDULE)
    with pytest.raises(BindingError, match=r"predicts \(2, 8, 8, 8\) for a picture of \(2, 4, 8, 8\)"):
        model(X0, 5)


def test_engines_get_x_t_and_conditions():
    engine = FakeEngine(lambda x, t, context: {"prediction": x * 0.5})
    context = TorchGenerator(2).randn((2, 7, 24))
    model = EngineDenoiser(engine, SCHEDULE, context=context)
    prediction = model(X0, 500)
    (feeds,) = engine.feeds
    np.testing.assert_array_equal(feeds["x"], X0)
    np.testing.assert_array_equal(feeds["context"], context)
    np.testing.assert_array_equal(feeds["t"], np.full(2, 500, dtype=np.float32))
    assert feeds["t"].dtype == np.float32
    np.testing.assert_array_equal(prediction.eps, X0 * 0.5)
    assert model.network == "unet"


def test_feeds_are_not_allocated_anew():
    engine = FakeEngine(lambda x, t, y: {"prediction": x[:, :4].copy()})
    model = EngineDenoiser(engine, SCHEDULE, concat=EPS[:1, :3], y=np.array([3, 4]))
    first = model(X0, 700)
    second = model(X0, 500)
    assert engine.buffers[0] == engine.buffers[1]
    assert first.x0 is second.x0


def test_concat_channels_are_appended_and_repeated():
    engine = FakeEngine(lambda x, t: {"prediction": x[:, :4].copy()})
    model = EngineDenoiser(engine, SCHEDULE, concat=EPS[:, :3])
    model(np.concatenate([X0, X0]), 700)
    fed = engine.feeds[0]["x"]
    np.testing.assert_array_equal(fed[:, :4], np.concatenate([X0, X0]))
    np.testing.assert_array_equal(fed[:, 4:], np.concatenate([EPS[:, :3], EPS[:, :3]]))
    model(X0[:, :, :, :], 3)
    assert engine.feeds[1]["x"].shape == (2, 7, 8, 8)


def test_concat_of_another_size_is_refused():
    model = EngineDenoiser(FakeEngine(lambda x, t: {}), SCHEDULE, concat=EPS[:, :, :4])
    with pytest.raises(BindingError, match="give it the same height and width"):
        model(X0, 5)


def test_learned_variance_and_further_outputs():
    maps = np.ones((2, 3))
    engine = FakeEngine(lambda x, t: {"prediction": np.concatenate([x, 0 * x + 7], axis=1), "maps": maps})
    prediction = EngineDenoiser(engine, SCHEDULE, learned_variance=True)(X0, 5)
    np.testing.assert_array_equal(prediction.eps, X0)
    np.testing.assert_array_equal(prediction.log_variance, np.full_like(X0, 7))
    assert prediction.extra["maps"] is maps


def test_fractional_timesteps_may_be_rounded_for_the_network_only():
    engine = FakeEngine(lambda x, t: {"prediction": EPS})
    x_t = SCHEDULE.noised(X0, EPS, 123.6)
    for whole in (False, True):
        prediction = EngineDenoiser(engine, SCHEDULE, integer_t=whole)(x_t, 123.6)
        np.testing.assert_allclose(prediction.x0, X0, atol=1e-5)
    assert engine.feeds[0]["t"][0] == np.float32(123.6)
    assert engine.feeds[1]["t"][0] == 124


def test_clipping_derives_the_noise_anew():
    x_t = SCHEDULE.noised(3 * X0, EPS, 500)
    plain = FunctionDenoiser(lambda x, t: EPS.copy(), SCHEDULE)
    clipped = ClipX0(plain, SCHEDULE)(x_t, 500)
    assert clipped.x0.min() == -1
    assert clipped.x0.max() == 1
    np.testing.assert_allclose(SCHEDULE.noised(clipped.x0, clipped.eps, 500), x_t, atol=1e-5)
    inside = np.abs(3 * X0) < 0.99
    np.testing.assert_allclose(clipped.eps[inside], EPS[inside], atol=1e-4)


def test_quantising_leaves_the_noise():
    raw = Prediction(EPS, X0, log_variance=EPS, extra={"a": X0})
    wrapped = QuantizeX0(lambda x, t: raw, np.round)(X0, 5)
    np.testing.assert_array_equal(wrapped.x0, np.round(X0))
    assert wrapped.eps is EPS
    assert wrapped.log_variance is EPS
    assert wrapped.extra["a"] is X0
