"""The tiny UNet of the pix2pix-zero goldens as torch modules and as engines that torch runs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sfumato.networks.losses import attention_map_loss
from sfumato.networks.maps import record_maps


def unet(goldens: Any) -> torch.nn.Module:
    """diffusers' UNet with the golden weights, its attention written out."""
    from sfumato.export.recipes.diffusers_attention import write_out_attention

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import UNet2DConditionModel

        config = json.loads(Path(goldens.path("p2p_configs.json")).read_text())["unet"]
        module = UNet2DConditionModel(**config)
    module.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in goldens("p2p_unet_weights.npz").items()})
    write_out_attention(module)
    return module.eval().requires_grad_(False)


class TorchEngine:
    """`unet`, `unet_maps` and, as `guide`, the attention loss by autograd."""

    def __init__(self, module: torch.nn.Module, *, maps: bool = False) -> None:
        self.module, self.with_maps = module, maps
        self.recorder = record_maps(module)
        self.spec = SimpleNamespace(name="unet_maps" if maps else "unet")
        self.backend, self.precision = "torch", "fp32"
        self.calls: list[int] = []

    def _run(self, x: torch.Tensor, t: Any, context: Any) -> torch.Tensor:
        self.recorder.take()
        module: Any = self.module
        times, states = torch.from_numpy(np.asarray(t)), torch.from_numpy(np.ascontiguousarray(context))
        return module(x, times, encoder_hidden_states=states, return_dict=False)[0]

    def __call__(self, *, x: Any, t: Any, context: Any) -> dict[str, Any]:
        self.calls.append(len(x))
        with torch.no_grad():
            # The recorder of a module is the last one made, so each call takes what it needs from it anew.
            self.recorder = record_maps(self.module)
            found = {"prediction": self._run(torch.from_numpy(x), t, context).numpy()}
        if self.with_maps:
            found |= {f"map_{i:02}": m.numpy() for i, m in enumerate(self.recorder.take())}
        return found

    def guide(self, x: Any, *, t: float, context: Any, **references: Any) -> tuple[float, Any]:
        self.recorder = record_maps(self.module)
        with torch.enable_grad():
            leaf = torch.from_numpy(x.copy()).requires_grad_(True)
            self._run(leaf, np.full(len(x), t, np.float32), context)
            wanted = [torch.from_numpy(np.ascontiguousarray(references[name])) for name in sorted(references)]
            loss = attention_map_loss(self.recorder.take(), wanted)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), gradient.numpy()

    def close(self) -> None:
        pass
