"""Element-wise kernels in CUDA C, compiled by NVRTC for the GPU at hand and kept in the cache."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError
from .blobs import BlobStore
from .cuda import compile_cubin

if TYPE_CHECKING:
    from .cuda import Cuda, Stream

__all__ = ["SOURCE", "TERMS", "Kernels", "key"]

TERMS = 8
"""Most terms of a sum in one launch."""

_SUM = "".join(f", const float* s{k}, float w{k}" for k in range(TERMS))
_ADD = "".join(f"\n    if (count > {k}) sum = fmaf(w{k}, s{k}[i], sum);" for k in range(1, TERMS))

SOURCE = f"""
#define EACH(n) \\
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; \\
    if (i >= (n)) return;

static __device__ bool broken(float x) {{ return (__float_as_int(x) & 0x7f800000) == 0x7f800000; }}

// out = w0 s0 + w1 s1 + ..., one rounding a term; out may be a source
extern "C" __global__ void linear(float* out, long long n, int count{_SUM}) {{
    EACH(n)
    float sum = w0 * s0[i];{_ADD}
    out[i] = sum;
}}

// out = exp(scale v + offset) noise
extern "C" __global__ void deviate(float* out, long long n, const float* v, float scale, float offset,
                                   const float* noise) {{
    EACH(n)
    out[i] = expf(fmaf(v[i], scale, offset)) * noise[i];
}}

// out = (alpha known + sigma noise) mask + x rest
extern "C" __global__ void blend(float* out, long long n, const float* x, const float* known, float alpha,
                                 const float* noise, float sigma, const float* mask, const float* rest) {{
    EACH(n)
    const float kept = fmaf(sigma, noise[i], alpha * known[i]);
    out[i] = fmaf(kept, mask[i], x[i] * rest[i]);
}}

// rows of `width` from one pitch to another
extern "C" __global__ void rows(float* out, long long n, long long width, long long out_pitch,
                                const float* in, long long in_pitch) {{
    EACH(n)
    out[i / width * out_pitch + i % width] = in[i / width * in_pitch + i % width];
}}

// the first step at which x, and at which y, held NaN or infinity
extern "C" __global__ void look(int* first, int step, const float* x, long long nx, const float* y, long long ny) {{
    EACH(nx > ny ? nx : ny)
    if (i < nx && broken(x[i])) atomicMin(first, step);
    if (i < ny && broken(y[i])) atomicMin(first + 1, step);
}}
"""
"""All of them. Counts are 64-bit; arrays are float32 and C-contiguous."""

_NAMES = ("linear", "deviate", "blend", "rows", "look")


class Kernels:
    """The kernels on one GPU: `kernels(name, threads, stream, *arguments)` enqueues one. Get it by ``cuda.kernels``."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._kernels = _loaded(cuda)
        self._grid: Any = lru_cache(maxsize=64)(cuda.grid)

    def __call__(self, name: str, threads: int, stream: Stream, *arguments: Any) -> None:
        """Enqueue a kernel for `threads` elements. Pointers are ints, numbers NumPy scalars of the kernel's types."""
        if threads:
            self._cuda.launch(self._kernels[name], self._grid(threads), stream, *arguments)

    def linear(self, out: int, size: int, terms: list[tuple[int, float]], stream: Stream) -> None:
        """out = sum of weight · source over (address, weight), at most `TERMS` of them, float32 of `size` elements."""
        if not 1 <= len(terms) <= TERMS:
            raise EngineError(f"a sum of {len(terms)} terms is asked for, the kernel takes 1 to {TERMS}; add in parts")
        padded = [*terms, *[(0, 0.0)] * (TERMS - len(terms))]
        pairs = [part for address, weight in padded for part in (address, np.float32(weight))]
        self("linear", size, stream, out, np.int64(size), np.int32(len(terms)), *pairs)


def key(sm: str) -> dict[str, str]:
    """What compiled kernels depend on."""
    return {"source": hashlib.sha256(SOURCE.encode()).hexdigest(), "sm": sm}


def _loaded(cuda: Cuda) -> dict[str, Any]:
    """Every kernel by name, from the cache if it is there; cubins depend on nothing but source and architecture."""
    store = BlobStore(f"{cuda.sm}-kernels", key(cuda.sm))
    kept = store.load()
    if kept is not None:
        try:
            return _kernels(cuda, kept.tobytes())
        except EngineError:
            store.discard()
    cubin = compile_cubin(SOURCE, cuda.sm)
    kernels = _kernels(cuda, cubin)
    store.store(cubin)
    return kernels


def _kernels(cuda: Cuda, cubin: bytes) -> dict[str, Any]:
    return {name: cuda.kernel(cubin, name) for name in _NAMES}
