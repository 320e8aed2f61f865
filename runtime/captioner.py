"""Captions of pictures by BLIP, from the networks ``caption_encoder`` and ``caption_decoder`` of a bundle.

The decoder is run again over all tokens for each new one, at one fixed length, so that engines compile one shape; a
caption is thirty tokens at most, which takes a second where inversion takes minutes.

References:
    Li, Li, Xiong, Hoi, "BLIP: Bootstrapping Language-Image Pre-training", 2022, https://arxiv.org/abs/2201.12086
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..engines.binding import Array
from ..engines.engine import Engine, check_finite
from ..engines.strict import Node, parse
from ..errors import ParameterError
from .beam_search import beam_search, greedy
from .image import resize

__all__ = ["CAPTION_ROLE", "CAPTION_TOKENIZER", "DECODER", "ENCODER", "Captioner", "CaptionerSettings", "join_pieces"]

ENCODER, DECODER = "caption_encoder", "caption_decoder"
CAPTION_ROLE, CAPTION_TOKENIZER = "captioner", "caption_tokenizer"
"""Roles of the assets ``captioner.json`` and the captioner's ``tokenizer.json``."""


@dataclass(frozen=True)
class CaptionerSettings:
    """The record in ``captioner.json``.

    Arguments:
        image_size: Side in pixels that pictures are brought to, bicubically, whatever their shape.
        mean: Of the colours in [0, 1], taken off.
        std: Divides them then.
        start: Tokens that every caption begins with: the decoder's own first one, then the prompt ("a picture of"),
            which is no part of what is returned.
        end: The token that ends a caption.
        pad: The token that fills what is not yet written.
        beams: Of the search; 1 is greedy.
        min_length: Tokens at least, those of `start` counted.
        max_length: Tokens at most, those of `start` counted; the decoder's fixed length.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    start: tuple[int, ...]
    end: int
    pad: int
    beams: int = 3
    min_length: int = 10
    max_length: int = 30

    def __post_init__(self) -> None:
        if not 0 < len(self.start) < self.max_length or min(self.image_size, self.beams) < 1:
            raise ParameterError(f"{self} needs start tokens, room after them, a size and beams of 1 or more")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ParameterError(f"{self} needs three means and three deviations above 0")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> CaptionerSettings:
        """The settings in a JSON file; `ManifestError` if it cannot be used."""
        value = parse(data, where)
        root = Node(value if isinstance(value, dict) else {}, where)
        nodes = root.fields(cls)
        whole = {
            name: nodes[name].integer(0) for name in ("image_size", "end", "pad", "beams", "min_length", "max_length")
        }
        colors = {name: tuple(item.number() for item in nodes[name].array()) for name in ("mean", "std")}
        start = tuple(item.integer(0) for item in nodes["start"].array())
        return root.build(lambda: cls(start=start, **whole, **colors))  # type: ignore[arg-type]

    def to_bytes(self) -> bytes:
        """The file that `from_bytes` reads."""
        tree = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return (json.dumps(tree, indent=2) + "\n").encode()


class Captioner:
    """Says what a picture shows.

    Arguments:
        encoder: The network ``caption_encoder``: image -> states.
        decoder: The network ``caption_decoder``: input_ids, position, states -> logits after that position.
        words: Tokens to the vocabulary's entries; see `Tokenizer.words`.
        settings: How.
    """

    def __init__(
        self,
        encoder: Engine,
        decoder: Engine,
        words: Callable[[Sequence[int]], list[str]],
        settings: CaptionerSettings,
    ) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._words = words
        self.settings = settings

    def __call__(self, picture: Array) -> str:
        """The caption of uint8 (H, W, 3).

        Raises:
            NonFiniteError: A network made NaN or infinity.
        """
        tokens = self.tokens(self.pixels(picture))
        return join_pieces(self._words([token for token in tokens if token != self.settings.end]))

    def pixels(self, picture: Array) -> Array:
        """The picture as the encoder takes it, float32 (1, 3, S, S)."""
        s = self.settings
        small = resize(picture, (s.image_size, s.image_size), bicubic=True).astype(np.float32) / np.float32(255)
        small = (small - np.array(s.mean, np.float32)) / np.array(s.std, np.float32)
        return np.ascontiguousarray(small.transpose(2, 0, 1)[None], dtype=np.float32)

    def tokens(self, pixels: Array) -> list[int]:
        """The caption's tokens, without those it starts with."""
        s = self.settings
        states = self._encoder(image=pixels)["states"]
        check_finite(ENCODER, None, states=states)
        states = np.repeat(states, s.beams, axis=0)
        ids = np.full((s.beams, s.max_length), s.pad, dtype=np.int64)

        def logits(tokens: Array) -> Array:
            rows, count = tokens.shape
            ids[:rows, :count] = tokens
            ids[rows:] = ids[:1]  # the first step has one beam; the shape stays
            outputs = self._decoder(input_ids=ids, position=np.array([count - 1], dtype=np.int64), states=states)
            check_finite(DECODER, None, logits=outputs["logits"])
            return outputs["logits"][:rows]

        lengths: Mapping[str, int] = {"end": s.end, "min_length": s.min_length, "max_length": s.max_length}
        if s.beams == 1:
            return greedy(logits, s.start, **lengths)
        return beam_search(logits, s.start, beams=s.beams, **lengths)


def join_pieces(pieces: Sequence[str]) -> str:
    """WordPiece entries as text: "##" joins to the word before, stops stand close, special entries are left out."""
    text = ""
    for piece in pieces:
        if piece.startswith("[") and piece.endswith("]"):
            continue
        if piece.startswith("##"):
            text += piece[2:]
        elif piece in (".", ",", "!", "?", ";", ":", "'", ")"):
            text += piece
        else:
            text += piece if text.endswith("'") else f" {piece}"
    return text.strip()
