"""Models to measure: Stable Diffusion 1.5's networks with random weights, as a diffusers folder.

Speed and memory do not depend on what the weights say, so they are drawn here (in float16, as the published files are)
and nothing is downloaded. `FULL` has the published sizes, `QUICK` is a few hundred kilobytes for trying the benchmark.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FULL", "QUICK", "Maker", "Size", "unet_inputs"]

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Size:
    """How large the networks are.

    Arguments:
        unet: Arguments of `UNet2DConditionModel`.
        vae: Arguments of `AutoencoderKL`.
        text: Arguments of `CLIPTextConfig`.
        latents: Sides of the latents to measure at.
        tokens: Tokens of a prompt.
        width: Channels of a token.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    latents: tuple[int, ...]
    tokens: int
    width: int


FULL = Size(
    unet={"sample_size": 64, "cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)},
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 512,
    },
    text={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
    latents=(32, 64),
    tokens=77,
    width=768,
)
QUICK = Size(
    unet={
        "sample_size": 16,
        "cross_attention_dim": 32,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
    },
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (32,) * 4,
        "layers_per_block": 1,
        "sample_size": 128,
    },
    text={
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 600,
        "max_position_embeddings": 77,
    },
    latents=(8, 16),
    tokens=77,
    width=32,
)


def unet_inputs(size: Size, latents: int) -> tuple[F32, F32]:
    """The same x (2, 4, latents, latents) and context (2, tokens, width) for every variant."""
    rng = np.random.default_rng(latents)
    x = rng.standard_normal((2, 4, latents, latents), dtype=np.float32)
    return x, rng.standard_normal((2, size.tokens, size.width), dtype=np.float32)


class Maker:
    """Makes the folder; runs in a child, so that the memory is given back."""

    def folder(self, out: str, quick: bool) -> float:
        """Write the diffusers folder `out`; seconds."""
        begin = time.perf_counter()
        _write_folder(QUICK if quick else FULL, Path(out))
        return time.perf_counter() - begin


def _write_folder(size: Size, out: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(out / "vocabulary", size.text["vocab_size"])
    end = size.text["vocab_size"] - 1
    with _half_precision():
        pipeline = StableDiffusionPipeline(
            unet=UNet2DConditionModel(**size.unet),
            vae=AutoencoderKL(latent_channels=4, **size.vae),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(bos_token_id=end - 1, eos_token_id=end, hidden_act="quick_gelu", **size.text)
            ),
            tokenizer=CLIPTokenizer.from_pretrained(str(out / "vocabulary"), model_max_length=size.tokens),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(str(out), safe_serialization=True)
    shutil.rmtree(out / "vocabulary")


@contextmanager
def _half_precision() -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _write_tokenizer(out: Path, entries: int) -> None:
    """A byte-level CLIP vocabulary of `entries` words without merges: every letter is a token."""
    out.mkdir()
    # The byte alphabet of GPT-2's tokenizer, which CLIP's is built on: printable bytes stand for themselves.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]
    words = letters + [letter + "</w>" for letter in letters]
    words += [f"filler{index}</w>" for index in range(entries - len(words) - 2)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (out / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (out / "merges.txt").write_text("#version: 0.2\n")
    tokens = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **tokens}))
