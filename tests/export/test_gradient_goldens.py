"""Gradient graphs against the official code's numbers: the Jacobian of a UNet (pix2pix-zero's: `test_pix2pix_zero`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.manifest import Manifest
from sfumato.export.gradient import vector_product
from sfumato.export.network import Network
from sfumato.export.recipes import parts
from sfumato.export.write import export_network
from sfumato.networks.checkpoint import build
from sfumato.networks.unet import UNet, UNetConfig
from sfumato.runtime.gradient import open_gradient

BACKENDS = ("onnxruntime", "openvino", "torch")


def _write(out: Path, *networks: Network) -> Bundle:
    with BundleWriter(out) as writer:
        specs = {n.name: export_network(writer, n, "fp32") for n in networks}
        return writer.commit(Manifest("test", "tiny", "CC0-1.0", {}, specs))


def _close(result: np.ndarray, reference: np.ndarray) -> None:
    np.testing.assert_allclose(result, reference, rtol=0, atol=2e-5 * np.abs(reference).max())


@pytest.mark.slow
def test_the_jacobian_of_latent_diffusions_unet(goldens: Any, tmp_path: Path) -> None:
    """With recomputed blocks, the form with most in it; every form is held against autograd in `test_gradient`."""
    io, golden = goldens("ldm_unet_io.npz"), goldens("ldm_unet_xattn_grad.npz")
    config = UNetConfig.from_dict(json.loads(goldens.path("ldm_unet_configs.json").read_text())["xattn"])
    weights = {k: torch.from_numpy(v) for k, v in goldens("ldm_unet_xattn_weights.npz").items()}
    unet = parts.unet(
        lambda: build(lambda: UNet(config), weights, "xattn"), (4, 4), parts.Sides((8, 8), 2, 4), context=(6, 24)
    )
    bundle = _write(tmp_path / "b", vector_product(unet, name="product", recompute=True))
    given = {"t": golden["t"].astype(np.float32), "context": golden["context"], "cotangent_prediction": golden["w"]}
    for backend in BACKENDS:
        with open_gradient(bundle, "product", backend=backend, precision="fp32") as gradient:  # type: ignore[arg-type]
            loss, result = gradient(golden["x"], **given)
            _close(gradient.prediction, io["out_xattn"])
        assert loss == pytest.approx(float(golden["loss"]), rel=1e-4)
        _close(result, golden["grad_x"])
