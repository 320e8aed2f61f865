"""Training of the emoji model's KL autoencoder: 64x64x3 pictures to 16x16x4 latents.

Reconstruction by L1 and squared error with a slight KL term (Rombach et al. 2022, section 3.1,
without the adversarial term: flat icons need none, and fidelity is what editing asks for).
``--decoder-only`` continues on a frozen encoder, so that latents cached from it stay valid.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks.autoencoder import AttnBlock, AutoencoderConfig, AutoencoderKL, ResnetBlock
from . import command, emoji
from .trainer import TrainOptions, pick_device, train

CONFIG = AutoencoderConfig(ch=64, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=4, resolution=64)
EMBED_DIM = 4


def start_near_identity(model: AutoencoderKL) -> None:
    """Shrinks every residual branch, so that a short run starts from a nearly linear codec."""
    for module in model.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(cast(Tensor, module.conv2.bias))
            module.conv2.weight.data.mul_(0.1)
        elif isinstance(module, AttnBlock):
            nn.init.zeros_(module.proj_out.weight)


def psnr(model: AutoencoderKL, pictures: np.ndarray) -> float:
    """Mean PSNR in dB, peak 255, of 8-bit reconstructions from the posterior mean."""
    values = []
    with torch.no_grad():
        for chunk in np.array_split(pictures, max(1, len(pictures) // 32)):
            x = torch.from_numpy(chunk)
            y = model.decode(model.moments(x)[0]).clamp(-1, 1)
            a, b = ((v * 127.5 + 127.5).round() for v in (x, y))
            values += (10 * torch.log10(255**2 / ((a - b) ** 2).mean(dim=(1, 2, 3)))).tolist()
    return float(np.mean(values))


def main() -> None:
    """``python -m sfumato.training.train_autoencoder --data FOLDER --out FILE --minutes M``."""
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, resumed if it exists")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time, that before a resumption included")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="its highest, after the warm-up")
    parser.add_argument("--kl", type=float, default=1e-4, help="weight of the KL per latent value")
    parser.add_argument("--decoder-only", type=Path, help="start from this checkpoint's EMA")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    command.outputs(args.out)
    torch.manual_seed(args.seed)

    pictures = emoji.load(args.data)
    seen = np.stack([e.rgba for e in pictures if not e.held_out])
    unseen = np.stack([e.rgba for e in pictures if e.held_out])
    device = pick_device()
    model = AutoencoderKL(CONFIG, EMBED_DIM)
    start_near_identity(model)
    if args.decoder_only:
        model.load_state_dict(torch.load(args.decoder_only, weights_only=True)["ema"])
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((args.seed, step))
        x = torch.from_numpy(emoji.batch(seen, args.batch, rng)).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        mean, log_variance = model.moments(x)
        mean, log_variance = mean.float(), log_variance.float()
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        y = model.decode(z).float()
        squared = functional.mse_loss(y, x)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        loss = 0.2 * functional.l1_loss(y, x) + 2 * squared + args.kl * kl
        return loss, {"mse": float(squared.detach()), "kl": float(kl.detach())}

    options = TrainOptions(args.minutes, args.learning_rate, ema_decay=0.995)
    ends = [model.encoder.conv_in.weight, model.decoder.conv_out.weight]
    ema = train(model, loss_of, args.out, options, device=device, adam=ends)
    model.load_state_dict(ema)
    white = emoji.over(unseen, np.full((len(unseen), 3), 255))
    logging.info("PSNR of %d unseen pictures: %.2f dB", len(unseen), psnr(model.cpu().eval(), white))


if __name__ == "__main__":
    raise SystemExit(command.run(main))
