"""The tiny bundle with the network ``step``, written without torch: its UNet of three terms, guidance, the update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tiny_ldm import TOKENS, WIDTH, network

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import Bundle, BundleWriter


def _nodes() -> list[Any]:
    """The UNet on (passes, batch) as rows, then the sum over passes and the update."""
    return [
        helper.make_node("Shape", ["guidance"], ["passes"]),
        helper.make_node("Concat", ["passes", "ones4"], ["many"], axis=0),
        helper.make_node("Unsqueeze", ["x", "zero"], ["x5"]),
        helper.make_node("Expand", ["x5", "many"], ["copies"]),
        helper.make_node("Shape", ["x"], ["picture"], start=1),
        helper.make_node("Concat", ["minus", "picture"], ["rows"], axis=0),
        helper.make_node("Reshape", ["copies", "rows"], ["r"]),
        helper.make_node("Conv", ["r", "kernel"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["context", "last"], ["c"], keepdims=0),
        helper.make_node("Reshape", ["c", "column"], ["c4"]),
        helper.make_node("Mul", ["t", "small"], ["t1"]),
        helper.make_node("Add", ["h", "c4"], ["hc"]),
        helper.make_node("Add", ["hc", "t1"], ["outputs"]),
        helper.make_node("Shape", ["x5"], ["shape"], start=1),
        helper.make_node("Concat", ["passes", "shape"], ["split"], axis=0),
        helper.make_node("Reshape", ["outputs", "split"], ["o"]),
        helper.make_node("Gather", ["o", "first"], ["o0"], axis=0),
        helper.make_node("Sub", ["o", "o0"], ["off"]),
        helper.make_node("Reshape", ["guidance", "five"], ["g"]),
        helper.make_node("Mul", ["g", "off"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled", "zero"], ["led"], keepdims=0),
        helper.make_node("Add", ["o0", "led"], ["prediction"]),
        helper.make_node("Split", ["weights"], ["a", "b"], num_outputs=2),
        helper.make_node("Mul", ["x", "a"], ["ax"]),
        helper.make_node("Mul", ["prediction", "b"], ["bo"]),
        helper.make_node("Add", ["ax", "bo"], ["linear"]),
        helper.make_node("Add", ["linear", "term"], ["x_s"]),
    ]


def write(source: Path, out: Path, *, prediction: str = "eps") -> Bundle:
    """Copy the tiny bundle `source`, say that its UNet predicts `prediction`, and add ``step``."""
    bundle = Bundle.open(source)
    rng = np.random.default_rng(7)
    unet = onnx.load(str(bundle.file("unet.onnx")))
    stored = {t.name: numpy_helper.to_array(t) for t in unet.graph.initializer}
    constants = {
        "kernel": stored["kernel"],
        "small": stored["small"],
        "column": np.array([-1, 1, 1, 1]),
        "five": np.array([-1, 1, 1, 1, 1]),
        "ones4": np.ones(4, np.int64),
        "minus": np.array([-1]),
        "zero": np.array([0]),
        "first": np.array(0),
        "last": np.array([2, 3]),
    }

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    spec = bundle.network("unet")
    x = spec.inputs[0]
    inputs = (
        x,
        Binding("t", "float32", (1,)),
        Binding("guidance", "float32", ("passes",)),
        Binding("weights", "float32", (2,)),
        replace(x, name="term"),
        Binding("context", "float32", ("passes", "batch", "tokens", WIDTH)),
    )
    feeds = {
        "x": normal(2, 4, 8, 8),
        "t": np.array([300], np.float32),
        "guidance": np.array([0, 0.5], np.float32),
        "weights": np.array([0.9, -0.2], np.float32),
        "term": normal(2, 4, 8, 8),
        "context": normal(2, 2, TOKENS, WIDTH),
    }
    with BundleWriter(out) as writer:
        for path in bundle.manifest.files:
            writer.copy(path, bundle.file(path))
        step = network(
            writer,
            "step",
            inputs,
            (replace(x, name="x_s"), replace(x, name="prediction")),
            {**spec.dimensions, "batch": Dimension(1, 1, 4), "passes": Dimension(1, 2, 2)},
            _nodes(),
            constants,
            feeds,
        )
        assert bundle.manifest.schedule is not None
        schedule = replace(bundle.manifest.schedule, prediction=prediction)  # type: ignore[arg-type]
        networks = {**bundle.manifest.networks, "step": step}
        return writer.commit(replace(bundle.manifest, networks=networks, schedule=schedule, files={}))
