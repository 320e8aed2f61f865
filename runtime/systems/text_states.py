"""Text states: prompts as the UNet's cross-attention takes them, one or thousands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...engines.binding import Array
from ...engines.engine import Engine, check_finite
from ...errors import DirectionError, ParameterError
from ..direction import Direction, between, mean_states
from ..tokenizer import Tokenizer, shortened

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
        return np.concatenate(rows), tuple(tokens.notes)

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

        Raises:
            DirectionError: There is nothing to average, or the states are another encoder's.
            ParameterError: A side is neither sentences nor states.
        """
        sides = (source, target)
        for side in sides:  # before a sentence is encoded
            _check(side)
        total = sum(0 if isinstance(side, np.ndarray) else len(side) for side in sides)
        done = 0
        means, counts = [], []
        for side in sides:
            counts.append(len(side))
            if isinstance(side, np.ndarray):
                means.append(side)  # averaged by `between`, in float64
                continue

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


def _check(side: Any) -> None:
    """Raise unless `side` is a list of sentences, or a stack of states."""
    if isinstance(side, np.ndarray):
        if side.ndim != 3 or not side.size or side.dtype.kind != "f":
            raise DirectionError(
                f"saved states are {side.dtype} {side.shape}, need float (n, tokens, width) of one sentence or more; "
                "save them again"
            )
    elif isinstance(side, str):
        raise ParameterError(f"sentences are the text {shortened(side)!r}, need a list of texts; pass it in a list")
    elif not isinstance(side, Sequence):
        raise ParameterError(
            f"a side of a direction is of type {type(side).__name__}, need sentences or states; "
            "pass a list of texts, or a NumPy array (n, tokens, width)"
        )
    elif not side:
        raise DirectionError("a side of a direction has no sentence to average; pass one or more")
