"""Golden checkpoints as bundles: compiled networks against the official code's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.calibration.parity import verify_bundle
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import open_engine
from sfumato.errors import CheckpointError, ExportError
from sfumato.export.pack import pack
from sfumato.export.recipes.latent_diffusion import export
from sfumato.runtime.schedule import Schedule
from sfumato.runtime.systems.latent_settings import LatentDiffusionSettings

Export = Callable[[str], Bundle]

slow = pytest.mark.slow
NAMES = [
    "ldm_t2i_kl_xattn",
    "ldm_inpaint_vq_concat",
    pytest.param("ldm_uncond_vq_ema", marks=slow),
    pytest.param("ldm_sr_vq_concat", marks=slow),
    pytest.param("ldm_std_kl_uncond", marks=slow),
]


def _run(bundle: Bundle, network: str, backend: Any = "onnxruntime", **feeds: np.ndarray) -> dict[str, np.ndarray]:
    with open_engine(bundle, network, backend=backend, precision="fp32") as engine:
        return {name: array.copy() for name, array in engine(**feeds).items()}


def _close(result: np.ndarray, reference: np.ndarray, factor: float = 2e-5) -> None:
    np.testing.assert_allclose(result, reference, rtol=0, atol=factor * np.abs(reference).max())


@pytest.mark.parametrize("name", NAMES)
def test_every_checkpoint_becomes_a_bundle_that_verifies(exported: Export, name: str) -> None:
    bundle = Bundle.open(exported(name).path)
    assert verify_bundle(bundle).passed
    LatentDiffusionSettings.from_json(bundle.manifest.settings)
    assert bundle.manifest.schedule is not None and bundle.manifest.license


@pytest.mark.parametrize("name", NAMES)
def test_parity_with_torch_is_rounding_alone(exported: Export, name: str) -> None:
    for spec in exported(name).manifest.networks.values():
        assert spec.parity["relative"] < 1e-5 and spec.parity["cosine"] > 1 - 1e-9


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_unet_predicts_the_official_noise(goldens, exported: Export, backend: str) -> None:
    bundle, io = exported("ldm_t2i_kl_xattn"), goldens("ldm_samplers_t2i.npz")
    tag = "ddim_S4_nocfg_eta0.5"
    t, x, x0 = int(io[f"{tag}__timesteps"].max()), io[f"{tag}__x"][0], io[f"{tag}__pred_x0"][1]
    assert bundle.manifest.schedule is not None
    schedule = Schedule.from_spec(bundle.manifest.schedule)
    feeds = {"x": x, "t": np.full(2, t, np.float32), "context": io["cond"]}
    result = _run(bundle, "unet", backend, **feeds)["prediction"]
    _close((x - schedule.sigma(t) * result) / schedule.alpha(t), x0)
    alone = _run(bundle, "unet", backend, **{name: array[1:].copy() for name, array in feeds.items()})
    _close(alone["prediction"], result[1:])


def test_labels_become_the_official_conditions(goldens, exported: Export) -> None:
    bundle, io = exported("ldm_t2i_kl_xattn"), goldens("ldm_samplers_t2i.npz")
    null = bundle.manifest.settings["null_class"]
    for labels, key in (([2, 5], "cond"), ([null, null], "uncond")):
        context = _run(bundle, "class_embedder", y=np.array(labels, np.int64))["context"]
        np.testing.assert_array_equal(context, io[key])


def test_the_decoder_draws_the_official_picture(goldens, exported: Export) -> None:
    bundle, io = exported("ldm_t2i_kl_xattn"), goldens("ldm_samplers_t2i.npz")
    scale = LatentDiffusionSettings.from_json(bundle.manifest.settings).scale_factor
    z = (io["ddim_S5_cfg5_eta0__out"] / scale).astype(np.float32)
    for backend in ("onnxruntime", "openvino"):
        _close(_run(bundle, "vae_decoder", backend, z=z)["image"], io["decoded_ddim_S5_cfg5_eta0"])


def test_the_inpainting_model_takes_its_first_official_step(goldens, exported: Export) -> None:
    bundle, io = exported("ldm_inpaint_vq_concat"), goldens("ldm_task_inpaint.npz")
    assert bundle.manifest.schedule is not None
    schedule, x, (t, s) = Schedule.from_spec(bundle.manifest.schedule), io["x"][0], (801, 601)
    feeds = {"x": np.concatenate([x, io["cond"]], axis=1), "t": np.full(1, t, np.float32)}
    eps = _run(bundle, "unet", **feeds)["prediction"]
    x0 = (x - schedule.sigma(t) * eps) / schedule.alpha(t)
    _close(schedule.alpha(s) * x0 + schedule.sigma(s) * eps, io["x"][1])
    _close(_run(bundle, "vae_decoder", z=io["out"])["image"], io["decoded"])


def test_sizes_and_tokens_are_free(exported: Export, goldens) -> None:
    from sfumato.export.recipes.compvis import read_compvis

    bundle = exported("ldm_t2i_kl_xattn")
    model = read_compvis(goldens.path("ldm_t2i_kl_xattn.ckpt"), goldens.path("ldm_t2i_kl_xattn.yaml"), None)
    modules = {n.name: n.build() for n in model.networks}
    generator = torch.Generator().manual_seed(0)
    for batch, height, width, tokens in ((1, 2, 14, 1), (3, 10, 6, 4)):
        x = torch.randn(batch, 4, height, width, generator=generator)
        t = torch.full((batch,), 250.0)
        context = torch.randn(batch, tokens, 24, generator=generator)
        with torch.no_grad():
            expected = modules["unet"](x, t, context).numpy()
            picture = modules["vae_decoder"](x).numpy()
            mean, log_variance = (v.numpy() for v in modules["vae_encoder"](torch.from_numpy(picture)))
        for backend in ("onnxruntime", "openvino"):
            got = _run(bundle, "unet", backend, x=x.numpy(), t=t.numpy(), context=context.numpy())
            _close(got["prediction"], expected)
            _close(_run(bundle, "vae_decoder", backend, z=x.numpy())["image"], picture)
            encoded = _run(bundle, "vae_encoder", backend, image=picture)
            _close(encoded["mean"], mean)
            _close(encoded["log_variance"], log_variance)


@pytest.mark.slow
def test_averages_and_quantisation_draw_the_official_picture(goldens, exported: Export) -> None:
    io = goldens("ldm_samplers_uncond.npz")
    image = _run(exported("ldm_uncond_vq_ema"), "vae_decoder", z=io["ddim_S5_ema__out"])["image"]
    _close(image, io["ema_decoded"])


def test_attention_is_left_for_engines_to_fuse(exported: Export) -> None:
    """Every Softmax lies between two MatMuls, with nothing but its maps passing through."""
    import onnx

    graph = onnx.load(str(exported("ldm_t2i_kl_xattn").file("unet.onnx")), load_external_data=False).graph
    made = {output: node for node in graph.node for output in node.output}
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    assert softmaxes
    for node in softmaxes:
        users = [n.op_type for n in graph.node if node.output[0] in n.input]
        assert made[node.input[0]].op_type == "MatMul" and users == ["MatMul"]


def test_packing_by_role_is_the_same_export(goldens, exported: Export, tmp_path: Path, monkeypatch) -> None:
    calls: list[Any] = []
    target = "sfumato.export.recipes.latent_diffusion.export"
    monkeypatch.setattr(target, lambda *args, **kwargs: calls.append((args, kwargs)))
    pack("latent-diffusion", {"model": tmp_path / "m.ckpt", "config": tmp_path / "m.yaml"}, tmp_path / "out")
    ((checkpoint, out), options) = calls[0]
    assert checkpoint == tmp_path / "m.ckpt" and out == tmp_path / "out" and options["config"] == tmp_path / "m.yaml"
    with pytest.raises(ExportError, match="no system is named 'stylegan'"):
        pack("stylegan", {}, tmp_path / "out")
    for roles in ({}, {"model": "a", "unet": "b"}):
        with pytest.raises(ExportError, match="need model, may have config, tokenizer"):
            pack("latent-diffusion", roles, tmp_path / "out")


def test_absent_checkpoints_and_odd_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; pass a .ckpt"):
        export(tmp_path / "absent.ckpt", tmp_path / "out")
    with pytest.raises(ExportError, match="is a folder, which holds its own configuration"):
        export(tmp_path, tmp_path / "out", config=tmp_path / "x.yaml")
    with pytest.raises(CheckpointError, match="model_index.json: cannot be read"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
