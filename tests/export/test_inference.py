"""Configurations: read off weights, stated in YAML, recognised; and refused where they contradict each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.errors import CheckpointError
from sfumato.export.recipes.configuration import configure
from sfumato.export.recipes.inference import bert_sizes, first_stage_config, unet_params
from sfumato.export.recipes.published import PUBLISHED, recognise
from sfumato.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from sfumato.networks.checkpoint import read_checkpoint
from sfumato.networks.unet import UNet, UNetConfig

HEADS = ("num_heads", "num_head_channels", "use_new_attention_order")


def _weights(goldens, name: str) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in goldens(name).items()}


@pytest.mark.parametrize("name", ["xattn", "xattn_legacy", "selfattn_legacy", "updown_ssn", "concat7", "adm_classes"])
def test_a_unets_weights_tell_all_but_its_heads(goldens, name: str) -> None:
    stated = json.loads(goldens.path("ldm_unet_configs.json").read_text())[name]
    inferred = unet_params(_weights(goldens, f"ldm_unet_{name}_weights.npz"), name)
    heads = {key: stated[key] for key in HEADS if key in stated}
    assert UNetConfig.from_dict({**inferred, **heads}) == UNetConfig.from_dict(stated)


@pytest.mark.parametrize("name", ["kl", "vq", "vq_noattn"])
def test_a_first_stages_weights_tell_everything(goldens, name: str) -> None:
    stated = json.loads(goldens.path("ldm_first_stage_configs.json").read_text())[name]
    weights = _weights(goldens, f"ldm_{name}_weights.npz")
    config, width, codes = first_stage_config(weights, name)
    assert (width, codes) == (stated["embed_dim"], stated.get("n_embed"))
    # The resolution is a convention: attention is at the same levels.
    known = AutoencoderConfig.from_dict(stated)
    assert [r * known.resolution // config.resolution for r in config.attn_resolutions] == list(known.attn_resolutions)
    assert (config.ch_mult, config.double_z, config.attn_type) == (known.ch_mult, known.double_z, known.attn_type)


def test_a_berts_weights_tell_everything(goldens) -> None:
    sizes = bert_sizes(_weights(goldens, "ldm_cond_bert_weights.npz"), "it")
    assert sizes == {"n_embed": 32, "n_layer": 2, "vocab_size": 50, "max_seq_len": 12, "heads": 8}


def test_every_published_model_is_recognised_by_its_own_shape() -> None:
    for model in PUBLISHED:
        config = UNetConfig(
            in_channels=model.channels[0],
            model_channels=model.width,
            out_channels=model.channels[1],
            num_res_blocks=1,
            attention_resolutions=(),
            channel_mult=model.mult,
            num_heads=model.num_heads,
            num_head_channels=model.num_head_channels,
            use_spatial_transformer=model.context is not None,
            context_dim=model.context,
        )
        stage = AutoencoderConfig(32, (1,) * model.factor.bit_length(), 1, 4)
        with torch.device("meta"):
            unet, first_stage = UNet(config).state_dict(), AutoencoderKL(stage, 4).state_dict()
        assert recognise(unet_params(unet, model.name), first_stage) is model


def test_without_heads_a_config_is_asked_for(goldens) -> None:
    state = read_checkpoint(goldens.path("ldm_t2i_kl_xattn.ckpt"))
    with pytest.raises(CheckpointError, match=r"do not tell the number of attention heads.*config=YAML.*num_heads"):
        configure(state, "it", None)


def test_json_is_yaml_and_what_it_leaves_out_is_inferred(goldens, tmp_path: Path) -> None:
    state = read_checkpoint(goldens.path("ldm_t2i_kl_xattn.ckpt"))
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model": {"params": {"unet_config": {"params": {"num_head_channels": 8}}}}}))
    ldm = configure(state, "it", path)
    assert ldm.unet.heads(32) == 4 and ldm.unet.context_dim == 24
    assert ldm.use_ema and ldm.scale_factor is None and ldm.latent_size == (128, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not YAML"),
        ("- a", "holds a list, need 'model: params"),
        ("model: {}", "has no 'model.params'"),
        ("model: {params: {unet_config: 3}}", "'unet_config.params' is 3 at 'unet_config'"),
        (
            "model: {params: {unet_config: {params: {num_heads: 4, in_channels: 9}}}}",
            "in_channels is 9 in the config and 4",
        ),
    ],
)
def test_a_config_that_cannot_be_the_models_is_refused(goldens, tmp_path: Path, text, message) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        configure(read_checkpoint(goldens.path("ldm_t2i_kl_xattn.ckpt")), "it", path)


def test_a_checkpoint_of_another_kind_is_refused(goldens, tmp_path: Path) -> None:
    from sfumato.export.recipes.compvis import read_compvis

    path = tmp_path / "x.safetensors"
    save_file({"unet.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"has no 'model.diffusion_model.\*' but unet.weight"):
        read_compvis(path, None, None)
    state = read_checkpoint(goldens.path("ldm_std_kl_uncond.ckpt"))
    save_file({**state, **{f"lora.{i}": torch.zeros(1) for i in range(7)}}, path)
    with pytest.raises(CheckpointError, match=r"7 keys belong to no network.*lora\.0.*and 2 more"):
        read_compvis(path, goldens.path("ldm_std_kl_uncond.yaml"), None)
