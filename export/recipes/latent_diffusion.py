"""Latent Diffusion and Stable Diffusion: checkpoints, diffusers folders or modules at hand become bundles.

References:
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
    https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from ...engines.bundle import Bundle
from ...engines.manifest import MANIFEST_NAME, ScheduleSpec
from ...engines.precision import Precision
from ...errors import CheckpointError, ExportError
from ...networks.autoencoder import AutoencoderKL
from ...networks.conditioners import ClassEmbedder, SpatialRescaler
from ...networks.unet import UNet
from ...networks.vq import VQModelInterface
from ...runtime.systems.latent_settings import LatentDiffusionSettings
from ..assemble import assemble
from ..network import Network
from ..write import Progress, quiet
from . import parts
from .compvis import read_compvis
from .model import Model
from .schedules import Noise
from .step import step_of_bundle, with_step

__all__ = ["export", "pack_latent_diffusion", "pack_model", "read_model"]


def export(
    checkpoint: Path | str,
    out: Path | str,
    *,
    config: Path | str | None = None,
    precision: Precision = "fp16",
    tokenizer: Path | str | None = None,
    name: str = "",
    license: str = "",
    step: bool = False,
    on_progress: Progress | None = None,
) -> Bundle:
    """Make a bundle of a latent-diffusion checkpoint.

    Arguments:
        checkpoint: A ``.ckpt`` or ``.safetensors`` with CompVis' key names, or a folder saved by diffusers; with
            ``step`` also a bundle's folder, to which that network is added.
        out: Folder of the bundle.
        config: The YAML of a CompVis checkpoint; without it published models are recognised by their shape.
        precision: How large weights are stored; arithmetic is the engines' choice.
        tokenizer: ``tokenizer.json`` for the prompts of a CompVis checkpoint; by default the one beside it.
        name: Name for people, by default the model's own or the folder's.
        license: Terms of the weights.
        step: Also the network ``step``, which takes whole sampling steps; see `export.step`. It reads the UNet's
            weights from their file.
        on_progress: Told of every step.

    Raises:
        CheckpointError: The checkpoint is unsafe, foreign, or does not fit its configuration.
        ExportError: It cannot be exported, or the export disagrees with torch.
        BundleError: `out` cannot be written.
    """
    if (Path(checkpoint) / MANIFEST_NAME).is_file():
        stated = {"config": config, "tokenizer": tokenizer, "name": name, "license": license}
        return step_of_bundle(Path(checkpoint), out, stated, step=step, on_progress=on_progress or quiet)
    model = read_model(checkpoint, config, tokenizer)
    if step:
        model = replace(model, networks=with_step(model.networks))
    return pack_model(
        model,
        out,
        precision=precision,
        name=name or model.name,
        license=license or model.license,
        on_progress=on_progress,
    )


def read_model(checkpoint: Path | str, config: Path | str | None = None, tokenizer: Path | str | None = None) -> Model:
    """Read a checkpoint of any kind that `export` takes, and with the errors it raises."""
    source = Path(checkpoint)
    if not source.exists():
        raise CheckpointError(f"{source}: does not exist; pass a .ckpt, .safetensors or a folder saved by diffusers")
    if source.is_dir():
        from .diffusers_folder import read_diffusers

        if config is not None:
            raise ExportError(f"{source}: is a folder, which holds its own configuration; leave config out")
        return read_diffusers(source)
    return read_compvis(
        source, None if config is None else Path(config), None if tokenizer is None else Path(tokenizer)
    )


def pack_model(
    model: Model,
    out: Path | str,
    *,
    precision: Precision = "fp16",
    name: str = "",
    license: str = "",
    files: Mapping[str, bytes | Path] | None = None,
    assets: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> Bundle:
    """Write the bundle of a model whose parts are known, with further files and assets; see `export`."""
    files = {**model.noise.files, **(files or {})}
    assets = dict(assets or {})
    if model.tokenizer is not None:
        files["tokenizer.json"] = model.tokenizer
        assets["tokenizer"] = "tokenizer.json"
    return assemble(
        out,
        "latent-diffusion",
        model.networks,
        settings=model.settings.to_json(),
        schedule=model.noise.spec,
        files=files,
        assets=assets,
        precision=precision,
        name=name,
        license=license,
        on_progress=on_progress,
    )


def pack_latent_diffusion(
    *,
    unet: UNet,
    first_stage: AutoencoderKL | VQModelInterface,
    schedule: ScheduleSpec,
    settings: LatentDiffusionSettings,
    out: Path | str,
    text_encoder: Network | None = None,
    class_embedder: ClassEmbedder | None = None,
    spatial_rescaler: SpatialRescaler | None = None,
    tokenizer: Path | str | None = None,
    precision: Precision = "fp16",
    name: str = "",
    license: str = "",
    on_progress: Progress | None = None,
) -> Bundle:
    """Make a bundle of networks that are at hand, e.g. just trained. The modules are frozen and set to evaluation.

    Example::

        pack_latent_diffusion(
            unet=unet, first_stage=autoencoder, out="bundles/emoji-ldm",
            schedule=ScheduleSpec("scaled_linear", 1000, 0.00085, 0.012, prediction="v"),
            text_encoder=sentence_encoder(minilm, max_tokens=32), tokenizer=minilm / "tokenizer.json",
            settings=LatentDiffusionSettings("text", "crossattn", ..., max_tokens=32, tokenizer="bert"),
        )

    Arguments:
        unet: The UNet.
        first_stage: The autoencoder.
        schedule: What the UNet was trained with, and what it predicts.
        settings: What the manifest says of the model; sizes and channels are held against the modules.
        out: Folder of the bundle.
        text_encoder: E.g. `recipes.text.sentence_encoder`.
        class_embedder: For class-conditional models with cross-attention.
        spatial_rescaler: For models conditioned on segmentations.
        tokenizer: ``tokenizer.json`` where prompts are text.
        precision: How large weights are stored.
        name: Name for people.
        license: Terms of the weights.
        on_progress: Told of every step.

    Raises:
        ExportError: The settings do not describe the modules, or an export disagrees with torch.
        BundleError: `out` cannot be written.
    """
    quantized = isinstance(first_stage, VQModelInterface)
    _agree("first_stage", settings.first_stage, "vq" if quantized else "kl")
    _agree("factor", settings.factor, first_stage.config.factor)
    _agree("latent_channels", settings.latent_channels, first_stage.embed_dim)
    multiple = 2 ** (len(unet.config.channel_mult) - 1)
    _agree("size_multiple", settings.size_multiple % (multiple * settings.factor), 0)
    if (settings.tokenizer is None) != (tokenizer is None):
        stated = settings.tokenizer
        raise ExportError(f"settings.tokenizer is {stated!r} and tokenizer={tokenizer!r}; give both or neither")
    height, width = (size // settings.factor for size in settings.image_size)
    sides = parts.Sides((height, width), multiple, settings.factor)
    encoded = parts.Encoded(first_stage.embed_dim, settings.first_stage)
    config = unet.config
    networks = list(_conditions(text_encoder, class_embedder, spatial_rescaler, sides))
    context = None if config.context_dim is None else (settings.max_tokens or 1, config.context_dim)
    labels = config.num_classes
    networks.append(
        parts.unet(
            lambda: parts.LabelUNet(unet) if labels is not None else unet,
            (config.in_channels, config.out_channels),
            sides,
            context=context,
            classes=labels,
            steps=schedule.steps,
        )
    )
    encode = parts.VqEncoder(first_stage) if isinstance(first_stage, VQModelInterface) else parts.KlEncoder(first_stage)
    decode = parts.VqDecoder(first_stage) if isinstance(first_stage, VQModelInterface) else parts.KlDecoder(first_stage)
    networks += [parts.encoder(lambda: encode, encoded, sides), parts.decoder(lambda: decode, encoded, sides)]
    model = Model(tuple(networks), Noise(schedule, {}), settings, None if tokenizer is None else Path(tokenizer))
    return pack_model(model, out, precision=precision, name=name, license=license, on_progress=on_progress)


def _conditions(
    text_encoder: Network | None,
    class_embedder: ClassEmbedder | None,
    spatial_rescaler: SpatialRescaler | None,
    sides: parts.Sides,
) -> Sequence[Network]:
    networks = [] if text_encoder is None else [text_encoder]
    if class_embedder is not None:
        module: nn.Module = class_embedder
        classes, width = class_embedder.embedding.weight.shape
        networks.append(parts.class_embedder(lambda: module, classes, width))
    if spatial_rescaler is not None:
        rescaler: nn.Module = spatial_rescaler
        if not isinstance(spatial_rescaler.channel_mapper, nn.Conv2d):
            raise ExportError("spatial_rescaler maps no channels, so its classes are unknown; give it channels")
        channels, classes = spatial_rescaler.channel_mapper.weight.shape[:2]
        networks.append(parts.spatial_rescaler(lambda: rescaler, classes, channels, sides))
    return networks


def _agree(what: str, stated: object, found: object) -> None:
    if stated != found:
        raise ExportError(f"settings say {what} {stated!r}, the modules have {found!r}; correct the settings")
