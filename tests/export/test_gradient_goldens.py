"""Gradient graphs against the official code's numbers: pix2pix-zero's guidance step, and a UNet's Jacobian."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.manifest import Manifest
from sfumato.export.attention_maps import attention_networks
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


@pytest.fixture(scope="module")
def published(goldens: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """The tiny diffusers UNet of the official run, its maps and its gradient."""
    from sfumato.export.recipes.diffusers_attention import write_out_attention
    from sfumato.export.recipes.diffusers_modules import ContextUNet

    config = json.loads(goldens.path("p2p_configs.json").read_text())["unet"]

    def load() -> torch.nn.Module:
        from diffusers import UNet2DConditionModel

        module = UNet2DConditionModel(**config)
        module.load_state_dict({k: torch.from_numpy(v) for k, v in goldens("p2p_unet_weights.npz").items()})
        write_out_attention(module)
        return ContextUNet(module)

    unet = parts.unet(load, (4, 4), parts.Sides((16, 16), 2, 2), context=(8, 24))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of diffusers on its own deprecations
        yield _write(tmp_path_factory.mktemp("published") / "b", *attention_networks(unet))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_official_guidance_step(goldens: Any, published: Bundle, backend: Any) -> None:
    golden = goldens("p2p_guidance_step.npz")
    names = [str(name) for name in golden["module_names"]]
    order = sorted(names, key=lambda n: ("down", "mid", "up").index(n.split("_")[0]))
    references = {
        f"reference_{i:02}": golden[f"ref__{n}"].reshape(2, -1, *golden[f"ref__{n}"].shape[1:])
        for i, n in enumerate(order)
    }
    with open_gradient(published, "unet_gradient", backend=backend, precision="fp32", **references) as gradient:
        loss, result = gradient(golden["x"], t=float(golden["t"]), context=golden["embeds_edit"])
        _close(gradient.prediction, golden["eps"])
    _close(np.float32(loss), golden["loss"])
    _close(result, golden["grad"])


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_the_jacobian_of_latent_diffusions_unet(goldens: Any, tmp_path: Path, recompute: bool) -> None:
    io, golden = goldens("ldm_unet_io.npz"), goldens("ldm_unet_xattn_grad.npz")
    config = UNetConfig.from_dict(json.loads(goldens.path("ldm_unet_configs.json").read_text())["xattn"])
    weights = {k: torch.from_numpy(v) for k, v in goldens("ldm_unet_xattn_weights.npz").items()}
    unet = parts.unet(
        lambda: build(lambda: UNet(config), weights, "xattn"), (4, 4), parts.Sides((8, 8), 2, 4), context=(6, 24)
    )
    bundle = _write(tmp_path / "b", vector_product(unet, name="product", recompute=recompute))
    given = {"t": golden["t"].astype(np.float32), "context": golden["context"], "cotangent_prediction": golden["w"]}
    for backend in BACKENDS:
        with open_gradient(bundle, "product", backend=backend, precision="fp32") as gradient:  # type: ignore[arg-type]
            loss, result = gradient(golden["x"], **given)
            _close(gradient.prediction, io["out_xattn"])
        assert loss == pytest.approx(float(golden["loss"]), rel=1e-4)
        _close(result, golden["grad_x"])
