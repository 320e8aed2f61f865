"""Condition stages against the official code's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.errors import ParameterError
from sfumato.networks.bert import BERTConfig, BERTEmbedder
from sfumato.networks.checkpoint import build
from sfumato.networks.conditioners import ClassEmbedder, SpatialRescaler


@pytest.fixture(scope="module")
def weights(goldens):
    return lambda name: {k: torch.from_numpy(v) for k, v in goldens(f"ldm_cond_{name}_weights.npz").items()}


def _close(result: torch.Tensor, reference: np.ndarray) -> None:
    np.testing.assert_allclose(result.numpy(), reference, rtol=0, atol=2e-5 * np.abs(reference).max())


def test_the_class_embedder_gives_one_token_a_label(goldens, weights) -> None:
    io = goldens("ldm_cond_io.npz")
    module = build(lambda: ClassEmbedder(11, 24), weights("class"), "it")
    _close(module(torch.from_numpy(io["labels"])), io["class_out"])


def test_the_bert_embedder_is_the_official_one(goldens, weights) -> None:
    io = goldens("ldm_cond_io.npz")
    config = BERTConfig(n_embed=32, n_layer=2, vocab_size=50, max_seq_len=12)
    module = build(lambda: BERTEmbedder(config), weights("bert"), "it", ignore=BERTEmbedder.IGNORED)
    _close(module(torch.from_numpy(io["tokens"])), io["bert_out"])


def test_the_rescaler_halves_and_maps(goldens, weights) -> None:
    io = goldens("ldm_cond_io.npz")
    for method in ("bilinear", "area"):
        module = build(lambda m=method: SpatialRescaler(2, 7, 3, method=m), weights("rescaler"), "it")
        _close(module(torch.from_numpy(io["seg"])), io["rescaled"])


def test_halving_bilinearly_is_the_mean_of_four() -> None:
    x = torch.randn(1, 2, 8, 6)
    expected = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear")
    torch.testing.assert_close(SpatialRescaler(1, 2)(x), expected)
    expected = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="nearest")
    torch.testing.assert_close(SpatialRescaler(1, 2, method="nearest")(x), expected)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ParameterError, match="method 'cubic'"):
        SpatialRescaler(1, 2, method="cubic")  # type: ignore[arg-type]
