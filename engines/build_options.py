"""Build options: what of a network a plan is made for, and what the builder may use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..errors import ParameterError
from .binding import Dimension, Profile
from .builder_library import Library
from .precision import Precision
from .spec import NetworkSpec

__all__ = ["BuildOptions", "HardwareLevel", "build_precision", "build_profile", "parse_range"]

HardwareLevel: TypeAlias = Literal["none", "ampere_plus", "same_compute_capability"]

_BATCH = 2
"""Times the bundle's optimum: the largest batch of a plan unless it is told. A plan reserves memory for its largest
shapes, and a bundle allows batches that nobody runs on a small device."""


@dataclass(frozen=True)
class BuildOptions:
    """What a plan is made for.

    Arguments:
        precision: What products compute in; None is fp16 where the manifest gives a tolerance for it, else fp32.
        ranges: (min, opt, max) by dimension, in place of the bundle's.
        workspace: Bytes of scratch memory that kernels may use; None leaves it to the builder.
        weight_streaming: Weights may stay in host memory, as far as the runtime's budget says.
        version_compatible: Later versions of the library may run the plan (TensorRT).
        hardware: Other GPUs may run the plan (TensorRT).
        effort: The builder's optimisation level, 0 to 5; None is the builder's default.
        refit: The plan's weights can be replaced where it runs; kernels are chosen without a look at their values.
    """

    precision: Precision | None = None
    ranges: Mapping[str, tuple[int, int, int]] = field(default_factory=dict[str, "tuple[int, int, int]"])
    workspace: int | None = None
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware: HardwareLevel = "none"
    effort: int | None = None
    refit: bool = False

    def __post_init__(self) -> None:
        if self.effort is not None and not 0 <= self.effort <= 5:
            raise ParameterError(f"effort is {self.effort}, the builder has levels 0 to 5")
        if self.workspace is not None and self.workspace < 1 << 20:
            raise ParameterError(f"workspace is {self.workspace} bytes, need at least 1 MiB; write e.g. 2G")

    def check(self, library: Library) -> None:
        """Refuse what this builder has not; `ParameterError`."""
        for wanted, has, name in (
            (self.version_compatible, library.version_compatible, "version_compatible"),
            (self.hardware != "none", library.hardware_levels, "hardware"),
        ):
            if wanted and not has:
                raise ParameterError(f"{library.title} has no option {name}; leave it out, or build with TensorRT")


def build_precision(spec: NetworkSpec, options: BuildOptions) -> Precision:
    """What the products of a network compute in: asked for, or fp16 where the manifest gives leave for it."""
    return options.precision or ("fp16" if "fp16" in spec.tolerance else "fp32")


def build_profile(spec: NetworkSpec, options: BuildOptions) -> Profile:
    """The shapes that a plan is made for.

    Every dimension spans the bundle's range, but for the batch, which ends at twice its optimum.

    Raises:
        ParameterError: A range is for no dimension of the network, or leaves the bundle's.
    """
    return Profile.of(spec.inputs, {name: _dimension(spec, name, d, options) for name, d in spec.dimensions.items()})


def _dimension(spec: NetworkSpec, name: str, allowed: Dimension, options: BuildOptions) -> Dimension:
    if name not in options.ranges:
        most = min(allowed.max, _BATCH * allowed.opt) if name == "batch" else allowed.max
        return Dimension(allowed.min, allowed.opt, most, allowed.multiple)
    low, best, most = options.ranges[name]
    if low < allowed.min or most > allowed.max:
        raise ParameterError(
            f"{spec.name}: {name} was asked as {low}:{best}:{most}, the bundle allows {allowed.min} to {allowed.max}; "
            "stay within, or export with a wider range"
        )
    return Dimension(low, best, most, allowed.multiple)


def parse_range(text: str) -> tuple[str, tuple[int, int, int]]:
    """ "height=32:64:128" (min:opt:max) or "batch=2" -> its name and the three extents; else `ParameterError`."""
    match = re.fullmatch(r"([A-Za-z_]\w*)=(\d+)(?::(\d+):(\d+))?", text.strip())
    if match is None:
        raise ParameterError(f"range is {text!r}; write DIMENSION=MIN:OPT:MAX, as in height=32:64:128, or batch=2")
    low = int(match[2])
    return match[1], (low, int(match[3] or low), int(match[4] or low))
