"""Recomputing: a gradient graph that keeps the inputs of its blocks and makes their insides twice.

References:
    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, https://arxiv.org/abs/1604.06174
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import ExportError
from ..networks.maps import MapRecorder
from .gradient_forward import DifferentiableForms
from .replaced import forward_replaced

__all__ = ["BLOCKS", "recomputed"]

BLOCKS = frozenset(
    {"ResBlock", "SpatialTransformer", "AttentionBlock", "ResnetBlock2D", "Transformer2DModel", "Attention"}
)
"""Classes whose calls are recomputed, the outermost of nested ones: those of `networks.unet` and of diffusers."""


def _barrier(x: Tensor, g: Tensor) -> Tensor:
    """x, in a way that no engine sees through: plus min(|g|, 0) of one element of the gradient.

    Without it an engine merges the second computation with the first one, and keeps everything again. It also says that
    the second one can only begin when its gradient is there.
    """
    return x + g.reshape(-1)[:1].abs().clamp(max=0.0).reshape((1,) * x.ndim)


class _Recompute(Function):
    """Runs a function without keeping anything, and again when its derivative is asked for."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, ...]], *inputs: Any) -> Any:
        ctx.function = function
        ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.inputs = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))
        with torch.no_grad():
            return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        inputs = list(ctx.inputs)
        first = next(g for g in gradients if g is not None)
        for i, value in zip(ctx.places, ctx.saved_tensors, strict=True):
            floating = value.is_floating_point()
            fresh = _barrier(value.detach(), first) if floating else value.detach()
            inputs[i] = fresh.requires_grad_(floating and ctx.needs_input_grad[1 + i])
        # A function mode does not reach into a backward pass, so it is opened here again.
        with torch.enable_grad(), DifferentiableForms():
            outputs = ctx.function(*inputs)
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
        wanted = [i for i in ctx.places if inputs[i].requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in pairs], [inputs[i] for i in wanted], [g for _, g in pairs], allow_unused=True
        )
        by_place = dict(zip(wanted, found, strict=True))
        return None, *(by_place.get(i) for i in range(len(inputs)))


@contextmanager
def recomputed(module: nn.Module, recorder: MapRecorder | None = None) -> Generator[None]:
    """While open, the `BLOCKS` of `module` are recomputed in the backward pass.

    Arguments:
        module: The network.
        recorder: What its attention maps go to; those made inside a block become outputs of the block.

    Raises:
        ExportError: It has no such blocks, so that everything would be kept.
    """
    blocks = list(_outermost(module))
    if not blocks:
        raise ExportError(f"nothing can be recomputed: no block is one of {', '.join(sorted(BLOCKS))}; keep everything")
    with ExitStack() as replaced:
        for block in blocks:
            replaced.enter_context(forward_replaced(block, _wrapped(block.forward, recorder)))
        yield


def _outermost(module: nn.Module) -> Generator[nn.Module]:
    for child in module.children():
        if type(child).__name__ in BLOCKS:
            yield child
        else:
            yield from _outermost(child)


def _wrapped(forward: Callable[..., Any], recorder: MapRecorder | None) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        # Tensors in containers are seen by autograd only if they are arguments of their own.
        leaves, structure = tree_flatten((args, options))
        shape = list[bool]()

        def inner(*values: Any) -> tuple[Tensor, ...]:
            before = 0 if recorder is None else len(recorder.items)
            given, named = tree_unflatten(values, structure)
            result = forward(*given, **named)
            shape[:] = [isinstance(result, tuple)]
            outputs = result if isinstance(result, tuple) else (result,)
            if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
                raise ExportError("a block that is recomputed must give one tensor; keep everything")
            return (*outputs, *(() if recorder is None else recorder.take(before)))

        outputs = cast(Any, _Recompute).apply(inner, *leaves)
        own, maps = outputs[0], outputs[1:]
        if recorder is not None:
            recorder.items += maps
        return (own,) if shape[0] else own

    return run
