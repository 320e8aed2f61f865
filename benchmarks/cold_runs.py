"""Whole restorations by Cold Diffusion: sfumato's bundle beside the torch code of `cold_torch`, and their model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ColdMaker", "SfumatoCold", "TorchColdRun", "picture"]

BLUR = {"size": 15, "std": 0.01}
"""The paper's deblurring of CelebA, with a circular border that both sides compute alike at any size."""
CHECKPOINT = "model.pt"


def picture(side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture uint8 (side, side, 3) of soft stripes, the same in every process."""
    rows, columns = np.mgrid[:side, :side] / side
    waves = [np.sin(9 * rows + 4 * columns), np.cos(7 * columns), np.sin(12 * rows * columns)]
    return (127.5 * (1 + np.stack(waves, axis=-1))).astype(np.uint8)


class ColdMaker:
    """Draws a network's weights and writes them as the authors' trainer does."""

    def make(self, folder: str, dim: int, mults: list[int], steps: int) -> float:
        """Write the checkpoint; millions of weights."""
        import torch
        from cold_torch import blur_kernels

        from sfumato.networks.convnext import ConvNextConfig, ConvNextUNet

        torch.manual_seed(0)
        network = ConvNextUNet(ConvNextConfig(dim, tuple(mults)))
        state = {f"module.denoise_fn.{name}": value for name, value in network.state_dict().items()}
        for i, kernel in enumerate(blur_kernels(steps, BLUR["size"], BLUR["std"])):  # type: ignore[arg-type]
            state[f"module.gaussian_kernels.{i}.weight"] = kernel[None, None].repeat(3, 1, 1, 1)
        torch.save({"step": 0, "model": state, "ema": state}, Path(folder) / CHECKPOINT)
        return sum(p.numel() for p in network.parameters()) / 1e6


class SfumatoCold:
    """The bundle through `sfumato.load`: a clean picture is degraded and restored, both timed."""

    def load(self, folder: str, bundle: str) -> dict[str, Any]:
        """Open the bundle, hashes checked."""
        begin = time.perf_counter()
        import sfumato

        self._system: Any = sfumato.load(bundle)
        return {"seconds": time.perf_counter() - begin, "precision": self._system.engine().precision}

    def run(self, latents: int, steps: int) -> dict[str, Any]:
        """Restore a picture of side `latents` from severity `steps`: ``seconds``, of it ``network``."""
        begin = time.perf_counter()
        self._made = self._system.restore(picture(latents), severity=steps)[0]
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "network": self._made.timings["restorer"]["total"]}

    def output(self, path: str) -> None:
        """Save the last result, uint8 (H, W, 3) ``.npy``."""
        np.save(path, self._made.image)


class TorchColdRun:
    """The same checkpoint in `cold_torch.TorchCold`."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)

    def load(self, folder: str, bundle: str) -> dict[str, Any]:
        """Read the checkpoint."""
        begin = time.perf_counter()
        import torch
        from cold_torch import TorchCold

        state = torch.load(Path(folder) / CHECKPOINT, weights_only=True)["ema"]
        plain = {name.removeprefix("module.denoise_fn."): value for name, value in state.items()}
        self._kernels = [value[0, 0] for name, value in plain.items() if name.startswith("module.gaussian_kernels")]
        self._plain, self._torch, self._code = plain, torch, TorchCold
        return {"seconds": time.perf_counter() - begin, "precision": "fp32"}

    def run(self, latents: int, steps: int) -> dict[str, Any]:
        """As `SfumatoCold.run`."""
        code = self._code(self._plain, self._kernels[:steps], reflect=False)
        begin = time.perf_counter()
        x = self._torch.from_numpy(picture(latents)).float().permute(2, 0, 1)[None] / 127.5 - 1
        made = code.restore(x)
        self._made = ((made[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).to(self._torch.uint8).numpy()
        return {"seconds": time.perf_counter() - begin, "network": code.network_seconds}

    def output(self, path: str) -> None:
        """As `SfumatoCold.output`."""
        np.save(path, self._made)
