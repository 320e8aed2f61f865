"""TensorRT for RTX reads and builds a gradient graph, on a machine without a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sfumato.engines.build import build_plan
from sfumato.engines.build_target import parse_target
from sfumato.engines.bundle import BundleWriter
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
    unet = parts.unet(_unet, (4, 4), parts.Sides((8, 8), 2, 4), context=(8, 24))
    _, network = attention_networks(unet, recompute=recompute)
    with BundleWriter(tmp_path / "b") as writer:
        spec = export_network(writer, network, "fp16")
        bundle = writer.commit(Manifest("test", "tiny", "CC0-1.0", {}, {spec.name: spec}))
    plan = build_plan(bundle, spec.name, parse_target("rtx:sm86+sm89"))
    assert plan.key["precision"] == "fp16"
    assert plan.built["half_products"] > 10
    assert plan.bytes > 1000
