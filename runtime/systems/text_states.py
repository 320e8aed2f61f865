"""Text states: prompts as the UNet's cross-attention takes them, one or thousands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...engines.binding import Array
from ...engines.engine import Engine, check_finite
from ...errors import ParameterError
from ..direction import Direction, between, mean_states
from ..tokenizer import Tokenizer

__all__ = ["TextStates"]

_BATCH = 16
"""Sentences encoded at once; more is no faster on a processor and takes memory."""


class TextStates:
    """The bundle's text encoder.

    Arguments:
        engine: The network ``text_encoder``.
        tokenizer: The bundle's.
        digest: What the encoder is known by in directions.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, digest: str = "") -> None:
        self.digest = digest
        self._engine, self._tokenizer = engine, tokenizer
        self._masked = any(binding.name == "attention_mask" for binding in engine.spec.inputs)
        batch = engine.spec.dimensions.get("batch")
        self._batch = _BATCH if batch is None else min(_BATCH, batch.max)

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and width."""
        return self._tokenizer.max_tokens, int(self._engine.spec.outputs[0].shape[-1])

    def prompts(self, texts: Sequence[str]) -> tuple[Array, tuple[str, ...]]:
        """States of a few prompts, float32 (N, tokens, D), and what was done other than asked.

        One a call, so that only one shape is ever compiled.

        Raises:
            PromptError: A prompt is not text.
            NonFiniteError: The encoder made NaN or infinity.
        """
        tokens = self._tokenizer(texts)
        rows = [self._encode(tokens.ids[i : i + 1], tokens.mask[i : i + 1]).copy() for i in range(len(texts))]
        limit = self._tokenizer.max_tokens
        notes = tuple(
            f"a prompt has more than the {limit} tokens that the bundle takes; cut off: {rest!r}"
            for rest in tokens.cut
            if rest
        )
        return np.concatenate(rows), notes

    def direction(
        self,
        source: Sequence[str] | Array,
        target: Sequence[str] | Array,
        *,
        labels: tuple[str, str] = ("", ""),
        on_progress: Callable[[int, int], Any] | None = None,
    ) -> Direction:
        """The direction between two lists of sentences, or between states that were saved of them.

        Arguments:
            source: Sentences, or states float32 (n, tokens, D).
            target: Likewise.
            labels: Names of both, for people.
            on_progress: Told (sentences done, sentences in all).
        """
        sides = (source, target)
        total = sum(0 if isinstance(side, np.ndarray) else len(side) for side in sides)
        done = 0
        means, counts = [], []
        for side in sides:
            counts.append(len(side))
            if isinstance(side, np.ndarray):
                means.append(side.mean(axis=0, keepdims=True))
                continue
            if isinstance(side, str):
                raise ParameterError(f"sentences are the text {side!r}, need a list of texts; pass [{side!r}]")

            def say(count: int, before: int = done) -> None:
                if on_progress is not None:
                    on_progress(before + count, total)

            means.append(mean_states(self._sentences, side, batch=self._batch, on_progress=say))
            done += len(side)
        direction = between(*means, labels=labels, encoder=self.digest, sentences=(int(counts[0]), int(counts[1])))
        direction.fit(self.shape, self.digest)
        return direction

    def _sentences(self, texts: list[str]) -> Array:
        tokens = self._tokenizer(texts)
        return self._encode(tokens.ids, tokens.mask)

    def _encode(self, ids: Array, mask: Array) -> Array:
        feeds = {"input_ids": ids}
        if self._masked:
            feeds["attention_mask"] = mask
        context = self._engine(**feeds)["context"]
        check_finite("text_encoder", None, context=context)
        return context
