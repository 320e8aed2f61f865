"""Configurations of latent diffusion: the YAML that a checkpoint was trained with, or what its weights say.

The YAML is CompVis' own (``model.params.unet_config.params`` …). What it leaves out is read off the weights. A
section ``sfumato`` may add what the original keeps in scripts: ``null_class``, ``name``, ``license`` and
``defaults`` (steps, guidance_scale, sampler, eta, spacing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ...errors import CheckpointError
from ...networks.autoencoder import AutoencoderConfig
from ...networks.checkpoint import section
from ...networks.unet import UNetConfig
from .inference import first_stage_config, unet_params
from .published import Published, recognise

__all__ = ["LdmConfig", "configure", "read_config"]

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class LdmConfig:
    """What the weights of a latent-diffusion checkpoint mean.

    Arguments:
        unet: The UNet.
        first_stage: The first stage's ``ddconfig``.
        embed_dim: Channels of its latent.
        codes: Entries of its codebook, None for a KL first stage.
        params: ``model.params`` of the YAML, empty without one.
        published: The published model that the weights have the shape of, if any.
        extra: The section ``sfumato``.
    """

    unet: UNetConfig
    first_stage: AutoencoderConfig
    embed_dim: int
    codes: int | None
    params: Tree = field(default_factory=dict)
    published: Published | None = None
    extra: Tree = field(default_factory=dict)

    @property
    def use_ema(self) -> bool:
        """The averaged weights are the ones to sample with, unless the YAML says otherwise."""
        return bool(self.params.get("use_ema", True))

    @property
    def hybrid(self) -> bool:
        """The UNet takes further channels and a context."""
        return self.unet.context_dim is not None and self.unet.in_channels != self.embed_dim

    @property
    def latent_size(self) -> tuple[int, int]:
        """Usual height and width in latents; the YAML's, the published, or those of a 256-pixel picture."""
        published = self.published.latent_size if self.published else 256 // self.first_stage.factor
        size = self.params.get("image_size", published)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return int(height), int(width)

    @property
    def null_class(self) -> int | None:
        """The label that stands for "no class"."""
        value = self.extra.get("null_class", self.published.null_class if self.published else None)
        return None if value is None else int(value)

    @property
    def scale_factor(self) -> float | None:
        """The YAML's, or the published; a buffer in the checkpoint goes before both."""
        value = self.params.get("scale_factor", self.published.scale_factor if self.published else None)
        return None if value is None else float(value)


def read_config(path: Path) -> Tree:
    """A YAML (or JSON) file as a tree.

    Raises:
        CheckpointError: It cannot be read, or is no mapping.
    """
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); pass the model's YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: is not YAML ({reason}); pass the model's YAML") from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}, need 'model: params: …'; pass the model's YAML")
    return cast(Tree, tree)


def _at(tree: Tree, path: str, what: str) -> Tree:
    """The mapping at a dotted path, empty where there is none."""
    for name in path.split("."):
        value = tree.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{what}: {path!r} is {value!r} at {name!r}, need a mapping; correct the config")
        tree = value
    return tree


def configure(state: Mapping[str, Tensor], what: str, config: Path | None) -> LdmConfig:
    """The configuration of a checkpoint.

    Arguments:
        state: Its tensors.
        what: Its name, for messages.
        config: Its YAML, or None to read it off the weights.

    Raises:
        CheckpointError: The weights are of another layout, or the heads are nowhere stated.
    """
    tree = {} if config is None else read_config(config)
    said = what if config is None else str(config)
    params = _at(tree, "model.params", said)
    if config is not None and not params:
        raise CheckpointError(f"{config}: has no 'model.params'; pass the YAML that the model was trained with")
    weights = section(state, "model.diffusion_model.")
    inferred = unet_params(weights, what)
    published = recognise(inferred, section(state, "first_stage_model."))
    given = dict(_at(params, "unet_config.params", said))
    unet = _unet({**inferred, **given}, given, inferred, published, what)
    ae = section(state, "first_stage_model.")
    first_stage, embed_dim, codes = first_stage_config(ae, f"{what} (first_stage_model)")
    stage = _at(params, "first_stage_config.params", said)
    if isinstance(stage.get("ddconfig"), Mapping):
        first_stage = _read(AutoencoderConfig.from_dict, stage["ddconfig"], f"{said}: first_stage_config")
        embed_dim = int(stage.get("embed_dim", embed_dim))
    return LdmConfig(unet, first_stage, embed_dim, codes, params, published, _at(tree, "sfumato", said))


def _unet(params: Tree, given: Tree, inferred: Tree, published: Published | None, what: str) -> UNetConfig:
    heads = {name: given.get(name, -1) for name in ("num_heads", "num_head_channels")}
    if heads["num_heads"] == -1 and heads["num_head_channels"] == -1:
        if published is None:
            raise CheckpointError(
                f"{what}: weights do not tell the number of attention heads, and the model is none of the published; "
                "pass config=YAML with model.params.unet_config.params.num_heads or num_head_channels"
            )
        heads = {"num_heads": published.num_heads, "num_head_channels": published.num_head_channels}
    different = [
        f"{name} is {given[name]!r} in the config and {inferred[name]!r} in the weights"
        for name in ("in_channels", "out_channels", "model_channels", "context_dim")
        if name in given and given[name] is not None and given[name] != inferred[name]
    ]
    if different:
        raise CheckpointError(f"{what}: {'; '.join(different)}; pass the config of this checkpoint")
    return _read(UNetConfig.from_dict, {**params, **heads}, f"{what}: unet_config.params")


def _read(reader: Any, params: Tree, where: str) -> Any:
    try:
        return reader(dict(params))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be used ({error}); correct the config") from error
