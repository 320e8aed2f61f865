"""CompVis checkpoints of latent diffusion: one file with UNet, first stage, condition stage and schedule buffers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import CheckpointError, ExportError
from ...networks.autoencoder import AutoencoderKL
from ...networks.bert import BERTConfig, BERTEmbedder
from ...networks.checkpoint import build, ema_weights, read_checkpoint, section
from ...networks.conditioners import ClassEmbedder, SpatialRescaler
from ...networks.unet import UNet
from ...networks.vq import VQModelInterface
from ...runtime.systems.latent_settings import Conditioning, Defaults, LatentDiffusionSettings, Task
from ..network import Network
from . import parts
from .clip import clip_config, clip_text_encoder
from .configuration import LdmConfig, configure
from .inference import bert_sizes
from .model import Model
from .schedules import compvis_noise

__all__ = ["read_compvis"]

_BUFFERS = re.compile(
    r"(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|lvlb_weights|logvar"
    r"|scale_factor|model_ema\..*|ddim_\w+|model\.diffusion_model\..*|first_stage_model\..*|cond_stage_model\..*)"
)
_FIRST_STAGE_EXTRA = (r"loss\.", r"model_ema\.", r"colorize$", r"quantize\.(?!embedding\.weight)")


@dataclass(frozen=True)
class _Condition:
    """How a model is conditioned."""

    task: Task
    conditioning: Conditioning
    networks: tuple[Network, ...] = ()
    context: tuple[int, int] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_compvis(checkpoint: Path, config: Path | None, tokenizer: Path | None) -> Model:
    """Read a ``.ckpt`` or ``.safetensors`` with CompVis' key names.

    Arguments:
        checkpoint: The file.
        config: Its YAML; None reads the configuration off the weights, which suffices for published models.
        tokenizer: ``tokenizer.json`` for prompts; by default the one beside the checkpoint.

    Raises:
        CheckpointError: It is unsafe, foreign, or does not fit its configuration.
        ExportError: Its kind of conditioning is not supported, or prompts have no tokenizer.
    """
    state = read_checkpoint(checkpoint)
    what = str(checkpoint)
    strange = [key for key in state if not _BUFFERS.fullmatch(key)]
    if not any(key.startswith("model.diffusion_model.") for key in state):
        found = ", ".join(list(state)[:5])
        raise CheckpointError(
            f"{what}: has no 'model.diffusion_model.*' but {found}; pass a whole latent-diffusion checkpoint, "
            "or a folder saved by diffusers"
        )
    if strange:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise CheckpointError(
            f"{what}: {len(strange)} keys belong to no network of latent diffusion: {', '.join(strange[:5])}{more}; "
            "is it another model's?"
        )
    ldm = configure(state, what, config)
    averaged = ema_weights(state) if ldm.use_ema else None
    weights = averaged or section(state, "model.diffusion_model.")
    noise = compvis_noise(ldm.params, state, ldm.published, what)
    encoded = parts.Encoded(ldm.embed_dim, "kl" if ldm.codes is None else "vq")
    sides = _sides(ldm)
    condition = _condition(ldm, section(state, "cond_stage_model."), sides, what)

    def load_unet() -> nn.Module:
        module = build(lambda: UNet(ldm.unet), weights, f"{what} (model.diffusion_model)")
        return parts.LabelUNet(module) if ldm.unet.num_classes is not None else module

    channels = (ldm.unet.in_channels, ldm.unet.out_channels)
    unet = parts.unet(
        load_unet, channels, sides, context=condition.context, classes=ldm.unet.num_classes, steps=noise.spec.steps
    )
    stages = _first_stage(ldm, section(state, "first_stage_model."), encoded, sides, what)
    settings = LatentDiffusionSettings(
        task=condition.task,
        conditioning=condition.conditioning,
        latent_channels=ldm.embed_dim,
        factor=sides.factor,
        scale_factor=_scale_factor(ldm, state),
        first_stage="kl" if ldm.codes is None else "vq",
        image_size=(sides.latent[0] * sides.factor, sides.latent[1] * sides.factor),
        size_multiple=sides.multiple * sides.factor,
        defaults=_defaults(ldm, condition.task),
        **condition.fields,
    )
    prompts = _tokenizer(checkpoint, tokenizer) if settings.tokenizer is not None else None
    extra = ldm.extra
    name = str(extra.get("name", ldm.published.name if ldm.published else ""))
    networks = (*condition.networks, unet, *stages)
    return Model(networks, noise, settings, prompts, name, str(extra.get("license", "")))


def _sides(ldm: LdmConfig) -> parts.Sides:
    multiple = 2 ** (len(ldm.unet.channel_mult) - 1)
    height, width = (max(multiple, size - size % multiple) for size in ldm.latent_size)
    return parts.Sides((height, width), multiple, ldm.first_stage.factor)


def _scale_factor(ldm: LdmConfig, state: Mapping[str, Tensor]) -> float:
    """The buffer of scale_by_std; else the YAML's; else 1."""
    if "scale_factor" in state:
        return float(state["scale_factor"].float())
    if ldm.params.get("scale_by_std"):
        raise CheckpointError("the config says scale_by_std and there is no 'scale_factor'; pass the whole checkpoint")
    return 1.0 if ldm.scale_factor is None else ldm.scale_factor


def _first_stage(
    ldm: LdmConfig, weights: Mapping[str, Tensor], encoded: parts.Encoded, sides: parts.Sides, what: str
) -> tuple[Network, Network]:
    what = f"{what} (first_stage_model)"

    def load_kl() -> AutoencoderKL:
        return build(lambda: AutoencoderKL(ldm.first_stage, ldm.embed_dim), weights, what, ignore=_FIRST_STAGE_EXTRA)

    def load_vq() -> VQModelInterface:
        codes = ldm.codes or 0
        return build(
            lambda: VQModelInterface(ldm.first_stage, ldm.embed_dim, codes), weights, what, ignore=_FIRST_STAGE_EXTRA
        )

    colors = (ldm.first_stage.in_channels, ldm.first_stage.out_ch)
    if ldm.codes is None:
        return (
            parts.encoder(lambda: parts.KlEncoder(load_kl()), encoded, sides, image_channels=colors[0]),
            parts.decoder(lambda: parts.KlDecoder(load_kl()), encoded, sides, image_channels=colors[1]),
        )
    return (
        parts.encoder(lambda: parts.VqEncoder(load_vq()), encoded, sides, image_channels=colors[0]),
        parts.decoder(lambda: parts.VqDecoder(load_vq()), encoded, sides, image_channels=colors[1]),
    )


def _condition(ldm: LdmConfig, cond: Mapping[str, Tensor], sides: parts.Sides, what: str) -> _Condition:
    """Which condition stage the checkpoint holds, by its keys."""
    channels, latent = ldm.unet.in_channels, ldm.embed_dim
    stage = f"{what} (cond_stage_model)"
    given = ldm.params.get("cond_stage_config")
    params: Mapping[str, Any] = given.get("params") or {} if isinstance(given, Mapping) else {}
    task: Task = "text"
    way: Conditioning = "crossattn"
    prompted = any(key.startswith("transformer.text_model.") for key in cond)
    if ldm.hybrid:
        if not prompted or channels != 2 * latent + 1:
            raise ExportError(
                f"{what}: the UNet takes {channels} channels for latents of {latent} and a context; "
                "of such models only Stable Diffusion's for inpainting is supported (twice as many and a mask)"
            )
        task, way = "inpaint", "hybrid"
    if "embedding.weight" in cond:
        classes, width = (int(n) for n in cond["embedding.weight"].shape)
        null = ldm.null_class
        embedder = parts.class_embedder(
            lambda: build(lambda: ClassEmbedder(classes, width), cond, stage), classes, width
        )
        return _Condition("class", "crossattn", (embedder,), (1, width), {"null_class": null})
    if "transformer.token_emb.weight" in cond:
        return _bert(cond, params, stage)
    if prompted:
        weights = section(cond, "transformer.")
        encoder = clip_text_encoder(clip_config(weights, stage), weights, stage)
        context = encoder.dimensions["tokens"].max, int(encoder.outputs[0].shape[-1])
        return _Condition(task, way, (encoder,), context, {"max_tokens": context[0], "tokenizer": "clip"})
    if "channel_mapper.weight" in cond:
        return _semantic(cond, params, sides, stage)
    if ldm.unet.context_dim is not None:
        found = ", ".join(list(cond)[:5]) or "nothing"
        raise ExportError(
            f"{what}: the UNet takes a context, its condition stage holds {found}, which is none that we know; "
            "pass the model as a folder saved by diffusers"
        )
    if ldm.unet.num_classes is not None:
        return _Condition("class", "adm", fields={"null_class": ldm.null_class})
    if "encoder.conv_in.weight" in cond or channels == 2 * latent + 1:
        return _Condition("inpaint", "concat")
    if channels == latent:
        return _Condition("unconditional", "none")
    if channels == 2 * latent:
        return _Condition("upscale", "concat")
    raise ExportError(
        f"{what}: the UNet takes {channels} channels for latents of {latent} and there is no condition stage; "
        "expected as many, twice as many, or twice and a mask"
    )


def _bert(cond: Mapping[str, Tensor], params: Mapping[str, Any], stage: str) -> _Condition:
    sizes = bert_sizes(cond, stage)
    # The layout model gets tokens that are no text; it has a vocabulary of its own.
    text = bool(params.get("use_tokenizer", sizes["vocab_size"] == BERTConfig.vocab_size))
    tokens, width = sizes["max_seq_len"], sizes["n_embed"]
    encoder = parts.text_encoder(
        lambda: build(lambda: BERTEmbedder(BERTConfig(**sizes)), cond, stage, ignore=BERTEmbedder.IGNORED),
        sizes["vocab_size"],
        width,
        tokens,
    )
    fields = {"max_tokens": tokens, "tokenizer": "bert" if text else None}
    return _Condition("text" if text else "layout", "crossattn", (encoder,), (tokens, width), fields)


def _semantic(cond: Mapping[str, Tensor], params: Mapping[str, Any], sides: parts.Sides, stage: str) -> _Condition:
    channels, classes = (int(n) for n in cond["channel_mapper.weight"].shape[:2])
    stages = int(params.get("n_stages", sides.factor.bit_length() - 1))
    method = str(params.get("method", "bilinear"))
    if float(params.get("multiplier", 0.5)) != 0.5 or method not in ("bilinear", "nearest", "area"):
        raise ExportError(
            f"{stage}: rescales by {params.get('multiplier')}, {method!r}; need 0.5 and bilinear, area or nearest"
        )
    bias = "channel_mapper.bias" in cond

    def load() -> nn.Module:
        return build(lambda: SpatialRescaler(stages, classes, channels, method=method, bias=bias), cond, stage)  # type: ignore[arg-type]

    return _Condition("semantic", "concat", (parts.spatial_rescaler(load, classes, channels, sides),))


def _defaults(ldm: LdmConfig, task: Task) -> Defaults:
    """The scripts' defaults, the config's section ``sfumato`` before them."""
    can_guide = task == "text" or ldm.hybrid or (task == "class" and ldm.null_class is not None)
    scale = {"text": 5.0, "class": 3.0}.get(task, 1.0) if can_guide else 1.0
    if ldm.hybrid or (ldm.published is not None and ldm.published.name.startswith("stable-diffusion")):
        scale = 7.5
    values: dict[str, Any] = {"steps": 50, "guidance_scale": scale, "eta": 1.0 if task == "upscale" else 0.0}
    given = ldm.extra.get("defaults") or {}
    try:
        return Defaults(**{**values, **given})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"sfumato.defaults of the config cannot be used ({error}); correct it") from error


def _tokenizer(checkpoint: Path, tokenizer: Path | None) -> Path:
    path = tokenizer or checkpoint.parent / "tokenizer.json"
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise ExportError(
            f"{checkpoint}: prompts need a tokenizer and {path} does not exist; "
            "put the model's tokenizer.json there (CLIP's, or bert-base-uncased's for a BERTEmbedder)"
        )
    return path
