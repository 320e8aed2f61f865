"""The networks of the pix2pix-zero goldens as a Stable Diffusion pipeline on disk, with a random text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_clip
import torch
from safetensors.torch import save_file

TOKENS, WIDTH = 8, 24


def write(goldens: Any, folder: Path) -> Path:
    """A folder as diffusers saves it: golden UNet, VAE (old key names) and scheduler."""
    config = json.loads(Path(goldens.path("p2p_configs.json")).read_text())
    parts = {
        "unet": ("UNet2DConditionModel", "p2p_unet_weights.npz", config["unet"]),
        "vae": ("AutoencoderKL", "p2p_vae_weights.npz", config["vae"]),
    }
    folder.mkdir(parents=True)
    for role, (name, weights, settings) in parts.items():
        (folder / role).mkdir()
        (folder / role / "config.json").write_text(json.dumps({"_class_name": name, **settings}))
        state = {k: torch.from_numpy(v.copy()) for k, v in goldens(weights).items()}
        save_file(state, folder / role / "diffusion_pytorch_model.safetensors")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", **config["scheduler"]}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    torch.manual_seed(0)
    tiny_clip.write(folder, tokens=TOKENS, width=WIDTH, pad="!", layers=1)
    roles = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **roles}))
    return folder
