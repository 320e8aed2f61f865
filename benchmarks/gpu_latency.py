"""Latency on a GPU: engines with and without CUDA graphs beside torch, eager and compiled, in turns within one run."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from gpu_engines import Variant, open_variant, variants
from models import FULL, QUICK, unet_inputs

from sfumato.calibration.parity import stored_reference
from sfumato.engines.bundle import Bundle
from sfumato.engines.spec import NetworkSpec
from sfumato.errors import SfumatoError

__all__ = ["bundle_latency", "take_turns", "unet_latency"]

log = logging.getLogger(__name__)

Call = Callable[[], Any]
"""Runs a network once and waits until the results are there."""

WARM = 3
"""Calls that are not counted: they choose kernels, compile, and record graphs."""


def take_turns(calls: dict[str, Call], rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds by name: fastest and median of `rounds` calls each, made in turns. What fails says why."""
    found: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    for name, call in calls.items():
        log.info("warming up %s", name)
        begin = time.perf_counter()
        try:
            for _ in range(WARM):
                call()
        except Exception as error:  # any library's; the others go on
            found[name] = {"failed": " ".join(str(error).split())[:300] or type(error).__name__}
            continue
        times[name] = []
        found[name] = {"warm_up_s": time.perf_counter() - begin}
    for _ in range(rounds):
        for name, values in times.items():
            begin = time.perf_counter()
            calls[name]()
            values.append(1e3 * (time.perf_counter() - begin))
    for name, values in times.items():
        found[name] |= {"fastest_ms": min(values), "median_ms": median(values), "n": rounds}
    return found


def bundle_latency(bundle: Bundle, backends: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """One row for each network and variant, at the shapes that the bundle's manifest is tuned for."""
    for spec in bundle.manifest.networks.values():
        try:
            feeds = _tuned(bundle, spec)
        except SfumatoError as error:
            yield {"bundle": bundle.path.name, "network": spec.name, "variant": "", "failed": str(error)}
            continue
        with ExitStack() as stack:
            calls, failed = _open(stack, bundle, spec, variants(spec, backends), feeds)
            for name, numbers in {**failed, **take_turns(calls, rounds)}.items():
                yield {"bundle": bundle.path.name, "network": spec.name, "variant": name, **numbers}


def unet_latency(
    folder: Path, bundle: Bundle, backends: Sequence[str], latents: int, rounds: int, *, quick: bool, device: str
) -> Iterator[dict[str, Any]]:
    """One guided call of Stable Diffusion 1.5's UNet (batch 2, random weights) on engines and in torch.

    Arguments:
        folder: The diffusers folder.
        bundle: The bundle made of it.
        backends: Those to run.
        latents: Side of the latents.
        rounds: Calls of each.
        quick: The networks are tiny.
        device: Where torch computes: "cuda", or "cpu" for trying the benchmark.
    """
    spec = bundle.network("unet")
    x, context = unet_inputs(QUICK if quick else FULL, latents)
    feeds = {"x": x, "t": np.full(2, 500, np.float32), "context": context}
    with ExitStack() as stack:
        calls, failed = _open(stack, bundle, spec, variants(spec, backends), feeds)
        for name, numbers in {**failed, **take_turns(calls | _torch(folder, feeds, device), rounds)}.items():
            yield {"bundle": "sd15-size", "network": f"unet, {latents}x{latents} latents", "variant": name, **numbers}


def _tuned(bundle: Bundle, spec: NetworkSpec) -> dict[str, Any]:
    """The stored inputs, tiled to the optimum of every dimension."""
    stored, _ = stored_reference(bundle, spec)
    feeds: dict[str, Any] = {}
    for binding in spec.inputs:
        shape = tuple(spec.dimensions[e].opt if isinstance(e, str) else e for e in binding.shape)
        feeds[binding.name] = np.ascontiguousarray(np.resize(stored[binding.name], shape))
    return feeds


def _open(
    stack: ExitStack, bundle: Bundle, spec: NetworkSpec, chosen: Sequence[Variant], feeds: dict[str, Any]
) -> tuple[dict[str, Call], dict[str, dict[str, Any]]]:
    calls: dict[str, Call] = {}
    failed: dict[str, dict[str, Any]] = {}
    for variant in chosen:
        try:
            engine = stack.enter_context(open_variant(bundle, spec, variant))
        except SfumatoError as error:
            failed[str(variant)] = {"failed": str(error)}
            continue
        calls[str(variant)] = _call(engine, feeds)
    return calls, failed


def _call(engine: Any, feeds: dict[str, Any]) -> Call:
    if not hasattr(engine, "cuda"):
        return lambda: engine(**feeds)
    given = {name: engine.cuda.upload(array, engine.stream) for name, array in feeds.items()}

    def call() -> None:
        engine(**given)
        engine.stream.synchronize()

    return call


def _torch(folder: Path, feeds: dict[str, Any], device: str) -> dict[str, Call]:
    """diffusers' UNet, eager in fp32 and fp16 and compiled in fp16, weights read once for each; {} without torch."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("diffusers") is None:
        return {}
    import torch
    from diffusers import UNet2DConditionModel

    if device == "cuda" and not torch.cuda.is_available():
        log.warning("this torch (%s) computes on the processor alone: no column of torch", torch.__version__)
        return {}
    half = torch.float16 if device == "cuda" else torch.bfloat16
    calls: dict[str, Call] = {}
    for name, kind, compiled in (("eager", torch.float32, False), ("eager", half, False), ("compile", half, True)):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        unet: Any = UNet2DConditionModel.from_pretrained(str(folder), subfolder="unet", torch_dtype=kind)
        unet = unet.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        if compiled and device == "cuda":
            unet = torch.compile(unet, mode="max-autotune", dynamic=False)
        elif compiled:
            unet = torch.compile(unet, backend="eager", dynamic=False)  # a dry run: the path, not the speed
        x, context, t = (torch.from_numpy(feeds[key]).to(device) for key in ("x", "context", "t"))
        x = x.to(kind, memory_format=torch.channels_last)
        calls[f"torch {name} {str(kind).removeprefix('torch.')}"] = _torch_call(unet, x, t, context.to(kind), device)
    return calls


def _torch_call(unet: Any, x: Any, t: Any, context: Any, device: str) -> Call:
    import torch

    def call() -> None:
        with torch.inference_mode():
            unet(x, t, encoder_hidden_states=context).sample  # noqa: B018 (the call is what counts)
        if device == "cuda":
            torch.cuda.synchronize()

    return call
