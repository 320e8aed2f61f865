"""Noise schedules of checkpoints: from their YAML, their buffers, or a diffusers scheduler_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor

from ...engines.binding import Array
from ...engines.manifest import Betas, PredictionKind, ScheduleSpec
from ...errors import CheckpointError
from ...runtime.betas import named_betas
from ...runtime.schedule import Schedule
from ..assemble import schedule_file
from .published import Published

__all__ = ["Noise", "compvis_noise", "diffusers_noise"]

_FILE = "schedule.safetensors"
_LDM_NAMES: dict[str, Betas] = {
    "linear": "scaled_linear",
    "sqrt_linear": "sqrt_linear",
    "sqrt": "sqrt",
    "cosine": "cosine",
}
"""Latent Diffusion's names: its "linear" is linear in the square root."""


@dataclass(frozen=True)
class Noise:
    """A schedule and the file it needs in the bundle, if any."""

    spec: ScheduleSpec
    files: Mapping[str, bytes]


def explicit(alphas_bar: Array, prediction: PredictionKind) -> Noise:
    """A schedule that follows no law, written out."""
    betas = 1 - alphas_bar / np.concatenate([[1.0], alphas_bar[:-1]])
    spec = ScheduleSpec("explicit", len(alphas_bar), float(betas[0]), float(betas[-1]), prediction, alphas_bar=_FILE)
    return Noise(spec, {_FILE: schedule_file(alphas_bar)})


def compvis_noise(
    params: Mapping[str, Any], state: Mapping[str, Tensor], published: Published | None, what: str
) -> Noise:
    """The schedule of a CompVis checkpoint: its YAML's, held against the buffers; or the law that the buffers follow.

    Arguments:
        params: ``model.params``, empty without a YAML.
        state: The checkpoint; ``betas`` (T,) if it keeps buffers.
        published: The model it was recognised as.
        what: The checkpoint's name, for messages.

    Raises:
        CheckpointError: YAML and buffers disagree, or neither is there.
    """
    kinds: dict[str, PredictionKind] = {"eps": "eps", "v": "v", "x0": "x0"}
    said = str(params.get("parameterization", "eps"))
    if said not in kinds:
        raise CheckpointError(f"{what}: parameterization is {said!r}, need eps, v or x0; correct the config")
    prediction = kinds[said]
    buffer = state["betas"].double().numpy() if "betas" in state else None
    if "linear_start" in params or "beta_schedule" in params:
        return Noise(_stated(params, prediction, buffer, what), {})
    if buffer is not None:
        law = _law(buffer, prediction)
        return Noise(law, {}) if law else explicit(np.cumprod(1 - buffer), prediction)
    if published is not None:
        start, end = published.betas
        return Noise(ScheduleSpec("scaled_linear", 1000, start, end, prediction), {})
    raise CheckpointError(
        f"{what}: holds no schedule (buffer 'betas'), and no config gives one; "
        "pass config=YAML with model.params.linear_start and linear_end"
    )


def _stated(params: Mapping[str, Any], prediction: PredictionKind, buffer: Array | None, what: str) -> ScheduleSpec:
    name = str(params.get("beta_schedule", "linear"))
    if name not in _LDM_NAMES:
        raise CheckpointError(f"{what}: beta_schedule is {name!r}, need one of {', '.join(_LDM_NAMES)}")
    try:
        steps = int(params.get("timesteps", 1000))
        start, end = float(params.get("linear_start", 1e-4)), float(params.get("linear_end", 2e-2))
        spec = ScheduleSpec(_LDM_NAMES[name], steps, start, end, prediction)
        betas = Schedule.from_spec(spec).betas
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{what}: the config's schedule cannot be used ({error}); correct it") from error
    if buffer is not None and (len(buffer) != steps or not np.allclose(betas, buffer, rtol=1e-4, atol=0)):
        raise CheckpointError(
            f"{what}: the config's betas run from {start:g} to {end:g} in {steps} steps, the checkpoint's from "
            f"{buffer[0]:.6g} to {buffer[-1]:.6g} in {len(buffer)}; pass the config of this checkpoint"
        )
    return spec


def _law(buffer: Array, prediction: PredictionKind) -> ScheduleSpec | None:
    """The law that float32 betas follow within their rounding, None if they follow none."""
    start, end = (float(f"{value:.6g}") for value in (buffer[0], buffer[-1]))
    for name in dict.fromkeys(_LDM_NAMES.values()):
        first, last = (start, end) if name != "sqrt" else (start**2, end**2)
        if not (name == "cosine" or 0 < first <= last < 1):
            continue
        if np.allclose(named_betas(name, len(buffer), first, last), buffer, rtol=2e-6, atol=0):
            return ScheduleSpec(name, len(buffer), first, last, prediction)
    return None


def diffusers_noise(config: Mapping[str, Any], what: str) -> Noise:
    """The schedule of a ``scheduler_config.json``.

    Raises:
        CheckpointError: The law or the prediction is one that we do not have.
    """
    kinds: dict[str, PredictionKind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    said = str(config.get("prediction_type", "epsilon"))
    if said not in kinds:
        raise CheckpointError(f"{what}: prediction_type is {said!r}, need one of {', '.join(kinds)}")
    prediction = kinds[said]
    steps = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 2e-2))
    trained = config.get("trained_betas")
    if trained is not None:
        noise = explicit(np.cumprod(1 - np.asarray(trained, dtype=np.float64)), prediction)
    else:
        laws = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
        name = str(config.get("beta_schedule", "linear"))
        if name not in laws:
            raise CheckpointError(f"{what}: beta_schedule is {name!r}, need one of {', '.join(laws)} or trained_betas")
        noise = Noise(ScheduleSpec(cast(Betas, laws[name]), steps, start, end, prediction), {})
    if config.get("rescale_betas_zero_snr"):
        bar = Schedule.from_spec(noise.spec).alphas_bar if trained is None else np.cumprod(1 - np.asarray(trained))
        noise = explicit(_zero_terminal(bar), prediction)
    return noise


def _zero_terminal(alphas_bar: Array) -> Array:
    """Shift and scale sqrt(alphas_bar) so that the last timestep is noise, but for 2^-24 that keep it invertible.

    References:
        Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, algorithm 1
    """
    root = np.sqrt(alphas_bar)
    bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    bar[-1] = math.ldexp(1.0, -24)
    return np.asarray(bar)
