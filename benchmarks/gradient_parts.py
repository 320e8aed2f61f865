"""The variants of the gradient benchmark: networks with random weights, joint and split engines, torch's autograd.

`SD` is Stable Diffusion 1.5's UNet with pix2pix-zero's loss on its 16 cross-attention maps at 256 px, a batch of two;
`PIXEL` a guided-diffusion UNet at 256 px with the squared distance of x0 to a picture, as DiffuseIT's critics see it.
Each has a tiny twin for trying the benchmark.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CASES", "EngineGradients", "Exporter", "TorchGradients"]

CASES = ("sd", "pixel")
WARM = {"sd": 2, "pixel": 1}
"""Calls that are not counted; one of pixels takes long."""
F32 = NDArray[np.float32]
ALPHA, SIGMA = 0.6, 0.8
"""Of the timestep at which x0 is taken."""


def configuration(case: str, quick: bool) -> dict[str, Any]:
    """Options of `networks.unet.UNetConfig`."""
    common = {"in_channels": 4, "out_channels": 4, "num_res_blocks": 2}
    if case == "sd":
        full = {"model_channels": 320, "channel_mult": (1, 2, 4, 4), "attention_resolutions": (1, 2, 4)}
        tiny = {"model_channels": 32, "channel_mult": (1,), "attention_resolutions": (1,), "num_res_blocks": 1}
        more = {"num_heads": 8, "use_spatial_transformer": True, "context_dim": 32 if quick else 768}
        return {**common, **(tiny if quick else full), **more}
    full = {"model_channels": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (8, 16, 32)}
    tiny = {"model_channels": 32, "channel_mult": (1, 2), "attention_resolutions": (), "num_res_blocks": 1}
    more = {"num_head_channels": 32 if quick else 64, "use_scale_shift_norm": True, "resblock_updown": True}
    return {**common, "in_channels": 3, "out_channels": 3, **(tiny if quick else full), **more}


def _unet(case: str, quick: bool) -> Any:
    """The network with the same random weights in every process; layers that start at zero are drawn too."""
    import torch

    from sfumato.networks.unet import UNet, UNetConfig

    torch.manual_seed(0)
    unet = UNet(UNetConfig(**configuration(case, quick)))
    with torch.no_grad():
        for weight in unet.parameters():
            if not weight.any():
                weight.normal_(std=0.02)
            weight.copy_(weight.half())  # so that storing them in fp16 changes nothing
    return unet.eval().requires_grad_(False)


def _network(case: str, quick: bool) -> Any:
    from sfumato.export.recipes import parts

    side = 16 if quick else 32 if case == "sd" else 256
    config = configuration(case, quick)
    context = (77, config["context_dim"]) if case == "sd" else None
    channels = (config["in_channels"], config["out_channels"])
    multiple = 2 ** (len(config["channel_mult"]) - 1)
    return parts.unet(lambda: _unet(case, quick), channels, parts.Sides((side, side), multiple, 8), context=context)


def _pixel_gradient(unet: Any, recompute: bool) -> Any:
    import torch

    from sfumato.engines.binding import Binding
    from sfumato.export.gradient import Objective, differentiate

    class Distance(Objective):
        """‖x0 - target‖² / 2 of (x, t, target)."""

        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, t, target = inputs
            eps = self.module(x, t)
            return 0.5 * ((x - SIGMA * eps) / ALPHA - target).square().sum(), eps

    target = Binding("target", "float32", unet.inputs[0].shape)
    more = replace(unet, inputs=(target,))
    return differentiate(unet, Distance, name="gradient", more=more, recompute=recompute)


class Exporter:
    """Writes the bundle of a case; runs in a child."""

    def facts(self, case: str, quick: bool) -> dict[str, Any]:
        """``title`` of the case, and ``predicted``: bytes that `auto` takes the joint form to need."""
        from sfumato.export.gradient_memory import joint_bytes

        batch, _, side, _ = _inputs(case, quick)["x"].shape
        names = {"sd": "attention maps of Stable Diffusion 1.5's UNet", "pixel": "x0 of a 256-px guided-diffusion UNet"}
        title = f"{names[case]}, {side}x{side}, batch {batch}" + (", a tiny twin" if quick else "")
        network = _gradients(case, _network(case, quick))[1]
        usual = {name: replace(d, opt=batch) if name == "batch" else d for name, d in network.dimensions.items()}
        return {"title": title, "predicted": joint_bytes(replace(network, dimensions=usual))}

    def bundle(self, out: str, case: str, quick: bool) -> float:
        """Networks ``unet`` or ``maps``, ``joint``, ``recomputed`` and ``product``; seconds."""
        from sfumato.engines.bundle import BundleWriter
        from sfumato.engines.manifest import Manifest
        from sfumato.export.gradient import vector_product
        from sfumato.export.write import export_network

        begin, unet = time.perf_counter(), _network(case, quick)
        base, joint, again = _gradients(case, unet)
        networks = [
            base,
            replace(joint, name="joint", shares=base.name),
            replace(again, name="recomputed", shares=base.name),
            # Its cotangents have dimensions that are outputs of the network, and inputs of the joint gradient.
            vector_product(replace(base, dimensions=joint.dimensions, derived=joint.derived), name="product"),
        ]
        with BundleWriter(Path(out)) as writer:
            specs = {n.name: export_network(writer, n, "fp16") for n in networks}
            writer.commit(Manifest("benchmark", case, "CC0-1.0", {}, specs))
        return time.perf_counter() - begin


def _gradients(case: str, unet: Any) -> tuple[Any, Any, Any]:
    """The network that a split gradient multiplies by, the joint gradient, the recomputed one."""
    from sfumato.export.attention_maps import find_maps, gradient_network, maps_network

    if case == "pixel":
        return unet, _pixel_gradient(unet, False), _pixel_gradient(unet, True)
    layers = find_maps(unet)
    joint, again = (gradient_network(unet, layers, recompute=r) for r in (False, True))
    return replace(maps_network(unet, layers, name="maps"), shares=None), joint, again


def _inputs(case: str, quick: bool) -> dict[str, F32]:
    """x, t and what else the UNet takes; the picture to come near to, for pixels."""
    rng, config = np.random.default_rng(0), configuration(case, quick)
    batch, side = (2, 16 if quick else 32) if case == "sd" else (1, 16 if quick else 256)
    shape = (batch, config["in_channels"], side, side)
    feeds = {"x": rng.standard_normal(shape, dtype=np.float32), "t": np.full(batch, 500, np.float32)}
    if case == "sd":
        feeds["context"] = rng.standard_normal((batch, 77, config["context_dim"]), dtype=np.float32)
    else:
        feeds["target"] = rng.uniform(-1, 1, shape).astype(np.float32)
    return feeds


class _Variant:
    """The questions that every variant answers."""

    _case: str

    def prepare(self) -> float:
        """Call `WARM` times; seconds."""
        begin = time.perf_counter()
        for _ in range(WARM[self._case]):
            self.step()
        return time.perf_counter() - begin

    def step(self) -> float:
        """Seconds of one gradient."""
        begin = time.perf_counter()
        self._call()
        return time.perf_counter() - begin

    def output(self, path: str) -> None:
        """Save the gradient as float32 ``.npy``."""
        np.save(Path(path), self._call())

    def _call(self) -> F32:
        raise NotImplementedError


class EngineGradients(_Variant):
    """Engines of sfumato: "joint" and "recomputed" are one, "split" is the plain network and the product."""

    def load(self, bundle: str, case: str, quick: bool, kind: str, backend: str, precision: str | None) -> str:
        """Open the engines; what they compute in."""
        from sfumato.engines.bundle import Bundle
        from sfumato.engines.engine import open_engine

        opened = Bundle.open(bundle, verify=False)
        self._case, self._kind = case, kind
        first = "maps" if case == "sd" else "unet"
        names = (first, "product") if kind == "split" else (kind,)
        self._engines = [open_engine(opened, n, backend=backend, precision=precision) for n in names]  # type: ignore[arg-type]
        self._feeds = _inputs(case, quick)
        self._target = self._feeds.pop("target", None)
        spec = opened.network("joint")
        self._references = {
            b.name: np.full(_shape(b.shape, self._feeds), 1 / 77, np.float32)
            for b in spec.inputs
            if b.name.startswith("reference")
        }
        return str(self._engines[0].precision)

    def _call(self) -> F32:
        if self._kind != "split":
            more = self._references if self._target is None else {"target": self._target}
            return self._engines[0](**self._feeds, **more)["gradient"]
        plain, product = self._engines
        outputs = plain(**self._feeds)
        cotangents = {}
        for name, value in outputs.items():
            if self._target is not None:  # dL/d eps; x0's own dependence on x is added below
                x0 = (self._feeds["x"] - SIGMA * value) / ALPHA
                cotangents[f"cotangent_{name}"] = -SIGMA / ALPHA * (x0 - self._target)
            elif name == "prediction":
                cotangents[f"cotangent_{name}"] = np.zeros_like(value)
            else:
                rows = value.shape[0] * value.shape[1]
                difference = value - self._references[name.replace("map", "reference")]
                cotangents[f"cotangent_{name}"] = np.multiply(difference, 2 / rows, dtype=np.float32)
        gradient = product(**self._feeds, **cotangents)["gradient"]
        return gradient if self._target is None else gradient + (x0 - self._target) / ALPHA


def _shape(shape: tuple[int | str, ...], feeds: dict[str, F32]) -> tuple[int, ...]:
    batch, _, height, width = feeds["x"].shape
    known = {"batch": batch, "tokens": 77}
    areas = {f"pixels_{f}": height * width // f**2 for f in (1, 2, 4, 8, 16)}
    return tuple({**known, **areas}[n] if isinstance(n, str) else n for n in shape)


class TorchGradients(_Variant):
    """torch's autograd over the module, in float32 or with its weights and inputs in bfloat16."""

    def load(self, case: str, quick: bool, threads: int, bf16: bool) -> str:
        """Build the module; what it computes in."""
        import torch

        torch.set_num_threads(threads)
        self._type = torch.bfloat16 if bf16 else torch.float32
        self._case, self._unet = case, _unet(case, quick).to(self._type)
        self._feeds = {n: torch.from_numpy(v).to(self._type) for n, v in _inputs(case, quick).items()}
        from sfumato.networks.maps import record_maps

        self._maps = record_maps(self._unet)
        return "bf16" if bf16 else "fp32"

    def _call(self) -> F32:
        import torch

        from sfumato.networks.losses import attention_map_loss

        x = self._feeds["x"].detach().requires_grad_(True)
        eps = self._unet(x, self._feeds["t"], self._feeds.get("context"))
        if self._case == "sd":
            maps = self._maps.take()
            loss = attention_map_loss(maps, [torch.full_like(m, 1 / 77) for m in maps])
        else:
            loss = 0.5 * ((x - SIGMA * eps).float() / ALPHA - self._feeds["target"].float()).square().sum()
        return torch.autograd.grad(loss, x)[0].float().numpy()
