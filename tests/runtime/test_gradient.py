"""Gradients by engine: what is fed, what comes back, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sfumato.engines.binding import Binding, Dimension, check_feeds
from sfumato.engines.manifest import NetworkSpec
from sfumato.errors import BindingError, EngineError, NonFiniteError
from sfumato.runtime.gradient import EngineGradient, Gradient

F32 = "float32"
SIZES = {name: Dimension(1, 2, 8) for name in ("batch", "n", "tokens")}
X, T = Binding("x", F32, ("batch", "n")), Binding("t", F32, ("batch",))
CONTEXT = Binding("context", F32, ("batch", "tokens"))
LOSS, GRADIENT, PREDICTION = (
    Binding("loss", F32, (1,)),
    Binding("gradient", F32, ("batch", "n")),
    Binding("prediction", F32, ("batch", "n")),
)
SPEC = NetworkSpec("quadratic", "q.onnx", (), (X, T, CONTEXT), (PREDICTION, LOSS, GRADIENT), SIZES)


class Quadratic:
    """loss = ½ ‖x‖² Σ context; its arrays are its own, as an engine's are."""

    backend, precision = "fake", "fp32"

    def __init__(self, spec: NetworkSpec = SPEC) -> None:
        self.spec = spec
        self.fed: list[dict[str, Any]] = []
        self.closed = False
        self._outputs: dict[tuple[int, ...], dict[str, np.ndarray]] = {}

    def __call__(self, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        check_feeds(self.spec, feeds)
        self.fed.append(feeds)
        x, weight = feeds["x"], feeds["context"].sum()
        out = self._outputs.setdefault(x.shape, {n: np.empty_like(x) for n in ("gradient", "prediction")})
        out["loss"] = np.array([0.5 * (x**2).sum() * weight], dtype=np.float32)
        np.multiply(x, weight, out=out["gradient"])
        np.multiply(x, feeds["t"][:, None], out=out["prediction"])
        return dict(out)

    def close(self) -> None:
        self.closed = True


class FromElsewhere:
    """An array of another library."""

    shape = (1, 2)

    def __dlpack__(self) -> None: ...


def gradient(**fixed: Any) -> tuple[Any, Quadratic]:
    engine = Quadratic()
    return EngineGradient(engine, **fixed), engine  # type: ignore[arg-type]


def test_loss_gradient_and_prediction() -> None:
    g, _ = gradient(context=np.ones((2, 3), np.float32))
    assert isinstance(g, Gradient)
    assert g.prediction is None
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    loss, result = g(x, t=7)
    assert loss == pytest.approx(0.5 * 55 * 6)
    np.testing.assert_array_equal(result, 6 * x)
    np.testing.assert_array_equal(g.prediction, 7 * x)


def test_a_step_allocates_no_feeds() -> None:
    g, engine = gradient(context=np.ones((2, 3), np.float32))
    x = np.ones((2, 3), np.float32)
    _, first = g(x, t=1.0)
    _, second = g(x, t=2.0)
    assert first is second
    assert engine.fed[0]["t"] is engine.fed[1]["t"]
    assert engine.fed[0]["x"] is x and engine.fed[0]["context"] is engine.fed[1]["context"]
    np.testing.assert_array_equal(engine.fed[1]["t"], [2.0, 2.0])


def test_other_types_and_strides_are_copied_into_a_kept_buffer() -> None:
    g, engine = gradient(context=np.ones((2, 3)))
    for _ in range(2):
        loss, _ = g(np.ones((3, 2), np.float32).T, t=np.zeros(2, np.float32))
    assert loss == pytest.approx(18.0)
    assert engine.fed[0]["x"] is engine.fed[1]["x"]
    assert engine.fed[0]["context"].dtype == np.float32


def test_a_call_may_replace_what_was_fixed() -> None:
    g, _ = gradient(context=np.ones((2, 3), np.float32), t=3.0)
    x = np.ones((2, 2), np.float32)
    assert g(x, context=np.zeros((2, 3), np.float32))[0] == 0.0
    np.testing.assert_array_equal(g.prediction, 3 * x)


@pytest.mark.parametrize(("tensor", "value"), [("loss", 3e38), ("gradient", np.nan)])
def test_what_is_not_finite_is_named_with_its_step(tensor: str, value: float) -> None:
    g, _ = gradient(context=np.full((1, 2), 0.5, np.float32), t=0.0)
    x = np.full((1, 2), value, np.float32)
    if tensor == "gradient":
        x[0, 1] = 1.0
        g._engine = Broken(g._engine)
    g.step = 12
    with np.errstate(over="ignore"), pytest.raises(NonFiniteError) as caught:
        g(x)
    assert (caught.value.network, caught.value.step, caught.value.tensor) == ("quadratic", 12, tensor)


def test_a_prediction_that_is_not_finite_is_named_too() -> None:
    g, _ = gradient(context=np.ones((2, 3), np.float32), t=np.array([1.0, np.inf], np.float32))
    g.step = 3
    with pytest.raises(NonFiniteError) as caught:
        g(np.ones((2, 2), np.float32))
    assert (caught.value.step, caught.value.tensor) == (3, "prediction")
    assert g.prediction is None


@pytest.mark.parametrize(
    ("context", "why"),
    [
        ([[1.0, 2.0]], "is a list"),
        (np.ones((1, 2), np.complex64), "complex64"),
        (FromElsewhere(), "is a FromElsewhere, compiled"),
    ],
)
def test_what_is_no_array_is_refused(context: Any, why: str) -> None:
    with pytest.raises(BindingError, match=why):
        gradient(context=context)[0](np.ones((1, 2), np.float32), t=0.0)


class Broken:
    """An engine whose gradient overflowed while its loss did not."""

    def __init__(self, engine: Quadratic) -> None:
        self.spec, self._engine = engine.spec, engine

    def __call__(self, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        return self._engine(**feeds) | {"loss": np.ones(1, np.float32)}


def test_inputs_that_the_network_does_not_have_are_refused() -> None:
    with pytest.raises(BindingError, match="'y'"):
        gradient(y=1.0)
    g, _ = gradient(context=np.ones((1, 2), np.float32), t=0.0)
    with pytest.raises(BindingError, match="'y'"):
        g(np.ones((1, 2), np.float32), y=3)
    with pytest.raises(BindingError, match="tokens"):
        gradient(context=1.0)[0](np.ones((1, 2), np.float32), t=0.0)


def test_networks_without_a_gradient_are_refused() -> None:
    plain = NetworkSpec("unet", "u.onnx", (), (X, T), (PREDICTION,), {k: SIZES[k] for k in ("batch", "n")})
    with pytest.raises(EngineError, match="backend='torch'"):
        EngineGradient(Quadratic(plain))  # type: ignore[arg-type]


def test_one_of_several_gradients() -> None:
    two = (LOSS, Binding("gradient_x", F32, ("batch", "n")), Binding("gradient_context", F32, ("batch", "tokens")))
    spec = NetworkSpec("two", "t.onnx", (), (X, T, CONTEXT), two, SIZES)

    class Two(Quadratic):
        def __call__(self, **feeds: np.ndarray) -> dict[str, np.ndarray]:
            out = super().__call__(**feeds)
            return {"loss": out["loss"], "gradient_x": out["gradient"], "gradient_context": feeds["context"] * 2}

    g = EngineGradient(Two(spec), of="context", t=1.0)  # type: ignore[arg-type]
    context = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(g(np.ones((2, 2), np.float32), context=context)[1], 2 * context)
    with pytest.raises(EngineError, match="gradient_t"):
        EngineGradient(Two(spec), of="t")  # type: ignore[arg-type]
    with pytest.raises(BindingError, match="by 'z', its inputs are x, t, context"):
        EngineGradient(Two(spec), of="z")  # type: ignore[arg-type]


def test_gradient_is_by_x_alone() -> None:
    with pytest.raises(EngineError, match="gradient_context"):
        EngineGradient(Quadratic(), of="context")  # type: ignore[arg-type]


def test_closing_closes_the_engine() -> None:
    g, engine = gradient()
    with g:
        pass
    assert engine.closed
