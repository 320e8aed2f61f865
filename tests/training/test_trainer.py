"""The training loop: bounded by time, resumable without a trace, stopped by a loss that is no number."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sfumato.training import trainer
from sfumato.training.trainer import TrainOptions, ema_update, train

CPU = torch.device("cpu")


class Interrupted(Exception):
    pass


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A second passes at each look at the clock, so a minute is 60 steps."""
    state = SimpleNamespace(now=0.0)

    def monotonic() -> float:
        state.now += 1.0
        return state.now

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=monotonic))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 2))


def run(checkpoint, steps: int, *, stop_at: int | None = None, nan_at: int | None = None):
    """Trains to `steps`; raises `Interrupted` before step `stop_at`."""
    model, asked = network(), list[int]()

    def loss_of(step):
        if step == stop_at:
            raise Interrupted
        asked.append(step)
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 6, generator=generator)
        loss = ((model(x).float() - x[:, :2]) ** 2).mean()
        return loss * (float("nan") if step == nan_at else 1.0), {"loss": float(loss.detach())}

    options = TrainOptions(steps / 60, 1e-2, warmup_steps=2, checkpoint_every_s=0.5)
    ema = train(model, loss_of, checkpoint, options, device=CPU)
    return model.state_dict(), ema, asked


def test_a_pause_of_the_machine_hardly_counts(tmp_path, monkeypatch):
    ticks = iter([0.0, 1.0, 2.0, 5000.0, 5001.0])
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    _, _, asked = run(tmp_path / "a.pt", 63)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (len(asked), state["seconds"]) == (4, 2.0 + trainer.PAUSE + 1.0)


def test_time_bounds_the_run_and_the_checkpoint_tells_it(tmp_path):
    _, ema, asked = run(tmp_path / "a.pt", 6)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert asked == list(range(6))
    assert (state["step"], state["seconds"]) == (6, 6.0)
    assert all(torch.equal(state["ema"][k], v) for k, v in ema.items())
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path):
    weights, ema, _ = run(tmp_path / "whole.pt", 6)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts.pt", 6, stop_at=3)
    weights_again, ema_again, asked = run(tmp_path / "parts.pt", 6)
    assert asked == [3, 4, 5]
    for name in weights:
        assert torch.equal(weights[name], weights_again[name]), name
        assert torch.equal(ema[name], ema_again[name]), name


def test_a_finished_run_is_not_continued(tmp_path):
    run(tmp_path / "a.pt", 3)
    assert run(tmp_path / "a.pt", 3)[2] == []


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="nan at step 4"):
        run(tmp_path / "a.pt", 6, nan_at=4)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert state["step"] == 4
    assert all(bool(torch.isfinite(v).all()) for v in state["model"].values())


def test_the_average_starts_at_the_weights_and_then_lags():
    model = nn.Linear(1, 1, bias=False)
    ema = {"weight": torch.zeros(1, 1)}
    model.weight.data.fill_(1.0)
    ema_update(ema, model, 0.999, 0)  # the decay is 1/10 at first
    assert float(ema["weight"]) == pytest.approx(0.9)
    ema_update(ema, model, 0.5, 10_000)
    assert float(ema["weight"]) == pytest.approx(0.95)
