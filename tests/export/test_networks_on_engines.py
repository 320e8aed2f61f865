"""The official tiny networks through ONNX Runtime: one export each, outputs against the official numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.engine import open_engine
from sfumato.engines.manifest import Manifest
from sfumato.export.network import Network
from sfumato.export.recipes import parts
from sfumato.export.write import export_network
from sfumato.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from sfumato.networks.bert import BERTConfig, BERTEmbedder
from sfumato.networks.checkpoint import build
from sfumato.networks.conditioners import ClassEmbedder, SpatialRescaler
from sfumato.networks.unet import UNet, UNetConfig
from sfumato.networks.vq import VQModelInterface

SIDES = parts.Sides((8, 8), 2, 4)


def _weights(goldens, name: str) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in goldens(name).items()}


def _bundle(out: Path, *networks: Network) -> Bundle:
    with BundleWriter(out) as writer:
        specs = {n.name: export_network(writer, n, "fp32") for n in networks}
        return writer.commit(Manifest("test", "tiny", "CC0-1.0", {}, specs))


def _run(bundle: Bundle, network: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    with open_engine(bundle, network, backend="onnxruntime") as engine:
        return {name: array.copy() for name, array in engine(**feeds).items()}


def _close(result: np.ndarray, reference: np.ndarray) -> None:
    np.testing.assert_allclose(result, reference, rtol=0, atol=2e-5 * np.abs(reference).max())


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "x", "condition"),
    [
        pytest.param("xattn", "x4", "context", marks=slow),
        pytest.param("xattn_legacy", "x4", "context", marks=slow),
        pytest.param("selfattn_legacy", "x3", None, marks=slow),
        pytest.param("updown_ssn", "x4", None, marks=slow),
        pytest.param("concat7", "x7", None, marks=slow),
        ("adm_classes", "x4", "y"),
    ],
)
def test_unets(goldens, tmp_path: Path, name: str, x: str, condition: str | None) -> None:
    io = goldens("ldm_unet_io.npz")
    config = UNetConfig.from_dict(json.loads(goldens.path("ldm_unet_configs.json").read_text())[name])

    def load() -> torch.nn.Module:
        module = build(lambda: UNet(config), _weights(goldens, f"ldm_unet_{name}_weights.npz"), name)
        return parts.LabelUNet(module) if condition == "y" else module

    context = (6, 24) if condition == "context" else None
    channels = config.in_channels, config.out_channels
    bundle = _bundle(tmp_path / "b", parts.unet(load, channels, SIDES, context=context, classes=config.num_classes))
    given = {condition: io[condition]} if condition else {}
    result = _run(bundle, "unet", x=io[x], t=io["t"].astype(np.float32), **given)["prediction"]
    _close(result, io[f"out_{name}"])


def _stage(goldens, name: str) -> Any:
    params = json.loads(goldens.path("ldm_first_stage_configs.json").read_text())[name]
    config, width = AutoencoderConfig.from_dict(params), params["embed_dim"]
    weights = _weights(goldens, f"ldm_{name}_weights.npz")
    if "n_embed" in params:
        return build(lambda: VQModelInterface(config, width, params["n_embed"]), weights, name)
    return build(lambda: AutoencoderKL(config, width), weights, name)


def test_the_kl_first_stage(goldens, tmp_path: Path) -> None:
    io, encoded = goldens("ldm_kl_io.npz"), parts.Encoded(4, "kl")
    bundle = _bundle(
        tmp_path / "b",
        parts.encoder(lambda: parts.KlEncoder(_stage(goldens, "kl")), encoded, SIDES),
        parts.decoder(lambda: parts.KlDecoder(_stage(goldens, "kl")), encoded, SIDES),
    )
    result = _run(bundle, "vae_encoder", image=io["img"])
    _close(result["mean"], io["mean"])
    _close(result["log_variance"], io["logvar"])
    _close(_run(bundle, "vae_decoder", z=io["mode"])["image"], io["dec_mode"])
    _close(_run(bundle, "vae_encoder", image=io["img_rect"])["mean"], io["rect_mode"])
    _close(_run(bundle, "vae_decoder", z=io["rect_mode"])["image"], io["rect_dec"])


@pytest.mark.parametrize("name", [pytest.param("vq", marks=slow), "vq_noattn"])
def test_vq_first_stages(goldens, tmp_path: Path, name: str) -> None:
    io, encoded = goldens("ldm_vq_io.npz"), parts.Encoded(3, "vq")
    bundle = _bundle(
        tmp_path / "b",
        parts.encoder(lambda: parts.VqEncoder(_stage(goldens, name)), encoded, SIDES),
        parts.decoder(lambda: parts.VqDecoder(_stage(goldens, name)), encoded, SIDES),
    )
    latent = _run(bundle, "vae_encoder", image=io["img"])["latent"]
    image = _run(bundle, "vae_decoder", z=latent)["image"]
    _close(latent, io["prequant"] if name == "vq" else io["noattn_prequant"])
    _close(image, io["dec_interface"] if name == "vq" else io["noattn_dec"])


def test_condition_stages(goldens, tmp_path: Path) -> None:
    io = goldens("ldm_cond_io.npz")
    config = BERTConfig(n_embed=32, n_layer=2, vocab_size=50, max_seq_len=12)

    def bert() -> torch.nn.Module:
        weights = _weights(goldens, "ldm_cond_bert_weights.npz")
        return build(lambda: BERTEmbedder(config), weights, "bert", ignore=BERTEmbedder.IGNORED)

    def classes() -> torch.nn.Module:
        return build(lambda: ClassEmbedder(11, 24), _weights(goldens, "ldm_cond_class_weights.npz"), "class")

    def rescaler() -> torch.nn.Module:
        weights = _weights(goldens, "ldm_cond_rescaler_weights.npz")
        return build(lambda: SpatialRescaler(2, 7, 3), weights, "rescaler")

    bundle = _bundle(
        tmp_path / "b",
        parts.text_encoder(bert, 50, 32, 12),
        parts.class_embedder(classes, 11, 24),
        parts.spatial_rescaler(rescaler, 7, 3, SIDES),
    )
    _close(_run(bundle, "text_encoder", input_ids=io["tokens"])["context"], io["bert_out"])
    _close(_run(bundle, "class_embedder", y=io["labels"])["context"], io["class_out"])
    _close(_run(bundle, "spatial_rescaler", segmentation=io["seg"])["c"], io["rescaled"])
