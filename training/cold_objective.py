"""Cold Diffusion's objective: degraded batches, the network near its beginning, the L1 loss, PSNR of unseen pictures.

References:
    Bansal et al., "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise", 2022, equation 1,
    https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..engines.binding import Array
from ..networks.convnext import Attention, ConvNextBlock, ConvNextConfig, ConvNextUNet
from ..networks.ddpm import DDPM, DDPMConfig
from ..runtime.degradation import Degradation, quantise, severities
from ..runtime.degradations import Blur, DegradationSpec
from ..runtime.degradations.lab import lab_from_rgb
from ..runtime.metrics import psnr
from ..runtime.rng import PhiloxGenerator

__all__ = ["ColdDiffusion", "Degrader", "ends", "network_of", "objective", "report", "start_near_identity"]


class _Kernel(nn.Module):
    """One blur kernel under the original's name, (C, 1, k, k)."""

    def __init__(self, kernel: Array, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(kernel)[None, None].repeat(channels, 1, 1, 1))


class ColdDiffusion(nn.Module):
    """The network as ``denoise_fn`` and the kernels of a blur as ``gaussian_kernels``: the original's state."""

    def __init__(self, network: nn.Module, degradation: DegradationSpec, channels: int = 3) -> None:
        super().__init__()
        self.denoise_fn = network
        if degradation.kind == "blur":
            kernels = cast(Blur, degradation.build((1, channels, 64, 64))).kernels()
            self.gaussian_kernels = nn.ModuleList(_Kernel(kernel, channels) for kernel in kernels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.denoise_fn(x, t)


class Degrader:
    """Clean batches and steps -> degraded batches and indices t.

    Arguments:
        spec: The degradation.
        quantised: Cut degraded pictures to 8 bits, the original's ``discrete``: what the network is given is then no
            more than what a file holds.
        seed: Everything drawn for step i comes from the stream i of this seed.
    """

    def __init__(self, spec: DegradationSpec, *, quantised: bool = False, seed: int = 0) -> None:
        self.spec, self.quantised, self.seed = spec, quantised, seed
        self._fixed: Degradation | None = None

    def __call__(self, x0: Array, step: int, *, end: Array | None = None) -> tuple[Array, Array, Array]:
        """x_t and x0 as the network sees them, float32 (B, C, H, W), and t int64 (B,) from 0 to T-1."""
        rng = PhiloxGenerator(self.seed, step)
        t = np.minimum((rng.rand(len(x0)) * self.spec.steps).astype(np.int64), self.spec.steps - 1)
        if self.spec.parameters.get("lab"):
            x0 = lab_from_rgb(x0)
        degradation = self._fixed
        if degradation is None:
            degradation = self.spec.build(cast("tuple[int, int, int, int]", x0.shape), rng, end=end)
            self._fixed = degradation if self.spec.fixed else None
        x_t = severities(degradation, x0, t + 1)
        return (quantise(x_t) if self.quantised else x_t), x0, t


def start_near_identity(network: nn.Module) -> None:
    """Shrinks every residual branch of a `ConvNextUNet`, and its output; with ``residual`` it returns its input."""
    for module in network.modules():
        if isinstance(module, ConvNextBlock):
            last = cast(nn.Conv2d, module.net[3])
            last.weight.data.mul_(0.1)
            nn.init.zeros_(cast(Tensor, last.bias))
        elif isinstance(module, Attention):
            nn.init.zeros_(module.fn.fn.to_out.weight)
    if isinstance(network, ConvNextUNet):
        last = cast(nn.Conv2d, network.final_conv[1])
        last.weight.data.mul_(0.1)
        nn.init.zeros_(cast(Tensor, last.bias))


def ends(network: nn.Module) -> list[Tensor]:
    """Matrices that Muon should not have: the first and last layers', and depthwise kernels."""
    kept = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    return [*kept, *(m.weight for m in (convolutions[0], convolutions[-1]))]


def objective(
    model: nn.Module, degrader: Degrader, clean: Callable[[int], tuple[Array, Array | None]], device: torch.device
) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    """Step -> the L1 loss and what to log.

    Arguments:
        model: Called with (x_t, t).
        degrader: Makes x_t.
        clean: Step -> clean pictures, and second ones where the degradation takes them.
        device: Where the model is.
    """

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        pictures, end = clean(step)
        x_t, x0, t = degrader(pictures, step, end=end)
        given, wanted = (
            torch.from_numpy(a).to(device).contiguous(memory_format=torch.channels_last) for a in (x_t, x0)
        )
        loss = functional.l1_loss(model(given, torch.from_numpy(t).to(device)).float(), wanted)
        return loss, {"l1": float(loss.detach()), "input": float(np.abs(x_t - x0).mean())}

    return loss_of


def report(model: nn.Module, degrader: Degrader, pictures: Array, end: Array | None = None) -> tuple[float, float]:
    """Mean PSNR in dB, on [0, 1] and clipped, of degraded pictures at the severity T and of what the network makes."""
    values: list[tuple[float, float]] = []
    for index in range(0, len(pictures), 32):
        x0 = pictures[index : index + 32]
        shape = cast("tuple[int, int, int, int]", x0.shape)
        degradation = degrader.spec.build(
            shape, PhiloxGenerator(degrader.seed), end=None if end is None else end[: len(x0)]
        )
        x_t = degradation(x0, degradation.steps)
        x_t = quantise(x_t) if degrader.quantised else x_t
        with torch.no_grad():
            t = torch.full((len(x0),), degradation.steps - 1)
            made = model(torch.from_numpy(np.ascontiguousarray(x_t)), t).numpy()
        low, high, clean = (np.clip(a, -1, 1) for a in (x_t, made, x0))
        values += zip(psnr(low, clean, data_range=2.0), psnr(high, clean, data_range=2.0), strict=True)
    before, after = np.mean(values, axis=0)
    return float(before), float(after)


def network_of(about: dict[str, object]) -> nn.Module:
    """The network that a checkpoint's ``about["network"]`` describes."""
    settings = dict(about)
    kind = settings.pop("kind")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return ConvNextUNet(ConvNextConfig(**plain)) if kind == "convnext" else DDPM(DDPMConfig(**plain))  # type: ignore[arg-type]
