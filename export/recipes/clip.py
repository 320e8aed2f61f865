"""CLIP's text encoder as a network of token features, from CompVis checkpoints and transformers folders.

References:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    https://arxiv.org/abs/2103.00020
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ...networks.checkpoint import build
from ..network import Network
from . import parts
from .text import HIDDEN

__all__ = ["ClipTokens", "clip_config", "clip_text_encoder"]


class ClipTokens(nn.Module):
    """Last hidden states of a transformers ``CLIPTextModel`` after its final norm, the causal mask written out.

    input_ids int64 (batch, tokens) -> (batch, tokens, hidden). Padding attends like any token, as in Stable Diffusion.
    """

    causal: Tensor

    def __init__(self, config: Any) -> None:
        from transformers import CLIPTextModel

        super().__init__()
        model = cast(Any, CLIPTextModel(config))
        self.clip = getattr(model, "text_model", model)  # transformers 4 keeps the layers one level down
        self.clip.embeddings._buffers.clear()
        tokens = int(config.max_position_embeddings)
        with torch.device("cpu"):
            above = torch.full((tokens, tokens), HIDDEN).triu(1)
        self.register_buffer("causal", above, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        tokens, table = input_ids.shape[1], self.clip.embeddings
        h = table.token_embedding(input_ids) + table.position_embedding.weight[:tokens]
        mask = self.causal[:tokens, :tokens][None, None]
        for layer in self.clip.encoder.layers:
            result = layer(h, mask)
            h = result[0] if isinstance(result, tuple) else result
        return self.clip.final_layer_norm(h)


def clip_config(state: Mapping[str, Tensor], what: str) -> Any:
    """The ``CLIPTextConfig`` of weights under ``text_model.*``; heads are 64 wide in all published models.

    Raises:
        CheckpointError: The keys are not CLIP's.
    """
    from transformers import CLIPTextConfig

    table = state.get("text_model.embeddings.token_embedding.weight")
    position = state.get("text_model.embeddings.position_embedding.weight")
    inner = state.get("text_model.encoder.layers.0.mlp.fc1.weight")
    if table is None or position is None or inner is None:
        raise CheckpointError(f"{what}: is not CLIP's text model; pass the model as a folder saved by diffusers")
    layers = {key.split(".")[3] for key in state if key.startswith("text_model.encoder.layers.")}
    width = int(table.shape[1])
    config = CLIPTextConfig(
        vocab_size=int(table.shape[0]),
        hidden_size=width,
        intermediate_size=int(inner.shape[0]),
        num_hidden_layers=len(layers),
        num_attention_heads=width // 64,
        max_position_embeddings=int(position.shape[0]),
        hidden_act="quick_gelu",
        bos_token_id=0,
        eos_token_id=2,
    )
    return config


def clip_text_encoder(config: Any, state: Mapping[str, Tensor], what: str) -> Network:
    """The network ``text_encoder`` of CLIP weights.

    Arguments:
        config: Its ``CLIPTextConfig``.
        state: Weights, with or without ``text_model.`` before their names.
        what: Whose they are, for messages.
    """
    config._attn_implementation = "eager"
    weights = {f"clip.{key.removeprefix('text_model.')}": value for key, value in state.items()}
    ignore = (r".*position_ids$", r"clip\.text_projection\.", r"clip\.logit_scale$")

    def load() -> nn.Module:
        return build(lambda: ClipTokens(config), weights, what, ignore=ignore)

    return parts.text_encoder(load, config.vocab_size, config.hidden_size, config.max_position_embeddings)
