"""States by a packed encoder: batched, cut and kept as the UNet's training wants them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from sfumato.runtime.tokenizer import Tokens
from sfumato.training.text_states import states


class Encoder:
    """Gives each token its id plus its mask, and owns what it returns, as engines do."""

    def __init__(self) -> None:
        self.calls = list[tuple[int, ...]]()
        self.buffer = np.zeros((4, 3, 2), np.float32)

    def __call__(self, *, input_ids, attention_mask):
        self.calls.append(input_ids.shape)
        self.buffer[...] = (input_ids + attention_mask)[..., None]
        return {"context": self.buffer}


def tokenize(texts):
    ids = np.array([[len(text), 7, 0] for text in texts], dtype=np.int64)
    return Tokens(ids, (ids > 0).astype(np.int64), ("",) * len(texts))


def test_states_keep_their_order_and_every_call_has_one_shape():
    engine = Encoder()
    texts = ["x" * n for n in range(1, 11)]
    result = states(engine, tokenize, texts, batch=4)
    assert engine.calls == [(4, 3)] * 3
    assert (result.shape, result.dtype) == ((10, 3, 2), np.float16)
    np.testing.assert_array_equal(result[:, 0, 0], np.arange(1, 11) + 1)
    np.testing.assert_array_equal(result[:, 2], 0)


def test_padding_is_told_to_the_encoder():
    seen = SimpleNamespace(mask=None)

    def engine(*, input_ids, attention_mask):
        seen.mask = attention_mask
        return {"context": np.zeros((*input_ids.shape, 2), np.float32)}

    states(engine, tokenize, ["a"], batch=2)
    assert seen.mask.tolist() == [[1, 1, 0], [1, 1, 0]]
