"""Tiles cover, sum to one, and leave what is local as it is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.manifest import NetworkSpec
from sfumato.errors import ParameterError
from sfumato.runtime.systems.tiles import TiledEngine, starts, weights


def spec(factor_in: bool = False, factor_out: bool = False) -> NetworkSpec:
    def axes(large: bool) -> tuple[int | str, ...]:
        return ("batch", 3, *(("image_height", "image_width") if large else ("height", "width")))

    names = {symbol for large in (factor_in, factor_out) for symbol in axes(large)[2:]} | {"batch"}
    return NetworkSpec(
        "net",
        "net.onnx",
        (),
        (Binding("x", "float32", axes(factor_in)), Binding("t", "float32", ("batch",))),
        (Binding("y", "float32", axes(factor_out)), Binding("mean", "float32", ("batch",))),
        {name: Dimension(1, 8, 1024) for name in names},
    )


class Local:
    """y = 2 x + t, at a scale of 1, 2 or 1/2: local, so tiles must not show."""

    backend, precision = "fake", "fp32"

    def __init__(self, scale: float = 1.0) -> None:
        self.spec = spec(factor_in=scale < 1, factor_out=scale > 1)
        self.scale = scale
        self.shapes: list[tuple[int, ...]] = []
        self.closed = False

    def __call__(self, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        x, t = feeds["x"], feeds["t"]
        assert x.flags.c_contiguous
        self.shapes.append(x.shape)
        y = 2 * x + t[:, None, None, None]
        if self.scale > 1:
            y = y.repeat(2, axis=2).repeat(2, axis=3)
        if self.scale < 1:
            y = np.ascontiguousarray(y[..., ::2, ::2])
        return {"y": y, "mean": t.copy()}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), list(itertools.product((1, 3, 8, 9, 15, 16, 17, 100), (1, 4, 8), (0, 1, 3)))
)
def test_tiles_cover_the_axis_and_weigh_one(length: int, tile: int, overlap: int) -> None:
    if overlap >= tile:
        with pytest.raises(ParameterError, match="cannot overlap"):
            starts(length, tile, overlap)
        return
    begins = starts(length, tile, overlap)
    extent = min(tile, length)
    assert begins[0] == 0 and begins[-1] == length - extent and list(begins) == sorted(set(begins))
    assert all(b - a <= tile - overlap for a, b in itertools.pairwise(begins))
    for scale in (1, 2):
        table = weights(length, tile, overlap, scale)
        total = np.zeros(length * scale)
        for begin, row in zip(begins, table, strict=True):
            assert (row > 0).all()
            total[begin * scale : (begin + extent) * scale] += row
        np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (8, 20), (21, 13), (64, 9)])
def test_a_local_network_does_not_show_its_tiles(scale: float, shape: tuple[int, int]) -> None:
    inner = Local(scale)
    engine = TiledEngine(inner, 8, factor=2, overlap=3)
    grow = 2 if scale < 1 else 1
    for seed in range(2):  # twice: the buffers are used again
        x = np.random.default_rng(seed).normal(size=(2, 3, shape[0] * grow, shape[1] * grow)).astype(np.float32)
        t = np.array([1, 2], np.float32)
        got = engine(x=x, t=t)
        expected = Local(scale)(x=x, t=t)
        np.testing.assert_allclose(got["y"], expected["y"], atol=2e-6)
        assert np.array_equal(got["mean"], t)
    assert len({s[2:] for s in inner.shapes}) == 1, "every tile has one shape, so one is compiled"
    if max(shape) <= 8:
        assert len(inner.shapes) == 2


def test_a_constant_field_stays_constant() -> None:
    class Constant(Local):
        def __call__(self, **feeds: np.ndarray) -> dict[str, np.ndarray]:
            return {"y": np.full_like(feeds["x"], 0.7), "mean": feeds["t"].copy()}

    got = TiledEngine(Constant(), 4)(x=np.zeros((1, 3, 13, 11), np.float32), t=np.zeros(1, np.float32))["y"]
    np.testing.assert_allclose(got, np.float32(0.7), rtol=3e-7)
    assert np.isfinite(got).all()


def test_tiles_are_checked_and_closed() -> None:
    bad: list[dict[str, Any]] = [{"tile": 0}, {"tile": 4, "overlap": 4}, {"tile": 4, "overlap": -1}]
    for options in bad:
        with pytest.raises(ParameterError):
            TiledEngine(Local(), **options)
    inner = Local()
    with TiledEngine(inner, 4) as engine:
        assert engine.backend == "fake"
    assert inner.closed
