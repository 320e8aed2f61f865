"""Targets: what a compiled network is for, and what this processor can do."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from .precision import Precision

__all__ = ["CpuFacts", "Target", "cpu_precision", "detect"]

Kind: TypeAlias = Literal["openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"]

_SHORT = {"openvino": "openvino", "onnxruntime": "ort", "tensorrt": "trt", "tensorrt_rtx": "rtx"}
_INTERESTING = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "bf16", "sve", "i8mm"),
)


@dataclass(frozen=True)
class Target:
    """An engine's library, its version and the architecture that it compiles for.

    Arguments:
        kind: The library.
        version: Its version as far as plans depend on it, e.g. "10.3".
        arch: "cpu", or a CUDA compute capability as "sm87".
    """

    kind: Kind
    version: str
    arch: str

    @property
    def tag(self) -> str:
        """Name of its folder under ``plans/``: "cpu-openvino2026.4", "sm87-trt10.3", "sm89-rtx1.7"."""
        return f"{self.arch}-{_SHORT[self.kind]}{self.version}"


@dataclass(frozen=True)
class CpuFacts:
    """What matters of a processor to compiled code.

    Arguments:
        model: Its name.
        machine: Its instruction set, e.g. "x86_64".
        cores: Logical processors that this process may use.
        flags: The instruction-set extensions that change what is compiled, sorted.
    """

    model: str
    machine: str
    cores: int
    flags: tuple[str, ...]

    @property
    def key(self) -> str:
        """A line that two processors share only if compiled code may be shared too."""
        return f"{self.machine}|{self.model}|{','.join(self.flags)}"


@lru_cache(maxsize=1)
def detect() -> CpuFacts:
    """The processor of this process, from ``/proc/cpuinfo`` on Linux and from `platform` elsewhere."""
    return _facts(_cpuinfo())


def cpu_precision(facts: CpuFacts | None = None) -> Precision:
    """The fastest precision this processor multiplies in: bf16 with AMX or AVX512_BF16, else fp32."""
    flags = (facts or detect()).flags
    return "bf16" if "amx_bf16" in flags or "avx512_bf16" in flags else "fp32"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def _facts(cpuinfo: str) -> CpuFacts:
    fields: dict[str, str] = {}
    for line in cpuinfo.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip().lower()] = value.strip()
    # x86 says "flags" and "model name"; Arm says "Features" and the numbers of its implementer and part.
    words = set(fields.get("flags", fields.get("features", "")).split())
    arm = " ".join(fields[key] for key in ("cpu implementer", "cpu part", "cpu variant") if key in fields)
    model = fields.get("model name") or (f"Arm {arm}" if arm else platform.processor() or platform.machine())
    stepping = "/".join(fields[key] for key in ("cpu family", "model", "stepping") if key in fields)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return CpuFacts(
        model=f"{model} {stepping}".strip(),
        machine=platform.machine(),
        cores=cores,
        flags=tuple(sorted(words.intersection(_INTERESTING))),
    )
