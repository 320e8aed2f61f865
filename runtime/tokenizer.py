"""Tokenizers: prompts to the ids that a text encoder takes, from the ``tokenizer.json`` of a bundle.

The only file that meets the library ``tokenizers``, inside functions. Start, end and padding are put around the
library's ids here, so that what was cut off a long prompt can be told in the prompt's own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..engines.binding import Array
from ..errors import BundleError, MissingDependency, ParameterError, PromptError

__all__ = ["BertTokenizer", "ClipTokenizer", "Tokenizer", "Tokens", "open_tokenizer", "shortened"]


_SHOWN = 80
"""Characters of a prompt that a message repeats."""


def shortened(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


@dataclass(frozen=True)
class Tokens:
    """Prompts as ids.

    Arguments:
        ids: int64 (B, max_tokens), padded.
        mask: int64 (B, max_tokens), 1 where a token is not padding.
        cut: For each prompt the part that did not fit, "" when all of it did.
        unknown: For each prompt the parts that the vocabulary has no entry for; byte-level families have none.
    """

    ids: Array
    mask: Array
    cut: tuple[str, ...]
    unknown: tuple[tuple[str, ...], ...] = ()

    @property
    def notes(self) -> list[str]:
        """What to tell of every prompt that did not fit, the part that was cut off shortened."""
        return [
            f"a prompt has more than the {self.ids.shape[1]} tokens that the bundle takes; cut off: {shortened(rest)!r}"
            for rest in self.cut
            if rest
        ]


class Tokenizer:
    """Prompts to ids of a fixed number of tokens.

    Arguments:
        path: A ``tokenizer.json``. Where it states a padding id, that is used, else the family's own.
        max_tokens: Tokens of each prompt, start and end included.

    Raises:
        BundleError: The file is not a ``tokenizer.json`` of this family.
    """

    start: ClassVar[str]
    end: ClassVar[str]
    pad: ClassVar[str]
    unknown: ClassVar[str | None] = None

    def __init__(self, path: Path | str, max_tokens: int) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise MissingDependency("tokenizers", "cpu", "reading a prompt") from error
        if max_tokens < 3:
            raise ParameterError(f"max_tokens is {max_tokens}, a prompt needs start, end and a token; pass 3 or more")
        try:
            self._library: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path}: is not a tokenizer.json ({error}); export the bundle again") from error
        self.max_tokens = max_tokens
        self._start, self._end = self._special(path, self.start), self._special(path, self.end)
        padding = self._library.padding
        self._pad = int(padding["pad_id"]) if padding else self._special(path, self.pad)
        self._unknown = None if self.unknown is None else self._library.token_to_id(self.unknown)
        self._library.no_padding()
        self._library.no_truncation()

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Ids of the prompts; what is too long is cut and told in `Tokens.cut`, what is unknown in `Tokens.unknown`.

        Raises:
            PromptError: A prompt is not text.
        """
        ids = np.full((len(prompts), self.max_tokens), self._pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        cut: list[str] = []
        unknown: list[tuple[str, ...]] = []
        for row, prompt in enumerate(prompts):
            tokens, rest, strange = self._fit(prompt)
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            cut.append(rest)
            unknown.append(strange)
        return Tokens(ids, mask, tuple(cut), tuple(unknown))

    def words(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries for ids, for people to look at."""
        return [self._library.id_to_token(int(i)) or "?" for i in ids]

    def _fit(self, prompt: str) -> tuple[list[int], str, tuple[str, ...]]:
        """Ids with start and end around them, what did not fit, and what is not in the vocabulary."""
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt is a {type(prompt).__name__}, need text; pass a str")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"a prompt is not Unicode text ({error.reason} at {error.start}); decode it first"
            ) from None
        encoding = self._library.encode(prompt, add_special_tokens=False)
        room = self.max_tokens - 2
        rest = prompt[encoding.offsets[room][0] :].strip() if len(encoding.ids) > room else ""
        kept = list(zip(encoding.ids[:room], encoding.offsets, strict=False))
        strange = dict.fromkeys(prompt[begin:end] for index, (begin, end) in kept if index == self._unknown)
        return [self._start, *encoding.ids[:room], self._end], rest, tuple(strange)

    def _special(self, path: Path | str, token: str) -> int:
        index = self._library.token_to_id(token)
        if index is None:
            raise BundleError(
                f"{path}: has no token {token!r}, which {type(self).__name__} needs; is it another family's?"
            )
        return int(index)


class ClipTokenizer(Tokenizer):
    """CLIP's byte-pair encoding. It pads with the end token unless the file says otherwise (Stable Diffusion 2: id 0).

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
    """

    start = "<|startoftext|>"
    end = "<|endoftext|>"
    pad = "<|endoftext|>"


class BertTokenizer(Tokenizer):
    """BERT's WordPiece, for MiniLM and for Latent Diffusion's own text encoder.

    References:
        Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019
    """

    start = "[CLS]"
    end = "[SEP]"
    pad = "[PAD]"
    unknown = "[UNK]"


def open_tokenizer(family: str, path: Path | str, max_tokens: int) -> Tokenizer:
    """The tokenizer of a family, "clip" or "bert"."""
    match family:
        case "clip":
            return ClipTokenizer(path, max_tokens)
        case "bert":
            return BertTokenizer(path, max_tokens)
    raise ParameterError(f"no tokenizer family is named {family!r}; use 'clip' or 'bert'")
