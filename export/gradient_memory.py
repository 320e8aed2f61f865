"""The form of a gradient by memory: everything kept (joint), or the insides of blocks computed again (recomputed).

Keeping is faster, and what it takes is known before anything is exported: torch says what it saves for the backward
pass, and on tensors without memory ("meta") that costs neither time nor space.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]
from torch.multiprocessing.reductions import StorageWeakRef

from ..engines.binding import resolve
from ..errors import ExportError
from .gradient import Differentiated
from .gradient_forward import DifferentiableForms
from .network import Network

__all__ = ["SHARE", "Form", "choose_form", "installed_memory", "joint_bytes"]

Form: TypeAlias = Literal["joint", "recomputed"]

SHARE = 2 / 3
"""Of a device's memory, what a joint gradient may take: the plain networks are held beside it."""
WEIGHTS = 2
"""Times the weights: packed for both directions. Measured: 2.0 in float32, 1.1 in bf16 (OpenVINO)."""
BACKWARD = 2
"""Times what is kept: the peak of the backward pass. Measured: 1.1 with convolutions, 2.0 with full attention."""


def joint_bytes(network: Network) -> int:
    """Bytes of a joint gradient at the network's usual size on OpenVINO, at most.

    `WEIGHTS` times its weights and `BACKWARD` times what it keeps, both counted in float32. ONNX Runtime was seen to
    take up to 1.4 times as much.

    Arguments:
        network: One of `gradient.differentiate`, not recomputed.

    Raises:
        ExportError: It is no such network, or it holds tensors that are neither parameters nor buffers.
    """
    module = network.build()
    if not isinstance(module, Differentiated) or module.recompute:
        raise ExportError(f"{network.name}: is no joint gradient, whose memory could be told; pass one")
    module.eval()
    sizes = {name: d.opt for name, d in network.dimensions.items()}
    sizes |= {name: extent(sizes) for name, extent in network.derived.items()}
    types = {b.name: getattr(torch, b.dtype) for b in network.inputs}
    inputs = tuple(torch.empty(resolve(b, sizes), dtype=types[b.name], device="meta") for b in network.inputs)
    named = [*module.named_parameters(), *module.named_buffers()]
    weights = {name: torch.empty_like(value, device="meta") for name, value in named}
    place: Any = StorageWeakRef  # by which tensors on one memory are known; torch gives it no types
    known = {place(value.untyped_storage()) for value in weights.values()}
    kept: dict[Any, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept.setdefault(place(value.untyped_storage()), value)
        return value

    try:
        with torch.device("meta"), DifferentiableForms(), saved_tensors_hooks(keep, lambda value: value):
            functional_call(module, weights, inputs)
    except RuntimeError as error:
        raise ExportError(
            f"{network.name}: its memory cannot be told ({error}); register every tensor that it holds as a buffer"
        ) from error
    activations = sum(value.untyped_storage().nbytes() for key, value in kept.items() if key not in known)
    return BACKWARD * activations + WEIGHTS * sum(value.nbytes for value in weights.values())


def choose_form(network: Network, memory: int) -> tuple[Form, int]:
    """The form for a device, and what the joint one would take.

    Arguments:
        network: The joint gradient.
        memory: Bytes of the device.

    Returns:
        "joint" if `joint_bytes` is at most `SHARE` of `memory`, and the bytes.
    """
    need = joint_bytes(network)
    return ("joint" if need <= SHARE * memory else "recomputed"), need


def installed_memory() -> int:
    """Bytes of this machine, or of the container if it is allowed fewer (Linux's control groups, version 2)."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return installed
    return min(installed, int(allowed)) if allowed.isdigit() else installed
