"""The network ``step`` exported: the UNet's weights, its very numbers, and what has none."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfumato
from sfumato.calibration.parity import verify_bundle
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.engine import available_backends, open_engine
from sfumato.errors import ExportError
from sfumato.export.recipes.latent_diffusion import export
from sfumato.export.recipes.step import add_step

Export = Callable[[str], Bundle]
NAME = "ldm_t2i_kl_xattn"
RNG = np.random.default_rng(11)


@pytest.fixture(scope="session")
def bundle(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a golden checkpoint, the network added."""
    return add_step(exported(NAME), tmp_path_factory.mktemp("step") / "bundle")


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_the_bundle_grows_by_the_graph_alone(exported: Export, bundle: Bundle) -> None:
    before, after = exported(NAME).manifest, bundle.manifest
    step = after.networks["step"]
    assert step.weights == after.networks["unet"].weights
    added = {path: artifact for path, artifact in after.files.items() if path not in before.files}
    assert added.keys() == {step.graph, step.reference}
    assert {path: artifact for path, artifact in after.files.items() if path not in added} == before.files
    assert sum(artifact.bytes for artifact in added.values()) < 0.2 * after.files[step.weights[0]].bytes
    assert replace(after, networks=before.networks, files=before.files) == before


def test_it_verifies(bundle: Bundle) -> None:
    report = verify_bundle(Bundle.open(bundle.path))
    assert report.passed
    rows = [row for row in report.rows if row.network == "step"]
    assert len(rows) == sum(why is None for why in available_backends().values())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("passes", [1, 2])
def test_its_prediction_is_the_guided_one_of_the_unet(bundle: Bundle, backend: Any, batch: int, passes: int) -> None:
    """To the last bit on ONNX Runtime: the same operators on the same rows, guidance in the runtime's form."""
    unet, step = (open_engine(bundle, name, backend=backend, precision="fp32", threads=1) for name in ("unet", "step"))
    width = unet.spec.inputs[2].shape[2]
    x, term, context = normal(batch, 4, 8, 6), normal(batch, 4, 8, 6), normal(passes, batch, 3, int(width))
    guidance, weights = np.array([0, 7.5], np.float32)[:passes], np.array([1.1, -0.3], np.float32)
    feeds = {"x": x, "term": term, "context": context, "guidance": guidance, "weights": weights}
    found = step(t=np.array([321], np.float32), **feeds)
    rows = {"x": np.concatenate([x] * passes), "context": context.reshape(passes * batch, *context.shape[2:])}
    out = unet(t=np.full(passes * batch, 321, np.float32), **rows)["prediction"].reshape(passes, *x.shape)
    wanted = out[0] if passes == 1 else out[0] + np.float32(7.5) * (out[1] - out[0])
    exact = backend == "onnxruntime"
    np.testing.assert_allclose(found["prediction"], wanted, rtol=0, atol=0 if exact else 1e-5 * np.abs(wanted).max())
    new = weights[0] * x + weights[1] * found["prediction"] + term
    np.testing.assert_allclose(found["x_s"], new, rtol=0, atol=1e-6 * np.abs(new).max())
    unet.close()
    step.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_guidance_and_update_stay_in_float32(bundle: Bundle, precision: Any) -> None:
    """OpenVINO in bf16 rounds the UNet and not what follows it: a step is no worse than steps apart."""
    with open_engine(bundle, "step", backend="openvino", precision=precision, threads=1) as step:
        x, term = normal(2, 4, 8, 8), normal(2, 4, 8, 8)
        context = normal(2, 2, 3, int(step.spec.inputs[5].shape[3]))
        weights = np.array([0.9, -0.7], np.float32)
        guidance = np.array([0, 5], np.float32)
        feeds = {"x": x, "term": term, "context": context, "guidance": guidance, "weights": weights}
        found = step(t=np.array([100], np.float32), **feeds)
        new = weights[0] * x + weights[1] * found["prediction"] + term
        np.testing.assert_allclose(found["x_s"], new, rtol=0, atol=1e-6 * np.abs(new).max())


def test_pictures_are_those_of_steps_apart(bundle: Bundle) -> None:
    with sfumato.load(bundle.path, backend="onnxruntime", threads=1) as system:
        options: Any = {"label": [1, 2], "steps": 4, "guidance_scale": 4.0, "sampler": "dpmpp_2m"}
        whole, apart = (system.generate(fused=fused, **options) for fused in (True, False))
        for one, other in zip(whole, apart, strict=True):
            np.testing.assert_allclose(one.latents, other.latents, rtol=0, atol=1e-5 * np.abs(other.latents).max())


def test_a_bundle_is_extended_in_its_own_folder(bundle: Bundle, tmp_path: Path) -> None:
    """A network that is there is made anew, from the same weights to the same bytes."""
    out = tmp_path / "bundle"
    shutil.copytree(bundle.path, out)
    again = export(out, out, step=True)
    assert again.manifest == bundle.manifest
    with pytest.raises(ExportError, match="is a bundle, which has its own name, license; leave out"):
        export(out, tmp_path / "b", step=True, name="n", license="l")


@pytest.mark.slow
def test_a_checkpoint_is_exported_with_it(goldens: Any, bundle: Bundle, tmp_path: Path) -> None:
    config = goldens.path(f"{NAME}.yaml")
    made = export(goldens.path(f"{NAME}.ckpt"), tmp_path / "b", config=config, precision="fp32", step=True)
    assert made.digest("step") == bundle.digest("step")


@pytest.mark.slow
def test_an_unconditional_checkpoint_and_a_folder_of_diffusers_have_it(
    goldens: Any, folder_exported: Any, tmp_path: Path
) -> None:
    name = "ldm_uncond_vq_ema"
    config = goldens.path(f"{name}.yaml")
    plain = export(goldens.path(f"{name}.ckpt"), tmp_path / "plain", config=config, step=True)
    assert "context" not in {binding.name for binding in plain.network("step").inputs}
    folder, _ = folder_exported("stable_diffusion_2")
    made = export(folder, tmp_path / "sd", step=True)
    assert made.network("step").weights == made.network("unet").weights
    for one in (plain, made):
        assert verify_bundle(one).passed
    with pytest.raises(ExportError, match="do not have CompVis' names"):
        add_step(made, tmp_path / "again")


def test_what_has_no_such_step_is_refused(exported: Export, cold_bundle: Path, goldens: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="its system is 'cold-diffusion', a step is one of latent diffusion"):
        export(cold_bundle, tmp_path / "cold", step=True)
    name = "ldm_inpaint_vq_concat"
    options: Any = {"config": goldens.path(f"{name}.yaml"), "step": True}
    with pytest.raises(ExportError, match="neither channels beside x nor a learned variance"):
        export(goldens.path(f"{name}.ckpt"), tmp_path / "inpaint", **options)
    with pytest.raises(ExportError, match="is a bundle; .* pass step=True"):
        export(exported(NAME).path, tmp_path / "same")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT for RTX; pip install 'sfumato[rtx]'"
)
def test_tensorrt_for_rtx_builds_it(bundle: Bundle, tmp_path: Path) -> None:
    from sfumato.engines.build import build_plan
    from sfumato.engines.build_target import parse_target

    with BundleWriter(tmp_path / "b") as writer:
        for path in bundle.manifest.files:
            writer.copy(path, bundle.file(path))
        copy = writer.commit(replace(bundle.manifest, files={}))
    unet, step = (build_plan(copy, name, parse_target("rtx:sm86+sm89")) for name in ("unet", "step"))
    assert step.key["precision"] == "fp16" and step.built["proof"] == unet.built["proof"]
    assert step.built["half_products"] == unet.built["half_products"]
    assert step.bytes > 1000


def test_the_half_graph_keeps_the_update_in_float32(bundle: Bundle, tmp_path: Path) -> None:
    """As a strongly typed builder gets it: x, the term and the sums over them stay float32."""
    import onnx

    from sfumato.engines.compute_types import retype
    from sfumato.engines.half_weights import HalfWeights

    model = onnx.load(str(bundle.file("step.onnx")), load_external_data=False)
    done = retype(model, "fp16", HalfWeights(bundle.path, tmp_path / "turned.weights"))
    made = {output: node for node in done.model.graph.node for output in node.output}
    assert done.halves > 10
    for name in ("x_s", "prediction"):
        assert made[name].op_type == "Add" and not any(source.endswith("/half") for source in made[name].input)
