"""The NVIDIA side of a machine: driver, libcuda, devices and Jetson, found without a library that could crash."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CudaDevice", "NvidiaFacts", "detect_nvidia", "devices"]

Finder = Callable[[str], "str | None"]
"""Finds a shared library by its short name, as `ctypes.util.find_library` does."""

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h, unchanged since CUDA 5."""


@dataclass(frozen=True)
class CudaDevice:
    """One GPU: its name, and its compute capability as "sm89"."""

    name: str
    sm: str


@dataclass(frozen=True)
class NvidiaFacts:
    """What there is of NVIDIA on a machine.

    Arguments:
        driver: Version of the kernel's driver, e.g. "580.95.05"; None without one.
        libcuda: Name of the driver's library, e.g. "libcuda.so.1"; None where it is not found.
        jetson: Release of Jetson Linux, e.g. "R36.4.3"; None elsewhere.
        system_tensorrt: The folder of JetPack's Python package `tensorrt`, which pip does not know; None without it.
        libraries: Short names of those libraries among `LIBRARIES` that the loader finds, e.g. "cudnn".
    """

    driver: str | None = None
    libcuda: str | None = None
    jetson: str | None = None
    system_tensorrt: str | None = None
    libraries: tuple[str, ...] = ()

    @property
    def branch(self) -> int | None:
        """The first number of the driver's version, e.g. 580."""
        return None if self.driver is None else int(self.driver.split(".")[0])

    @property
    def jetpack(self) -> int | None:
        """The generation of JetPack: Jetson Linux R35 is 5, R36 is 6, R38 and R39 are 7."""
        release = None if self.jetson is None else re.match(r"R(\d+)", self.jetson)
        return None if release is None else {"35": 5, "36": 6, "38": 7, "39": 7}.get(release[1])


LIBRARIES = ("cudart", "cudnn", "nvinfer")


def detect_nvidia(root: Path = Path("/"), find: Finder = ctypes.util.find_library) -> NvidiaFacts:
    """The facts of this machine, from files and the loader's list; nothing is loaded.

    Arguments:
        root: Where the file system begins; another for tests.
        find: How a shared library is found by its short name.
    """
    packages = sorted(root.glob("usr/lib/python3*/dist-packages/tensorrt/__init__.py"))
    return NvidiaFacts(
        driver=_driver(root / "proc/driver/nvidia/version"),
        libcuda=find("cuda"),
        jetson=_jetson(root / "etc/nv_tegra_release"),
        system_tensorrt=str(packages[-1].parent) if packages else None,
        libraries=tuple(name for name in LIBRARIES if find(name) is not None),
    )


def devices(library: str = "libcuda.so.1") -> list[CudaDevice]:
    """The GPUs that the driver names, in its order; none where there is no driver or it refuses.

    Loads the driver's own library, not CUDA's, and makes no context, so no memory of a GPU is used.
    """
    try:
        cuda: Any = ctypes.CDLL(library)
        count = ctypes.c_int()
        if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return []
        return [_device(cuda, index) for index in range(count.value)]
    except (OSError, AttributeError):
        return []


def _device(cuda: Any, index: int) -> CudaDevice:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
    return CudaDevice(name.value.decode(errors="replace"), f"sm{major.value}{minor.value}")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _driver(path: Path) -> str | None:
    """The version out of "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep …"."""
    found = re.search(r"Kernel Module[^\n]*?\s(\d+\.\d+(?:\.\d+)?)\s", _text(path))
    return None if found is None else found[1]


def _jetson(path: Path) -> str | None:
    """The release out of "# R36 (release), REVISION: 4.3, GCID: …"."""
    found = re.search(r"# (R\d+) \(release\), REVISION: ([\d.]+)", _text(path))
    return None if found is None else f"{found[1]}.{found[2]}"
