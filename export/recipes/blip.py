"""BLIP's captioner: a folder saved by transformers becomes two networks of a bundle.

References:
    Li, Li, Xiong, Hoi, "BLIP: Bootstrapping Language-Image Pre-training", 2022, https://arxiv.org/abs/2201.12086
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...engines.binding import Binding, Dimension
from ...errors import CheckpointError
from ...networks.checkpoint import read_folder
from ...runtime.captioner import CAPTION_ROLE, CAPTION_TOKENIZER, DECODER, ENCODER, CaptionerSettings
from ...runtime.tokenizer import BertTokenizer
from ..network import Network, image, integers

__all__ = ["CaptionerParts", "read_blip"]

PROMPT = "a picture of"
"""What the authors' demonstration lets every caption begin with."""

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CaptionerParts:
    """What a captioner adds to a bundle: networks, files, and the roles of these."""

    networks: tuple[Network, ...]
    files: dict[str, bytes | Path]
    assets: dict[str, str]


class _Encoder(nn.Module):
    """Image -> states of BLIP's vision model."""

    def __init__(self, blip: Any) -> None:
        super().__init__()
        self.vision_model = blip.vision_model

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.vision_model(pixel_values=image, return_dict=False)[0])


class _Decoder(nn.Module):
    """(input_ids, position, states) -> logits of the token after `position`; later ids are not looked at."""

    def __init__(self, blip: Any) -> None:
        super().__init__()
        self.text_decoder = blip.text_decoder

    def forward(self, input_ids: Tensor, position: Tensor, states: Tensor) -> Tensor:
        # The parts are called one by one: what makes masks in transformers cannot be traced.
        bert, length = self.text_decoder.bert, input_ids.shape[1]
        later = torch.full((length, length), -1e9).triu(1)[None, None]
        hidden = bert.encoder(
            bert.embeddings(input_ids=input_ids),
            attention_mask=later,
            encoder_hidden_states=states,
            encoder_attention_mask=None,
            use_cache=False,
        ).last_hidden_state
        return cast(Tensor, self.text_decoder.cls(hidden.index_select(1, position)).squeeze(1))


def read_blip(folder: Path, *, prompt: str = PROMPT, beams: int = 3) -> CaptionerParts:
    """Read a folder with a ``BlipForConditionalGeneration`` and its tokenizer.

    Arguments:
        folder: As ``save_pretrained`` writes it, with ``tokenizer.json``.
        prompt: What every caption begins with; it is left out of what is returned.
        beams: Of the search.

    Raises:
        CheckpointError: The folder holds something else, or no tokenizer.
    """
    config = _config(folder)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(f"{folder}: has no tokenizer.json; save the processor's tokenizer there")
    text, vision = config.text_config, config.vision_config
    length = min(30, int(text.max_position_embeddings))
    ids = BertTokenizer(tokenizer, length)([prompt])
    start = (int(text.bos_token_id), *(int(i) for i in ids.ids[0][1 : int(ids.mask.sum()) - 1]))
    settings = CaptionerSettings(
        image_size=int(vision.image_size),
        mean=_MEAN,
        std=_STD,
        start=start,
        end=int(text.sep_token_id),
        pad=int(text.pad_token_id),
        beams=beams,
        min_length=min(10, length),
        max_length=length,
    )
    patches = (settings.image_size // int(vision.patch_size)) ** 2 + 1
    batch = {"batch": Dimension(1, beams, 16)}
    states = Binding("states", "float32", ("batch", patches, int(vision.hidden_size)))
    pixels = Binding("image", "float32", ("batch", 3, settings.image_size, settings.image_size))
    networks = (
        Network(ENCODER, _loader(folder, config, _Encoder), (pixels,), (states,), batch, {"image": image}),
        Network(
            DECODER,
            _loader(folder, config, _Decoder),
            (Binding("input_ids", "int64", ("batch", length)), Binding("position", "int64", (1,)), states),
            (Binding("logits", "float32", ("batch", int(text.vocab_size))),),
            batch,
            {"input_ids": integers(int(text.vocab_size)), "position": integers(length)},
        ),
    )
    files: dict[str, bytes | Path] = {"captioner.json": settings.to_bytes(), "caption_tokenizer.json": tokenizer}
    assets = {CAPTION_ROLE: "captioner.json", CAPTION_TOKENIZER: "caption_tokenizer.json"}
    return CaptionerParts(networks, files, assets)


def _config(folder: Path) -> Any:
    from transformers import BlipConfig

    path = folder / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read ({reason}); pass a folder with a BLIP captioner") from error
    if not isinstance(tree, dict) or tree.get("model_type") != "blip" or "vision_config" not in tree:
        kind = tree.get("model_type") if isinstance(tree, dict) else type(tree).__name__
        raise CheckpointError(f"{folder}: holds a {kind!r}, need a BlipForConditionalGeneration; pass its folder")
    return BlipConfig(**{key: value for key, value in tree.items() if key != "model_type"})


def _loader(folder: Path, config: Any, part: type[nn.Module]) -> Callable[[], nn.Module]:
    def load() -> nn.Module:
        from transformers import BlipForConditionalGeneration

        config._attn_implementation = "eager"
        state = read_folder(folder)
        tied = {
            "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
            "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
        }
        state |= {name: state[of] for name, of in tied.items() if name not in state and of in state}
        module = BlipForConditionalGeneration(config)
        missing, strange = module.load_state_dict(state, strict=False)
        strange = [name for name in strange if not name.endswith("position_ids")]
        if missing or strange:
            raise CheckpointError(
                f"{folder}: keys do not fit BLIP ({[*missing, *strange][:5]}); is the config its own?"
            )
        return part(module)

    return load
