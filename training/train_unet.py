"""Training of the emoji model's text-conditioned UNet on cached latents.

v-prediction (Salimans & Ho, "Progressive Distillation", 2022, https://arxiv.org/abs/2202.00512,
appendix D): its loss weighs every noise level, so the caption is learned where noise hides the
picture. Stable Diffusion's noise schedule; captions are dropped at random for classifier-free
guidance (Ho & Salimans 2022); antithetic, stratified times lower the variance of the loss.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks.transformer import SpatialTransformer
from ..networks.unet import ResBlock, UNet, UNetConfig
from . import command
from .trainer import TrainOptions, pick_device, train

CONFIG = UNetConfig(
    in_channels=4,
    model_channels=96,
    out_channels=4,
    num_res_blocks=1,
    attention_resolutions=(1, 2),
    channel_mult=(1, 2, 2),
    num_head_channels=32,
    use_spatial_transformer=True,
    context_dim=384,
)
STEPS, BETA_START, BETA_END = 1000, 0.00085, 0.012


def alphas_bar() -> Tensor:
    """Cumulative products of "scaled_linear" Stable Diffusion betas, float64 (1000,)."""
    roots = torch.linspace(BETA_START**0.5, BETA_END**0.5, STEPS, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, dim=0)


def _zero(weights: Iterable[Tensor]) -> None:
    for weight in weights:
        nn.init.zeros_(weight)


def start_at_zero(model: UNet) -> None:
    """Zeroes the last layer of every residual branch and of the network, as the original does."""
    for module in model.modules():
        if isinstance(module, ResBlock):
            _zero(module.out_layers[3].parameters())
        elif isinstance(module, SpatialTransformer):
            _zero([module.proj_out.weight])
    _zero([cast(nn.Conv2d, model.out[2]).weight])


def main() -> None:
    """``python -m sfumato.training.train_unet --latents FILE --out FILE --minutes M``."""
    parser = command.parser(__doc__)
    parser.add_argument("--latents", type=Path, required=True, help="written by prepare_latents")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, resumed if it exists")
    parser.add_argument("--minutes", type=float, default=90.0, help="training time, that before a resumption included")
    parser.add_argument("--batch", type=int, default=64, help="latents a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="its highest, after the warm-up")
    parser.add_argument("--white", type=float, default=0.75, help="share of white backgrounds")
    parser.add_argument("--drop", type=float, default=0.1, help="share of dropped captions")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    command.outputs(args.out)

    device = pick_device()
    data = torch.load(args.latents, weights_only=True)
    white, coloured = (torch.where(data["white"] == flag)[0] for flag in (True, False))
    table = alphas_bar().float()
    torch.manual_seed(args.seed)
    model = UNet(CONFIG)
    start_at_zero(model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        g = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        count = args.batch
        of_white = torch.rand(count, generator=g) < args.white
        pick = torch.where(
            of_white,
            white[torch.randint(len(white), (count,), generator=g)],
            coloured[torch.randint(len(coloured), (count,), generator=g)],
        )
        x0 = data["latents"][pick].float()
        words = data["caption"][pick]
        words[torch.rand(count, generator=g) < args.drop] = data["null"]
        strata = (torch.arange(count) + torch.rand(count, generator=g)) / count
        t = (strata * STEPS).long().clamp(max=STEPS - 1)
        eps = torch.randn(x0.shape, generator=g)
        alpha = table[t].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - table[t]).sqrt().view(-1, 1, 1, 1)
        x_t = (alpha * x0 + sigma * eps).to(device).contiguous(memory_format=torch.channels_last)
        context = data["states"][words].to(device).float()
        v = model(x_t, t.to(device), context).float()
        error = functional.mse_loss(v, (alpha * eps - sigma * x0).to(device), reduction="none")
        each = error.mean(dim=(1, 2, 3))
        late = float(each[3 * count // 4 :].detach().mean())
        return each.mean(), {"loss": float(each.detach().mean()), "noisiest quarter": late}

    options = TrainOptions(args.minutes, args.learning_rate, ema_decay=0.997)
    ends = [model.input_blocks[0][0].weight, model.out[2].weight]
    train(model, loss_of, args.out, options, device=device, adam=ends)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
