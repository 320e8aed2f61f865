"""The networks of cross-attention guidance: a UNet that shows its maps, and the gradient of a loss on them.

References:
    Parmar et al., "Zero-shot Image-to-Image Translation", 2023, https://arxiv.org/abs/2302.03027
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from ..engines.binding import Binding, Dimension
from ..errors import ExportError
from ..networks.losses import attention_map_loss
from ..networks.maps import record_maps, stop_recording
from .gradient import Objective, differentiate
from .network import Network

__all__ = ["AttentionObjective", "MapLayer", "attention_networks", "find_maps", "gradient_network", "maps_network"]


@dataclass(frozen=True)
class MapLayer:
    """A cross-attention layer.

    Arguments:
        heads: Its heads.
        factor: Its height and width are those of x divided by this.
    """

    heads: int
    factor: int

    @property
    def pixels(self) -> str:
        """Name of the dimension of its pixels."""
        return f"pixels_{self.factor}"


class _WithMaps(nn.Module):
    """A UNet that gives (prediction, maps …)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.recorder = record_maps(unet)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        self.recorder.take()
        prediction = self.unet(x, t, context)
        return prediction, *self.recorder.take()


class AttentionObjective(Objective):
    """(loss, prediction) of (x, t, context, reference maps …), the loss that of pix2pix-zero."""

    def __init__(self, unet: nn.Module, layers: int) -> None:
        super().__init__()
        self.unet, self.layers = unet, layers
        self.recorder = record_maps(unet)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        assert self.recorder is not None
        self.recorder.take()
        prediction = self.unet(*inputs[: -self.layers])
        return attention_map_loss(self.recorder.take(), inputs[-self.layers :]), prediction


def find_maps(unet: Network) -> tuple[MapLayer, ...]:
    """The cross-attention layers of the network ``unet`` in the order in which they run.

    Its module is built and run once at its smallest size.

    Raises:
        ExportError: It has none, or one whose pixels are not those of x divided by a whole factor along each side.
    """
    if not any(binding.name == "context" for binding in unet.inputs):
        raise ExportError(f"{unet.name}: has no context, so no cross-attention and no maps to guide with")
    module = unet.build().eval()
    sizes = unet.sizes(0)
    with torch.no_grad():
        _, *maps = _WithMaps(module)(*unet.example(module, sizes).values())
    stop_recording(module)  # it may be exported without its maps too
    if not maps:
        raise ExportError(f"{unet.name}: has no cross-attention, so there are no maps to guide with")
    height, width = sizes["height"], sizes["width"]
    layers = []
    for index, shape in enumerate(m.shape for m in maps):
        factor = math.isqrt(height * width // shape[2])
        if (height // factor) * (width // factor) != shape[2]:
            raise ExportError(f"{unet.name}: map {index} has {shape[2]} pixels, x has {height} times {width}")
        layers.append(MapLayer(shape[1], factor))
    return tuple(layers)


def maps_network(unet: Network, layers: Sequence[MapLayer], *, name: str = "unet_maps") -> Network:
    """The network ``unet_maps``: `unet` with the output ``map_NN`` for each of its layers.

    A map is float32 (batch, heads, pixels, tokens), softmax over tokens; the published code's (batch * heads, pixels,
    tokens) is its reshape.
    """
    return replace(
        unet,
        name=name,
        build=lambda: _WithMaps(unet.build()),
        outputs=(*unet.outputs, *_maps(layers, "map")),
        shares=unet.name,
        islands=True,  # as the gradient has, whose maps are compared with these
    )


def gradient_network(
    unet: Network, layers: Sequence[MapLayer], *, name: str = "unet_gradient", recompute: bool = False
) -> Network:
    """The network ``unet_gradient``: `unet` with inputs ``reference_NN`` and outputs ``loss`` and ``gradient``.

    ``loss`` is `losses.attention_map_loss`, ``gradient`` its derivative by x. The dimension ``pixels_F`` of a reference
    is (height / F) * (width / F).
    """
    factors = sorted({layer.factor for layer in layers})
    references = _maps(layers, "reference")
    more = replace(
        unet,
        inputs=references,
        dimensions={f"pixels_{f}": _pixels(unet.dimensions, f) for f in factors},
        samples={b.name: _probabilities for b in references},
        derived={f"pixels_{f}": _area(f) for f in factors},
    )
    count = len(layers)
    return differentiate(unet, lambda m: AttentionObjective(m, count), name=name, more=more, recompute=recompute)


def attention_networks(unet: Network, *, recompute: bool = False) -> tuple[Network, Network]:
    """`maps_network` and `gradient_network` of the network ``unet``, to be exported after it."""
    layers = find_maps(unet)
    return maps_network(unet, layers), gradient_network(unet, layers, recompute=recompute)


def _maps(layers: Sequence[MapLayer], stem: str) -> tuple[Binding, ...]:
    return tuple(
        Binding(f"{stem}_{i:02}", "float32", ("batch", layer.heads, layer.pixels, "tokens"))
        for i, layer in enumerate(layers)
    )


def _pixels(dimensions: Mapping[str, Dimension], factor: int) -> Dimension:
    height, width = dimensions["height"], dimensions["width"]
    ends = [getattr(height, end) * getattr(width, end) // factor**2 for end in ("min", "opt", "max")]
    return Dimension(*(max(1, end) for end in ends))


def _area(factor: int) -> Callable[[Mapping[str, int]], int]:
    return lambda sizes: (sizes["height"] // factor) * (sizes["width"] // factor)


def _probabilities(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator).softmax(-1)
