"""The doctor: which backends can work here and why not, found before the import that would crash."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .nvidia import CudaDevice, NvidiaFacts, detect_nvidia, devices
from .target import CpuFacts, detect

__all__ = ["RTX", "TENSORRT", "Environment", "Finding", "Level", "Version", "environment", "version"]

Level: TypeAlias = Literal["error", "warning", "note"]
Version: TypeAlias = "tuple[int, ...]"

RTX = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx")
TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
"""The distributions that bring a builder, the one to look at first."""

_PACKAGES = re.compile(
    r"sfumato|numpy|openvino|torch|onnx|onnxruntime.*|tensorrt.*|cuda-(core|python|bindings)"
    r"|nvidia-(cudnn|cuda-runtime|cublas).*|nvidia-modelopt|polygraphy"
)


@dataclass(frozen=True)
class Finding:
    """Something that stands in the way, or will.

    Arguments:
        level: "error" if a backend cannot work, "warning" if something else will break, "note" to know.
        subject: What it is about, e.g. "onnxruntime".
        problem: The two facts that disagree.
        mend: The command or the act that mends it; "" where there is none.
    """

    level: Level
    subject: str
    problem: str
    mend: str = ""


@dataclass(frozen=True)
class Environment:
    """Everything that the rules look at; made by `environment`, or by hand in tests.

    Arguments:
        python: Version of the interpreter, e.g. (3, 11).
        system: "Linux", "Darwin" or "Windows".
        cpu: The processor.
        packages: Version of every installed distribution that matters, by its normalised name.
        nvidia: Driver, libraries and Jetson.
        gpus: What the driver names.
    """

    python: Version
    system: str
    cpu: CpuFacts
    packages: Mapping[str, str] = field(default_factory=dict[str, str])
    nvidia: NvidiaFacts = field(default_factory=NvidiaFacts)
    gpus: tuple[CudaDevice, ...] = ()

    def has(self, package: str) -> bool:
        """Whether a distribution is installed."""
        return package in self.packages

    def first(self, *names: str) -> str | None:
        """The first of these distributions that is installed."""
        return next((name for name in names if name in self.packages), None)


def version(text: str) -> Version:
    """The leading numbers of a version: "10.16.1.post1" -> (10, 16, 1)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)


def environment() -> Environment:
    """This machine, as files, metadata and the driver tell it; no backend is imported."""
    facts = detect_nvidia()
    return Environment(
        python=tuple(sys.version_info[:2]),
        system=platform.system(),
        cpu=detect(),
        packages=_packages(),
        nvidia=facts,
        gpus=tuple(devices()) if facts.libcuda is not None else (),
    )


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name: str | None = distribution.metadata["Name"]
        normal = re.sub(r"[-_.]+", "-", name or "").lower()
        if _PACKAGES.fullmatch(normal):
            found.setdefault(normal, distribution.version)  # the first one on the path is the one that is imported
    return dict(sorted(found.items()))
