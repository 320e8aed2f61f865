"""Options of a call: those that were given, by names that exist, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ParameterError

__all__ = ["number", "stated", "whole"]


def stated(options: Mapping[str, Any], known: type) -> dict[str, Any]:
    """The options that are not None.

    Arguments:
        options: By name.
        known: The `TypedDict` of those that there are.

    Raises:
        TypeError: An option does not exist.
    """
    names = known.__annotations__
    for name in options:
        if name not in names:
            raise TypeError(f"no option is named {name!r}, there are {', '.join(names)}")
    return {name: value for name, value in options.items() if value is not None}


def number(name: str, value: Any, bounds: tuple[float, float] | None = None) -> float:
    """`value` as a finite float within `bounds`, both included; else `ParameterError`."""
    low, high = bounds or (-np.inf, np.inf)
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not real or not low <= value <= high or not np.isfinite(value):
        need = "a finite number" if bounds is None else f"a number from {low} to {high}"
        raise ParameterError(f"{name} is {value!r}, need {need}; pass such a one")
    return float(value)


def whole(name: str, value: Any, low: int | None = None) -> int:
    """`value` as an int of `low` or more; else `ParameterError`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or (low is not None and value < low):
        need = "one whole number" if low is None else f"a whole number of {low} or more"
        raise ParameterError(f"{name} is {value!r}, need {need}; pass such a one")
    return int(value)
