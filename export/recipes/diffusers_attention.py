"""Diffusers' attention written out as MatMul, Softmax, MatMul, for engines and for gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...errors import ExportError
from ...networks.layers import attention_map
from ...networks.maps import MapRecorder

__all__ = ["ExplicitAttention", "write_out_attention"]


class ExplicitAttention:
    """An attention processor of diffusers over (B, heads, tokens, dim), for maps (B, C, H, W) and sequences alike.

    Attributes:
        recorder: Takes the probabilities of every call, if there is one; see `networks.maps.record_maps`.
    """

    recorder: MapRecorder | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        if attention_mask is not None or attn.spatial_norm is not None or attn.norm_q is not None:
            raise ExportError(
                "attention has a mask, a spatial norm or a query norm, latent diffusion's has none; "
                "export a model of Latent or Stable Diffusion"
            )
        x = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
        h = x if attn.group_norm is None else attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        context = h if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(source).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, source in ((attn.to_q, h), (attn.to_k, context), (attn.to_v, context))
        )
        probabilities = attention_map(q, k, scale=attn.scale)
        if self.recorder is not None:
            self.recorder(probabilities)
        h = attn.to_out[0]((probabilities.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        if hidden_states.ndim == 4:
            h = h.transpose(1, 2).reshape(hidden_states.shape)
        h = h + hidden_states if attn.residual_connection else h
        return h if attn.rescale_output_factor == 1 else h / attn.rescale_output_factor


def write_out_attention(module: nn.Module) -> None:
    """Give every attention of a diffusers module the explicit processor."""
    from diffusers.models.attention_processor import Attention

    for part in module.modules():
        if isinstance(part, Attention):
            part.set_processor(ExplicitAttention())  # type: ignore[arg-type]
