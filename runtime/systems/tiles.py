"""Tiles: a network run over a large picture piece by piece, with the pieces blended where they overlap.

Latent Diffusion's own path (``split_input_params``) fails on latents smaller than a tile and leaves holes (0/0) where
the stride does not divide what is left. Here a tile is never larger than the picture, tiles are spread evenly with the
last one at the border, and weights are divided by their sum ahead of time, so every pixel is a convex mean of at least
one tile and constant tiles give a constant picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType

import numpy as np

from ...engines.binding import Array, Binding
from ...engines.engine import Engine
from ...engines.manifest import NetworkSpec
from ...engines.precision import Precision
from ...errors import ParameterError

__all__ = ["TiledEngine", "starts", "weights"]

_AXES = {"height": "height", "width": "width", "image_height": "height", "image_width": "width"}
"""Dimension -> axis of the latent grid that it follows."""


def starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Where tiles begin along an axis: evenly spread, the first at 0, the last ending at `length`.

    Arguments:
        length: Extent of the axis, 1 or more.
        tile: Extent of a tile; one longer than the axis is cut to it.
        overlap: Least extent that neighbours share, below `tile`.
    """
    if not 0 <= overlap < tile:
        raise ParameterError(f"tiles of {tile} cannot overlap by {overlap}; use 0 to {tile - 1}")
    if tile >= length:
        return (0,)
    count = math.ceil((length - tile) / (tile - overlap)) + 1
    return tuple(round(i * (length - tile) / (count - 1)) for i in range(count))


@lru_cache(maxsize=64)
def weights(length: int, tile: int, overlap: int, scale: int = 1) -> Array:
    """Blending weights along an axis, float32 (tiles, tile · scale), summing to 1 at every position.

    A tile's weight falls linearly over what it shares with its neighbours, and is above 0 everywhere.

    Arguments:
        length: Extent of the axis in latents.
        tile: Extent of a tile in latents.
        overlap: Least extent that neighbours share, in latents.
        scale: Positions to one latent.
    """
    begins = starts(length, tile, overlap)
    extent = min(tile, length) * scale
    ramp = np.minimum(np.arange(1, extent + 1), np.arange(extent, 0, -1)).astype(np.float64)
    ramp = np.minimum(ramp, max(1, overlap * scale))
    total = np.zeros(length * scale)
    for begin in begins:
        total[begin * scale : begin * scale + extent] += ramp
    table = np.stack([ramp / total[begin * scale : begin * scale + extent] for begin in begins]).astype(np.float32)
    table.flags.writeable = False
    return table


class TiledEngine:
    """An engine that runs another on tiles of its spatial inputs and blends its spatial outputs.

    Inputs and outputs whose dimensions are named height and width (latents) or image_height and image_width (pixels)
    are cut and joined; others pass whole. Where everything fits in one tile the inner engine is called as it is.

    Arguments:
        engine: The network.
        tile: Latents along a side of a tile.
        factor: Pixels to one latent.
        overlap: Least latents that neighbouring tiles share, below `tile`.
    """

    spec: NetworkSpec
    backend: str
    precision: Precision

    def __init__(self, engine: Engine, tile: int, *, factor: int = 1, overlap: int | None = None) -> None:
        if tile < 1:
            raise ParameterError(f"a tile is {tile} latents wide, need 1 or more; leave tile out for no tiles")
        self.spec, self.backend, self.precision = engine.spec, engine.backend, engine.precision
        self._engine = engine
        self._tile = tile
        self._factor = factor
        self._overlap = tile // 2 if overlap is None else overlap
        self._pieces: dict[str, Array] = {}
        self._joined: dict[str, Array] = {}
        if not 0 <= self._overlap < tile:
            raise ParameterError(f"tiles of {tile} latents cannot overlap by {self._overlap}; use 0 to {tile - 1}")

    def __call__(self, **feeds: Array) -> dict[str, Array]:
        """Run the network on every tile; see `Engine`."""
        grid = self._grid(feeds)
        if all(extent <= self._tile for extent in grid.values()):
            return self._engine(**feeds)
        begins = {axis: starts(extent, self._tile, self._overlap) for axis, extent in grid.items()}
        cut = {binding.name: binding for binding in self.spec.inputs if _spatial(binding)}
        tiles = [(i, j) for i in range(len(begins["height"])) for j in range(len(begins["width"]))]
        for i, j in tiles:
            at = {"height": begins["height"][i], "width": begins["width"][j]}
            pieces = dict(feeds)
            for name, binding in cut.items():
                pieces[name] = self._piece(name, feeds[name][self._window(binding, at, grid)])
            outputs = self._engine(**pieces)
            for binding in self.spec.outputs:
                self._join(binding, outputs[binding.name], (i, j), at, grid)
        return {binding.name: self._joined[binding.name] for binding in self.spec.outputs}

    def close(self) -> None:
        """Close the engine and drop the buffers."""
        self._pieces.clear()
        self._joined.clear()
        self._engine.close()

    def __enter__(self) -> TiledEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _grid(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """Height and width of the inputs in latents."""
        grid: dict[str, int] = {}
        for binding in self.spec.inputs:
            array = feeds.get(binding.name)
            if array is None or array.ndim != len(binding.shape):
                continue  # the inner engine says what is wrong
            for symbol, extent in zip(binding.shape, array.shape, strict=True):
                if symbol in _AXES:
                    grid[_AXES[str(symbol)]] = extent // self._scale(symbol)
        return grid

    def _scale(self, symbol: int | str) -> int:
        return self._factor if str(symbol).startswith("image_") else 1

    def _window(self, binding: Binding, at: Mapping[str, int], grid: Mapping[str, int]) -> tuple[slice, ...]:
        window = []
        for symbol in binding.shape:
            axis = _AXES.get(str(symbol))
            if axis is None:
                window.append(slice(None))
            else:
                scale = self._scale(symbol)
                window.append(slice(at[axis] * scale, (at[axis] + min(self._tile, grid[axis])) * scale))
        return tuple(window)

    def _piece(self, name: str, view: Array) -> Array:
        """A contiguous copy of a tile, in a buffer that is used again."""
        kept = self._pieces.get(name)
        if kept is None or kept.shape != view.shape:
            kept = self._pieces[name] = np.empty(view.shape, view.dtype)
        np.copyto(kept, view)
        return kept

    def _join(
        self, binding: Binding, tile: Array, index: tuple[int, int], at: Mapping[str, int], grid: Mapping[str, int]
    ) -> None:
        first = index == (0, 0)
        if not _spatial(binding):
            if first:
                self._joined[binding.name] = tile.copy()
            return
        shape = list(tile.shape)
        blend = np.ones((), dtype=np.float32)
        for position, symbol in enumerate(binding.shape):
            axis = _AXES.get(str(symbol))
            if axis is not None:
                scale = self._scale(symbol)
                shape[position] = grid[axis] * scale
                table = weights(grid[axis], self._tile, self._overlap, scale)
                row = table[index[0] if axis == "height" else index[1]]
                blend = blend * row.reshape([-1 if p == position else 1 for p in range(tile.ndim)])
        kept = self._joined.get(binding.name)
        if kept is None or kept.shape != tuple(shape):
            kept = self._joined[binding.name] = np.zeros(shape, tile.dtype)
        elif first:
            kept.fill(0)
        kept[self._window(binding, at, grid)] += tile * blend


def _spatial(binding: Binding) -> bool:
    return any(symbol in _AXES for symbol in binding.symbols)
