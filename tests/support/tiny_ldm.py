"""A whole latent-diffusion bundle of a few hundred weights, written without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save as to_bytes

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.manifest import Manifest, NetworkSpec, ScheduleSpec
from sfumato.runtime.systems.latent_settings import Defaults, LatentDiffusionSettings

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "apple", "rocket", "cat"]
TOKENS, WIDTH = 8, 8
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}

BATCH = {"batch": Dimension(1, 2, 16)}
LATENT = {**BATCH, "height": Dimension(1, 8, 64), "width": Dimension(1, 8, 64)}
PICTURE = {"image_height": Dimension(2, 16, 128, 2), "image_width": Dimension(2, 16, 128, 2)}


def _value(binding: Binding) -> Any:
    return helper.make_tensor_value_info(binding.name, INT64 if binding.dtype == "int64" else FLOAT, binding.shape)


def network(
    writer: BundleWriter,
    name: str,
    inputs: Sequence[Binding],
    outputs: Sequence[Binding],
    dimensions: dict[str, Dimension],
    nodes: Sequence[Any],
    weights: dict[str, np.ndarray],
    feeds: dict[str, np.ndarray],
) -> NetworkSpec:
    graph = helper.make_graph(
        list(nodes),
        name,
        [_value(b) for b in inputs],
        [_value(b) for b in outputs],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    results = ReferenceEvaluator(model).run(None, feeds)
    stored = {f"in/{k}": v for k, v in feeds.items()}
    stored |= {f"out/{b.name}": np.ascontiguousarray(r, np.float32) for b, r in zip(outputs, results, strict=True)}
    writer.write(f"{name}.reference.safetensors", to_bytes(stored))
    onnx.save(
        model, writer.path(f"{name}.onnx"), save_as_external_data=True, location=f"{name}.weights", size_threshold=100
    )
    external = writer.path(f"{name}.weights").exists()
    return NetworkSpec(
        name=name,
        graph=f"{name}.onnx",
        weights=(f"{name}.weights",) if external else (),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        dimensions=dimensions,
        reference=f"{name}.reference.safetensors",
        tolerance=TOLERANCE,
        parity={"max_abs": 0.0, "relative": 0.0, "cosine": 1.0},
    )


def _tokenizer() -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(library.to_str()).encode()


def write(out: Path) -> Bundle:
    """A text-to-picture bundle: 16x16 pictures, 8x8x4 latents, prompts of `WORDS`."""
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    batch, grid, picture = "batch", ("height", "width"), ("image_height", "image_width")
    column = np.array([-1, 1, 1, 1])
    with BundleWriter(out) as writer:
        unet = network(
            writer,
            "unet",
            [
                Binding("x", "float32", (batch, 4, *grid)),
                Binding("t", "float32", (batch,)),
                Binding("context", "float32", (batch, "tokens", WIDTH)),
            ],
            [Binding("prediction", "float32", (batch, 4, *grid))],
            {**LATENT, "tokens": Dimension(1, TOKENS, TOKENS)},
            [
                helper.make_node("Conv", ["x", "kernel"], ["h"], pads=[1, 1, 1, 1]),
                helper.make_node("ReduceMean", ["context", "axes"], ["c"], keepdims=0),
                helper.make_node("Reshape", ["c", "column"], ["c4"]),
                helper.make_node("Mul", ["t", "small"], ["t1"]),
                helper.make_node("Reshape", ["t1", "column"], ["t4"]),
                helper.make_node("Add", ["h", "c4"], ["hc"]),
                helper.make_node("Add", ["hc", "t4"], ["prediction"]),
            ],
            {
                "kernel": 0.1 * normal(4, 4, 3, 3),
                "axes": np.array([1, 2]),
                "column": column,
                "small": np.array(1e-4, np.float32),
            },
            {"x": normal(2, 4, 8, 8), "t": np.array([1, 900], np.float32), "context": normal(2, TOKENS, WIDTH)},
        )
        decoder = network(
            writer,
            "vae_decoder",
            [Binding("z", "float32", (batch, 4, *grid))],
            [Binding("image", "float32", (batch, 3, *picture))],
            {**LATENT, **PICTURE},
            [
                helper.make_node("Conv", ["z", "kernel"], ["h"]),
                helper.make_node("Resize", ["h", "", "scales"], ["image"], mode="nearest"),
            ],
            {"kernel": 0.3 * normal(3, 4, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)},
            {"z": normal(2, 4, 8, 8)},
        )
        encoder = network(
            writer,
            "vae_encoder",
            [Binding("image", "float32", (batch, 3, *picture))],
            [Binding(name, "float32", (batch, 4, *grid)) for name in ("mean", "log_variance")],
            {**LATENT, **PICTURE},
            [
                helper.make_node("AveragePool", ["image"], ["h"], kernel_shape=[2, 2], strides=[2, 2]),
                helper.make_node("Conv", ["h", "kernel"], ["mean"]),
                helper.make_node("Sub", ["mean", "ten"], ["log_variance"]),
            ],
            {"kernel": normal(4, 3, 1, 1), "ten": np.array(10, np.float32)},
            {"image": normal(2, 3, 16, 16)},
        )
        text = network(
            writer,
            "text_encoder",
            [Binding("input_ids", "int64", (batch, "tokens"))],
            [Binding("context", "float32", (batch, "tokens", WIDTH))],
            {**BATCH, "tokens": Dimension(1, TOKENS, TOKENS)},
            [helper.make_node("Gather", ["table", "input_ids"], ["context"])],
            {"table": normal(len(WORDS), WIDTH)},
            {"input_ids": np.arange(2 * TOKENS).reshape(2, TOKENS) % len(WORDS)},
        )
        writer.write("tokenizer.json", _tokenizer())
        settings = LatentDiffusionSettings(
            task="text",
            conditioning="crossattn",
            latent_channels=4,
            factor=2,
            scale_factor=0.5,
            first_stage="kl",
            image_size=(16, 16),
            size_multiple=2,
            max_tokens=TOKENS,
            tokenizer="bert",
            defaults=Defaults(steps=5, guidance_scale=3.0),
        )
        manifest = Manifest(
            system="latent-diffusion",
            name="tiny",
            license="CC0-1.0",
            producer={"tests": "1"},
            networks={spec.name: spec for spec in (unet, decoder, encoder, text)},
            schedule=ScheduleSpec("scaled_linear", 1000, 0.00085, 0.012, "eps"),
            assets={"tokenizer": "tokenizer.json"},
            settings=settings.to_json(),
        )
        return writer.commit(manifest)
