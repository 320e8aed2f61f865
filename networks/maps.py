"""Attention maps: what cross-attention looked at, taken while a network runs.

Maps are collected in a plain object beside the network and not in one of its attributes: torch.export re-creates
the lists that modules hold, so that a list of a module would stay empty while it is traced.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["CROSS_ATTENTION", "MapRecorder", "record_maps", "stop_recording"]

CROSS_ATTENTION = "attn2"
"""Name of a transformer block's cross-attention, here, in CompVis' code and in diffusers."""


class MapRecorder:
    """Maps in the order in which the layers ran, each softmax probabilities (B, heads, height * width, tokens).

    Attributes:
        items: Those of the calls since the last `take`.
    """

    def __init__(self) -> None:
        self.items: list[Tensor] = []

    def __call__(self, probabilities: Tensor) -> None:
        self.items.append(probabilities)

    def take(self, since: int = 0) -> tuple[Tensor, ...]:
        """The maps recorded after the first `since`, which are forgotten."""
        taken = tuple(self.items[since:])
        del self.items[since:]
        return taken


def record_maps(module: nn.Module) -> MapRecorder:
    """Let every cross-attention of a UNet record its maps.

    A layer named `CROSS_ATTENTION` has, or has a ``processor`` that has, the attribute ``recorder``: so do
    `transformer.CrossAttention` and diffusers' layers after ``write_out_attention``.

    Returns:
        The recorder; empty after a call if the UNet has no cross-attention.
    """
    recorder = MapRecorder()
    for name, holder in _holders(module):
        if not hasattr(holder, "recorder"):
            raise TypeError(f"{name} ({type(holder).__name__}) cannot record its maps; write its attention out")
        holder.recorder = recorder
    return recorder


def stop_recording(module: nn.Module) -> None:
    """Let no cross-attention of a UNet record its maps."""
    for _, holder in _holders(module):
        holder.recorder = None


def _holders(module: nn.Module) -> list[tuple[str, Any]]:
    named = [(n, part) for n, part in module.named_modules() if n.rpartition(".")[2] == CROSS_ATTENTION]
    return [(name, getattr(part, "processor", part)) for name, part in named]
