"""Schedules of checkpoints: stated, recognised from buffers, or written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.engines.manifest import ScheduleSpec
from sfumato.errors import CheckpointError
from sfumato.export.recipes.schedules import compvis_noise, diffusers_noise
from sfumato.runtime.schedule import Schedule


def _buffer(spec: ScheduleSpec) -> dict[str, torch.Tensor]:
    return {"betas": torch.from_numpy(Schedule.from_spec(spec).betas).float()}


@pytest.mark.parametrize(
    ("law", "start", "end"),
    [
        ("scaled_linear", 0.00085, 0.012),
        ("scaled_linear", 0.0015, 0.0195),
        ("sqrt_linear", 1e-4, 2e-2),
        ("cosine", 1e-4, 2e-2),
    ],
)
def test_the_law_is_found_in_the_buffers(law, start, end) -> None:
    spec = ScheduleSpec(law, 1000, start, end, "eps")
    noise = compvis_noise({}, _buffer(spec), None, "it")
    assert noise.files == {} and noise.spec.betas == law
    np.testing.assert_allclose(Schedule.from_spec(noise.spec).betas, Schedule.from_spec(spec).betas, rtol=1e-5)


def test_buffers_without_a_law_are_written_out() -> None:
    betas = torch.linspace(1e-4, 0.3, 40, dtype=torch.float64) ** 1.7 + 1e-4
    noise = compvis_noise({}, {"betas": betas.float()}, None, "it")
    assert noise.spec.betas == "explicit" and noise.spec.alphas_bar in noise.files


def test_a_config_of_another_model_is_noticed() -> None:
    buffer = _buffer(ScheduleSpec("scaled_linear", 1000, 0.00085, 0.012, "eps"))
    stated = {"linear_start": 0.0015, "linear_end": 0.0195, "parameterization": "v"}
    with pytest.raises(CheckpointError, match=r"betas run from 0.0015 to 0.0195 in 1000 steps, the checkpoint's"):
        compvis_noise(stated, buffer, None, "it")
    assert compvis_noise(stated, {}, None, "it").spec.prediction == "v"


def test_no_schedule_anywhere_is_said() -> None:
    with pytest.raises(CheckpointError, match="holds no schedule"):
        compvis_noise({}, {}, None, "it")


def test_diffusers_configurations_are_understood() -> None:
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    noise = diffusers_noise({**config, "prediction_type": "v_prediction"}, "it")
    assert noise.spec == ScheduleSpec("scaled_linear", 1000, 0.00085, 0.012, "v")
    zero = diffusers_noise({**config, "rescale_betas_zero_snr": True}, "it")
    assert zero.spec.betas == "explicit"
    trained = diffusers_noise({"trained_betas": [0.1, 0.2, 0.3]}, "it")
    assert trained.spec.betas == "explicit" and trained.spec.steps == 3
    with pytest.raises(CheckpointError, match="prediction_type is 'flow'"):
        diffusers_noise({"prediction_type": "flow"}, "it")
    with pytest.raises(CheckpointError, match="beta_schedule is 'laplace'"):
        diffusers_noise({"beta_schedule": "laplace"}, "it")
