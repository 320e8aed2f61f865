"""CUDA C on the host: kernels compiled by its C++ compiler, their threads run one after another, for `fake_cuda`."""

from __future__ import annotations

import atexit
import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


class CUDAError(Exception):
    """As cuda.core has it."""


_SCALARS = {"float": np.float32, "int": np.int32, "unsigned": np.uint32, "long long": np.int64, "double": np.float64}


class Kernel:
    """CUDA C that runs on the host; arguments are held to the parameters' types, which the real launch does not do."""

    def __init__(self, source: str, name: str) -> None:
        found = re.search(rf"__global__\s+void\s+{name}\s*\(([^)]*)\)", source)
        if found is None:
            raise CUDAError(f"CUDA_ERROR_NOT_FOUND: {name}")
        self.name = name
        self.types = [" ".join(p.split()[:-1]) if "*" not in p else "*" for p in found[1].split(",")]
        self._source = source

    def __call__(self, grid: int, block: int, arguments: tuple[Any, ...], kind_of: Callable[[int], str]) -> None:
        if len(arguments) != len(self.types):
            raise CUDAError(f"{self.name} takes {len(self.types)} arguments, got {len(arguments)}")
        values: list[Any] = []
        for kind, value in zip(self.types, arguments, strict=True):
            if kind == "*":
                if not isinstance(value, int):
                    raise TypeError(f"{self.name}: a pointer is a {type(value).__name__}, pass an int")
                if value and kind_of(value) not in ("device", "pinned"):
                    raise CUDAError("CUDA_ERROR_ILLEGAL_ADDRESS: a kernel was given memory that is not the device's")
                values.append(ctypes.c_void_p(value))
            else:
                scalar = _SCALARS[kind]
                if type(value) is not scalar:
                    raise TypeError(f"{self.name}: a {kind} is a {type(value).__name__}, pass np.{scalar.__name__}")
                values.append(np.ctypeslib.as_ctypes_type(scalar)(value.item()))
        function = getattr(_built(self._source), f"run_{self.name}")
        function(ctypes.c_uint(grid), ctypes.c_uint(block), *values)


def compiler() -> str | None:
    """The host's C++ compiler."""
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


_SHIM = """
extern "C" float fmaf(float, float, float);
extern "C" float expf(float);
#define __global__
#define __device__ inline
#define __restrict__
struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, blockDim, gridDim;
static int atomicMin(int* place, int value) { int old = *place; if (value < old) *place = value; return old; }
static int atomicOr(int* place, int value) { int old = *place; *place |= value; return old; }
static int __float_as_int(float x) { int bits; __builtin_memcpy(&bits, &x, 4); return bits; }
"""


@cache
def _built(source: str) -> ctypes.CDLL:
    found = compiler()
    if found is None:
        raise RuntimeError("no C++ compiler: kernels cannot be run on the host")
    runs: list[str] = []
    for name, parameters in re.findall(r"__global__\s+void\s+(\w+)\s*\(([^)]*)\)", source):
        names = ", ".join(re.findall(r"(\w+)\s*(?:,|$)", parameters))
        runs.append(
            f'extern "C" void run_{name}(unsigned grid_, unsigned block_, {parameters}) {{'
            "gridDim.x = grid_; blockDim.x = block_;"
            "for (blockIdx.x = 0; blockIdx.x < grid_; ++blockIdx.x)"
            "for (threadIdx.x = 0; threadIdx.x < block_; ++threadIdx.x)"
            f"{name}({names}); }}"
        )
    folder = tempfile.mkdtemp(prefix="fake-cuda-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "kernels.so"
    command = [found, "-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", str(path), "-"]
    done = subprocess.run(command, input="\n".join([_SHIM, source, *runs]), capture_output=True, text=True)
    if done.returncode:
        raise CUDAError(f"the kernels do not compile: {done.stderr}")
    return ctypes.CDLL(str(path))
