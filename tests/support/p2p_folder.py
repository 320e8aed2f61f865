"""The networks of the pix2pix-zero goldens as a Stable Diffusion pipeline on disk, with a random text encoder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TOKENS, WIDTH = 8, 24


def write(goldens: Any, folder: Path) -> Path:
    """A folder as diffusers saves it: golden UNet, VAE (old key names) and scheduler."""
    config = json.loads(Path(goldens.path("p2p_configs.json")).read_text())
    parts = {
        "unet": ("UNet2DConditionModel", "p2p_unet_weights.npz", config["unet"]),
        "vae": ("AutoencoderKL", "p2p_vae_weights.npz", config["vae"]),
    }
    folder.mkdir(parents=True)
    for role, (name, weights, settings) in parts.items():
        (folder / role).mkdir()
        (folder / role / "config.json").write_text(json.dumps({"_class_name": name, **settings}))
        state = {k: torch.from_numpy(v.copy()) for k, v in goldens(weights).items()}
        save_file(state, folder / role / "diffusion_pytorch_model.safetensors")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", **config["scheduler"]}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    _text(folder)
    roles = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **roles}))
    return folder


def _text(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    settings = {
        "vocab_size": 64,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "bos_token_id": 62,
        "eos_token_id": 63,
        "pad_token_id": 0,
    }
    CLIPTextModel(CLIPTextConfig(**settings)).save_pretrained(folder / "text_encoder")
    letters = [chr(97 + i) for i in range(26)]
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"<{i}>" for i in range(62 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    library = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    )
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir()
    library.save(str(folder / "tokenizer" / "tokenizer.json"))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    more = {"pad_token": "!", "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": TOKENS}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**special, **more}))
