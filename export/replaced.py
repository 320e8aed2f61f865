"""Modules that do something else for a while."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["forward_replaced"]


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """While open, a call of `module` is one of `forward`; then it is what it was, its own or its class's."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
