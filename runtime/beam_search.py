"""Beam search over a language model that is a function of tokens, as transformers does it by default.

References:
    Lowerre, "The HARPY Speech Recognition System", 1976; Wu et al., "Google's Neural Machine Translation System", 2016,
    section 7 (scores by length), https://arxiv.org/abs/1609.08144
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError

__all__ = ["beam_search", "greedy"]


def greedy(
    logits: Callable[[Array], Array], start: Sequence[int], *, end: int, min_length: int = 0, max_length: int
) -> list[int]:
    """Tokens after `start`, each the likeliest; `end` included where it was reached.

    Arguments:
        logits: Tokens int64 (1, n) -> float (1, vocabulary) of the next.
        start: Tokens to go on from.
        end: The token that ends.
        min_length: Tokens before `end` may come, those of `start` included.
        max_length: Tokens at most, those of `start` included.
    """
    tokens = list(start)
    while len(tokens) < max_length:
        scores = np.array(logits(np.array([tokens], dtype=np.int64))[0])
        if len(tokens) < min_length:
            scores[end] = -np.inf
        tokens.append(int(scores.argmax()))
        if tokens[-1] == end:
            break
    return tokens[len(start) :]


def beam_search(
    logits: Callable[[Array], Array],
    start: Sequence[int],
    *,
    end: int,
    beams: int = 3,
    min_length: int = 0,
    max_length: int,
) -> list[int]:
    """Tokens after `start` of the greatest mean log-probability among those found; `end` included where it was reached.

    At each length the 2 `beams` best continuations of all beams are looked at. Those of the first half that end are
    finished, scored by their mean; the best of those that do not end go on. It stops when no running beam is better
    than the worst of `beams` finished ones.

    Arguments:
        logits: Tokens int64 (rows, n) -> float (rows, vocabulary) of the next; rows is 1 first, then `beams`.
        beams: Sequences to keep; with 1 use `greedy`.

    The others as `greedy`.
    """
    if beams < 2 or max_length <= len(start) or not start:
        raise ParameterError(
            f"beam search has {beams} beams, {len(start)} tokens to start from and at most {max_length}; "
            "need 2 or more beams, 1 or more tokens, and room for more"
        )
    running: list[tuple[float, list[int]]] = [(0.0, list(start))]
    finished: list[tuple[float, list[int]]] = []
    while running:
        length = len(running[0][1])
        table = _log_softmax(np.asarray(logits(np.array([tokens for _, tokens in running], dtype=np.int64))))
        if length < min_length:
            table[:, end] = -np.inf
        totals = (table + np.array([score for score, _ in running])[:, None]).ravel()
        best = np.argsort(-totals, kind="stable")[: 2 * beams]
        made = length + 1 - len(start)
        following: list[tuple[float, list[int]]] = []
        for rank, index in enumerate(best):
            beam, token = divmod(int(index), table.shape[1])
            tokens = [*running[beam][1], token]
            if token != end and length + 1 < max_length:
                following.append((float(totals[index]), tokens))
            elif rank < beams:
                finished.append((float(totals[index]) / made, tokens))
        finished = sorted(finished, key=lambda pair: -pair[0])[:beams]
        running = following[:beams]
        if running and len(finished) == beams and running[0][0] / made <= finished[-1][0]:
            break
    return finished[0][1][len(start) :]


def _log_softmax(scores: Array) -> Array:
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
