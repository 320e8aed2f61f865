"""UNets and first stages of latent diffusion against the official code's numbers, in torch."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from sfumato.networks.checkpoint import build
from sfumato.networks.unet import UNet, UNetConfig
from sfumato.networks.vq import VQModelInterface

UNETS = {
    "xattn": ("x4", "context"),
    "xattn_legacy": ("x4", "context"),
    "selfattn_legacy": ("x3", None),
    "updown_ssn": ("x4", None),
    "concat7": ("x7", None),
    "adm_classes": ("x4", "y"),
}


def _tensors(arrays: Any) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def _close(result: torch.Tensor, reference: np.ndarray) -> None:
    atol = 2e-5 * np.abs(reference).max()
    np.testing.assert_allclose(result.detach().numpy(), reference, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def unet(goldens):
    configs = json.loads(goldens.path("ldm_unet_configs.json").read_text())

    def make(name: str) -> UNet:
        weights = _tensors(goldens(f"ldm_unet_{name}_weights.npz"))
        return build(lambda: UNet(UNetConfig.from_dict(configs[name])), weights, name)

    return make


@pytest.mark.parametrize("name", UNETS)
def test_unets_give_the_official_outputs(goldens, unet, name: str) -> None:
    io = goldens("ldm_unet_io.npz")
    x, condition = UNETS[name]
    given = {condition: torch.from_numpy(io[condition])} if condition else {}
    _close(unet(name)(torch.from_numpy(io[x]), torch.from_numpy(io["t"]), **given), io[f"out_{name}"])


def test_the_gradient_to_the_input_is_the_official_one(goldens, unet) -> None:
    io = _tensors(goldens("ldm_unet_xattn_grad.npz"))
    x = io["x"].requires_grad_(True)
    loss = (io["w"] * unet("xattn")(x, io["t"], io["context"])).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    _close(gradient, io["grad_x"].numpy())


@pytest.fixture(scope="module")
def stage(goldens):
    configs = json.loads(goldens.path("ldm_first_stage_configs.json").read_text())

    def make(name: str) -> Any:
        params = configs[name]
        config, width = AutoencoderConfig.from_dict(params), params["embed_dim"]
        weights = _tensors(goldens(f"ldm_{name}_weights.npz"))
        if "n_embed" in params:
            return build(lambda: VQModelInterface(config, width, params["n_embed"]), weights, name)
        return build(lambda: AutoencoderKL(config, width), weights, name)

    return make


def test_the_kl_first_stage_is_the_official_one(goldens, stage) -> None:
    io, module = goldens("ldm_kl_io.npz"), stage("kl")
    mean, log_variance = module.moments(torch.from_numpy(io["img"]))
    _close(mean, io["mean"])
    _close(log_variance, io["logvar"])
    _close(module.decode(torch.from_numpy(io["mode"])), io["dec_mode"])
    oblong, _ = module.moments(torch.from_numpy(io["img_rect"]))
    _close(oblong, io["rect_mode"])
    _close(module.decode(oblong), io["rect_dec"])


@pytest.mark.parametrize("name", ["vq", "vq_noattn"])
def test_the_vq_first_stages_are_the_official_ones(goldens, stage, name: str) -> None:
    io, module = goldens("ldm_vq_io.npz"), stage(name)
    h = module.encode(torch.from_numpy(io["img"]))
    _close(h, io["prequant"] if name == "vq" else io["noattn_prequant"])
    if name == "vq":
        _close(module.decode(torch.from_numpy(io["prequant"])), io["dec_interface"])
        _close(module.decode(torch.from_numpy(io["prequant"]), force_not_quantize=True), io["dec_noquant"])
