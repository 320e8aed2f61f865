"""Diffusers' modules as networks: their outputs as bindings, their attention written out, old key names renamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ...networks.checkpoint import build, read_folder
from ...networks.vq import VectorQuantizer
from .diffusers_attention import write_out_attention

__all__ = ["ContextUNet", "FolderDecoder", "FolderEncoder", "PlainUNet", "bert_names", "unet_loader", "vae_loader"]


class PlainUNet(nn.Module):
    """(x, t) -> prediction of a ``UNet2DModel``."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.unet(x, t, return_dict=False)[0]


class ContextUNet(nn.Module):
    """(x, t, context) -> prediction of a ``UNet2DConditionModel``."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.unet(x, t, encoder_hidden_states=context, return_dict=False)[0]


class FolderEncoder(nn.Module):
    """Image -> mean, log_variance of an ``AutoencoderKL``, or latent before quantisation of a ``VQModel``."""

    def __init__(self, vae: Any, kind: str) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.kind = vae.encoder, vae.quant_conv, kind

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.encoder(image)
        h = h if self.quant_conv is None else self.quant_conv(h)
        if self.kind == "vq":
            return h
        mean, log_variance = h.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)


class FolderDecoder(nn.Module):
    """z -> image of an ``AutoencoderKL``, or of a ``VQModel``, which quantises first."""

    def __init__(self, vae: Any, kind: str) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.quantize: VectorQuantizer | None = None
        if kind == "vq":
            table = vae.quantize.embedding.weight
            with torch.device("meta"):
                quantize = VectorQuantizer(*table.shape)
            quantize.embedding.weight = table
            self.quantize = quantize

    @property
    def table(self) -> Tensor | None:
        """The codebook (K, C), None without one."""
        return None if self.quantize is None else self.quantize.embedding.weight

    def forward(self, z: Tensor) -> Tensor:
        z = z if self.quantize is None else self.quantize(z)[0]
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


def _diffusers(class_name: str, config: Mapping[str, Any], where: Path) -> Callable[[], nn.Module]:
    """The factory of a diffusers class with a config.json."""
    import diffusers

    cls = getattr(diffusers, class_name)

    def make() -> nn.Module:
        try:
            return cast(nn.Module, cls.from_config({**config, "_class_name": class_name}))
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{where}: config.json does not fit {class_name} ({error})") from error

    return make


def unet_loader(folder: Path, class_name: str, config: Mapping[str, Any]) -> Callable[[], nn.Module]:
    def load() -> nn.Module:
        module = build(_diffusers(class_name, config, folder), read_folder(folder), str(folder))
        write_out_attention(module)
        return ContextUNet(module) if class_name == "UNet2DConditionModel" else PlainUNet(module)

    return load


_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Attention of first stages as diffusers named it before 0.15, in most published files."""


def vae_loader(folder: Path, class_name: str, config: Mapping[str, Any]) -> Callable[[], nn.Module]:
    def load() -> nn.Module:
        state = {}
        for key, value in read_folder(folder).items():
            old = re.fullmatch(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", key)
            state[f"{old[1]}.{_OLD_NAMES[old[2]]}.{old[3]}" if old else key] = value
        # Published as 1x1 convolutions in some files.
        state = {
            k: v.flatten(1) if v.ndim == 4 and re.search(r"attentions\.\d+\.to_\w+(\.0)?\.weight$", k) else v
            for k, v in state.items()
        }
        module = build(_diffusers(class_name, config, folder), state, str(folder), ignore=(r"loss\.",))
        write_out_attention(module)
        return module

    return load


_BERT_BLOCKS = {
    "self_attn_layer_norm": (0, "0"),
    "self_attn.q_proj": (0, "1.to_q"),
    "self_attn.k_proj": (0, "1.to_k"),
    "self_attn.v_proj": (0, "1.to_v"),
    "self_attn.out_proj": (0, "1.to_out"),
    "final_layer_norm": (1, "0"),
    "fc1": (1, "1.net.0.0"),
    "fc2": (1, "1.net.2"),
}


def bert_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of diffusers' ``LDMBertModel`` under the names of `BERTEmbedder`."""
    plain = {
        "model.embed_tokens": "transformer.token_emb",
        "model.embed_positions": "transformer.pos_emb.emb",
        "model.layer_norm": "transformer.norm",
        "to_logits": "transformer.to_logits",
    }
    result = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        if match and match[2] in _BERT_BLOCKS:
            offset, name = _BERT_BLOCKS[match[2]]
            stem = f"transformer.attn_layers.layers.{2 * int(match[1]) + offset}.{name}"
        result[f"{plain.get(stem, stem)}.{kind}"] = value
    return result
