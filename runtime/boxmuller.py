"""Box and Muller's transform in float32, to the last bit as torch computes it on x86-64.

torch's kernel works on 16 values at once: uniforms 0-7 give radii, 8-15 angles, and the results are the eight
cosines followed by the eight sines. Its logarithm, sine and cosine are Moshier's single-precision polynomials
(Cephes), and the compiler fuses most multiplications with the addition that follows. Both are part of the
value, so both are repeated here; a fused multiply-add is computed in float64, where the product of two
float32 is exact, and rounded once.

References:
    Box & Muller, "A Note on the Generation of Random Normal Deviates", 1958
    Moshier, "Cephes Mathematical Library" (logf, sinf, cosf), https://www.netlib.org/cephes/
"""

from __future__ import annotations

import numpy as np

from ..engines.binding import Array

__all__ = ["box_muller16"]

_BLOCK = 1 << 14
"""Values transformed at a time: the temporaries stay in the cache."""

_LOG = [
    np.float32(c)
    for c in (
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    )
]
_LN2_LOW, _LN2_HIGH = np.float32(-2.12194440e-4), np.float32(0.693359375)
_SQRT_HALF = np.float32(0.707106781186547524)
_FOUR_OVER_PI = np.float32(1.27323954473516)
_MINUS_PI_4 = [np.float32(c) for c in (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)]
_SIN = [np.float32(c) for c in (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)]
_COS = [np.float32(c) for c in (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)]
_HALF, _MINUS_HALF, _ONE = np.float32(0.5), np.float32(-0.5), np.float32(1)


def box_muller16(uniforms: Array, out: Array) -> None:
    """Standard normals from uniforms.

    Arguments:
        uniforms: float32 (16 n,) in [0, 1), multiples of 2^-24.
        out: float32 (16 n,), written; must not overlap `uniforms`.
    """
    for start in range(0, uniforms.size, _BLOCK):
        u: Array = np.reshape(uniforms[start : start + _BLOCK], (-1, 2, 8))
        block: Array = np.reshape(out[start : start + _BLOCK], (-1, 2, 8))
        first: Array = u[:, 0]
        second: Array = u[:, 1]
        radius = np.sqrt(np.multiply(np.float32(-2), _log(np.subtract(_ONE, first))))
        sine, cosine = _sincos(np.multiply(np.float32(2 * np.pi), second))
        np.multiply(radius, cosine, out=block[:, 0])
        np.multiply(radius, sine, out=block[:, 1])
        block += np.float32(0)  # -0 becomes +0, as in torch's closing fused multiply-add


def _fma(a: Array, b: Array | np.float32, c: Array | np.float32) -> Array:
    """a b + c, rounded once to float32."""
    product = a.astype(np.float64)
    product *= b
    product += c
    return product.astype(np.float32)


def _log(x: Array) -> Array:
    """Natural logarithm of float32 x in [2^-24, 1]."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    e: Array = np.subtract(exponent, low, dtype=np.float32)
    x = np.subtract(mantissa, _ONE) + np.where(low, mantissa, np.float32(0))
    z: Array = np.multiply(x, x)
    y: Array = np.full_like(x, _LOG[0])
    for c in _LOG[1:]:
        y = _fma(y, x, c)
    y = _fma(np.multiply(y, x), z, np.multiply(e, _LN2_LOW))
    y = _fma(z, _MINUS_HALF, y)
    return _fma(e, _LN2_HIGH, np.add(x, y))


def _sincos(x: Array) -> tuple[Array, Array]:
    """Sine and cosine of float32 x in [0, 2 pi)."""
    octant = ((x * _FOUR_OVER_PI).astype(np.int32) + 1) & ~1
    y = octant.astype(np.float32)
    for c in _MINUS_PI_4:
        x = _fma(y, c, x)
    z = x * x
    cosine = _fma(_fma(z, _COS[0], _COS[1]), z, _COS[2]) * z
    cosine = _fma(cosine, z, -(z * _HALF)) + _ONE
    sine = _fma(_fma(z, _SIN[0], _SIN[1]), z, _SIN[2]) * z
    sine = _fma(sine, x, x)
    swap = (octant & 2) != 0
    sin, cos = np.where(swap, cosine, sine), np.where(swap, sine, cosine)
    np.negative(sin, out=sin, where=(octant & 4) != 0)
    np.negative(cos, out=cos, where=((octant - 2) & 4) == 0)
    return sin, cos
