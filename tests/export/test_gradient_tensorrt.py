"""TensorRT for RTX reads and builds a gradient graph, on a machine without a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.manifest import Manifest
from sfumato.export.attention_maps import attention_networks
from sfumato.export.recipes import parts
from sfumato.export.write import export_network

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="needs TensorRT for RTX; run: pip install 'sfumato[rtx]'",
    ),
]


def _unet() -> Any:
    import torch

    from sfumato.networks.unet import UNet, UNetConfig

    torch.manual_seed(0)
    options = {"num_heads": 4, "use_spatial_transformer": True, "context_dim": 24}
    return UNet(UNetConfig(4, 32, 4, 1, (1,), (1, 2), **options))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_gradient_graph_is_built(tmp_path: Path, recompute: bool) -> None:
    import tensorrt_rtx as trt

    unet = parts.unet(_unet, (4, 4), parts.Sides((8, 8), 2, 4), context=(8, 24))
    _, network = attention_networks(unet, recompute=recompute)
    with BundleWriter(tmp_path / "b") as writer:
        spec = export_network(writer, network, "fp16")
        bundle = writer.commit(Manifest("test", "tiny", "CC0-1.0", {}, {spec.name: spec}))
    plan = _build(trt, bundle, spec.name)
    assert len(plan) > 1000


def _build(trt: Any, bundle: Bundle, name: str) -> bytes:
    """A plan for the desktop architectures, for the sizes that are usual."""
    spec = bundle.network(name)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    read = parser.parse_from_file(str(bundle.file(spec.graph)))
    errors = sorted({parser.get_error(i).desc() for i in range(parser.num_errors)})
    assert read, "\n".join(errors)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for binding in spec.inputs:
        shapes = [getattr(spec.profile, end)[binding.name] for end in ("min", "opt", "max")]
        assert np.all(np.array(shapes) > 0)
        profile.set_shape(binding.name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(plan)
