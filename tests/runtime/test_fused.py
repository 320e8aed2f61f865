"""Fused sampling over a step known in closed form: every rule folded, nothing allocated, errors as of `sample`."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import pytest

from sfumato.engines.binding import Binding
from sfumato.engines.manifest import NetworkSpec
from sfumato.errors import BindingError, Cancelled, NonFiniteError, ParameterError
from sfumato.runtime.denoiser import FunctionDenoiser
from sfumato.runtime.folded import fold, outputs
from sfumato.runtime.fused import FusedStep, sample_fused
from sfumato.runtime.guidance import ClassifierFree
from sfumato.runtime.rng import TorchGenerator
from sfumato.runtime.sampler import DDPM, SAMPLERS, Sampler, make_sampler, sample
from sfumato.runtime.schedule import Schedule

SCHEDULE = Schedule.named("scaled_linear")
TIMES = SCHEDULE.timesteps(8)
X = TorchGenerator(0).randn((2, 4, 8, 8))
SHIFTS = np.array([[0, 0], [1, 2]], dtype=np.float32)
"""Conditions (passes, batch): unconditional rows, then conditional ones."""


def unet(x: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """A bounded output of x (rows, …) under a condition for each row."""
    return np.sin(x + shifts.reshape(-1, 1, 1, 1))


class StepEngine:
    """The network ``step`` around `unet`, as `export.step.Step` defines it; keeps what it was fed."""

    backend = "fake"
    precision: Any = "fp32"

    def __init__(self) -> None:
        self.spec = NetworkSpec("step", "step.onnx", (), (), (Binding("x_s", "float32", ("batch",)),), {})
        self.fed: list[dict[str, np.ndarray]] = []
        self.broken = False
        self.outputs: dict[str, np.ndarray] = {}

    def __call__(self, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        x, guidance, (a, b) = feeds["x"], feeds["guidance"], feeds["weights"]
        self.fed.append(feeds)
        rows = np.concatenate([x] * len(guidance))
        out = unet(rows, feeds["shift"]).reshape(len(guidance), *x.shape)
        led = out[0] + (guidance.reshape(-1, 1, 1, 1, 1) * (out - out[0])).sum(0)
        if self.broken:
            led = led * np.float32(np.nan)
        found = {"x_s": a * x + b * led + feeds["term"], "prediction": led}
        for name, array in found.items():  # an engine's next call overwrites what it gave
            np.copyto(self.outputs.setdefault(name, np.empty_like(array)), array)
        return self.outputs

    def close(self) -> None: ...

    def __enter__(self) -> StepEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def step(kind: Any = "eps", scale: float | None = 3.0, engine: Any = None) -> FusedStep:
    shifts = SHIFTS[1:] if scale is None else SHIFTS
    return FusedStep(engine or StepEngine(), SCHEDULE, kind, scale=scale, shift=shifts.ravel())


def apart(kind: Any = "eps", scale: float | None = 3.0) -> Any:
    shifts = SHIFTS[1:] if scale is None else SHIFTS
    denoiser = FunctionDenoiser(lambda x, t: unet(x, shifts), SCHEDULE, kind)
    return denoiser if scale is None else ClassifierFree(denoiser, scale)


def rule_of(name: str) -> Sampler:
    return make_sampler(name, SCHEDULE, **({"eta": 0.7} if name == "ddim" else {}))


class Exact:
    """The normals of a seed, in float64, so that a run apart is too."""

    def __init__(self, seed: int) -> None:
        self._generator = TorchGenerator(seed)

    def randn(self, shape: Any) -> np.ndarray:
        return self._generator.randn(shape).astype(np.float64)


@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_what_it_gives_apart(name: str, kind: str, scale: float | None) -> None:
    """It rounds in another order and no more: it is as near to float64 as steps apart in float32 are."""
    exact = sample(apart(kind, scale), rule_of(name), X.astype(np.float64), TIMES, rng=Exact(1))
    near = sample(apart(kind, scale), rule_of(name), X, TIMES, rng=TorchGenerator(1))
    found = sample_fused(step(kind, scale), rule_of(name), X, TIMES, rng=TorchGenerator(1))
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() <= 4 * np.abs(near - exact).max() + 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("name", ["ddim", "heun", "plms"])
def test_what_is_shown_at_each_step_is_what_is_shown_apart(name: str, kind: str) -> None:
    shown: list[list[Any]] = [[], []]
    for run, (sampling, network) in enumerate(((sample, apart(kind, None)), (sample_fused, step(kind, None)))):

        def look(info: Any, into: list[Any] = shown[run]) -> None:
            arrays = info.x, info.prediction.eps, info.prediction.x0
            into.append(((info.index, info.total, info.t, info.s), [array.copy() for array in arrays]))

        sampling(network, rule_of(name), X, TIMES, rng=TorchGenerator(1), on_step=look)  # type: ignore[operator]
    assert [at for at, _ in shown[0]] == [at for at, _ in shown[1]]
    for (_, one), (_, other) in zip(*shown, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("name", ["ddim", "unipc", "plms"])
def test_every_call_is_fed_the_same_buffers(name: str) -> None:
    engine = StepEngine()
    start = X.copy()
    result = sample_fused(step(engine=engine), rule_of(name), X, TIMES, rng=TorchGenerator(1))
    assert len(engine.fed) >= 8
    for feeds in engine.fed[1:]:
        assert all(feeds[key] is engine.fed[0][key] for key in feeds)
    given = engine.outputs.values()
    assert not any(np.may_share_memory(array, out) for array in engine.fed[0].values() for out in given)
    assert np.array_equal(X, start) and not np.may_share_memory(result, X)
    assert not np.may_share_memory(result, engine.outputs["x_s"])


def test_the_weights_of_ddim_are_the_equation() -> None:
    rule = rule_of("ddim").plan([600, 200]).rules[0]
    folded = fold(rule, SCHEDULE, "eps")
    out = dict(rule.out)
    alpha, sigma = SCHEDULE.alpha(600), SCHEDULE.sigma(600)
    assert folded.weights == pytest.approx((out["x0"] / alpha, out["eps"] - out["x0"] * sigma / alpha), rel=1e-15)
    assert folded.term == {"noise": out["noise"]} and folded.draws


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_eps_and_x0_make_x_again(kind: Any) -> None:
    for t in (0, 250.5, 999):
        (p, q), (r, u) = outputs(SCHEDULE, kind, t)
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        assert (alpha * r + sigma * p, alpha * u + sigma * q) == pytest.approx((1, 0), abs=1e-12)


def test_what_cannot_be_solved_or_folded_is_refused() -> None:
    with pytest.raises(ParameterError, match="all signal or all noise"):
        outputs(SCHEDULE, "x0", -1)
    learned = DDPM(SCHEDULE, variance="learned_range")
    with pytest.raises(ParameterError, match="learned variance is not linear"):
        sample_fused(step(), learned, X, TIMES, rng=TorchGenerator(0))
    with pytest.raises(ParameterError, match="adds noise and rng is None"):
        sample_fused(step(), rule_of("ddpm"), X, TIMES)
    with pytest.raises(ParameterError, match="samplers work in float32"):
        sample_fused(step(), rule_of("euler"), X.astype(np.float16), TIMES)
    with pytest.raises(ParameterError, match="need a finite number"):
        step(scale=float("nan"))
    with pytest.raises(BindingError, match="shift has 3 rows for 2 passes"):
        FusedStep(StepEngine(), SCHEDULE, scale=2.0, shift=np.zeros(3, np.float32))


def test_what_goes_wrong_is_named() -> None:
    engine = StepEngine()
    engine.broken = True
    with pytest.raises(NonFiniteError, match="step"):
        sample_fused(step(engine=engine), rule_of("euler"), X, TIMES)


def test_on_step_stops_it() -> None:
    seen: list[int] = []

    def stop(info: Any) -> bool | None:
        seen.append(info.index)
        return False if info.index == 2 else None

    with pytest.raises(Cancelled, match="after call 3 of 8"):
        sample_fused(step(), rule_of("euler"), X, TIMES, on_step=stop)
    assert seen == [0, 1, 2]


def test_a_picture_of_a_batch_is_the_picture_alone() -> None:
    both = sample_fused(step(), rule_of("dpmpp_2m"), X, TIMES)
    alone = FusedStep(StepEngine(), SCHEDULE, scale=3.0, shift=np.array([0, 2], np.float32))
    np.testing.assert_array_equal(sample_fused(alone, rule_of("dpmpp_2m"), X[1:], TIMES), both[1:])
