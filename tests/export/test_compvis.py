"""CompVis checkpoints as they are read: tasks, scales, averages, tokenizers; nothing is traced here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.errors import CheckpointError, ExportError
from sfumato.export.recipes.compvis import read_compvis
from sfumato.export.recipes.model import Model
from sfumato.networks.bert import BERTConfig, BERTEmbedder
from sfumato.networks.checkpoint import ema_weights, read_checkpoint, section
from sfumato.networks.conditioners import SpatialRescaler
from sfumato.networks.unet import UNet, UNetConfig

READ = {
    "ldm_t2i_kl_xattn": ("class", "crossattn", 0.18215, "kl", (16, 16), ["class_embedder", "unet"]),
    "ldm_uncond_vq_ema": ("unconditional", "none", 1.0, "vq", (32, 32), ["unet"]),
    "ldm_inpaint_vq_concat": ("inpaint", "concat", 1.0, "vq", (32, 32), ["unet"]),
    "ldm_sr_vq_concat": ("upscale", "concat", 1.0, "vq", (32, 32), ["unet"]),
    "ldm_std_kl_uncond": ("unconditional", "none", 0.2345, "kl", (32, 32), ["unet"]),
}


def _network(model: Model, name: str) -> torch.nn.Module:
    return next(n for n in model.networks if n.name == name).build()


@pytest.mark.parametrize("name", READ)
def test_every_kind_of_checkpoint_is_told_by_its_keys(goldens, name: str) -> None:
    model = read_compvis(goldens.path(f"{name}.ckpt"), goldens.path(f"{name}.yaml"), None)
    task, conditioning, scale, first_stage, size, networks = READ[name]
    s = model.settings
    assert (s.task, s.conditioning, s.first_stage, s.image_size) == (task, conditioning, first_stage, size)
    assert s.scale_factor == pytest.approx(scale, rel=1e-6)
    assert s.factor == 2 and s.size_multiple == 4
    assert [n.name for n in model.networks] == [*networks, "vae_encoder", "vae_decoder"]
    assert model.noise.spec.betas == "scaled_linear" and not model.noise.files


def test_averaged_weights_are_taken_unless_the_config_says_otherwise(goldens, tmp_path: Path) -> None:
    path = goldens.path("ldm_uncond_vq_ema.ckpt")
    state, config = read_checkpoint(path), goldens.path("ldm_uncond_vq_ema.yaml")
    averaged, live = ema_weights(state), section(state, "model.diffusion_model.")
    assert averaged is not None
    other = tmp_path / "live.yaml"
    other.write_text(config.read_text().replace("use_ema: true", "use_ema: false"))
    for yaml, weights in ((config, averaged), (other, live)):
        unet = _network(read_compvis(path, yaml, None), "unet")
        assert torch.equal(unet.get_parameter("time_embed.0.weight"), weights["time_embed.0.weight"])
    assert not torch.equal(averaged["time_embed.0.weight"], live["time_embed.0.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_safetensors_hold_the_same_model(goldens, tmp_path: Path, dtype: torch.dtype) -> None:
    source = goldens.path("ldm_t2i_kl_xattn.ckpt")
    state = {k: v.to(dtype) if k.startswith(("model.", "first_", "cond_")) else v for k, v in _state(source).items()}
    save_file(state, tmp_path / "half.safetensors")
    model = read_compvis(tmp_path / "half.safetensors", goldens.path("ldm_t2i_kl_xattn.yaml"), None)
    unet = _network(model, "unet")
    assert unet.get_parameter("time_embed.0.weight").dtype == torch.float32
    # The golden weights lie on the bfloat16 grid.
    exact = state["model.diffusion_model.time_embed.0.weight"].float()
    assert torch.equal(unet.get_parameter("time_embed.0.weight"), exact)


def _state(path: Path) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in read_checkpoint(path).items()}


@pytest.fixture(scope="module")
def stage(goldens) -> dict[str, torch.Tensor]:
    """First stage and schedule of a golden, to be joined with other UNets."""
    state = _state(goldens.path("ldm_t2i_kl_xattn.ckpt"))
    return {k: v for k, v in state.items() if not k.startswith(("model.", "cond_stage_model."))}


def _checkpoint(folder: Path, stage, unet: dict, cond: dict[str, torch.Tensor], yaml: str = "{}") -> tuple[Path, Path]:
    torch.manual_seed(0)
    base = {"out_channels": 4, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": (2,)}
    module = UNet(UNetConfig.from_dict({**base, "channel_mult": (1, 1), "num_heads": 4, **unet}))
    state = {**stage, **{f"model.diffusion_model.{k}": v for k, v in module.state_dict().items()}}
    save_file(state | {f"cond_stage_model.{k}": v.contiguous() for k, v in cond.items()}, folder / "m.safetensors")
    config = folder / "m.yaml"
    config.write_text(
        "model: {params: {unet_config: {params: {num_heads: 4}}, cond_stage_config: {params: " + yaml + "}}}"
    )
    return folder / "m.safetensors", config


CONTEXT = {"in_channels": 4, "use_spatial_transformer": True, "context_dim": 32}


def _bert(vocabulary: int) -> dict[str, torch.Tensor]:
    return BERTEmbedder(BERTConfig(32, 2, vocabulary, 12)).state_dict()


def test_layout_tokens_need_no_tokenizer_and_prompts_do(tmp_path: Path, stage) -> None:
    model = read_compvis(*_checkpoint(tmp_path, stage, CONTEXT, _bert(50)), None)
    assert (model.settings.task, model.settings.max_tokens, model.settings.tokenizer) == ("layout", 12, None)
    paths = _checkpoint(tmp_path, stage, CONTEXT, _bert(60), "{use_tokenizer: true}")
    with pytest.raises(ExportError, match=r"prompts need a tokenizer and .*tokenizer.json does not exist"):
        read_compvis(*paths, None)
    (tmp_path / "tokenizer.json").write_text("{}")
    model = read_compvis(*paths, None)
    assert (model.settings.task, model.settings.tokenizer) == ("text", "bert")
    assert model.tokenizer == tmp_path / "tokenizer.json"


def test_clip_text_is_found_in_a_checkpoint(tmp_path: Path, stage) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=9,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    clip = CLIPTextModel(config).eval()
    weights = {f"transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in clip.state_dict().items()}
    weights["transformer.text_model.embeddings.position_ids"] = torch.arange(9)[None]
    (tmp_path / "tokenizer.json").write_text("{}")
    model = read_compvis(*_checkpoint(tmp_path, stage, {**CONTEXT, "context_dim": 64}, weights), None)
    assert (model.settings.task, model.settings.tokenizer, model.settings.max_tokens) == ("text", "clip", 9)
    ids = torch.randint(0, 50, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(_network(model, "text_encoder")(ids), clip(ids).last_hidden_state)
    # The mask and the masked picture's latents beside x make it Stable Diffusion's inpainting model …
    hybrid = {**CONTEXT, "context_dim": 64, "in_channels": 9}
    settings = read_compvis(*_checkpoint(tmp_path, stage, hybrid, weights), None).settings
    assert (settings.task, settings.conditioning, settings.tokenizer) == ("inpaint", "hybrid", "clip")
    assert settings.defaults.guidance_scale == 7.5
    # … and other channels another model.
    with pytest.raises(ExportError, match="takes 8 channels for latents of 4 and a context"):
        read_compvis(*_checkpoint(tmp_path, stage, {**hybrid, "in_channels": 8}, weights), None)


def test_a_rescaler_makes_a_semantic_model(tmp_path: Path, stage) -> None:
    cond = SpatialRescaler(1, 7, 4).state_dict()
    model = read_compvis(*_checkpoint(tmp_path, stage, {"in_channels": 8}, cond), None)
    assert model.settings.task == "semantic"
    assert [n.name for n in model.networks][0] == "spatial_rescaler"
    paths = _checkpoint(tmp_path, stage, {"in_channels": 8}, cond, "{method: bicubic}")
    with pytest.raises(ExportError, match="'bicubic'; need 0.5 and bilinear"):
        read_compvis(*paths, None)


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"in_channels": 4, "num_classes": 5}, None),
        ({**CONTEXT, "in_channels": 9}, "takes 9 channels for latents of 4 and a context; of such models only"),
        (CONTEXT, "condition stage holds nothing"),
        ({"in_channels": 6}, "takes 6 channels for latents of 4"),
    ],
)
def test_what_no_system_here_can_run_is_refused(tmp_path: Path, stage, unet, message) -> None:
    paths = _checkpoint(tmp_path, stage, unet, {})
    if message is None:
        assert read_compvis(*paths, None).settings.conditioning == "adm"
        return
    with pytest.raises(ExportError, match=message):
        read_compvis(*paths, None)


def test_linear_projections_point_to_the_diffusers_folder(tmp_path: Path, stage) -> None:
    path, config = _checkpoint(tmp_path, stage, CONTEXT, _bert(50))
    state = _state(path)
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    save_file({**state, key: state[key].flatten(1)}, tmp_path / "linear.safetensors")
    with pytest.raises(CheckpointError, match="Stable Diffusion 2's; pass the model as a folder"):
        read_compvis(tmp_path / "linear.safetensors", config, None)


def test_scale_by_std_without_the_buffer_is_refused(goldens, tmp_path: Path) -> None:
    state = _state(goldens.path("ldm_std_kl_uncond.ckpt"))
    del state["scale_factor"]
    save_file(state, tmp_path / "x.safetensors")
    shutil.copy(goldens.path("ldm_std_kl_uncond.yaml"), tmp_path / "x.yaml")
    with pytest.raises(CheckpointError, match="scale_by_std and there is no 'scale_factor'"):
        read_compvis(tmp_path / "x.safetensors", tmp_path / "x.yaml", None)
