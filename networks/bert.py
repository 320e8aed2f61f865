"""BERTEmbedder, the transformer encoder of latent diffusion's text and layout conditions.

Trained from scratch with the UNet; of BERT it has the tokenizer alone. The key names are those of x-transformers'
``TransformerWrapper`` under ``transformer.*``: layer 2i is attention, layer 2i+1 a feed-forward, each a pair of
norm and block.

References:
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, https://arxiv.org/abs/2112.10752.
    github.com/lucidrains/x-transformers (the version of 2021: pre-norm, absolute positions, exact GELU).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from .layers import attention

__all__ = ["BERTConfig", "BERTEmbedder"]


@dataclass(frozen=True)
class BERTConfig:
    """Sizes of the encoder; the published models have 32 or 16 layers of width 1280, 640 or 512."""

    n_embed: int
    n_layer: int
    vocab_size: int = 30522
    max_seq_len: int = 77
    heads: int = 8
    dim_head: int = 64


class _Attention(nn.Module):
    """Multi-head self-attention of every token over all, padding included."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * dim_head
        self.scale = dim_head**-0.5
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU()), nn.Dropout(0.0), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Layers(nn.Module):
    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        dim = config.n_embed
        self.layers = nn.ModuleList()
        for _ in range(config.n_layer):
            for block in (_Attention(dim, config.heads, config.dim_head), _FeedForward(dim)):
                self.layers.append(nn.ModuleList([nn.LayerNorm(dim), block]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            norm, block = cast("Iterable[nn.Module]", layer)
            x = block(norm(x)) + x
        return x


class _Positions(nn.Module):
    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(tokens, dim)


class _Transformer(nn.Module):
    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(config.vocab_size, config.n_embed)
        self.pos_emb = _Positions(config.max_seq_len, config.n_embed)
        self.attn_layers = _Layers(config)
        self.norm = nn.LayerNorm(config.n_embed)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.token_emb(tokens) + self.pos_emb.emb.weight[: tokens.shape[1]]
        return self.norm(self.attn_layers(h))


class BERTEmbedder(nn.Module):
    """Token ids int64 (B, T) -> condition tokens (B, T, n_embed), T <= max_seq_len.

    There is no mask: padding attends and is attended to, as in training. The original's ``transformer.to_logits``
    plays no part and is left out.
    """

    IGNORED = (r"transformer\.to_logits\.", r"tknz_fn\.")

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = _Transformer(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.transformer(input_ids)
