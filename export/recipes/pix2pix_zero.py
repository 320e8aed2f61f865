"""pix2pix-zero: a text-to-picture model with the networks that show its attention and differentiate by it.

The bundle stays a latent-diffusion bundle and does all that such a one does. What is added reads the UNet's weights
from ``unet.weights``: two graphs, the few weights that they store differently, and a page of settings.

References:
    Parmar et al., "Zero-shot Image-to-Image Translation", 2023, https://arxiv.org/abs/2302.03027
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from ...engines.binding import Dimension
from ...engines.bundle import Bundle
from ...engines.manifest import MANIFEST_NAME
from ...engines.precision import Precision
from ...errors import ExportError
from ...runtime.systems.latent_settings import LatentDiffusionSettings
from ...runtime.systems.pix2pix_settings import ROLE, Pix2PixZeroSettings
from ..attention_maps import find_maps, gradient_network, maps_network
from ..extend import extend
from ..gradient_memory import Form, choose_form, installed_memory
from ..network import Network
from ..write import Progress, quiet
from .blip import CaptionerParts, read_blip
from .latent_diffusion import pack_model, read_model
from .rebuild import unet_of

__all__ = ["SETTINGS_FILE", "add_attention", "attention_of", "export"]

SETTINGS_FILE = "pix2pix_zero.json"
NO_CAPTIONER = CaptionerParts((), {}, {})
_BATCH = Dimension(1, 2, 16)
"""An edit takes two rows; diffusers' UNet is another one from 64 on."""


def export(
    checkpoint: Path | str,
    out: Path | str,
    *,
    config: Path | str | None = None,
    precision: Precision = "fp16",
    tokenizer: Path | str | None = None,
    name: str = "",
    license: str = "",
    settings: Pix2PixZeroSettings | None = None,
    captioner: Path | str | None = None,
    gradient: Form | Literal["auto"] = "auto",
    memory: int | None = None,
    on_progress: Progress | None = None,
) -> Bundle:
    """Make a bundle that pix2pix-zero can edit with, of a checkpoint or of a bundle.

    Arguments:
        checkpoint: As `latent_diffusion.export` takes; or a bundle's folder, to which the networks are added.
        out: Folder of the bundle; it may be the bundle's own.
        config: The YAML of a CompVis checkpoint.
        precision: How large weights are stored; of a bundle its own is kept.
        tokenizer: ``tokenizer.json`` for a CompVis checkpoint.
        name: Name for people.
        license: Terms of the weights.
        settings: What an edit takes by default.
        captioner: Folder of a BLIP captioner to pack too; without one every edit needs a prompt.
        gradient: "joint" keeps all activations; "recomputed" makes them again, slower, with less memory; "auto" keeps
            them if they fit the device, see `gradient_memory.choose_form`.
        memory: Bytes of the device, for "auto"; None is this machine's.
        on_progress: Told of every step.

    Raises:
        ExportError: It is no text-to-picture model, has no cross-attention, or a network cannot be exported.
        CheckpointError: The checkpoint cannot be used.
        BundleError: The bundle is broken, or `out` cannot be written.
    """
    source = Path(checkpoint)
    parts = NO_CAPTIONER if captioner is None else read_blip(Path(captioner))
    if (source / MANIFEST_NAME).is_file():
        given = {"config": config, "tokenizer": tokenizer, "name": name, "license": license}
        if any(given.values()):
            names = ", ".join(key for key, value in given.items() if value)
            raise ExportError(f"{source}: is a bundle, which has its own {names}; leave out what it has")
        return add_attention(
            Bundle.open(source),
            out,
            settings=settings,
            captioner=parts,
            gradient=gradient,
            memory=memory,
            on_progress=on_progress or quiet,
        )
    model = read_model(source, config, tokenizer)
    _check_task(str(source), model.settings)
    attention = attention_of(model.networks, gradient=gradient, memory=memory, on_progress=on_progress or quiet)
    return pack_model(
        replace(model, networks=(*model.networks, *attention, *parts.networks)),
        out,
        precision=precision,
        name=name or model.name,
        license=license or model.license,
        files={SETTINGS_FILE: (settings or Pix2PixZeroSettings()).to_bytes(), **parts.files},
        assets={ROLE: SETTINGS_FILE, **parts.assets},
        on_progress=on_progress,
    )


def attention_of(
    networks: Sequence[Network],
    *,
    gradient: Form | Literal["auto"] = "auto",
    memory: int | None = None,
    on_progress: Progress = quiet,
) -> tuple[Network, Network]:
    """``unet_maps`` and ``unet_gradient`` of the network ``unet`` among `networks`, to be exported after it."""
    unet = next((network for network in networks if network.name == "unet"), None)
    if unet is None:
        raise ExportError(f"there is no network 'unet' among {', '.join(n.name for n in networks)}; pass one")
    if gradient not in ("auto", *get_args(Form)):
        raise ExportError(f"gradient is {gradient!r}; pass 'auto', {' or '.join(map(repr, get_args(Form)))}")
    few = replace(unet, dimensions={**unet.dimensions, "batch": _BATCH})
    on_progress("unet: looking for its attention")
    module = few.build()
    built = replace(few, build=lambda: module)
    layers = find_maps(built)
    if gradient == "auto":
        device = memory or installed_memory()
        gradient, need = choose_form(gradient_network(built, layers), device)
        on_progress(f"unet_gradient: {gradient}; joint takes {need / 1e9:.1f} GB of the device's {device / 1e9:.1f}")
    return maps_network(few, layers), gradient_network(few, layers, recompute=gradient == "recomputed")


def add_attention(
    bundle: Bundle,
    out: Path | str,
    *,
    settings: Pix2PixZeroSettings | None = None,
    captioner: CaptionerParts | None = None,
    gradient: Form | Literal["auto"] = "auto",
    memory: int | None = None,
    on_progress: Progress = quiet,
) -> Bundle:
    """Write a bundle with its networks, and with those of pix2pix-zero made anew from its UNet's weights.

    Arguments:
        bundle: Open and verified.
        out: Folder to write; it may be the bundle's own, which is replaced at the very end.
        settings: What an edit takes by default; None keeps what the bundle says.
        captioner: A captioner to add; None keeps the bundle's, if it has one.
        gradient: As `export`.
        memory: As `export`.
        on_progress: Told of every step.
    """
    manifest = bundle.manifest
    if manifest.system != "latent-diffusion":
        raise ExportError(
            f"{bundle.path}: its system is {manifest.system!r}, pix2pix-zero needs a latent-diffusion one"
        )
    _check_task(str(bundle.path), LatentDiffusionSettings.from_json(manifest.settings))
    parts = captioner or NO_CAPTIONER
    attention = attention_of([unet_of(bundle)], gradient=gradient, memory=memory, on_progress=on_progress)
    files, assets = dict(parts.files), dict(parts.assets)
    if ROLE not in manifest.assets or settings is not None:
        files[SETTINGS_FILE] = (settings or Pix2PixZeroSettings()).to_bytes()
        assets[ROLE] = SETTINGS_FILE
    networks = (*attention, *parts.networks)
    return extend(bundle, out, networks, files=files, assets=assets, on_progress=on_progress)


def _check_task(what: str, settings: LatentDiffusionSettings) -> None:
    if settings.task != "text" or settings.conditioning != "crossattn":
        raise ExportError(
            f"{what}: its task is {settings.task!r} with conditioning {settings.conditioning!r}, "
            "pix2pix-zero edits with text-to-picture models; pass such a one"
        )
