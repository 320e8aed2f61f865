"""The emoji model, trained by `training`, to the bundle ``bundles/emoji-ldm``.

First ``python -m sfumato.export.recipes.emoji --text MINILM --out build/minilm`` packs the text encoder alone, whose
states `training.prepare_latents` takes; then, with ``--autoencoder vae.pt --unet unet.pt --latents latents.pt``, all
of it. What `training` fixed (configurations, schedule, tokens) is taken from there; what is open (sampler, steps,
guidance) is said here.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...engines.bundle import Bundle
from ...engines.manifest import MANIFEST_NAME, ScheduleSpec
from ...engines.precision import check_precision
from ...errors import CheckpointError
from ...networks.autoencoder import AutoencoderKL
from ...networks.checkpoint import build
from ...networks.unet import UNet
from ...runtime.systems.latent_settings import Defaults, LatentDiffusionSettings
from ...training import prepare_latents, train_autoencoder, train_unet
from ..assemble import assemble
from ..network import Network
from ..write import Progress, quiet
from . import parts
from .text import sentence_encoder

__all__ = ["LIMIT", "bundle_bytes", "main", "networks", "pack", "pack_text", "schedule", "settings"]

LIMIT = 60_000_000
"""Most bytes of the whole bundle: it is tracked in the repository."""

LICENSE = "Apache-2.0 AND MIT"
MULTIPLE = 2 ** (len(train_unet.CONFIG.channel_mult) - 1)
"""Heights and widths of the UNet's latents are multiples of this many."""

log = logging.getLogger(__name__)


def averaged(path: Path) -> Mapping[str, Tensor]:
    """The averaged weights (EMA) of a checkpoint that `training.trainer` wrote.

    Raises:
        CheckpointError: The file is missing or not such a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}); train the model first") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("ema"), Mapping):
        raise CheckpointError(f"{path}: has no 'ema'; pass a checkpoint written by sfumato.training")
    return content["ema"]


def text_encoder(text: Path) -> Network:
    """MiniLM in 8-bit rows, 23 MB instead of 45 in fp16, with which the bundle would not fit the limit."""
    return sentence_encoder(text, max_tokens=prepare_latents.MAX_TOKENS, weights="int8")


def networks(autoencoder: Mapping[str, Tensor], unet: Mapping[str, Tensor], text: Path) -> list[Network]:
    """The four networks."""
    config, tokens = train_autoencoder.CONFIG, prepare_latents.MAX_TOKENS
    latent = config.resolution // config.factor
    sides = parts.Sides((latent, latent), MULTIPLE, config.factor)
    encoded = parts.Encoded(train_autoencoder.EMBED_DIM, "kl")
    width = train_unet.CONFIG.context_dim or 0

    def first_stage() -> AutoencoderKL:
        return build(lambda: AutoencoderKL(config, train_autoencoder.EMBED_DIM), autoencoder, "the autoencoder")

    channels = (train_unet.CONFIG.in_channels, train_unet.CONFIG.out_channels)
    return [
        text_encoder(text),
        parts.unet(
            lambda: build(lambda: UNet(train_unet.CONFIG), unet, "the UNet"),
            channels,
            sides,
            context=(tokens, width),
            steps=train_unet.STEPS,
        ),
        parts.encoder(lambda: parts.KlEncoder(first_stage()), encoded, sides),
        parts.decoder(lambda: parts.KlDecoder(first_stage()), encoded, sides),
    ]


def schedule() -> ScheduleSpec:
    """What the UNet was trained with."""
    return ScheduleSpec("scaled_linear", train_unet.STEPS, train_unet.BETA_START, train_unet.BETA_END, "v")


def settings(scale_factor: float, defaults: Defaults) -> LatentDiffusionSettings:
    """The bundle's settings; ``scale_factor`` is that of the latents' file."""
    config = train_autoencoder.CONFIG
    return LatentDiffusionSettings(
        task="text",
        conditioning="crossattn",
        latent_channels=train_autoencoder.EMBED_DIM,
        factor=config.factor,
        scale_factor=scale_factor,
        first_stage="kl",
        image_size=(config.resolution, config.resolution),
        size_multiple=config.factor * MULTIPLE,
        max_tokens=prepare_latents.MAX_TOKENS,
        tokenizer="bert",
        defaults=defaults,
    )


def pack_text(text: Path, out: Path, *, on_progress: Progress = quiet) -> Bundle:
    """Write a bundle of the text encoder and its tokenizer alone, for training."""
    return assemble(
        out,
        "text-encoder",
        [text_encoder(text)],
        settings={},
        files={"tokenizer.json": text / "tokenizer.json"},
        assets={"tokenizer": "tokenizer.json"},
        license="Apache-2.0",
        on_progress=on_progress,
    )


def pack(
    autoencoder: Mapping[str, Tensor],
    unet: Mapping[str, Tensor],
    text: Path,
    scale_factor: float,
    out: Path,
    *,
    defaults: Defaults,
    precision: str = "fp16",
    notice: Path | None = None,
    on_progress: Progress = quiet,
) -> Bundle:
    """Write the bundle.

    Arguments:
        autoencoder: Weights of `AutoencoderKL`.
        unet: Weights of `UNet`.
        text: Folder of the MiniLM encoder, with its ``tokenizer.json``.
        scale_factor: The UNet's latent is scale_factor · z.
        out: Its folder.
        defaults: Sampler, steps, guidance.
        precision: How large weights are stored; the text encoder's are 8-bit in any case.
        notice: Attribution of what it was made from, packed beside it.
        on_progress: Told of every step.
    """
    files: dict[str, bytes | Path] = {"tokenizer.json": text / "tokenizer.json"}
    assets = {"tokenizer": "tokenizer.json"}
    if notice is not None:
        files["NOTICE.md"] = notice
        assets["notice"] = "NOTICE.md"
    return assemble(
        out,
        "latent-diffusion",
        networks(autoencoder, unet, text),
        settings=settings(scale_factor, defaults).to_json(),
        schedule=schedule(),
        files=files,
        assets=assets,
        precision=check_precision(precision),
        name=out.absolute().name,
        license=LICENSE,
        on_progress=on_progress,
    )


def bundle_bytes(bundle: Bundle) -> int:
    """Length of all its files, the manifest included."""
    return sum(a.bytes for a in bundle.manifest.files.values()) + (bundle.path / MANIFEST_NAME).stat().st_size


def main(argv: list[str] | None = None) -> int:
    """See the module's head. The exit status is 1 when the bundle is larger than `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, help="checkpoint of train_autoencoder")
    parser.add_argument("--unet", type=Path, help="checkpoint of train_unet")
    parser.add_argument("--latents", type=Path, help="file of prepare_latents, for its scale_factor")
    parser.add_argument("--text", type=Path, required=True, help="folder of the MiniLM encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--notice", type=Path, help="attribution to pack beside the weights")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--spacing", default="trailing")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)
    trained = (args.autoencoder, args.unet, args.latents)
    if any(trained) and not all(trained):
        parser.error("give --autoencoder, --unet and --latents, or none of them for the text encoder alone")
    if not any(trained):
        bundle = pack_text(args.text, args.out, on_progress=log.info)
    else:
        bundle = pack(
            averaged(args.autoencoder),
            averaged(args.unet),
            args.text,
            torch.load(args.latents, map_location="cpu", weights_only=True, mmap=True)["scale_factor"],
            args.out,
            defaults=Defaults(args.steps, args.guidance_scale, args.sampler, 0.0, args.spacing),
            precision=args.precision,
            notice=args.notice,
            on_progress=log.info,
        )
    for path, artifact in sorted(bundle.manifest.files.items()):
        log.info("%10d  %s", artifact.bytes, path)
    total = bundle_bytes(bundle)
    log.info("%10d  in all, %.1f %% of the %d that are allowed", total, 100 * total / LIMIT, LIMIT)
    return int(total > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
