"""A network on its way into a bundle: a torch module, its bindings, and inputs to try it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Generator, Tensor, nn

from ..engines.binding import Binding, Dimension, resolve

__all__ = ["Network", "Sample", "codes", "image", "integers", "mask", "normal", "timesteps"]

Sample: TypeAlias = "Callable[[tuple[int, ...], Generator], Tensor]"
"""Draws an input of this shape: (shape, generator) -> tensor of the binding's type."""


def normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Standard normal values."""
    return torch.randn(shape, generator=generator)


def image(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform values in [-1, 1], the range of a picture."""
    return torch.rand(shape, generator=generator) * 2 - 1


def timesteps(steps: int) -> Sample:
    """Whole timesteps in [0, steps) as float32."""
    return lambda shape, generator: torch.randint(0, steps, shape, generator=generator).float()


def integers(stop: int) -> Sample:
    """int64 in [0, stop): labels, token ids."""
    return lambda shape, generator: torch.randint(0, stop, shape, generator=generator)


def mask(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """int64 attention mask: row i hides its last i tokens, the first token always attends."""
    rows, tokens = shape
    keep = (tokens - torch.arange(rows)[:, None]).clamp(min=1)
    return (torch.arange(tokens)[None] < keep).long()


def codes(table: Tensor) -> Sample:
    """Latents (B, C, h, w) whose pixels are rows of a codebook (K, C), so that quantising them is no close call."""

    def draw(shape: tuple[int, ...], generator: Generator) -> Tensor:
        batch, _, height, width = shape
        rows = table[torch.randint(0, len(table), (batch, height, width), generator=generator)]
        return rows.permute(0, 3, 1, 2).contiguous()

    return draw


@dataclass(frozen=True)
class Network:
    """What `export_network` makes a graph of.

    Arguments:
        name: Its name in the bundle, e.g. "unet".
        build: Gives the torch module in float32 whose `forward` takes the inputs in order and returns the
            outputs in order. Called once, when its turn comes, so that one network is in memory at a time.
        inputs: Bindings it takes; batch is axis 0.
        outputs: Bindings it gives.
        dimensions: Range of every symbolic dimension.
        samples: How to draw an input; by default normal values, which integer inputs cannot use.
        sample_from: Like `samples`, from the module, for inputs that depend on its weights.
        weights: "int8" stores the rows of tables and linear weights in 8 bits; None stores as the bundle does.
        derived: Dimensions whose extent follows from that of others, by name, e.g. pixels from height and width.
        shares: A network exported before this one; weights that it has stored are read from its file.
        islands: Engines that compute in lower precision keep everything but products in float32, see `engines.islands`.
        variants: Of `sizes`, which are checked; the first is stored as the reference.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    dimensions: Mapping[str, Dimension]
    samples: Mapping[str, Sample] = field(default_factory=dict)
    sample_from: Callable[[nn.Module], Mapping[str, Sample]] | None = None
    weights: str | None = None
    derived: Mapping[str, Callable[[Mapping[str, int]], int]] = field(default_factory=dict)
    shares: str | None = None
    islands: bool = False
    variants: tuple[int, ...] = (1,)

    def sizes(self, variant: int) -> dict[str, int]:
        """Small extents for every dimension; variant 0 is traced, variant 1 checked: all others, if they can be."""
        result = {}
        free = [(name, d) for name, d in self.dimensions.items() if name not in self.derived]
        for index, (name, d) in enumerate(free):
            extent = _extent(d, index, variant)
            # Where there is no room for a larger one, the second is the smallest.
            result[name] = d.min if variant % 2 and extent == _extent(d, index, 0) else extent
        return result | {name: extent(result) for name, extent in self.derived.items()}

    def example(self, module: nn.Module, sizes: Mapping[str, int], *, seed: int = 0) -> dict[str, Tensor]:
        """Inputs of these extents, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        samples = {**self.samples, **(self.sample_from(module) if self.sample_from else {})}
        return {b.name: samples.get(b.name, normal)(resolve(b, sizes), generator) for b in self.inputs}


def _extent(d: Dimension, index: int, variant: int) -> int:
    """A small extent of a dimension; neighbouring ones differ, so that height and width cannot be mistaken."""
    units = 2 + (index % 3 + variant) % 3
    smallest = -(-max(d.min, 2) // d.multiple)
    return min(max(units, smallest + variant) * d.multiple, d.max)
