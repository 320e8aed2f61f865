"""What weights say of their network: configurations read off key names and shapes.

The number of heads leaves no trace in the weights, since heads only cut the channels up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import CheckpointError
from ...networks.autoencoder import AutoencoderConfig

__all__ = ["bert_sizes", "first_stage_config", "unet_params"]

Weights = Mapping[str, Tensor]


def _indices(state: Weights, pattern: str) -> list[int]:
    """Sorted distinct values of the first group of `pattern` over all keys."""
    found = (re.match(pattern, key) for key in state)
    return sorted({int(match.group(1)) for match in found if match})


def _need(state: Weights, key: str, what: str) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(
            f"{what}: {key!r} is missing among {len(state)} keys, so it is not of the CompVis layout; "
            "pass an original .ckpt or .safetensors, or a folder saved by diffusers"
        )
    return tuple(state[key].shape)


def unet_params(state: Weights, what: str) -> dict[str, Any]:
    """``unet_config.params`` of a UNet, but for its heads.

    Raises:
        CheckpointError: The keys are not openaimodel's.
    """
    width = _need(state, "time_embed.0.weight", what)[1]
    stages = _indices(state, r"output_blocks\.(\d+)\.")
    ups = _indices(state, r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers\.0)\.weight")
    # Every level gives as many output stages, its last one up-samples.
    per_level = ups[0] + 1 if ups else len(stages)
    if not stages or len(stages) % per_level or any((i + 1) % per_level for i in ups):
        raise CheckpointError(f"{what}: {len(stages)} output stages, up-sampling after {ups}; pass the model's config")
    levels, blocks = len(stages) // per_level, per_level - 1
    first = [1 + level * per_level for level in range(levels)]
    mult, attended, depth, context = [], [], 1, None
    for level, index in enumerate(first):
        mult.append(_need(state, f"input_blocks.{index}.0.out_layers.3.weight", what)[0] // width)
        if any(key.startswith(f"input_blocks.{index}.1.") for key in state):
            attended.append(2**level)
    spatial = any(".transformer_blocks." in key for key in state)
    if spatial:
        depth = len(_indices(state, r"middle_block\.1\.transformer_blocks\.(\d+)\."))
        context = _need(state, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", what)[1]
        if len(_need(state, "middle_block.1.proj_in.weight", what)) == 2:
            raise CheckpointError(
                f"{what}: its transformers project linearly, as Stable Diffusion 2's; "
                "pass the model as a folder saved by diffusers"
            )
    block = _need(state, "input_blocks.1.0.emb_layers.1.weight", what)[0]
    return {
        "in_channels": _need(state, "input_blocks.0.0.weight", what)[1],
        "out_channels": _need(state, "out.2.weight", what)[0],
        "model_channels": width,
        "num_res_blocks": blocks,
        "attention_resolutions": attended,
        "channel_mult": mult,
        "num_classes": tuple(state["label_emb.weight"].shape)[0] if "label_emb.weight" in state else None,
        "use_scale_shift_norm": block == 2 * mult[0] * width,
        "resblock_updown": bool(levels > 1 and f"input_blocks.{per_level}.0.in_layers.0.weight" in state),
        "conv_resample": levels == 1
        or any(f"input_blocks.{per_level}.0.{name}.weight" in state for name in ("op", "in_layers.0")),
        "use_spatial_transformer": spatial,
        "transformer_depth": depth,
        "context_dim": context,
    }


def first_stage_config(state: Weights, what: str) -> tuple[AutoencoderConfig, int, int | None]:
    """``ddconfig``, ``embed_dim`` and ``n_embed`` (None for KL) of a first stage; it has no heads, so nothing is open.

    Raises:
        CheckpointError: The keys are not autoencoder's.
    """
    ch, channels = _need(state, "encoder.conv_in.weight", what)[:2]
    levels = _indices(state, r"encoder\.down\.(\d+)\.")
    mult = tuple(_need(state, f"encoder.down.{i}.block.0.conv1.weight", what)[0] // ch for i in levels)
    z = _need(state, "decoder.conv_in.weight", what)[1]
    resolution = 2 ** max(8, len(levels))
    attended = _indices(state, r"encoder\.down\.(\d+)\.attn\.")
    quantized = "quantize.embedding.weight" in state
    config = AutoencoderConfig(
        ch=ch,
        ch_mult=mult,
        num_res_blocks=len(_indices(state, r"encoder\.down\.0\.block\.(\d+)\.")),
        z_channels=z,
        resolution=resolution,
        attn_resolutions=tuple(resolution >> i for i in attended),
        in_channels=channels,
        out_ch=_need(state, "decoder.conv_out.weight", what)[0],
        double_z=_need(state, "encoder.conv_out.weight", what)[0] == 2 * z,
        attn_type="vanilla" if "decoder.mid.attn_1.q.weight" in state else "none",
    )
    embed_dim = _need(state, "post_quant_conv.weight", what)[1]
    return config, embed_dim, int(state["quantize.embedding.weight"].shape[0]) if quantized else None


def bert_sizes(state: Weights, what: str) -> dict[str, int]:
    """Sizes of a `BERTEmbedder` under ``transformer.*``; its heads are 64 wide in all published models."""
    vocabulary, width = _need(state, "transformer.token_emb.weight", what)
    inner = _need(state, "transformer.attn_layers.layers.0.1.to_q.weight", what)[0]
    return {
        "n_embed": width,
        "n_layer": len(_indices(state, r"transformer\.attn_layers\.layers\.(\d+)\.")) // 2,
        "vocab_size": vocabulary,
        "max_seq_len": _need(state, "transformer.pos_emb.emb.weight", what)[0],
        "heads": inner // 64,
    }
