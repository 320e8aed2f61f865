"""Whole runs, prompt to picture: sfumato's system beside diffusers' pipeline, both DDIM with guidance 7.5."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["DiffusersRun", "SfumatoRun"]

PROMPT = "a photograph of a red apple on a table"
SCALE = 7.5
FACTOR = 8


class SfumatoRun:
    """The bundle through `sfumato.load`, timed from outside down to the library's own call."""

    def load(self, folder: str, bundle: str) -> dict[str, Any]:
        """Open the bundle, hashes checked."""
        begin = time.perf_counter()
        import sfumato

        self._inside = 0.0
        self._system: Any = sfumato.load(bundle)
        self._watch()
        return {"seconds": time.perf_counter() - begin}

    def run(self, latents: int, steps: int) -> dict[str, Any]:
        """Make one picture: ``seconds``, of it in ``engines`` (sfumato's) and in ``library`` (OpenVINO's own)."""
        self._inside = 0.0
        begin = time.perf_counter()
        side = latents * FACTOR
        edit = self._system.generate(
            PROMPT, steps=steps, guidance_scale=SCALE, sampler="ddim", seed=1, size=(side, side)
        )[0]
        seconds = time.perf_counter() - begin
        assert edit.image.shape == (side, side, 3)
        networks = self._system.manifest.networks
        engines = sum(stage["total"] for name, stage in edit.timings.items() if name in networks)
        return {"seconds": seconds, "engines": engines, "library": self._inside}

    def _watch(self) -> None:
        """Time OpenVINO's own call, so that sfumato's engine code counts as sfumato's."""
        from openvino import InferRequest

        infer = InferRequest.infer

        def timed(request: Any, *arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return infer(request, *arguments, **options)
            finally:
                self._inside += time.perf_counter() - begin

        InferRequest.infer = timed


class DiffusersRun:
    """`StableDiffusionPipeline` in float32, or in bfloat16 with its UNet and autoencoder in channels-last order."""

    def __init__(self, *, bf16: bool, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._bf16 = bf16

    def load(self, folder: str, bundle: str) -> dict[str, Any]:
        """Read the folder."""
        begin = time.perf_counter()
        import torch
        from diffusers import StableDiffusionPipeline

        kind = torch.bfloat16 if self._bf16 else torch.float32
        pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=kind, safety_checker=None)
        if self._bf16:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        return {"seconds": time.perf_counter() - begin}

    def run(self, latents: int, steps: int) -> dict[str, Any]:
        """Make one picture; ``seconds``."""
        import torch

        side = latents * FACTOR
        begin = time.perf_counter()
        self._pipeline(
            PROMPT,
            num_inference_steps=steps,
            guidance_scale=SCALE,
            height=side,
            width=side,
            generator=torch.Generator().manual_seed(1),
            output_type="pil",
        )
        return {"seconds": time.perf_counter() - begin}
