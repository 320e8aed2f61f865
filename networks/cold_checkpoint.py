"""Checkpoints of Cold Diffusion: their wrappers, and the kernels that they carry.

A file is {step, model, ema}; either half is the state of the diffusion, in which the network lies as ``denoise_fn.*``
or ``defade_fn.*``, with ``module.`` before or behind where DataParallel was around the whole or the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import StateDict, read_checkpoint, read_record

__all__ = ["ColdCheckpoint", "check_alphas", "check_kernels", "read_cold_checkpoint", "unwrap"]

_NETWORK = re.compile(r"(?:module\.)*(?:denoise_fn|defade_fn)\.(?:module\.)*(.+)")
_KERNEL = re.compile(r"gaussian_kernels\.(\d+)\.weight")


@dataclass(frozen=True)
class ColdCheckpoint:
    """What a file holds.

    Arguments:
        network: The network's weights under their plain names.
        buffers: The rest: kernels, alphas …, without ``module.``.
        about: What `training.train_cold` says of degradation and network; the original's files say nothing.
    """

    network: StateDict
    buffers: StateDict
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def kernels(self) -> tuple[Tensor, ...]:
        """Saved blur kernels in the order of steps, (k, k) each; none for other degradations.

        Raises:
            CheckpointError: Steps are missing, or channels differ.
        """
        found: dict[int, Tensor] = {}
        for key, value in self.buffers.items():
            if match := _KERNEL.fullmatch(key):
                if value.ndim != 4 or value.shape[1] != 1 or not bool((value == value[:1]).all()):
                    raise CheckpointError(
                        f"{key} is {tuple(value.shape)}, need (C, 1, k, k), the same for each channel"
                    )
                found[int(match[1])] = value[0, 0]
        if sorted(found) != list(range(len(found))):
            raise CheckpointError(f"blur kernels {sorted(found)} are not one for each step; is the file whole?")
        return tuple(found[i] for i in range(len(found)))


def read_cold_checkpoint(path: Path | str, *, weights: Literal["ema", "model"] = "ema") -> ColdCheckpoint:
    """The averaged (or the live) half of a ``model.pt``; a file of bare weights is taken as it is.

    Raises:
        CheckpointError: The file is none of these.
    """
    result = unwrap(read_checkpoint(path, wrapper=weights), str(path))
    return replace(result, about=read_record(path, "about"))


def unwrap(state: Mapping[str, Tensor], what: str) -> ColdCheckpoint:
    """Sorts a state dict into the network's weights and the rest; one without ``denoise_fn`` is all network.

    Raises:
        CheckpointError: Two names become one.
    """
    network: StateDict = {}
    buffers: StateDict = {}
    for key, value in state.items():
        match = _NETWORK.fullmatch(key)
        target, name = (network, match[1]) if match else (buffers, re.sub(r"^(module\.)+", "", key))
        if name in target:
            raise CheckpointError(f"{what}: {key!r} is there twice, as {name!r}; is the file a mixture of two?")
        target[name] = value
    return ColdCheckpoint(network, buffers) if network else ColdCheckpoint(buffers, {})


def check_kernels(saved: Sequence[Tensor], configured: Sequence[np.ndarray[Any, np.dtype[Any]]], what: str) -> None:
    """Compares the kernels of a checkpoint with those of the degradation that is to be undone with it.

    Arguments:
        saved: `ColdCheckpoint.kernels`.
        configured: (k, k) each, as ``Blur.kernels()`` gives them.
        what: The degradation, for the message.

    Raises:
        CheckpointError: They differ in number, size or by more than 1e-5 of their largest value; names both.
    """
    if len(saved) != len(configured):
        raise CheckpointError(
            f"the checkpoint has {len(saved)} blur kernels, {what} has {len(configured)}; set the steps"
        )
    for i, (a, b) in enumerate(zip(saved, configured, strict=True)):
        if tuple(a.shape) != b.shape:
            raise CheckpointError(
                f"blur kernel {i} is {tuple(a.shape)} in the checkpoint and {b.shape} in {what}; set routine and size"
            )
        difference = float((a.float() - torch.from_numpy(np.array(b, dtype=np.float32))).abs().max())
        if difference > 1e-5 * float(b.max()):
            raise CheckpointError(
                f"blur kernel {i} has {float(a.max()):.6g} at its centre in the checkpoint and {float(b.max()):.6g} in "
                f"{what}; set the routine and std that it was trained with"
            )


def check_alphas(saved: Tensor | None, configured: np.ndarray[Any, np.dtype[Any]], what: str) -> None:
    """Compares the ``alphas_cumprod`` of a checkpoint, if it has one, with those of a mixing degradation.

    Raises:
        CheckpointError: They differ in number or by more than 1e-5.
    """
    if saved is None:
        return
    if tuple(saved.shape) != configured.shape:
        raise CheckpointError(f"the checkpoint has {saved.numel()} alphas, {what} has {configured.size}; set the steps")
    difference = float((saved.double() - torch.from_numpy(configured)).abs().max())
    if difference > 1e-5:
        raise CheckpointError(
            f"alphas of the checkpoint and of {what} differ by {difference:.2g}; is it another schedule?"
        )
