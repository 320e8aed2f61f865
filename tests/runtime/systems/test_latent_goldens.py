"""Checkpoints of the original code, exported and sampled through ONNX Runtime, give the original's numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sfumato.runtime.pixels import from_float
from sfumato.runtime.systems import latent_call, load
from sfumato.runtime.systems.latent_call import Call
from sfumato.runtime.systems.latent_diffusion import LatentDiffusion
from sfumato.runtime.systems.latent_run import make_plan

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "onnxscript", "onnxruntime")),
    reason="exports a checkpoint",
)


@pytest.fixture
def system(exported: Callable[[str], Any], request: pytest.FixtureRequest) -> Iterator[LatentDiffusion]:
    with load(exported(request.param).path, backend="onnxruntime", threads=1) as opened:
        assert isinstance(opened, LatentDiffusion)
        yield opened


class Replay:
    """The normals that the original drew, in its order."""

    def __init__(self, *draws: np.ndarray) -> None:
        self._draws = list(draws)

    def __call__(self, *_: Any) -> Replay:
        return self

    def randn(self, shape: Any) -> np.ndarray:
        draw = self._draws.pop(0)
        assert draw.shape == tuple(shape)
        return draw

    @property
    def empty(self) -> bool:
        return not self._draws


def close(got: np.ndarray, reference: np.ndarray) -> None:
    np.testing.assert_allclose(got, reference, rtol=0, atol=1e-4 * np.abs(reference).max())


def latents(edits: list[Any]) -> np.ndarray:
    return np.stack([edit.latents for edit in edits])


TEXT = [
    ("ddim_S5_cfg5_eta0", {"steps": 5, "guidance_scale": 5}),
    ("ddim_S5_cfg5_eta1", {"steps": 5, "guidance_scale": 5, "eta": 1}),
    ("ddim_S4_nocfg_eta0.5", {"steps": 4, "guidance_scale": 1, "eta": 0.5}),
    ("ddim_S7_nondivisor", {"steps": 7, "guidance_scale": 3}),
    ("plms_S6_cfg5", {"steps": 6, "guidance_scale": 5, "sampler": "plms"}),
]


@pytest.mark.parametrize("system", ["ldm_t2i_kl_xattn"], indirect=True)
@pytest.mark.parametrize(("tag", "options"), TEXT, ids=[tag for tag, _ in TEXT])
def test_classes_sample_and_decode_as_the_original(
    system: LatentDiffusion, goldens: Any, monkeypatch: pytest.MonkeyPatch, tag: str, options: Any
) -> None:
    reference = goldens("ldm_samplers_t2i.npz")
    replay = Replay(reference["x_T"], *reference[f"{tag}__noise"])
    monkeypatch.setattr(latent_call, "RunNoise", replay)
    seen: list[np.ndarray] = []
    edits = system.generate(
        label=[2, 5], size=(16, 16), official=True, on_step=lambda step: seen.append(step.x.copy()), **options
    )
    assert replay.empty
    close(latents(edits), reference[f"{tag}__out"])
    if options.get("sampler") != "plms":
        for got, expected in zip(seen, reference[f"{tag}__x"][1:], strict=True):
            close(got, expected)
    decoded = f"decoded_{tag}"
    if decoded in reference:
        plan = make_plan({}, system.settings.defaults, system.models.schedule)
        close(Call(system.models, plan).first_stage.decode(reference[f"{tag}__out"]), reference[decoded])
        expected = from_float(reference[decoded], official=True).astype(int)
        assert np.abs(np.stack([edit.image for edit in edits]) - expected).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("system", ["ldm_uncond_vq_ema"], indirect=True)
def test_averaged_weights_sample_and_the_decoder_quantises(
    system: LatentDiffusion, goldens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = goldens("ldm_samplers_uncond.npz")
    monkeypatch.setattr(latent_call, "RunNoise", Replay(reference["x_T"], *[reference["x_T"]] * 5))
    edits = system.generate(steps=5, num_images=2, official=True)
    close(latents(edits), reference["ddim_S5_ema__out"])
    plan = make_plan({}, system.settings.defaults, system.models.schedule)
    close(Call(system.models, plan).first_stage.decode(reference["ddim_S5_ema__out"]), reference["ema_decoded"])


@pytest.mark.slow
@pytest.mark.parametrize("system", ["ldm_inpaint_vq_concat"], indirect=True)
def test_inpainting_composes_as_the_original_script(
    system: LatentDiffusion, goldens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = goldens("ldm_task_inpaint.npz")
    picture = np.rint(np.moveaxis(reference["image01"][0], 0, -1) * 255).astype(np.uint8)
    mask = reference["mask01"][0, 0] > 0.5
    fed: list[np.ndarray] = []
    engine = system.models.engine("unet")

    class Spy:
        spec, backend, precision, close = engine.spec, engine.backend, engine.precision, engine.close

        def __call__(self, **feeds: np.ndarray) -> Any:
            fed.append(feeds["x"].copy())
            return engine(**feeds)

    system.models._engines["unet"] = Spy()  # type: ignore[assignment]
    monkeypatch.setattr(latent_call, "RunNoise", Replay(reference["x_T"], *[reference["x_T"]] * 5))
    edit = system.inpaint(picture, mask, steps=5, official=True)[0]
    close(fed[0][:, 3:], reference["cond"])
    close(latents([edit]), reference["out"])
    difference = np.abs(edit.image.astype(int) - reference["final_u8"])
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-2
    monkeypatch.undo()
    again = system.inpaint(picture, mask, steps=5, seed=0)[0]
    assert np.array_equal(again.image[~mask], picture[~mask])


@pytest.mark.parametrize("system", ["ldm_t2i_kl_xattn"], indirect=True)
def test_the_runtime_outside_networks_is_small_and_the_rest_of_the_verbs_run(system: LatentDiffusion) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    edits = system.edit(picture, label=3, steps=4, num_images=2, guidance_scale=2, reconstruct=True)
    assert edits[0].image.shape == picture.shape and edits[0].reconstruction is not None
    assert edits[0].timings["unet"]["calls"] == 3
    mask = np.zeros((20, 30), bool)
    mask[4:10, 5:20] = True
    filled = system.inpaint(picture, mask, label=3, steps=3)[0].image
    assert np.array_equal(filled[~mask], picture[~mask]) and (filled[mask] != picture[mask]).any()
