"""The published latent-diffusion models, recognised by the shape of their weights.

What weights do not tell (heads, schedule, scale, usual size) is known for these, so that their checkpoints export
without a YAML. Source: the configurations in CompVis/latent-diffusion ``models/ldm/*/config.yaml`` and
CompVis/stable-diffusion ``configs/stable-diffusion/v1-inference.yaml``; the inpainting model is v1 with nine channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["PUBLISHED", "Published", "recognise"]


@dataclass(frozen=True)
class Published:
    """A published model: what it is recognised by, then what that tells.

    Arguments:
        name: Folder of the original.
        width: ``model_channels``.
        mult: ``channel_mult``.
        channels: Of the UNet's input and output.
        context: ``context_dim``, None without cross-attention.
        factor: Pixels to a latent along a side.
        latent_size: Latents along a side.
        betas: First and last beta, of Latent Diffusion's ``linear`` law.
        num_heads: Heads, or -1.
        num_head_channels: Width of a head, or -1.
        scale_factor: latent = scale_factor · z; None where the checkpoint holds it.
        null_class: The label for "no class".
    """

    name: str
    width: int
    mult: tuple[int, ...]
    channels: tuple[int, int]
    context: int | None
    factor: int
    latent_size: int
    betas: tuple[float, float]
    num_heads: int = -1
    num_head_channels: int = -1
    scale_factor: float | None = 1.0
    null_class: int | None = None


_SD = (0.00085, 0.012)

PUBLISHED = (
    # celeba256, ffhq256 and lsun_beds256 are one architecture.
    Published("ffhq256", 224, (1, 2, 3, 4), (3, 3), None, 4, 64, (0.0015, 0.0195), num_head_channels=32),
    Published(
        "lsun_churches256", 192, (1, 2, 2, 4, 4), (4, 4), None, 8, 32, (0.0015, 0.0155), num_heads=8, scale_factor=None
    ),
    Published("cin256", 256, (1, 2, 4), (4, 4), 512, 8, 32, (0.0015, 0.0195), num_head_channels=32),
    Published("cin256-v2", 192, (1, 2, 3, 5), (3, 3), 512, 4, 64, (0.0015, 0.0195), num_heads=1, null_class=1000),
    Published("text2img256", 192, (1, 2, 3, 5), (3, 3), 640, 4, 64, (0.0015, 0.0195), num_head_channels=32),
    Published("txt2img-1p4B", 320, (1, 2, 4, 4), (4, 4), 1280, 8, 32, _SD, num_heads=8, scale_factor=0.18215),
    Published(
        "layout2img-openimages256", 128, (1, 2, 3, 4), (3, 3), 512, 4, 64, (0.0015, 0.0205), num_head_channels=32
    ),
    Published("semantic_synthesis256", 128, (1, 4, 8), (6, 3), None, 4, 64, (0.0015, 0.0205), num_heads=8),
    Published("bsr_sr", 160, (1, 2, 2, 4), (6, 3), None, 4, 64, (0.0015, 0.0155), num_head_channels=32),
    Published("inpainting_big", 256, (1, 2, 3, 4), (7, 3), None, 4, 64, (0.0015, 0.0205), num_heads=8),
    Published("stable-diffusion-v1", 320, (1, 2, 4, 4), (4, 4), 768, 8, 64, _SD, num_heads=8, scale_factor=0.18215),
    Published(
        "stable-diffusion-inpainting", 320, (1, 2, 4, 4), (9, 4), 768, 8, 64, _SD, num_heads=8, scale_factor=0.18215
    ),
)


def recognise(unet: Mapping[str, Any], first_stage: Mapping[str, Tensor]) -> Published | None:
    """The published model with this UNet (as `unet_params` reads it) and this down-sampling, or None."""
    levels = len({key.split(".")[2] for key in first_stage if key.startswith("encoder.down.")})
    for model in PUBLISHED:
        if (
            unet["model_channels"] == model.width
            and tuple(unet["channel_mult"]) == model.mult
            and (unet["in_channels"], unet["out_channels"]) == model.channels
            and unet["context_dim"] == model.context
            and 2 ** (levels - 1) == model.factor
        ):
            return model
    return None
