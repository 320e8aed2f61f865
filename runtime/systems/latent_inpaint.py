"""Inpainting of latent diffusion: how each kind of model is told what is known of the picture.

========================  ============================================================================================
model                     what it gets
========================  ============================================================================================
``inpaint`` by "concat"   beside x: the masked picture's latents, then the mask (Latent Diffusion's script)
``inpaint`` by "hybrid"   beside x: the mask, then a sample of the masked picture's latents; the prompt as context
                          (Stable Diffusion's inpainting models)
any other                 nothing: the known part, noised to the step's level, is put back before every step
========================  ============================================================================================

References:
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, section 4.5,
    https://arxiv.org/abs/2112.10752
    Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", 2022 (the last row, once a
    step), https://arxiv.org/abs/2201.09865
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...errors import ParameterError
from .first_stage import FirstStage
from .latent_call import Start
from .latent_masks import Hole
from .latent_models import Models
from .latent_run import Plan, RunNoise
from .latent_start import Begin, around_hole, begin_at, from_noise, from_picture

__all__ = ["begin_inpaint", "check_strength"]


def check_strength(models: Models, plan: Plan, strength: float) -> None:
    """Raise `ParameterError` for a strength that the model or the steps do not allow."""
    if strength == 1 and not isinstance(strength, bool):
        return
    if models.settings.task == "inpaint" and models.settings.conditioning == "concat":
        raise ParameterError(f"strength is {strength}, a model trained to inpaint starts from noise; leave it out")
    begin_at(plan, strength)


def begin_inpaint(models: Models, plan: Plan, first_stage: FirstStage, hole: Hole, strength: float) -> Begin:
    """Where sampling starts, with the known part of the picture in the way that the bundle's model takes it."""
    if models.settings.task != "inpaint":
        return around_hole(models, plan, first_stage.encode(hole.frame.tensor()).latents(), hole.keep(), strength)
    if models.settings.conditioning == "concat":
        return _concat(models, plan, first_stage, hole)
    return _hybrid(models, plan, first_stage, hole, strength)


def _concat(models: Models, plan: Plan, first_stage: FirstStage, hole: Hole) -> Begin:
    code = first_stage.encode(hole.masked(-1.0))
    known = np.concatenate([code.mean, hole.channel(-1.0)], axis=1)
    from_start = from_noise(models, plan, code.mean.shape[2:])

    def begin(noise: RunNoise, rows: range) -> Start:
        return replace(from_start(noise, rows), concat=known)

    return begin


def _hybrid(models: Models, plan: Plan, first_stage: FirstStage, hole: Hole, strength: float) -> Begin:
    """Normals are drawn in diffusers' order: those of the start, then those of the masked picture's posterior."""
    code = first_stage.encode(hole.masked(0.0))
    if strength == 1:
        from_start = from_noise(models, plan, code.mean.shape[2:])
    else:
        from_start = from_picture(models, plan, first_stage.encode(hole.frame.tensor()), strength, "sample")
    mask = hole.channel(0.0)

    def begin(noise: RunNoise, rows: range) -> Start:
        start = from_start(noise, rows)
        drawn = None if code.deviation is None else noise.shared(start.x.shape)
        known = np.broadcast_to(code.latents(drawn), start.x.shape)
        masks = np.broadcast_to(mask, (len(rows), *mask.shape[1:]))
        return replace(start, concat=np.concatenate([masks, known], axis=1))

    return begin
