"""Folders saved by diffusers: Stable Diffusion 1 and 2 with their inpainting models, Latent Diffusion's pipelines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from ...errors import CheckpointError, ExportError
from ...networks.bert import BERTConfig, BERTEmbedder
from ...networks.checkpoint import build, read_folder
from ...runtime.systems.latent_settings import Conditioning, Defaults, LatentDiffusionSettings, Task
from ..network import Network
from . import parts
from .clip import clip_text_encoder
from .diffusers_modules import FolderDecoder, FolderEncoder, bert_names, unet_loader, vae_loader
from .model import Model
from .schedules import diffusers_noise

__all__ = ["read_diffusers"]

_FURTHER_INPUTS = (
    *("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim"),
    "time_cond_proj_dim",  # the embedded guidance scale of models distilled to consistency (LCM)
)
"""Settings of a UNet that give it inputs which the exported graph would leave out without a word."""

_VQ_DEFAULT = 0.18215
"""`VQModel`'s default scaling_factor: it was added after the models were published, and stands in files by accident."""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read ({reason}); pass a folder saved by diffusers") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, need an object; is it diffusers'?")
    return cast("dict[str, Any]", value)


def read_diffusers(folder: Path) -> Model:
    """Read a folder with ``model_index.json``.

    The networks are diffusers' and transformers' own modules; only their attention is written out, and
    ``LDMBertModel`` is loaded as the `BERTEmbedder` it was converted from.

    Raises:
        CheckpointError: A component is missing, foreign or unsafe.
        ExportError: The pipeline is of another family.
    """
    index = _json(folder / "model_index.json")
    classes = {k: v[1] for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[1] is not None}
    stage = next((name for name in ("vae", "vqvae") if name in classes), None)
    unet_class = classes.get("unet")
    found = ", ".join(f"{role} {name}" for role, name in classes.items())
    if stage is None or unet_class not in ("UNet2DModel", "UNet2DConditionModel") or "scheduler" not in classes:
        raise ExportError(
            f"{folder}: {index.get('_class_name', 'the pipeline')} has {found}; "
            "need Stable Diffusion 1 or 2, LDMTextToImage, LDM or LDMSuperResolution"
        )
    noise = diffusers_noise(_json(folder / "scheduler" / "scheduler_config.json"), str(folder / "scheduler"))
    unet_config, vae_config = _json(folder / "unet" / "config.json"), _json(folder / stage / "config.json")
    quantized = classes[stage] == "VQModel"
    _supported(folder, unet_config, unet_class, vae_config, classes[stage])
    latent = int(vae_config.get("vq_embed_dim") or vae_config["latent_channels"])
    sides = _sides(unet_config, vae_config)
    text = _text(folder, classes) if unet_class == "UNet2DConditionModel" else None
    task, conditioning = _task(folder, unet_config, latent, text is not None)
    context = None if text is None else (text.dimensions["tokens"].max, int(unet_config["cross_attention_dim"]))
    channels = int(unet_config["in_channels"]), int(unet_config["out_channels"])
    unet = parts.unet(
        unet_loader(folder / "unet", unet_class, unet_config), channels, sides, context=context, steps=noise.spec.steps
    )
    encoded = parts.Encoded(latent, "vq" if quantized else "kl")
    load = vae_loader(folder / stage, classes[stage], vae_config)
    encode = parts.encoder(lambda: FolderEncoder(load(), encoded.kind), encoded, sides)
    decode = parts.decoder(lambda: FolderDecoder(load(), encoded.kind), encoded, sides)
    clip = classes.get("text_encoder") == "CLIPTextModel" or classes.get("bert") == "CLIPTextModel"
    settings = LatentDiffusionSettings(
        task=task,
        conditioning=conditioning,
        latent_channels=latent,
        factor=sides.factor,
        scale_factor=_scale_factor(vae_config, quantized),
        first_stage="vq" if quantized else "kl",
        image_size=(sides.latent[0] * sides.factor, sides.latent[1] * sides.factor),
        size_multiple=sides.multiple * sides.factor,
        max_tokens=None if text is None else text.dimensions["tokens"].max,
        tokenizer=None if text is None else "clip" if clip else "bert",
        defaults=_defaults(str(index.get("_class_name", "")), folder),
    )
    networks = (unet, *(() if text is None else (text,)), encode, decode)  # the longest first: the others overlap
    tokenizer = None if text is None else _tokenizer(folder / "tokenizer")
    return Model(networks, noise, settings, tokenizer, name=folder.resolve().name)


def _supported(folder: Path, unet: Mapping[str, Any], unet_class: str, vae: Mapping[str, Any], vae_class: str) -> None:
    """Refuse what the traced signatures would silently leave out."""
    if vae_class not in ("AutoencoderKL", "VQModel"):
        raise ExportError(f"{folder}: the first stage is a {vae_class}, need AutoencoderKL or VQModel")
    for name in _FURTHER_INPUTS:
        if unet.get(name):
            raise ExportError(f"{folder}: {unet_class} has {name} {unet[name]!r}, which is no part of latent diffusion")
    if vae.get("norm_type", "group") != "group" or vae.get("lookup_from_codebook"):
        raise ExportError(f"{folder}: the first stage is MoVQ's or looks codes up, need latent diffusion's VQModel")


def _task(folder: Path, unet: Mapping[str, Any], latent: int, text: bool) -> tuple[Task, Conditioning]:
    channels = int(unet["in_channels"])
    if text and channels == latent:
        return "text", "crossattn"
    if text and channels == 2 * latent + 1:
        return "inpaint", "hybrid"
    if not text and channels == latent:
        return "unconditional", "none"
    if not text and channels == 2 * latent:
        return "upscale", "concat"
    raise ExportError(
        f"{folder}: the UNet takes {channels} channels for latents of {latent}{' and a text' if text else ''}; "
        + ("need as many, or twice as many and a mask (inpainting)" if text else "need as many or twice as many")
    )


def _sides(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> parts.Sides:
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    multiple = 2 ** (len(unet["block_out_channels"]) - 1)
    size = unet.get("sample_size") or 64
    sizes = size if isinstance(size, list) else (size, size)
    height, width = (max(multiple, int(n) - int(n) % multiple) for n in sizes)
    return parts.Sides((height, width), multiple, factor)


def _scale_factor(vae: Mapping[str, Any], quantized: bool) -> float:
    """KL: the file's, 0.18215 by default. VQ: 1, whatever diffusers' default put into the file."""
    given = float(vae.get("scaling_factor", _VQ_DEFAULT))
    return 1.0 if quantized and given == _VQ_DEFAULT else given


def _defaults(pipeline: str, folder: Path) -> Defaults:
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    spacing = str(scheduler.get("timestep_spacing", "leading"))
    spacing = spacing if spacing in ("leading", "trailing", "linspace") else "leading"
    steps = 100 if "SuperResolution" in pipeline else 50
    scale = 7.5 if pipeline.startswith("StableDiffusion") else 5.0 if "TextToImage" in pipeline else 1.0
    return Defaults(steps=steps, guidance_scale=scale, spacing=spacing)


def _text(folder: Path, classes: Mapping[str, str]) -> Network:
    role = next((name for name in ("text_encoder", "bert") if name in classes), None)
    if role is None:
        raise ExportError(f"{folder}: the UNet takes a context and there is no text encoder; pass the whole pipeline")
    where, config = folder / role, _json(folder / role / "config.json")
    if classes[role] == "CLIPTextModel":
        from transformers import CLIPTextConfig

        return clip_text_encoder(CLIPTextConfig(**config), read_folder(where), str(where))
    if classes[role] == "LDMBertModel":
        sizes = BERTConfig(
            n_embed=int(config["d_model"]),
            n_layer=int(config["encoder_layers"]),
            vocab_size=int(config["vocab_size"]),
            max_seq_len=int(config["max_position_embeddings"]),
            heads=int(config["encoder_attention_heads"]),
            dim_head=int(config["head_dim"]),
        )

        def load() -> nn.Module:
            state = bert_names(read_folder(where))
            return build(lambda: BERTEmbedder(sizes), state, str(where), ignore=BERTEmbedder.IGNORED)

        return parts.text_encoder(load, sizes.vocab_size, sizes.n_embed, sizes.max_seq_len)
    raise ExportError(f"{folder}: the text encoder is a {classes[role]}, need CLIPTextModel or LDMBertModel")


def _tokenizer(folder: Path) -> Path | bytes:
    """``tokenizer.json``, made from vocabulary and merges where only those are there; padding is stated in it."""
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=True)
        library = tokenizer.backend_tokenizer
    except Exception as error:  # transformers raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder}: holds no tokenizer that can be read ({reason}); download it again") from error
    library.enable_padding(pad_id=tokenizer.pad_token_id or 0, pad_token=str(tokenizer.pad_token))
    return cast(str, library.to_str()).encode()
