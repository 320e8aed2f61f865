"""CLIP's text encoder with random weights and a tokenizer of letters, saved as a Stable Diffusion folder has them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

logging.getLogger("transformers").setLevel(logging.ERROR)


def write(folder: Path, *, tokens: int, width: int, pad: str, layers: int = 2, act: str = "quick_gelu") -> None:
    """Write ``text_encoder`` and ``tokenizer`` into `folder`: 64 words, prompts of `tokens`, states of `width`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        hidden_act=act,
        bos_token_id=62,
        eos_token_id=63,
        pad_token_id=0,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    letters = [chr(97 + i) for i in range(26)]
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"<{i}>" for i in range(62 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    library = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    )
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    save_tokenizer(library, folder, tokens, **special, pad_token=pad)


def save_tokenizer(library: object, folder: Path, tokens: int, **special: str) -> None:
    """Write ``tokenizer`` into `folder` as transformers does, with the words that are special."""
    out = folder / "tokenizer"
    out.mkdir()
    library.save(str(out / "tokenizer.json"))
    config = {**special, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokens}
    (out / "tokenizer_config.json").write_text(json.dumps(config))
