"""Cold Diffusion's golden checkpoints through export and engines: the official numbers come out of the bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.calibration.parity import verify_bundle
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import open_engine
from sfumato.errors import CheckpointError, ExportError
from sfumato.export.pack import pack
from sfumato.export.recipes.cold_diffusion import export
from sfumato.runtime.cold_generation import GaussianMixture, generate
from sfumato.runtime.degradation import degrade
from sfumato.runtime.degradations import DegradationSpec, HotNoise
from sfumato.runtime.image import from_float
from sfumato.runtime.restoration import EngineRestorer, restore
from sfumato.runtime.systems.cold_diffusion import ColdDiffusion
from sfumato.runtime.systems.cold_settings import Generation
from sfumato.training.fit_mixture import write

CONSTANT = DegradationSpec.of("blur", steps=6, routine="Constant", size=5, std=1.0)
SAVED = DegradationSpec.of("blur", steps=6, routine="Exponential", size=7, std=0.2)


def close(result: Any, reference: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(result, reference, rtol=0, atol=tolerance * np.abs(reference).max())


@pytest.fixture(scope="module")
def bundle(goldens: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """A golden network exported in float32 with a degradation, by the name of its weights."""
    folder, made = tmp_path_factory.mktemp("cold"), dict[str, Bundle]()

    def get(weights: str, spec: DegradationSpec = CONSTANT, **options: Any) -> Bundle:
        if weights not in made:
            state = {k: torch.from_numpy(v) for k, v in goldens(f"{weights}.npz").items()}
            torch.save({"step": 1, "ema": state}, folder / f"{weights}.pt")
            options = {"size": 32, "precision": "fp32", "degradation": spec, **options}
            made[weights] = export(folder / f"{weights}.pt", folder / weights, **options)
        return made[weights]

    return get


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("weights", "io", "inputs", "output", "residual"),
    [
        ("cold_unet_weights", "cold_unet", ("x", "t"), "y", False),
        ("cold_unet_notime_residual_weights", "cold_unet", ("x",), "y_notime_residual", True),
        ("cold_model_ddpm_weights", "cold_model_ddpm", ("x", "t2"), "y2", False),
    ],
)
def test_exported_networks_give_the_official_outputs(goldens, bundle, backend, weights, io, inputs, output, residual):
    made, data = bundle(weights, residual=residual), goldens(f"{io}.npz")
    with open_engine(made, "restorer", backend=backend, precision="fp32") as engine:
        feeds = {"x": data["x"]}
        if len(inputs) == 2:
            feeds["t"] = data[inputs[1]].astype(np.float32)
        close(engine(**feeds)["x0"], data[output])


@pytest.mark.parametrize("algorithm", [1, 2])
def test_deblurring_through_the_bundle_is_the_official_one(goldens, bundle, algorithm) -> None:
    data, prefix = goldens("cold_blur_traj.npz"), f"{('default', 'x0_step_down')[algorithm - 1]}__Constant__"
    made = bundle("cold_unet_weights")
    with sfumato.load(made.path, precision="fp32") as system:
        assert isinstance(system, ColdDiffusion)
        spec = system.settings.degradation
        assert spec == CONSTANT
        blur = spec.build(data["x"].shape)
        result = restore(
            EngineRestorer(system.engine()), blur, degrade(blur, data["x"]), algorithm=algorithm, keep=True
        )
        close(result.direct, data[f"{prefix}direct"])
        close(result.image, data[f"{prefix}out"])
        close([stage.x0 for stage in result.stages], data[f"{prefix}net_out"])
        found = system.restore(list(from_float(data["x"])), algorithm=algorithm)
        for name in ("degraded", "direct", "restored"):
            official = {"degraded": "xt", "direct": "direct", "restored": "out"}[name]
            wanted = from_float(data[f"{prefix}{official}"])
            assert np.abs(np.stack([getattr(one, name) for one in found]).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("variant", ["Incremental__float", "Incremental__discrete", "Random_Incremental__float"])
def test_inpainting_through_the_bundle_is_the_official_one(goldens, bundle, variant) -> None:
    data, prefix = goldens("cold_inpaint_traj.npz"), f"x0_step_down__{variant}__"
    routine, kind = variant.split("__")
    spec = DegradationSpec.of("inpaint", steps=6, routine=routine, std=0.8, first=1)
    offsets = None
    if routine == "Random_Incremental":
        offsets = np.stack([data[f"{prefix}rand_x"], data[f"{prefix}rand_y"]], axis=1)
    hole = spec.build(data["x"].shape, offsets=offsets)
    with open_engine(bundle("cold_unet_weights"), "restorer", precision="fp32") as engine:
        result = restore(EngineRestorer(engine), hole, degrade(hole, data["x"], quantised=kind == "discrete"))
    close(result.direct, data[f"{prefix}direct"])
    close(result.image, data[f"{prefix}out"])


def test_hot_diffusion_and_generation_through_the_bundle_are_the_official_ones(goldens, bundle) -> None:
    data, blurred = goldens("cold_noise.npz"), goldens("cold_blur_generation.npz")
    with open_engine(bundle("cold_unet_weights"), "restorer", precision="fp32") as engine:
        network = EngineRestorer(engine)
        close(restore(network, HotNoise(6), data["x_end"]).image, data["gen_ddim_out"])
        close(restore(network, HotNoise(6, data["x_end"]), data["x_end"]).image, data["gen_x0_step_down_out"])
        spec = DegradationSpec.of("blur", steps=6, routine="Exponential", size=7, std=0.2, discrete=True)
        noise = blurred["noise_level"] * blurred["noise"]
        result = generate(network, spec.build(blurred["start"].shape), blurred["start"], noise=noise)
        close(result.direct, blurred["direct"])
        close(result.image, blurred["out"])


def test_the_official_wrapper_is_read_kernels_included(goldens, tmp_path: Path) -> None:
    checkpoint = goldens.path("cold_blur_model.pt")
    made = export(checkpoint, tmp_path / "fp16", degradation=SAVED, size=32, quantised=True, name="cold", license="MIT")
    assert verify_bundle(made).passed
    manifest = made.manifest
    assert (manifest.system, manifest.name, manifest.license) == ("cold-diffusion", "cold", "MIT")
    assert manifest.networks["restorer"].parity["relative"] < 5e-3
    assert manifest.settings["degradation"] == SAVED.to_json() and manifest.settings["quantised"] is True
    live = export(checkpoint, tmp_path / "live", degradation=SAVED, size=32, weights="model")
    assert live.digest("restorer") != made.digest("restorer")


def test_what_disagrees_with_the_checkpoint_is_refused(goldens, tmp_path: Path) -> None:
    checkpoint = goldens.path("cold_blur_model.pt")
    cases = [
        (None, "does not say what it undoes; pass the degradation"),
        (CONSTANT, r"kernel 0 is \(7, 7\) in the checkpoint and \(5, 5\) in blur"),
        (DegradationSpec.of("blur", steps=5, routine="Exponential", size=7, std=0.2), "6 blur kernels, blur .* has 5"),
        (DegradationSpec.of("blur", steps=6, routine="Exponential", size=7, std=0.3), "kernel 1 has .* at its centre"),
        (DegradationSpec.of("snow", steps=6), "has 6 blur kernels, told is snow; say blur"),
    ]
    for spec, message in cases:
        with pytest.raises((CheckpointError, ExportError), match=message):
            export(checkpoint, tmp_path / "none", degradation=spec)
    with pytest.raises(ExportError, match="generation is from means and mixture=None; give both or neither"):
        export(checkpoint, tmp_path / "none", degradation=SAVED, size=32, generation=Generation("means"))
    with pytest.raises(ExportError, match="do not hold together: blur generates from means or thumbnails"):
        export(checkpoint, tmp_path / "none", degradation=SAVED, size=32, generation=Generation("noise"))
    assert not (tmp_path / "none").exists()


def test_saved_alphas_are_compared(goldens, tmp_path: Path) -> None:
    state = {f"denoise_fn.{k}": torch.from_numpy(v) for k, v in goldens("cold_unet_weights.npz").items()}
    alphas = torch.from_numpy(goldens("cold_noise.npz")["alphas_cumprod_T6"])
    torch.save({"ema": {**state, "alphas_cumprod": alphas}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="has 6 alphas, noise has 7; set the steps"):
        export(tmp_path / "a.pt", tmp_path / "b", degradation=DegradationSpec.of("noise", steps=7))
    torch.save({"ema": {**state, "alphas_cumprod": alphas * 0.9}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="alphas of the checkpoint and of noise differ by"):
        export(tmp_path / "a.pt", tmp_path / "b", degradation=DegradationSpec.of("noise", steps=6))


def test_the_ddpm_style_network_has_no_residual_variant(goldens, tmp_path: Path) -> None:
    state = {k: torch.from_numpy(v) for k, v in goldens("cold_model_ddpm_weights.npz").items()}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ExportError, match="no residual variant"):
        export(tmp_path / "a.pt", tmp_path / "b", degradation=CONSTANT, residual=True)


def test_a_mixture_travels_in_the_bundle(goldens, tmp_path: Path) -> None:
    write(GaussianMixture(np.ones(1), np.array([[0.5, 0.0, -0.5]]), 1e-6 * np.eye(3)[None]), tmp_path / "m.safetensors")
    checkpoint, plan = goldens.path("cold_blur_model.pt"), Generation("means", noise=0.002)
    options = {"degradation": SAVED, "size": 32, "generation": plan, "mixture": tmp_path / "m.safetensors"}
    made = export(checkpoint, tmp_path / "bundle", precision="fp32", **options)
    with sfumato.load(made.path) as system:
        one, two = system.generate(num_images=2, seed=1)
    assert one.degraded[..., 0].mean() > one.degraded[..., 2].mean() + 100
    assert not np.array_equal(one.image, two.image)


def test_pack_takes_what_says_its_degradation_itself(goldens, tmp_path: Path) -> None:
    content = torch.load(goldens.path("cold_blur_model.pt"), weights_only=True)
    content["about"] = {"degradation": SAVED.to_json(), "network": {"residual": False}, "size": 32, "quantised": True}
    torch.save(content, tmp_path / "own.pt")
    made = pack("cold-diffusion", {"model": tmp_path / "own.pt"}, tmp_path / "bundle")
    assert made.manifest.settings["image_size"] == [32, 32] and made.manifest.settings["quantised"] is True
    with pytest.raises(ExportError, match="was trained on .* told is .*; leave the degradation out"):
        export(tmp_path / "own.pt", tmp_path / "other", degradation=CONSTANT)
    content["about"]["degradation"]["size"] = 4
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(CheckpointError, match=r"about\.degradation: blur has 6 steps of size 4"):
        export(tmp_path / "own.pt", tmp_path / "other")
