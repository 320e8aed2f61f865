"""TensorRT for RTX builds plans of the networks of Stable Diffusion, without a GPU."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sfumato.engines.build import build_plan
from sfumato.engines.build_target import parse_target
from sfumato.engines.bundle import Bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="needs TensorRT for RTX; run: pip install 'sfumato[rtx]'",
    ),
]


def test_a_stable_diffusion_model_is_built(
    folder_exported: Callable[[str], tuple[Path, Bundle]], tmp_path: Path
) -> None:
    """Its UNet, first stage and text encoder; gradients, steps and vision transformers have tests of their own."""
    bundle = Bundle.open(shutil.copytree(folder_exported("stable_diffusion_1")[1].path, tmp_path / "bundle"))
    for name in ("text_encoder", "unet", "vae_encoder", "vae_decoder"):
        plan = build_plan(bundle, name, parse_target("rtx:sm86+sm89"))
        assert plan.key["sms"] == ["sm86", "sm89"] and plan.key["precision"] == "fp16" and plan.bytes > 1000
        assert plan.built["half_products"] > 5
