"""Precision: a property of the graph, never a flag of a builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from ..errors import ParameterError

__all__ = ["PRECISIONS", "Precision", "PrecisionPlan", "check_precision"]

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def check_precision(value: str) -> Precision:
    """`value` as a `Precision`; anything else raises `ParameterError`."""
    for precision in PRECISIONS:
        if value == precision:
            return precision
    raise ParameterError(f"precision is {value!r}, need one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class PrecisionPlan:
    """How the weights of a network are stored.

    Arguments:
        default: Type of the stored weights; the graph casts them to float32 where they are used.
        keep_fp32: Names of large weights that stay float32; and `islands.ISLANDS` where only products may be computed
            in a lower precision.
        scales: Loss or activation scale by tensor name, each positive (used by gradient graphs).
    """

    default: Precision = "fp32"
    keep_fp32: tuple[str, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        check_precision(self.default)
        for name, scale in self.scales.items():
            if not scale > 0:
                raise ParameterError(f"scale of {name!r} is {scale}, need a positive number")
