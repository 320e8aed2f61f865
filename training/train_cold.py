"""Training of Cold Diffusion's restoring network, for any of its degradations.

The official objective: a severity t + 1 for each picture, t uniform in 0 … T-1, and the L1 distance of R(D(x, t+1), t)
from x (Bansal et al. 2022, equation 1). What differs from the original's trainer: Muon instead of Adam, a cosine
schedule over a given time, an EMA at every step, and residual branches that begin near zero, which together make
minutes of two processor cores do what it took a GPU's days for.

The checkpoint is the original's {step, model, ema} with its key names, blur kernels included, and a record ``about``
of degradation and network, so that ``sfumato export cold-diffusion`` needs nothing besides.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

import numpy as np

from ..engines.binding import Array
from ..runtime.degradations import DegradationSpec
from ..runtime.degradations.spec import Kind
from . import command
from .pictures import EmojiPictures, FolderPictures, Pictures

__all__ = ["main"]

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """``python -m sfumato.training.train_cold --degradation blur -p steps=30 --data FOLDER --out FILE --minutes M``."""
    parser = command.parser(__doc__)
    parser.add_argument("--degradation", required=True, help=", ".join(get_args(Kind)))
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of it, e.g. steps=30; repeat"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of npm's node_modules, or of pictures")
    parser.add_argument("--pictures", choices=("emoji", "folder"), default="emoji", help="what --data holds")
    parser.add_argument("--second", type=Path, help="folder of second pictures, for animorphosis; by default the same")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, resumed if it exists")
    parser.add_argument("--minutes", type=float, default=12.0, help="training time, that before a resumption included")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="its highest, after the warm-up")
    parser.add_argument("--ema", type=float, default=0.995, help="decay a step of the averaged weights")
    parser.add_argument("--network", choices=("convnext", "ddpm"), default="convnext", help="its kind")
    parser.add_argument("--dim", type=int, default=32, help="channels at full size")
    parser.add_argument("--mults", type=int, nargs="+", default=[1, 2, 3, 4], help="times dim, at each level")
    parser.add_argument("--recolour", type=float, default=0.3, help="share of emoji with channels exchanged")
    parser.add_argument("--white", type=float, default=0.7, help="share of white backgrounds")
    parser.add_argument("--quantised", action="store_true", help="degraded pictures of 8 bits")
    parser.add_argument("--plain", action="store_true", help="predict the picture instead of its difference")
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and what degradations draw")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def source(root: Path) -> Pictures:
        if args.pictures == "folder":
            return FolderPictures(root, args.size)
        return EmojiPictures(root, args.size, recolour=args.recolour, white=args.white)

    spec = DegradationSpec.parse(args.degradation, args.parameter)
    # Here, so that a missing torch, too, is one line.
    import torch

    from .cold_objective import ColdDiffusion, Degrader, ends, network_of, objective, report, start_near_identity
    from .convnext_speed import for_training
    from .trainer import TrainOptions, pick_device, train

    torch.manual_seed(args.seed)
    command.outputs(args.out)
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
    raise SystemExit(command.run(main))
