"""Training of Cold Diffusion's restoring network, for any of its degradations.

The official objective: a severity t + 1 for each picture, t uniform in 0 … T-1, and the L1 distance of R(D(x, t+1), t)
from x (Bansal et al. 2022, equation 1). What differs from the original's trainer: Muon instead of Adam, a cosine
schedule over a given time, an EMA at every step, and residual branches that begin near zero, which together make
minutes of two processor cores do what it took a GPU's days for.

The checkpoint is the original's {step, model, ema} with its key names, blur kernels included, and a record ``about``
of degradation and network, so that ``sfumato export cold-diffusion`` needs nothing besides.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..engines.binding import Array
from ..networks.convnext import Attention, ConvNextBlock, ConvNextConfig, ConvNextUNet
from ..networks.ddpm import DDPM, DDPMConfig
from ..runtime.degradation import Degradation, quantise, severities
from ..runtime.degradations import Blur, DegradationSpec
from ..runtime.degradations.lab import lab_from_rgb
from ..runtime.metrics import psnr
from ..runtime.rng import PhiloxGenerator
from .convnext_speed import for_training
from .pictures import EmojiPictures, FolderPictures, Pictures
from .trainer import TrainOptions, pick_device, train

__all__ = ["ColdDiffusion", "Degrader", "ends", "objective", "start_near_identity"]

log = logging.getLogger(__name__)


class _Kernel(nn.Module):
    """One blur kernel under the original's name, (C, 1, k, k)."""

    def __init__(self, kernel: Array, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(kernel)[None, None].repeat(channels, 1, 1, 1))


class ColdDiffusion(nn.Module):
    """The network as ``denoise_fn`` and the kernels of a blur as ``gaussian_kernels``: the original's state."""

    def __init__(self, network: nn.Module, degradation: DegradationSpec, channels: int = 3) -> None:
        super().__init__()
        self.denoise_fn = network
        if degradation.kind == "blur":
            kernels = cast(Blur, degradation.build((1, channels, 64, 64))).kernels()
            self.gaussian_kernels = nn.ModuleList(_Kernel(kernel, channels) for kernel in kernels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.denoise_fn(x, t)


class Degrader:
    """Clean batches and steps -> degraded batches and indices t.

    Arguments:
        spec: The degradation.
        quantised: Cut degraded pictures to 8 bits, the original's ``discrete``: what the network is given is then no
            more than what a file holds.
        seed: Everything drawn for step i comes from the stream i of this seed.
    """

    def __init__(self, spec: DegradationSpec, *, quantised: bool = False, seed: int = 0) -> None:
        self.spec, self.quantised, self.seed = spec, quantised, seed
        self._fixed: Degradation | None = None

    def __call__(self, x0: Array, step: int, *, end: Array | None = None) -> tuple[Array, Array, Array]:
        """x_t and x0 as the network sees them, float32 (B, C, H, W), and t int64 (B,) from 0 to T-1."""
        rng = PhiloxGenerator(self.seed, step)
        t = np.minimum((rng.rand(len(x0)) * self.spec.steps).astype(np.int64), self.spec.steps - 1)
        if self.spec.parameters.get("lab"):
            x0 = lab_from_rgb(x0)
        degradation = self._fixed
        if degradation is None:
            degradation = self.spec.build(cast("tuple[int, int, int, int]", x0.shape), rng, end=end)
            self._fixed = degradation if self.spec.fixed else None
        x_t = severities(degradation, x0, t + 1)
        return (quantise(x_t) if self.quantised else x_t), x0, t


def start_near_identity(network: nn.Module) -> None:
    """Shrinks every residual branch of a `ConvNextUNet`, and its output; with ``residual`` it returns its input."""
    for module in network.modules():
        if isinstance(module, ConvNextBlock):
            last = cast(nn.Conv2d, module.net[3])
            last.weight.data.mul_(0.1)
            nn.init.zeros_(cast(Tensor, last.bias))
        elif isinstance(module, Attention):
            nn.init.zeros_(module.fn.fn.to_out.weight)
    if isinstance(network, ConvNextUNet):
        last = cast(nn.Conv2d, network.final_conv[1])
        last.weight.data.mul_(0.1)
        nn.init.zeros_(cast(Tensor, last.bias))


def ends(network: nn.Module) -> list[Tensor]:
    """Matrices that Muon should not have: the first and last layers', and depthwise kernels."""
    kept = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    return [*kept, *(m.weight for m in (convolutions[0], convolutions[-1]))]


def objective(
    model: nn.Module, degrader: Degrader, clean: Callable[[int], tuple[Array, Array | None]], device: torch.device
) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    """Step -> the L1 loss and what to log.

    Arguments:
        model: Called with (x_t, t).
        degrader: Makes x_t.
        clean: Step -> clean pictures, and second ones where the degradation takes them.
        device: Where the model is.
    """

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        pictures, end = clean(step)
        x_t, x0, t = degrader(pictures, step, end=end)
        given, wanted = (
            torch.from_numpy(a).to(device).contiguous(memory_format=torch.channels_last) for a in (x_t, x0)
        )
        loss = functional.l1_loss(model(given, torch.from_numpy(t).to(device)).float(), wanted)
        return loss, {"l1": float(loss.detach()), "input": float(np.abs(x_t - x0).mean())}

    return loss_of


def report(model: nn.Module, degrader: Degrader, pictures: Array, end: Array | None = None) -> tuple[float, float]:
    """Mean PSNR in dB, on [0, 1] and clipped, of degraded pictures at the severity T and of what the network makes."""
    values: list[tuple[float, float]] = []
    for index in range(0, len(pictures), 32):
        x0 = pictures[index : index + 32]
        shape = cast("tuple[int, int, int, int]", x0.shape)
        degradation = degrader.spec.build(
            shape, PhiloxGenerator(degrader.seed), end=None if end is None else end[: len(x0)]
        )
        x_t = degradation(x0, degradation.steps)
        x_t = quantise(x_t) if degrader.quantised else x_t
        with torch.no_grad():
            t = torch.full((len(x0),), degradation.steps - 1)
            made = model(torch.from_numpy(np.ascontiguousarray(x_t)), t).numpy()
        low, high, clean = (np.clip(a, -1, 1) for a in (x_t, made, x0))
        values += zip(psnr(low, clean, data_range=2.0), psnr(high, clean, data_range=2.0), strict=True)
    before, after = np.mean(values, axis=0)
    return float(before), float(after)


def network_of(about: dict[str, object]) -> nn.Module:
    """The network that a checkpoint's ``about["network"]`` describes."""
    settings = dict(about)
    kind = settings.pop("kind")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return ConvNextUNet(ConvNextConfig(**plain)) if kind == "convnext" else DDPM(DDPMConfig(**plain))  # type: ignore[arg-type]


def main(argv: list[str] | None = None) -> None:
    """``python -m sfumato.training.train_cold --degradation blur -p steps=30 --data FOLDER --out FILE --minutes M``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--degradation", required=True, help="blur, inpaint, fade, resolution, snow, decolor, noise …")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of it; repeat")
    parser.add_argument("--data", type=Path, required=True, help="folder of npm's node_modules, or of pictures")
    parser.add_argument("--pictures", choices=("emoji", "folder"), default="emoji")
    parser.add_argument("--second", type=Path, help="folder of second pictures, for animorphosis; by default the same")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, resumed if it exists")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--network", choices=("convnext", "ddpm"), default="convnext")
    parser.add_argument("--dim", type=int, default=32, help="channels at full size")
    parser.add_argument("--mults", type=int, nargs="+", default=[1, 2, 3, 4], help="times dim, at each level")
    parser.add_argument("--recolour", type=float, default=0.3, help="share of emoji with channels exchanged")
    parser.add_argument("--white", type=float, default=0.7, help="share of white backgrounds")
    parser.add_argument("--quantised", action="store_true", help="degraded pictures of 8 bits")
    parser.add_argument("--plain", action="store_true", help="predict the picture instead of its difference")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)

    def source(root: Path) -> Pictures:
        if args.pictures == "folder":
            return FolderPictures(root, args.size)
        return EmojiPictures(root, args.size, recolour=args.recolour, white=args.white)

    spec = DegradationSpec.parse(args.degradation, args.parameter)
    pictures = source(args.data)
    second = source(args.second or args.data) if spec.needs_picture else None
    network: dict[str, object] = {
        "convnext": {"kind": "convnext", "dim": args.dim, "dim_mults": list(args.mults), "residual": not args.plain},
        "ddpm": {"kind": "ddpm", "ch": args.dim, "ch_mult": list(args.mults), "resolution": args.size},
    }[args.network]
    about = {
        "degradation": spec.to_json(),
        "network": network,
        "size": args.size,
        "quantised": args.quantised,
    }
    device = pick_device()
    model = ColdDiffusion(for_training(network_of(network)), spec)
    start_near_identity(model.denoise_fn)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = sum(p.numel() for p in model.parameters())
    log.info("%s, %.2f million weights", spec.to_json(), weights / 1e6)
    degrader = Degrader(spec, quantised=args.quantised, seed=args.seed)

    def clean(step: int) -> tuple[Array, Array | None]:
        rng = np.random.default_rng((args.seed, step))
        return pictures.draw(args.batch, rng), None if second is None else second.draw(args.batch, rng)

    options = TrainOptions(args.minutes, args.learning_rate, ema_decay=args.ema)
    loss_of = objective(model, degrader, clean, device)
    ema = train(model, loss_of, args.out, options, device=device, adam=ends(model.denoise_fn), about=about)
    model.load_state_dict(ema)
    unseen = pictures.unseen()[:200]
    before, after = report(model.cpu().eval(), degrader, unseen, unseen[::-1] if second is not None else None)
    log.info("PSNR of %d unseen pictures: degraded %.2f dB, direct %.2f dB", len(unseen), before, after)


if __name__ == "__main__":
    main()
