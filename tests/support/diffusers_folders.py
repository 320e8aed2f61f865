"""Tiny pipelines with random weights, saved as diffusers saves the real ones."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import tiny_clip
import torch

logging.getLogger("diffusers").setLevel(logging.ERROR)

TOKENS = 12
WIDTH = 16


def _index(folder: Path, name: str, **parts: tuple[str, str]) -> None:
    index = {"_class_name": name, "_diffusers_version": "0.42.1", **{k: list(v) for k, v in parts.items()}}
    (folder / "model_index.json").write_text(json.dumps(index))


def _scheduler(folder: Path, **changes: object) -> None:
    from diffusers import DDIMScheduler

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    DDIMScheduler(**{**config, "set_alpha_to_one": False, "steps_offset": 1, **changes}).save_pretrained(
        folder / "scheduler"
    )


def _conditional_unet(
    folder: Path, *, linear: bool, heads: object, channels: tuple[int, ...] = (32,), inputs: int = 4
) -> None:
    from diffusers import UNet2DConditionModel

    levels = len(channels)
    UNet2DConditionModel(
        sample_size=8,
        in_channels=inputs,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=WIDTH,
        attention_head_dim=heads,
        use_linear_projection=linear,
    ).save_pretrained(folder / "unet")


def _kl(folder: Path, name: str = "vae") -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    ).save_pretrained(folder / name)


def _vq(folder: Path) -> None:
    from diffusers import VQModel

    model = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        sample_size=16,
    )
    torch.nn.init.normal_(model.quantize.embedding.weight)
    model.save_pretrained(folder / "vqvae")


def _plain_unet(folder: Path, channels: int) -> None:
    from diffusers import UNet2DModel

    UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=3,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")


def _stable_diffusion(
    folder: Path,
    seed: int,
    *,
    pipeline: str = "StableDiffusionPipeline",
    scheduler: str = "DDIMScheduler",
    act: str = "quick_gelu",
    pad: str = "<|endoftext|>",
    prediction: str = "epsilon",
    **unet: Any,
) -> Path:
    torch.manual_seed(seed)
    folder.mkdir()
    _conditional_unet(folder, **unet)
    _kl(folder)
    tiny_clip.write(folder, tokens=TOKENS, width=WIDTH, pad=pad, act=act)
    _scheduler(folder, prediction_type=prediction)
    _index(
        folder,
        pipeline,
        vae=("diffusers", "AutoencoderKL"),
        text_encoder=("transformers", "CLIPTextModel"),
        tokenizer=("transformers", "CLIPTokenizer"),
        unet=("diffusers", "UNet2DConditionModel"),
        scheduler=("diffusers", scheduler),
    )
    return folder


def stable_diffusion_1(folder: Path) -> Path:
    return _stable_diffusion(folder, 1, scheduler="PNDMScheduler", linear=False, heads=4, channels=(32, 64))


def stable_diffusion_2(folder: Path) -> Path:
    return _stable_diffusion(folder, 2, act="gelu", pad="!", prediction="v_prediction", linear=True, heads=[4])


def stable_diffusion_inpainting(folder: Path) -> Path:
    return _stable_diffusion(folder, 6, pipeline="StableDiffusionInpaintPipeline", linear=False, heads=4, inputs=9)


def ldm_text(folder: Path) -> Path:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    torch.manual_seed(3)
    folder.mkdir()
    _conditional_unet(folder, linear=False, heads=4)
    _kl(folder, "vqvae")
    config = LDMBertConfig(
        vocab_size=64,
        max_position_embeddings=TOKENS,
        encoder_layers=2,
        encoder_ffn_dim=64,
        encoder_attention_heads=2,
        head_dim=8,
        d_model=WIDTH,
    )
    LDMBertModel(config).save_pretrained(folder / "bert")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(chr(97 + i) for i in range(26))]
    library = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    tiny_clip.save_tokenizer(library, folder, TOKENS, **special)
    _scheduler(folder)
    _index(
        folder,
        "LDMTextToImagePipeline",
        vqvae=("diffusers", "AutoencoderKL"),
        bert=("latent_diffusion", "LDMBertModel"),
        tokenizer=("transformers", "BertTokenizer"),
        unet=("diffusers", "UNet2DConditionModel"),
        scheduler=("diffusers", "DDIMScheduler"),
    )
    return folder


def _latent_diffusion(folder: Path, seed: int, pipeline: str, *, channels: int, end: float) -> Path:
    torch.manual_seed(seed)
    folder.mkdir()
    _plain_unet(folder, channels)
    _vq(folder)
    _scheduler(folder, beta_start=0.0015, beta_end=end)
    _index(
        folder,
        pipeline,
        vqvae=("diffusers", "VQModel"),
        unet=("diffusers", "UNet2DModel"),
        scheduler=("diffusers", "DDIMScheduler"),
    )
    return folder


def ldm_unconditional(folder: Path) -> Path:
    return _latent_diffusion(folder, 4, "LDMPipeline", channels=3, end=0.0195)


def ldm_super_resolution(folder: Path) -> Path:
    return _latent_diffusion(folder, 5, "LDMSuperResolutionPipeline", channels=6, end=0.0155)
