"""Latents and caption tokens of the emoji pictures, computed once for the UNet's training."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engines.manifest import MANIFEST_NAME
from ..networks.autoencoder import AutoencoderKL
from . import captions, command, emoji
from .text_states import packed_states
from .train_autoencoder import CONFIG, EMBED_DIM
from .trainer import pick_device

MAX_TOKENS = 32


def text_states(model_dir: Path, texts: list[str], device: torch.device) -> Tensor:
    """Last hidden states of MiniLM, padded to MAX_TOKENS: float16 (N, 32, 384)."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(length=MAX_TOKENS)
    model: Any = BertModel.from_pretrained(model_dir, local_files_only=True)
    model.to(device).eval()
    out = torch.empty(len(texts), MAX_TOKENS, 384, dtype=torch.float16)
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
        for start in range(0, len(texts), 128):
            encoded = tokenizer.encode_batch(texts[start : start + 128])
            ids = torch.tensor([e.ids for e in encoded], device=device)
            mask = torch.tensor([e.attention_mask for e in encoded], device=device)
            states = model(ids, attention_mask=mask).last_hidden_state
            out[start : start + len(encoded)] = states.half().cpu()
    return out


def latents(model: AutoencoderKL, images: np.ndarray, device: torch.device) -> Tensor:
    """Posterior means of float32 (N, 3, H, W) pictures, unscaled."""
    chunks = []
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
        for start in range(0, len(images), 64):
            x = torch.from_numpy(images[start : start + 64]).to(device)
            x = x.contiguous(memory_format=torch.channels_last)
            chunks.append(model.moments(x)[0].float().cpu())
    return torch.cat(chunks)


def main() -> None:
    """``python -m sfumato.training.prepare_latents --data … --text … --autoencoder … --out …``."""
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--text", type=Path, required=True, help="bundle with the packed MiniLM, or its folder")
    parser.add_argument("--autoencoder", type=Path, required=True, help="checkpoint of train_autoencoder")
    parser.add_argument("--out", type=Path, required=True, help="file to write, for train_unet")
    parser.add_argument("--coloured", type=int, default=2, help="coloured backgrounds for each picture")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    command.outputs(args.out)

    device = pick_device()
    pictures = [e for e in emoji.things(emoji.load(args.data)) if not e.held_out]
    rows = captions.examples(pictures, np.random.default_rng(args.seed), coloured=args.coloured)
    model = AutoencoderKL(CONFIG, EMBED_DIM)
    model.load_state_dict(torch.load(args.autoencoder, weights_only=True)["ema"])
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    z = latents(model, captions.render(pictures, rows), device)
    logging.info("%d latents of %d pictures, std %.4f", len(z), len(pictures), float(z.std()))
    texts = sorted({r.caption for r in rows} | {""})
    where = {text: i for i, text in enumerate(texts)}
    packed = (args.text / MANIFEST_NAME).exists()
    states = (
        torch.from_numpy(packed_states(args.text, texts, MAX_TOKENS))
        if packed
        else text_states(args.text, texts, device)
    )
    beside = args.out.with_suffix(".tmp")
    torch.save(
        {
            "latents": (z / z.std()).half(),
            "scale_factor": float(1 / z.std()),
            "states": states,
            "caption": torch.tensor([where[r.caption] for r in rows]),
            "white": torch.tensor([r.background == "white" for r in rows]),
            "null": where[""],
        },
        beside,
    )
    os.replace(beside, args.out)
    logging.info("%d captions -> %s", len(texts), args.out)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
