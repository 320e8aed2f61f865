"""A resumable training loop bounded by time: autocast, EMA, cosine learning rate, atomic checkpoints."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .muon import MuonAdamW

log = logging.getLogger(__name__)

PAUSE = 60.0
"""Most seconds that one step counts: a process that was stopped for a while, or slept, was not training."""


@dataclass(frozen=True)
class TrainOptions:
    """Numbers of a run. ``minutes`` counts training time over all resumed runs."""

    minutes: float
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    checkpoint_every_s: float = 180.0
    log_every: int = 50


def pick_device(name: str | None = None) -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def ema_update(ema: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Moves the averaged weights towards the model's; the decay ramps up over the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                ema[name].lerp_(value, 1 - decay)
            else:
                ema[name].copy_(value)


def train(
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    checkpoint: Path,
    options: TrainOptions,
    *,
    device: torch.device,
    adam: Iterable[Tensor] = (),
    about: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Runs until the time is used up; resumes from ``checkpoint`` if it exists.

    Arguments:
        model: Trained in place, on ``device``, in channels_last.
        loss_of: Step number -> (scalar loss, values to log); called under bfloat16 autocast.
        adam: Matrices that AdamW updates instead of Muon: first and last layers, embeddings.
        checkpoint: Holds {model, ema, optimizer, step, seconds, about}; written beside and renamed.
        about: What is trained, plain values; a checkpoint that says otherwise is not resumed.

    Returns:
        The averaged weights (EMA) as a state dict.

    Raises:
        FloatingPointError: The loss is not finite.
        CheckpointError: The checkpoint is of something else.
    """
    about = dict(about or {})
    optimizer = MuonAdamW(
        [p for p in model.parameters() if p.requires_grad],
        options.learning_rate,
        adam=adam,
        weight_decay=options.weight_decay,
    )
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state.get("about", {}) != about:
            raise CheckpointError(f"{checkpoint}: is of {state.get('about')}, not of {about}; train into another file")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step, seconds = state["ema"], state["step"], state["seconds"]
        log.info("resumed at step %d after %.1f min", step, seconds / 60)

    def save() -> None:
        beside = checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "model": model.state_dict(),
                "ema": ema,
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": seconds,
                "about": about,
            },
            beside,
        )
        os.replace(beside, checkpoint)

    model.train()
    last = saved = time.monotonic()
    running: dict[str, float] = {}
    while seconds < options.minutes * 60:
        progress = seconds / (options.minutes * 60)
        warm = min(1.0, (step + 1) / options.warmup_steps)
        rate = options.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss, values = loss_of(step)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        step += 1
        ema_update(ema, model, options.ema_decay, step)
        for name, value in values.items():
            running[name] = 0.95 * running.get(name, value) + 0.05 * value
        now = time.monotonic()
        seconds, last = seconds + min(now - last, PAUSE), now
        if step % options.log_every == 0:
            text = " ".join(f"{k} {v:.5f}" for k, v in running.items())
            log.info("step %d  %.1f min  lr %.2e  %s", step, seconds / 60, rate, text)
        if now - saved > options.checkpoint_every_s:
            save()
            saved = now
    save()
    return ema
