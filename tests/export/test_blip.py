"""BLIP exported from a tiny random model: tokens equal those of transformers, greedy and by beams."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
import torch

from sfumato.engines.build import build_plan
from sfumato.engines.build_target import parse_target
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import open_engine
from sfumato.errors import CheckpointError
from sfumato.export.assemble import assemble
from sfumato.export.recipes.blip import read_blip
from sfumato.runtime.captioner import Captioner, CaptionerSettings
from sfumato.runtime.tokenizer import BertTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "picture", "of", "red", "app", "##le", "cat", "[DEC]"]


@pytest.fixture(scope="session")
def blip(tmp_path_factory):
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import BlipConfig, BlipForConditionalGeneration

    torch.manual_seed(3)
    text = {
        "vocab_size": len(WORDS), "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64,
        "projection_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16,
        "bos_token_id": 11, "eos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "projection_dim": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():  # random logits are nearly flat: spread them, so that searches differ
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder / "model")
    library = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.save(str(folder / "model" / "tokenizer.json"))
    return model, folder / "model"


@pytest.fixture(scope="session")
def bundle(blip, tmp_path_factory) -> Bundle:
    parts = read_blip(blip[1])
    out = tmp_path_factory.mktemp("captioner") / "bundle"
    return assemble(
        out, "captioner", parts.networks, settings={}, files=parts.files, assets=parts.assets, precision="fp32"
    )


def test_settings_are_those_of_the_authors(bundle):
    path = bundle.asset("captioner")
    settings = CaptionerSettings.from_bytes(path.read_bytes(), path.name)
    assert settings.start == (11, 4, 5, 6)
    assert (settings.end, settings.pad, settings.beams, settings.min_length, settings.max_length) == (3, 0, 3, 10, 16)


@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_those_of_transformers(blip, bundle, beams, seed):
    model, _ = blip
    path = bundle.asset("captioner")
    settings = CaptionerSettings.from_bytes(path.read_bytes(), path.name)
    settings = CaptionerSettings(**{**vars(settings), "beams": beams})
    pixels = np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32)
    start = torch.tensor([[*settings.start, 3]])  # transformers leaves the last one out
    with torch.no_grad():
        wanted = model.generate(
            pixel_values=torch.from_numpy(pixels), input_ids=start, num_beams=beams, do_sample=False,
            min_length=settings.min_length, max_length=settings.max_length,
        )[0].tolist()  # fmt: skip
    with (
        open_engine(bundle, "caption_encoder", backend="onnxruntime", threads=1) as encoder,
        open_engine(bundle, "caption_decoder", backend="onnxruntime", threads=1) as decoder,
    ):
        words = BertTokenizer(bundle.asset("caption_tokenizer"), 16).words
        captioner = Captioner(encoder, decoder, words, settings)
        assert [*settings.start, *captioner.tokens(pixels)] == wanted
        assert isinstance(captioner(np.zeros((9, 7, 3), np.uint8)), str)


def test_folders_that_hold_no_blip_are_refused(blip, tmp_path):
    for content, words in {None: "cannot be read", "{": "cannot be read", '{"model_type": "bert"}': "'bert'"}.items():
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=words):
            read_blip(tmp_path)
    (tmp_path / "config.json").write_text((blip[1] / "config.json").read_text())
    with pytest.raises(CheckpointError, match="no tokenizer.json"):
        read_blip(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT for RTX; pip install 'sfumato[rtx]'"
)
def test_tensorrt_for_rtx_builds_the_vision_transformer_and_the_decoder(bundle, tmp_path):
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "bundle"))
    for name in copy.manifest.networks:
        plan = build_plan(copy, name, parse_target("rtx:sm86+sm89"))
        assert plan.key["precision"] == "fp16" and plan.built["half_products"] > 5
