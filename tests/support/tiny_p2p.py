"""The tiny bundle with maps and their gradient, written without torch: one layer, softmax over x's first channel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper
from tiny_ldm import TOKENS, WIDTH, network

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.runtime.systems.pix2pix_settings import ROLE, Pix2PixZeroSettings


def _maps() -> list[Any]:
    """p = softmax over tokens of x[:, 0] (b, 1, pixels, 1) times the tokens' means (b, 1, 1, tokens)."""
    return [
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["x0"]),
        helper.make_node("Reshape", ["x0", "column"], ["column0"]),
        helper.make_node("ReduceMean", ["context", "two"], ["means"], keepdims=0),
        helper.make_node("Unsqueeze", ["means", "onetwo"], ["row"]),
        helper.make_node("Mul", ["column0", "row"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["map_00"], axis=-1),
    ]


def _gradient() -> list[Any]:
    """loss = mean over rows of ||p - r||²; ds = p (g - sum(g p)) with g = 2 (p - r) / rows; dx0 = sum(ds row)."""
    return [
        *_maps(),
        helper.make_node("Sub", ["map_00", "reference_00"], ["off"]),
        helper.make_node("Mul", ["off", "off"], ["square"]),
        helper.make_node("ReduceSum", ["square", "onetwothree"], ["rows"], keepdims=0),
        helper.make_node("ReduceMean", ["rows", "zero"], ["loss"], keepdims=1),
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Cast", ["batch"], ["count"], to=1),
        helper.make_node("Div", ["twice", "count"], ["share"]),
        helper.make_node("Mul", ["off", "share"], ["g"]),
        helper.make_node("Mul", ["g", "map_00"], ["gp"]),
        helper.make_node("ReduceSum", ["gp", "three"], ["sum"], keepdims=1),
        helper.make_node("Sub", ["g", "sum"], ["centred"]),
        helper.make_node("Mul", ["map_00", "centred"], ["ds"]),
        helper.make_node("Mul", ["ds", "row"], ["dsr"]),
        helper.make_node("ReduceSum", ["dsr", "three"], ["dcolumn"], keepdims=1),
        helper.make_node("Shape", ["x0"], ["shape0"]),
        helper.make_node("Reshape", ["dcolumn", "shape0"], ["dx0"]),
        helper.make_node("Pad", ["dx0", "pads"], ["gradient"]),
    ]


def random_feeds() -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Inputs of the gradient, for two pictures of 8x8 latents."""
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((2, 4, 8, 8)),
        "t": np.array([1, 900]),
        "context": rng.standard_normal((2, TOKENS, WIDTH)),
        "reference_00": rng.random((2, 1, 64, TOKENS)),
    }
    return {name: array.astype(np.float32) for name, array in feeds.items()}


def write(source: Path, out: Path, *, gradient: bool = True) -> Bundle:
    """Copy the tiny bundle `source` and add ``unet_maps`` and ``unet_gradient``."""
    bundle = Bundle.open(source)
    rng = np.random.default_rng(5)
    kernel = (0.1 * rng.standard_normal((4, 4, 3, 3))).astype(np.float32)
    column = np.array([-1, 1, 1, 1])
    forward = [
        helper.make_node("Conv", ["x", "kernel"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["context", "onetwo"], ["c"], keepdims=0),
        helper.make_node("Reshape", ["c", "four"], ["c4"]),
        helper.make_node("Mul", ["t", "small"], ["t1"]),
        helper.make_node("Reshape", ["t1", "four"], ["t4"]),
        helper.make_node("Add", ["h", "c4"], ["hc"]),
        helper.make_node("Add", ["hc", "t4"], ["prediction"]),
    ]
    constants = {
        "kernel": kernel,
        "four": column,
        "small": np.array(1e-4, np.float32),
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "onetwo": np.array([1, 2]),
        "column": np.array([0, 1, -1, 1]),
    }
    more = {
        "three": np.array([3]),
        "onetwothree": np.array([1, 2, 3]),
        "twice": np.array([2], np.float32),
        "pads": np.array([0, 0, 0, 0, 0, 3, 0, 0]),
    }
    feeds = {
        "x": rng.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "t": np.array([1, 900], np.float32),
        "context": rng.standard_normal((2, TOKENS, WIDTH)).astype(np.float32),
    }
    unet = bundle.network("unet")
    shape = ("batch", 1, "pixels_1", "tokens")
    dimensions = {**unet.dimensions, "pixels_1": Dimension(1, 64, 4096)}
    reference = rng.random((2, 1, 64, TOKENS)).astype(np.float32)
    with BundleWriter(out) as writer:
        for path in bundle.manifest.files:
            writer.copy(path, bundle.file(path))
        networks = dict(bundle.manifest.networks)
        networks["unet_maps"] = network(
            writer,
            "unet_maps",
            unet.inputs,
            (*unet.outputs, Binding("map_00", "float32", shape)),
            dict(unet.dimensions),
            [*forward, *_maps()],
            constants,
            feeds,
        )
        if gradient:
            networks["unet_gradient"] = network(
                writer,
                "unet_gradient",
                (*unet.inputs, Binding("reference_00", "float32", shape)),
                (
                    *unet.outputs,
                    Binding("loss", "float32", (1,)),
                    Binding("gradient", "float32", unet.inputs[0].shape),
                ),
                dimensions,
                [*forward, *_gradient()],
                {**constants, **more},
                {**feeds, "reference_00": reference},
            )
        settings = Pix2PixZeroSettings(steps=4, sentences=5, attention_guidance=0.05, kl=0.0)
        writer.write("pix2pix_zero.json", settings.to_bytes())
        assets = {**bundle.manifest.assets, ROLE: "pix2pix_zero.json"}
        return writer.commit(replace(bundle.manifest, networks=networks, assets=assets, files={}))
