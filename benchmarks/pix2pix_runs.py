"""The variants of the pix2pix-zero benchmark: sfumato's bundle, and the official data flow written anew in torch.

The torch side does what the authors' code does, with diffusers' UNet: attention probabilities of all steps of the
reference are kept on the host, weights of cross-attention ask for gradients too, both halves of guidance are always
computed, and the noise is regularised by autograd. No line of it is theirs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AMOUNT", "Maker", "SfumatoEdit", "TorchEdit"]

NETWORK = "unet_maps"
"""What predicts: as with ``--low-memory``, the network of the reference."""
AMOUNT, SCALE = 0.01, 5.0
"""Small: with random weights nothing but time and memory is of interest."""
F32 = NDArray[np.float32]


def inputs(latents: int, tokens: int, width: int) -> tuple[F32, F32, F32]:
    """The same latent (1, 4, n, n), caption (1, tokens, width) and direction for every variant."""
    rng = np.random.default_rng(latents)
    shapes = (1, 4, latents, latents), (1, tokens, width), (1, tokens, width)
    x, caption, delta = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return x, caption, 0.1 * delta


class Maker:
    """Exports the bundle; runs in a child, so that the memory is given back."""

    def bundle(self, folder: str, out: str) -> float:
        """Write the bundle of a diffusers folder with the networks of pix2pix-zero; seconds."""
        from sfumato.export.recipes.pix2pix_zero import export

        begin = time.perf_counter()
        export(Path(folder), Path(out), precision="fp16")
        return time.perf_counter() - begin


class SfumatoEdit:
    """Engines of the bundle under the runtime's own loops."""

    def load(self, folder: str, bundle: str) -> dict[str, Any]:
        """Open the bundle, hashes checked."""
        begin = time.perf_counter()
        import sfumato

        self._system: Any = sfumato.load(bundle, system="pix2pix-zero")
        return {"seconds": time.perf_counter() - begin, "precision": self._system.models.engine(NETWORK).precision}

    def _caption(self) -> tuple[int, int]:
        settings = self._system.settings
        spec = self._system.manifest.networks["unet"]
        return settings.max_tokens, int(next(b for b in spec.inputs if b.name == "context").shape[-1])

    def inversion(self, latents: int, steps: int, count: int) -> float:
        """Seconds of one inversion step, regularised: the mean of `count`."""
        from sfumato.runtime.denoiser import EngineDenoiser
        from sfumato.runtime.inversion import invert, official_climbs
        from sfumato.runtime.regularization import NoiseRegularizer

        models = self._system.models
        x, caption, _ = inputs(latents, *self._caption())
        denoiser = EngineDenoiser(models.engine(NETWORK), models.schedule, models.prediction, context=caption)
        path = official_climbs(models.schedule, steps)[:count]
        begin = time.perf_counter()
        invert(denoiser, models.schedule, x, path, regularize=NoiseRegularizer())
        return (time.perf_counter() - begin) / len(path)

    def guidance(self, latents: int, steps: int, count: int) -> float:
        """Seconds of one step of both passes: the mean of `count`."""
        begin = time.perf_counter()
        self._passes(latents, self._system.models.schedule.timesteps(steps, offset=1)[:count], None)
        return (time.perf_counter() - begin) / count

    def edit(self, latents: int, steps: int, **_: int) -> dict[str, Any]:
        """``seconds`` of a whole edit, latent to latents; nothing is left out, and no map is ``unheld``."""
        from sfumato.runtime.denoiser import EngineDenoiser
        from sfumato.runtime.inversion import invert, official_climbs
        from sfumato.runtime.regularization import NoiseRegularizer

        models = self._system.models
        begin = time.perf_counter()
        x, caption, _ = inputs(latents, *self._caption())
        denoiser = EngineDenoiser(models.engine(NETWORK), models.schedule, models.prediction, context=caption)
        path = official_climbs(models.schedule, steps)
        noise = invert(denoiser, models.schedule, x, path, regularize=NoiseRegularizer())
        self._passes(latents, models.schedule.timesteps(steps, offset=1), noise)
        return {"seconds": time.perf_counter() - begin, "whole": True, "unheld": 0}

    def _passes(self, latents: int, timesteps: Any, noise: F32 | None) -> None:
        from sfumato.runtime.attention_guidance import AttentionEdit
        from sfumato.runtime.sampler import DDIM

        models = self._system.models
        x, caption, delta = inputs(latents, *self._caption())
        edit = AttentionEdit(
            models.engine(NETWORK),
            models.engine("unet_maps"),
            self._system._guidance(),
            models.schedule,
            models.prediction,
            context=np.repeat(caption, 2, axis=0),
            delta=delta,
            scale=SCALE,
            amount=AMOUNT,
            apart=True,
        )
        edit.run(x if noise is None else noise, timesteps, DDIM(models.schedule, final=0))


class TorchEdit:
    """The official data flow over diffusers' UNet."""

    def __init__(self, *, bf16: bool, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._kind = torch.bfloat16 if bf16 else torch.float32

    def load(self, folder: str, bundle: str) -> dict[str, Any]:
        """Read the UNet."""
        begin = time.perf_counter()
        import torch
        from diffusers import DDIMScheduler, UNet2DConditionModel

        self._unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=self._kind).eval()
        self._bars = DDIMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod.double()
        self._maps: dict[str, Any] = {}
        processors = {}
        for name in self._unet.attn_processors:
            processors[name] = _Keep(self._maps, name if "attn2" in name else None)
        self._unet.set_attn_processor(processors)
        for name, weight in self._unet.named_parameters():
            weight.requires_grad_("attn2" in name)
        self._width = int(self._unet.config.cross_attention_dim)
        return {
            "seconds": time.perf_counter() - begin,
            "precision": str(self._kind).removeprefix("torch."),
            "torch": torch.__version__,
        }

    def inversion(self, latents: int, steps: int, count: int) -> float:
        """Seconds of one inversion step: the mean of `count`."""
        begin = time.perf_counter()
        self._invert(latents, steps, count)
        return (time.perf_counter() - begin) / count

    def guidance(self, latents: int, steps: int, count: int) -> float:
        """Seconds of one step of both passes: the mean of `count`."""
        first, second = self._passes(latents, steps, None, count, count)
        return (first + second) / count

    def edit(self, latents: int, steps: int, inversion: int, reference: int, guided: int) -> dict[str, Any]:
        """``seconds`` of a whole edit, latent to latents.

        Of `steps` the inversion makes `inversion`, the reference `reference`, whose maps are kept, and the edit
        `guided`; their times are multiplied up. ``unheld``: bytes of the maps of the steps that were not made.
        """
        begin = time.perf_counter()
        noise = self._invert(latents, steps, inversion)
        inverted = time.perf_counter() - begin
        referred, edited = self._passes(latents, steps, noise, reference, guided)
        seconds = inverted * (steps - 2) / inversion + referred * steps / reference + edited * steps / guided
        whole = (inversion, reference, guided) == (steps - 2, steps, steps)
        return {"seconds": seconds, "whole": whole, "unheld": (steps - reference) * self._kept}

    def _tensors(self, latents: int) -> tuple[Any, Any, Any]:
        import torch

        return tuple(torch.from_numpy(array).to(self._kind) for array in inputs(latents, 77, self._width))  # type: ignore[return-value]

    def _invert(self, latents: int, steps: int, count: int) -> Any:
        import torch

        x, caption, _ = self._tensors(latents)
        stride = 1000 // steps
        for t in [1 + k * stride for k in range(1, steps - 1)][:count]:
            with torch.no_grad():
                eps = self._unet(x, t, encoder_hidden_states=caption, return_dict=False)[0]
            self._maps.clear()
            eps = _regularize(eps)
            a, b = (float(self._bars[i]) for i in (t - 1, t + stride - 1))
            x = (b / a) ** 0.5 * (x - (1 - a) ** 0.5 * eps) + (1 - b) ** 0.5 * eps
        return x

    def _passes(self, latents: int, steps: int, noise: Any, count: int, guided: int) -> tuple[float, float]:
        """Seconds of `count` steps of the reference, and of `guided` steps of the edit."""
        import torch

        begin = time.perf_counter()
        x, caption, delta = self._tensors(latents)
        start = x if noise is None else noise
        both = torch.cat([caption, caption])
        stride = 1000 // steps
        times = [1 + k * stride for k in reversed(range(steps))][:count]
        kept: list[dict[str, Any]] = []
        x = start
        with torch.no_grad():
            for t in times:
                eps = self._unet(torch.cat([x, x]), t, encoder_hidden_states=both, return_dict=False)[0]
                kept.append(dict(self._maps))
                self._kept = sum(map_.nbytes for map_ in self._maps.values())
                x = self._down(x, eps, t, stride)
        middle = time.perf_counter()
        edited = both.clone()
        edited[1:] += delta
        x = start
        for t, reference in zip(times[:guided], kept, strict=False):
            leaf = torch.cat([x, x]).detach().requires_grad_(True)
            self._unet(leaf, t, encoder_hidden_states=edited, return_dict=False)
            loss = sum((self._maps[name] - reference[name]).square().sum((1, 2)).mean(0) for name in reference)
            loss.backward()  # type: ignore[union-attr]
            assert leaf.grad is not None
            with torch.no_grad():
                moved = leaf - AMOUNT * leaf.grad
                eps = self._unet(moved, t, encoder_hidden_states=edited, return_dict=False)[0]
                x = self._down(moved[:1], eps, t, stride)
            self._maps.clear()
        return middle - begin, time.perf_counter() - middle

    def _down(self, x: Any, eps: Any, t: int, stride: int) -> Any:
        eps = eps[:1] + SCALE * (eps[1:] - eps[:1])
        a, b = float(self._bars[t]), float(self._bars[max(t - stride, 0)])
        return b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps


class _Keep:
    """Attention written out; probabilities of the layers with a name are kept under it."""

    def __init__(self, maps: dict[str, Any], name: str | None) -> None:
        self._maps, self._name = maps, name

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, attention_mask: Any = None, **_: Any
    ) -> Any:
        import torch

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(layer(source))
            for layer, source in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        probabilities = (torch.bmm(q, k.transpose(1, 2)) * attn.scale).softmax(-1)
        if self._name is not None:
            self._maps[self._name] = probabilities
        return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(probabilities, v)))


def _regularize(eps: Any) -> Any:
    """Five rounds of five steps on the auto-correlation and one on the divergence, by autograd."""
    import random

    import torch

    for _ in range(5):
        for _ in range(5):
            leaf = eps.detach().requires_grad_(True)
            total = torch.zeros((), dtype=leaf.dtype)
            for channel in range(leaf.shape[1]):
                level = leaf[:, channel : channel + 1]
                while True:
                    shift = random.randrange(1, level.shape[2] // 2)
                    for axis in (2, 3):
                        total = total + (level * torch.roll(level, shift, axis)).mean() ** 2
                    if level.shape[2] <= 8:
                        break
                    level = torch.nn.functional.avg_pool2d(level, 2)
            (gradient,) = torch.autograd.grad(total, leaf)
            eps = (leaf - 20 / 5 * gradient).detach()
        leaf = eps.detach().requires_grad_(True)
        variance = leaf.var()
        loss = variance + leaf.mean() ** 2 - 1 - torch.log(variance + 1e-7)
        (gradient,) = torch.autograd.grad(loss, leaf)
        eps = (leaf - 20 * gradient).detach()
    return eps
