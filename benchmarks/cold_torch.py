"""Cold Diffusion as its authors' code runs it, in torch and float32, written for this comparison without sfumato.

Every step asks the network with the index t - 1 and degrades its prediction twice from the beginning, t and t - 1
depthwise convolutions: T² of them in a restoration. Weights are read under the published names.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)

__all__ = ["TorchCold", "blur_kernels"]


def blur_kernels(steps: int, size: int, std: float) -> list[torch.Tensor]:
    """The "Exponential" routine: kernels (size, size) of deviation exp(std i)."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    kernels = []
    for i in range(steps):
        line = torch.exp(-(offsets**2) / (2 * math.exp(std * i) ** 2))
        line = line / line.sum()
        kernels.append(torch.outer(line, line).float())
    return kernels


class TorchCold:
    """Network and sampler over a state dict.

    Arguments:
        state: Weights by name, ``denoise_fn.`` and its like taken off.
        kernels: (k, k) each, one a step.
        reflect: Border of the blur: reflecting or circular.
    """

    def __init__(self, state: dict[str, torch.Tensor], kernels: list[torch.Tensor], *, reflect: bool) -> None:
        self._w = {name: value.float() for name, value in state.items()}
        self._kernels = [kernel[None, None].repeat(3, 1, 1, 1) for kernel in kernels]
        self._mode = "reflect" if reflect else "circular"
        self._levels = sum(f"downs.{level}.0.ds_conv.weight" in state for level in range(16))
        self.network_seconds = 0.0

    @torch.no_grad()
    def restore(self, x0: torch.Tensor) -> torch.Tensor:
        """Degrade (B, 3, H, W) fully, then algorithm 2."""
        x = self._degrade(x0, len(self._kernels))
        for t in range(len(self._kernels), 0, -1):
            begin = time.perf_counter()
            guess = self.network(x, torch.full((len(x),), t - 1))
            self.network_seconds += time.perf_counter() - begin
            x = x - self._degrade(guess, t) + self._degrade(guess, t - 1)
        return x

    def _degrade(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        for kernel in self._kernels[:steps]:
            pad = kernel.shape[-1] // 2
            x = F.conv2d(F.pad(x, (pad, pad, pad, pad), mode=self._mode), kernel, groups=3)
        return x

    def network(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The prediction for pictures (B, 3, H, W) and indices (B,)."""
        emb = self._time(t)
        skips: list[torch.Tensor] = []
        for level in range(self._levels):
            x = self._block(f"downs.{level}.0", x, emb)
            x = self._attention(f"downs.{level}.2.fn", self._block(f"downs.{level}.1", x, emb))
            skips.append(x)
            if level < self._levels - 1:
                x = self._convolve(f"downs.{level}.3", x, stride=2, padding=1)
        x = self._block("mid_block1", x, emb)
        x = self._block("mid_block2", self._attention("mid_attn.fn", x), emb)
        for level in range(self._levels - 1):
            x = self._block(f"ups.{level}.0", torch.cat((x, skips.pop()), dim=1), emb)
            x = self._attention(f"ups.{level}.2.fn", self._block(f"ups.{level}.1", x, emb))
            x = F.conv_transpose2d(x, self._w[f"ups.{level}.3.weight"], self._w[f"ups.{level}.3.bias"], 2, 1)
        return self._convolve("final_conv.1", self._block("final_conv.0", x, None))

    def _time(self, t: torch.Tensor) -> torch.Tensor:
        half = self._w["time_mlp.1.weight"].shape[1] // 2
        angles = t[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))[None]
        emb = self._linear("time_mlp.1", torch.cat((angles.sin(), angles.cos()), dim=-1))
        return self._linear("time_mlp.3", F.gelu(emb))

    def _block(self, name: str, x: torch.Tensor, emb: torch.Tensor | None) -> torch.Tensor:
        h = self._convolve(f"{name}.ds_conv", x, padding=3, groups=x.shape[1])
        if emb is not None:
            h = h + self._linear(f"{name}.mlp.1", F.gelu(emb))[:, :, None, None]
        if f"{name}.net.0.g" in self._w:
            h = self._norm(f"{name}.net.0", h)
        h = self._convolve(f"{name}.net.3", F.gelu(self._convolve(f"{name}.net.1", h, padding=1)), padding=1)
        return h + (self._convolve(f"{name}.res_conv", x) if f"{name}.res_conv.weight" in self._w else x)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var(x, dim=1, unbiased=False, keepdim=True), x.mean(dim=1, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self._w[f"{name}.g"] + self._w[f"{name}.b"]

    def _attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        b, _, height, width = x.shape
        qkv = self._convolve(f"{name}.fn.to_qkv", self._norm(f"{name}.norm", x)).chunk(3, dim=1)
        q, k, v = (part.reshape(b, 4, 32, height * width) for part in qkv)
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=-1), v)
        out = torch.einsum("bhde,bhdn->bhen", context, q * 32**-0.5)
        return x + self._convolve(f"{name}.fn.to_out", out.reshape(b, 128, height, width))

    def _convolve(self, name: str, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return F.conv2d(x, self._w[f"{name}.weight"], self._w.get(f"{name}.bias"), **options)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._w[f"{name}.weight"], self._w[f"{name}.bias"])
