"""A whole cold-diffusion bundle of a few hundred weights, written without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper
from tiny_ldm import network

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.manifest import Manifest
from sfumato.runtime.degradations import DegradationSpec
from sfumato.runtime.systems.cold_settings import ColdDiffusionSettings, Generation

SIDE = Dimension(4, 16, 64, 4)
SHAPE = ("batch", 3, "height", "width")


def write(out: Path, degradation: DegradationSpec, generation: Generation | None = None) -> Bundle:
    """A bundle for 16x16 pictures: the network sharpens by a 3x3 kernel and darkens with t."""
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    for channel in range(3):
        kernel[channel, channel] = np.array([[0, -0.2, 0], [-0.2, 1.8, -0.2], [0, -0.2, 0]])
    kernel += np.random.default_rng(2).normal(0, 0.01, kernel.shape).astype(np.float32)
    settings = ColdDiffusionSettings(degradation, 3, (16, 16), 4, generation=generation)
    with BundleWriter(out) as writer:
        restorer = network(
            writer,
            "restorer",
            [Binding("x", "float32", SHAPE), Binding("t", "float32", ("batch",))],
            [Binding("x0", "float32", SHAPE)],
            {"batch": Dimension(1, 2, 16), "height": SIDE, "width": SIDE},
            [
                helper.make_node("Conv", ["x", "kernel"], ["h"], pads=[1, 1, 1, 1]),
                helper.make_node("Mul", ["t", "small"], ["t1"]),
                helper.make_node("Reshape", ["t1", "column"], ["t4"]),
                helper.make_node("Add", ["h", "t4"], ["x0"]),
            ],
            {"kernel": kernel, "small": np.array(-1e-3, np.float32), "column": np.array([-1, 1, 1, 1])},
            {
                "x": np.random.default_rng(3).standard_normal((2, 3, 16, 16)).astype(np.float32),
                "t": np.array([0, 3], np.float32),
            },
        )
        manifest = Manifest(
            "cold-diffusion", out.name, "CC0-1.0", {"tests": "1"}, {"restorer": restorer}, settings=settings.to_json()
        )
        return writer.commit(manifest)
