"""Folders of diffusers: compiled networks against the libraries' own outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bare_pipeline import bare_pipeline

from sfumato.calibration.parity import verify_bundle
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import open_engine
from sfumato.errors import CheckpointError, ExportError
from sfumato.export.recipes.diffusers_folder import read_diffusers
from sfumato.runtime.systems.latent_settings import LatentDiffusionSettings
from sfumato.runtime.tokenizer import open_tokenizer

Export = Callable[[str], tuple[Path, Bundle]]
slow = pytest.mark.slow
TEXT = ["stable_diffusion_1", pytest.param("stable_diffusion_2", marks=slow), pytest.param("ldm_text", marks=slow)]
PLAIN = ["ldm_super_resolution", pytest.param("ldm_unconditional", marks=slow)]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def _run(bundle: Bundle, network: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    with open_engine(bundle, network, backend="onnxruntime") as engine:
        return {name: array.copy() for name, array in engine(**feeds).items()}


def _close(result: np.ndarray, reference: torch.Tensor) -> None:
    np.testing.assert_allclose(result, reference.numpy(), rtol=0, atol=2e-5 * float(reference.abs().max()))


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("name", [*TEXT, *PLAIN])
def test_the_bundle_verifies_and_says_what_it_is(folder_exported: Export, name: str) -> None:
    _, bundle = folder_exported(name)
    assert verify_bundle(Bundle.open(bundle.path)).passed
    settings = LatentDiffusionSettings.from_json(bundle.manifest.settings)
    assert bundle.manifest.schedule is not None
    said = (settings.task, settings.conditioning, settings.first_stage, settings.scale_factor)
    assert (
        said + (bundle.manifest.schedule.prediction,)
        == {
            "stable_diffusion_1": ("text", "crossattn", "kl", 0.18215, "eps"),
            "stable_diffusion_2": ("text", "crossattn", "kl", 0.18215, "v"),
            "ldm_text": ("text", "crossattn", "kl", 0.18215, "eps"),
            # Written as 0.18215 by diffusers' default, which was never these models'.
            "ldm_unconditional": ("unconditional", "none", "vq", 1.0, "eps"),
            "ldm_super_resolution": ("upscale", "concat", "vq", 1.0, "eps"),
        }[name]
    )


@pytest.mark.parametrize("name", TEXT)
def test_the_unet_is_the_librarys(folder_exported: Export, name: str) -> None:
    from diffusers import UNet2DConditionModel

    folder, bundle = folder_exported(name)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    x, t, context = _draw(1, 4, 6, 10), torch.tensor([37.0]), _draw(1, 7, 16)
    with torch.no_grad():
        expected = unet(x, t, encoder_hidden_states=context).sample
    _close(_run(bundle, "unet", x=x.numpy(), t=t.numpy(), context=context.numpy())["prediction"], expected)


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_unet_is_the_librarys(folder_exported: Export, name: str) -> None:
    from diffusers import UNet2DModel

    folder, bundle = folder_exported(name)
    unet = UNet2DModel.from_pretrained(folder / "unet").eval()
    x, t = _draw(3, unet.config.in_channels, 5, 9), torch.tensor([1.0, 500.0, 998.0])
    with torch.no_grad():
        expected = unet(x, t).sample
    _close(_run(bundle, "unet", x=x.numpy(), t=t.numpy())["prediction"], expected)


@pytest.mark.parametrize("name", ["stable_diffusion_1"])
def test_the_kl_first_stage_is_the_librarys(folder_exported: Export, name: str) -> None:
    from diffusers import AutoencoderKL

    folder, bundle = folder_exported(name)
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    image, z = _draw(1, 3, 12, 20), _draw(2, 4, 3, 7)
    with torch.no_grad():
        posterior, picture = vae.encode(image).latent_dist, vae.decode(z).sample
    result = _run(bundle, "vae_encoder", image=image.numpy())
    _close(result["mean"], posterior.mean)
    _close(result["log_variance"], posterior.logvar)
    _close(_run(bundle, "vae_decoder", z=z.numpy())["image"], picture)


@pytest.mark.parametrize("name", ["ldm_super_resolution"])
def test_the_vq_first_stage_is_the_librarys(folder_exported: Export, name: str) -> None:
    from diffusers import VQModel

    folder, bundle = folder_exported(name)
    vq = VQModel.from_pretrained(folder / "vqvae").eval()
    image, z = _draw(1, 3, 12, 20), _draw(2, 3, 3, 7)
    with torch.no_grad():
        latent, picture = vq.encode(image).latents, vq.decode(z).sample
    _close(_run(bundle, "vae_encoder", image=image.numpy())["latent"], latent)
    _close(_run(bundle, "vae_decoder", z=z.numpy())["image"], picture)


@pytest.mark.parametrize("name", TEXT)
def test_prompts_reach_the_unet_as_in_the_library(folder_exported: Export, name: str) -> None:
    folder, bundle = folder_exported(name)
    settings = LatentDiffusionSettings.from_json(bundle.manifest.settings)
    assert settings.tokenizer is not None and settings.max_tokens == 12
    tokens = open_tokenizer(settings.tokenizer, bundle.asset("tokenizer"), settings.max_tokens)(["a b c", ""])
    context = _run(bundle, "text_encoder", input_ids=tokens.ids)["context"]
    with torch.no_grad():
        _close(context, _library_text(folder, name, torch.from_numpy(tokens.ids)))
    pad = {"stable_diffusion_1": 63, "stable_diffusion_2": 0, "ldm_text": 0}[name]
    assert tokens.ids[1, -1] == pad


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_model_trained_to_inpaint_fills_holes_as_the_librarys_pipeline(
    folder_exported: Export, strength: float
) -> None:
    """Checkpoint to picture: prompt, mask and masked picture, guidance and a negative prompt, two pictures a call."""
    import diffusers
    from PIL import Image

    import sfumato

    folder, bundle = folder_exported("stable_diffusion_inpainting")
    draw = np.random.default_rng(3)
    picture, mask = draw.integers(0, 256, (16, 24, 3)).astype(np.uint8), np.zeros((16, 24), np.bool_)
    mask[3:11, 5:18] = True
    with sfumato.load(bundle.path, backend="onnxruntime") as system:
        assert system.verbs == ("inpaint",)
        options = {"steps": 5, "guidance_scale": 3.0, "negative_prompt": "c", "seed": 7, "num_images": 2}
        edits = system.inpaint(picture, mask, "a b", strength=strength, paste=False, **options)
        ids = system.models.tokenizer()(["a b", "c"]).ids
    prompt, negative = _library_text(folder, "stable_diffusion_inpainting", torch.from_numpy(ids)).split(1)
    pipe = bare_pipeline(
        "StableDiffusionInpaintPipeline",
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
    )
    expected = pipe(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        image=Image.fromarray(picture),
        mask_image=Image.fromarray(mask),
        strength=strength,
        num_inference_steps=5,
        guidance_scale=3.0,
        num_images_per_prompt=2,
        height=16,
        width=24,
        generator=torch.Generator().manual_seed(7),
    ).images
    for edit, theirs in zip(edits, expected, strict=True):
        difference = np.abs(edit.image.astype(int) - np.asarray(theirs).astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def _library_text(folder: Path, name: str, ids: torch.Tensor) -> torch.Tensor:
    if name == "ldm_text":
        from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

        return LDMBertModel.from_pretrained(folder / "bert").eval()(ids, return_dict=True).last_hidden_state
    from transformers import CLIPTextModel

    return CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(ids).last_hidden_state


def _changed(source: Path, target: Path, path: str, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / path).read_text())
    change(config)
    (target / path).write_text(json.dumps(config))
    return target


def test_a_vq_scale_that_was_meant_is_believed(folder_exported: Export, tmp_path: Path) -> None:
    folder, _ = folder_exported("ldm_super_resolution")
    for index, (value, expected) in enumerate(((0.5, 0.5), (None, 1.0), (0.18215, 1.0))):

        def change(config: dict[str, Any], value: float | None = value) -> None:
            config["scaling_factor"] = value
            if value is None:
                del config["scaling_factor"]

        other = _changed(folder, tmp_path / str(index), "vqvae/config.json", change)
        assert read_diffusers(other).settings.scale_factor == expected


@pytest.mark.parametrize(
    ("path", "change", "kind", "message"),
    [
        (
            "model_index.json",
            {"unet": ["diffusers", "SD3Transformer2DModel"]},
            ExportError,
            "need Stable Diffusion 1 or 2",
        ),
        ("unet/config.json", {"in_channels": 8}, ExportError, "takes 8 channels for latents of 4 and a text"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, ExportError, "time_cond_proj_dim 256"),
        ("unet/config.json", {"num_class_embeds": 10}, ExportError, "num_class_embeds 10"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, ExportError, "is a T5EncoderModel"),
        ("model_index.json", {"text_encoder": [None, None]}, ExportError, "there is no text encoder"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, CheckpointError, "prediction_type is 'flow'"),
    ],
)
def test_other_pipelines_are_refused(folder_exported: Export, tmp_path: Path, path, change, kind, message) -> None:
    folder, _ = folder_exported("stable_diffusion_1")
    with pytest.raises(kind, match=message):
        read_diffusers(_changed(folder, tmp_path / "x", path, lambda config: config.update(change)))


def test_a_component_that_does_not_fit_is_refused(folder_exported: Export, tmp_path: Path) -> None:
    folder, _ = folder_exported("stable_diffusion_1")
    other = _changed(folder, tmp_path / "x", "unet/config.json", lambda c: c.update(layers_per_block=2))
    unet = next(n for n in read_diffusers(other).networks if n.name == "unet")
    with pytest.raises(CheckpointError, match=r"unet: keys do not fit the network \(\d+ missing: .* more"):
        unet.build()
    (other / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        unet.build()
    (other / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="no tokenizer that can be read"):
        read_diffusers(other)
