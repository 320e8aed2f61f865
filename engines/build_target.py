"""Build targets: which builder makes a plan, and for which architectures."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import EngineError, MissingDependency, ParameterError
from .builder_library import LIBRARIES, BuilderKind
from .nvidia import CudaDevice, devices

__all__ = ["DESKTOP", "BuildTarget", "parse_target"]

DESKTOP = ("sm86", "sm89", "sm120")
"""GeForce RTX 30, 40 and 50: what "rtx" alone is built for."""

_ELSEWHERE = {
    "sm87": "Jetson Orin: build there with --target tensorrt",
    "sm90": "Hopper, which TensorRT for RTX leaves out: use --target tensorrt there",
    "sm100": "Blackwell in data centres, which TensorRT for RTX leaves out: use --target tensorrt there",
    "sm110": "Jetson Thor: build there with --target tensorrt",
}


@dataclass(frozen=True)
class BuildTarget:
    """What a plan is built for.

    Arguments:
        kind: The builder.
        sms: The architectures, in rising order, e.g. ("sm86", "sm89").
        gpu: Name of the GPU at hand where the plan is tuned on it, else "".
    """

    kind: BuilderKind
    sms: tuple[str, ...]
    gpu: str = ""

    @property
    def arch(self) -> str:
        """The architectures as they stand in a folder's name: "sm86+sm89"."""
        return "+".join(self.sms)


def parse_target(text: str, gpus: Sequence[CudaDevice] | None = None) -> BuildTarget:
    """The target that ``--target`` names.

    Arguments:
        text: "rtx:sm86+sm89" for those architectures, "rtx" for `DESKTOP`, "tensorrt" for the GPU at hand, or
            "auto": the GPU at hand with whichever builder is installed, `DESKTOP` where there is none.
        gpus: The GPUs at hand; None asks the driver.

    Raises:
        ParameterError: It is none of these, or an architecture cannot be built for.
        EngineError: There is no GPU for "tensorrt".
    """
    kind, _, rest = text.strip().lower().partition(":")
    if kind not in ("rtx", "tensorrt", "auto") or (rest and kind != "rtx") or text.endswith(":"):
        raise ParameterError(f"target is {text!r}; write rtx:sm86+sm89, rtx, tensorrt or auto")
    if rest:
        return BuildTarget("tensorrt_rtx", _sms(rest))
    if kind == "rtx":
        return BuildTarget("tensorrt_rtx", DESKTOP)
    found = devices() if gpus is None else gpus
    if kind == "tensorrt":
        if not found:
            raise EngineError(
                "TensorRT times kernels on the GPU that the plan is for, and the driver names none here; build on the "
                "device, or for desktop GPUs with --target rtx:sm89"
            )
        return BuildTarget("tensorrt", (found[0].sm,), found[0].name)
    return _auto(found)


def _auto(gpus: Sequence[CudaDevice]) -> BuildTarget:
    rtx, full = (importlib.util.find_spec(name) is not None for name in ("tensorrt_rtx", "tensorrt"))
    if gpus and rtx and gpus[0].sm in LIBRARIES["tensorrt_rtx"].capabilities:
        return BuildTarget("tensorrt_rtx", (gpus[0].sm,))
    if gpus and full:
        return BuildTarget("tensorrt", (gpus[0].sm,), gpus[0].name)
    if not gpus and rtx:
        return BuildTarget("tensorrt_rtx", DESKTOP)
    raise MissingDependency("tensorrt_rtx", "rtx", "building a plan")


def _sms(text: str) -> tuple[str, ...]:
    known, names = LIBRARIES["tensorrt_rtx"].capabilities, text.split("+")
    for name in names:
        if name not in known:
            if name in _ELSEWHERE:
                why = _ELSEWHERE[name]
            else:
                why = "an architecture is written sm89" if re.fullmatch(r"sm\d+", name) is None else "it knows no such"
            raise ParameterError(f"TensorRT for RTX builds for {', '.join(known)}, not for {name!r} ({why})")
    if len(set(names)) != len(names):
        raise ParameterError(f"target names an architecture twice in {text!r}; name each once")
    return tuple(sorted(names, key=lambda name: int(name[2:])))
