"""One UNet call in each library: what a guided step costs but for the sampler's arithmetic."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from models import FULL, QUICK, unet_inputs

__all__ = ["EngineStep", "TorchStep"]

WARM = 2
"""Calls before any is timed: the first compiles or plans, the second finds everything in place."""


def timestep(index: int) -> int:
    """The timestep of call `index`: another one each time, so that nothing can be reused."""
    return 981 - 37 * index % 960


class _Step:
    """The questions that every variant answers; `_call` runs the network once."""

    def __init__(self) -> None:
        self._index = 0
        self._quick = False

    def prepare(self, latents: int) -> float:
        """Set up for latents of this side and call `WARM` times; seconds."""
        begin = time.perf_counter()
        self._shape(latents)
        for _ in range(WARM):
            self.step()
        return time.perf_counter() - begin

    def step(self) -> float:
        """Seconds of one call."""
        self._index += 1
        t = timestep(self._index)
        begin = time.perf_counter()
        self._call(t)
        return time.perf_counter() - begin

    def output(self, path: str) -> None:
        """Save the output at t = 501 as float32 ``.npy``."""
        np.save(Path(path), self._call(501))

    def _shape(self, latents: int) -> None:
        raise NotImplementedError

    def _call(self, t: int) -> Any:
        raise NotImplementedError


class EngineStep(_Step):
    """The bundle's UNet through sfumato's engine, its checks of names, types and shapes included."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self._backend: Any = backend

    def load(self, folder: str, bundle: str, quick: bool) -> dict[str, Any]:
        """Open the engine; its precision and the seconds taken."""
        begin = time.perf_counter()
        from sfumato.engines.bundle import Bundle

        self._quick = quick
        self._bundle = Bundle.open(bundle)
        self._engine = self._open()
        return {"seconds": time.perf_counter() - begin, "precision": self._engine.precision}

    def _open(self) -> Any:
        from sfumato.engines.engine import open_engine

        return open_engine(self._bundle, "unet", backend=self._backend)

    def _shape(self, latents: int) -> None:
        if self._index:
            # An engine keeps what it compiled for earlier shapes; here that would be a second set of weights in memory.
            self._engine.close()
            self._engine = self._open()
        self._x, self._context = unet_inputs(QUICK if self._quick else FULL, latents)
        self._t = np.empty(2, np.float32)

    def _call(self, t: int) -> Any:
        self._t[:] = t
        return self._engine(x=self._x, t=self._t, context=self._context)["prediction"]


class TorchStep(_Step):
    """diffusers' UNet in torch: float32, or bfloat16 in channels-last order, or that compiled and frozen."""

    def __init__(self, *, bf16: bool, compiled: bool, threads: int) -> None:
        super().__init__()
        import torch

        torch.set_num_threads(threads)
        self._bf16, self._compiled = bf16, compiled

    def load(self, folder: str, bundle: str, quick: bool) -> dict[str, Any]:
        """Read the weights; precision and the seconds taken."""
        begin = time.perf_counter()
        import torch
        from diffusers import UNet2DConditionModel

        self._quick = quick
        kind = torch.bfloat16 if self._bf16 else torch.float32
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=kind).eval()
        unet.requires_grad_(False)
        self._unet: Any = unet.to(memory_format=torch.channels_last) if self._bf16 else unet
        if self._compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True  # constants folded and packed for oneDNN: the fastest this offers on a CPU
            self._unet = torch.compile(self._unet, dynamic=False)
        return {"seconds": time.perf_counter() - begin, "precision": "bf16" if self._bf16 else "fp32"}

    def _shape(self, latents: int) -> None:
        import torch

        kind = torch.bfloat16 if self._bf16 else torch.float32
        x, context = (torch.from_numpy(a).to(kind) for a in unet_inputs(QUICK if self._quick else FULL, latents))
        self._x = x.to(memory_format=torch.channels_last) if self._bf16 else x
        self._context = context

    def _call(self, t: int) -> Any:
        import torch

        with torch.no_grad():  # not inference_mode: frozen graphs refuse it
            output = self._unet(self._x, torch.tensor(t), encoder_hidden_states=self._context).sample
        return output.float().numpy()
