"""Cold Diffusion: checkpoints of the original's code, or of `training.train_cold`, become bundles.

References:
    Bansal et al., "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise", 2022,
    https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...engines.binding import Binding, Dimension
from ...engines.bundle import Bundle
from ...engines.precision import Precision
from ...engines.strict import Node
from ...errors import CheckpointError, ExportError, ManifestError, ParameterError
from ...networks.checkpoint import build
from ...networks.cold_checkpoint import ColdCheckpoint, check_alphas, check_kernels, read_cold_checkpoint
from ...networks.convnext import ConvNextConfig, ConvNextUNet
from ...networks.ddpm import DDPM, DDPMConfig
from ...runtime.degradations import Blur
from ...runtime.degradations.mixing import Mixing
from ...runtime.degradations.spec import DegradationSpec
from ...runtime.systems.cold_diffusion import NETWORK
from ...runtime.systems.cold_settings import ColdDiffusionSettings, Generation
from ..assemble import assemble
from ..network import Network, image, timesteps
from ..write import Progress
from .parts import Sides

__all__ = ["export", "restorer"]


class _Untimed(nn.Module):
    """A network without time embedding, called with the picture alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, torch.zeros(x.shape[:1]))


def export(
    checkpoint: Path | str,
    out: Path | str,
    *,
    degradation: DegradationSpec | None = None,
    weights: Literal["ema", "model"] = "ema",
    size: int | None = None,
    residual: bool | None = None,
    quantised: bool | None = None,
    generation: Generation | None = None,
    mixture: Path | str | None = None,
    precision: Precision = "fp16",
    notice: Path | str | None = None,
    name: str = "",
    license: str = "",
    on_progress: Progress | None = None,
) -> Bundle:
    """Make a bundle of a checkpoint.

    Arguments:
        checkpoint: The original's ``model.pt``, in any of its wrappers, or a file of bare weights.
        out: Folder of the bundle.
        degradation: What it undoes; files of `training.train_cold` say it themselves.
        weights: The averaged weights or the live ones.
        size: Side of the pictures it was trained on; by default what the file says, else 128 pixels, or 32 for the
            DDPM-style network.
        residual: The network predicts the difference to its input (the original's ``--residual``).
        quantised: Degraded pictures are cut to 8 bits (the original's ``--discrete`` but for the mean of blur).
        generation: How pictures are generated; None for restoration alone. Fades, noise and animorphosis generate
            without being told.
        mixture: The file of `training.fit_mixture` for generation from means or thumbnails.
        precision: How large weights are stored.
        notice: Attribution of what it was trained on, packed beside it.
        name: Name for people, by default that of the folder.
        license: Terms of the weights.
        on_progress: Told of every step.

    Raises:
        CheckpointError: The checkpoint is unsafe or foreign, or its blur kernels are others than the degradation's.
        ExportError: What it undoes is not known, options disagree, or the export disagrees with torch.
        BundleError: `out` cannot be written.
    """
    found = read_cold_checkpoint(checkpoint, weights=weights)
    spec = _degradation(found, degradation, str(checkpoint))
    _compare(found, spec)
    about = found.about.get("network", {})
    residual = bool(about.get("residual", False)) if residual is None else residual
    size = size or found.about.get("size")
    network, config = restorer(found.network, steps=spec.steps, size=size, residual=residual)
    side = size or _usual(config)
    channels = config.channels if isinstance(config, ConvNextConfig) else config.in_channels
    settings = _settings(
        degradation=spec,
        channels=channels,
        image_size=(side, side),
        size_multiple=config.multiple,
        quantised=bool(found.about.get("quantised", False)) if quantised is None else quantised,
        generation=generation or _generation(spec),
    )
    files: dict[str, bytes | Path] = {}
    assets: dict[str, str] = {}
    if (mixture is not None) != (settings.generation is not None and settings.generation.from_mixture):
        start = "nothing" if settings.generation is None else settings.generation.start
        raise ExportError(f"generation is from {start} and mixture={mixture!r}; give both or neither")
    for role, path, packed in (("mixture", mixture, "mixture.safetensors"), ("notice", notice, "NOTICE.md")):
        if path is not None:
            files[packed], assets[role] = Path(path), packed
    return assemble(
        out,
        "cold-diffusion",
        [network],
        settings=settings.to_json(),
        files=files,
        assets=assets,
        precision=precision,
        name=name,
        license=license,
        on_progress=on_progress,
    )


def restorer(
    state: Mapping[str, Tensor], *, steps: int, size: int | None = None, residual: bool = False
) -> tuple[Network, ConvNextConfig | DDPMConfig]:
    """The bundle's network and its configuration, from weights under their plain names.

    Arguments:
        state: Of a `ConvNextUNet` or a `DDPM`; which of both, the names tell.
        steps: T; indices lie in 0 … T-1.
        size: Usual side of pictures.
        residual: As in `ConvNextConfig`.

    Raises:
        CheckpointError: The weights are of neither.
    """
    config: ConvNextConfig | DDPMConfig
    make: Callable[[], nn.Module]
    if "conv_in.weight" in state:
        if residual:
            raise ExportError("the DDPM-style network has no residual variant; leave residual out")
        ddpm = config = DDPMConfig.from_state(state, resolution=size or 32)
        make, timed, channels = (lambda: DDPM(ddpm)), True, ddpm.in_channels
    else:
        convnext = config = ConvNextConfig.from_state(state, residual=residual)
        make, timed, channels = (lambda: ConvNextUNet(convnext)), convnext.with_time_emb, convnext.channels

    def built() -> nn.Module:
        module = build(make, state, "the restoring network")
        return module if timed else _Untimed(module)

    side = size or _usual(config)
    shape = ("batch", channels, "height", "width")
    inputs = [Binding("x", "float32", shape)]
    if timed:
        inputs.append(Binding("t", "float32", ("batch",)))
    dimensions = {"batch": Dimension(1, 2, 64), **Sides((side, side), config.multiple, 1).latents(config.multiple)}
    samples = {"x": image, "t": timesteps(steps)}
    output = Binding("x0", "float32", shape)
    return Network(NETWORK, built, tuple(inputs), (output,), dimensions, samples), config


def _usual(config: ConvNextConfig | DDPMConfig) -> int:
    return 128 if isinstance(config, ConvNextConfig) else config.resolution


def _degradation(found: ColdCheckpoint, given: DegradationSpec | None, what: str) -> DegradationSpec:
    said = None
    if "degradation" in found.about:
        try:
            said = DegradationSpec.from_node(Node(dict(found.about["degradation"]), "about.degradation"))
        except ManifestError as error:
            raise CheckpointError(f"{what}: {error}") from error
    if given is None and said is None:
        raise ExportError(f"{what}: does not say what it undoes; pass the degradation, e.g. --degradation blur")
    if given is not None and said is not None and given != said:
        raise ExportError(
            f"{what}: was trained on {said.to_json()}, told is {given.to_json()}; leave the degradation out"
        )
    return cast(DegradationSpec, given or said)


def _compare(found: ColdCheckpoint, spec: DegradationSpec) -> None:
    """What the checkpoint keeps of its degradation against what the degradation is said to be."""
    kernels, bare = found.kernels(), spec.build((1, 3, 64, 64), bare=True)
    if isinstance(bare, Blur) and kernels:
        check_kernels(kernels, bare.kernels(), f"blur {dict(spec.parameters)}")
    elif kernels:
        raise CheckpointError(f"the checkpoint has {len(kernels)} blur kernels, told is {spec.kind}; say blur")
    if isinstance(bare, Mixing):
        check_alphas(found.buffers.get("alphas_cumprod"), bare.alphas_bar, spec.kind)


def _generation(spec: DegradationSpec) -> Generation | None:
    match spec.kind:
        case "fade":
            return Generation("colour")
        case "noise":
            return Generation("noise")
        case "animorphosis":
            return Generation("picture")
        case _:
            return None


def _settings(**given: Any) -> ColdDiffusionSettings:
    try:
        return ColdDiffusionSettings(**given)
    except ParameterError as error:
        raise ExportError(f"the bundle's settings do not hold together: {error}") from error
