"""Area averages for pyramids, exact: what is carried from level to level are sums, not averages.

A pixel of level k + 1 is the sum of 2 x 2 pixels of level k's sums, so level k holds sums over 4**k pixels of level 0 (a
ragged last row or column is repeated, as in ``numpy.pad(mode="edge")``). A level's pixels are ``sum / 4**k``, rounded half to
even; integers are exact, floats accumulate in float64. All arrays are planar, (c, y, x), and contiguous: only then does the
compiler know that a row's pixels are neighbours, and works on many at once (four times faster). The kernels release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


def sum_type(dtype: DTypeLike, level: int) -> np.dtype[Any]:
    """The smallest type that holds sums over ``4**level`` pixels of type ``dtype``; float64 for floats."""
    kind = np.dtype(dtype)
    if kind.kind == "f" or kind.itemsize * 8 + 2 * level > 64:
        return np.dtype(np.float64)
    bits = kind.itemsize * 8 + 2 * level
    return np.dtype(f"{kind.kind}{2 if bits <= 16 else 4 if bits <= 32 else 8}")


@njit(cache=True, nogil=True)
def add_quads(sums: Any, out: Any) -> None:
    """``out[c, i, j]`` = sum of ``sums[c, 2i:2i+2, 2j:2j+2]``, the last row and column repeated where the size is odd."""
    channels, height, width = sums.shape
    kind = out.dtype.type
    for c in range(channels):
        for i in range((height + 1) // 2):
            top, bottom = sums[c, 2 * i], sums[c, min(2 * i + 1, height - 1)]
            row = out[c, i]
            for j in range(width // 2):
                row[j] = kind(top[2 * j]) + kind(top[2 * j + 1]) + kind(bottom[2 * j]) + kind(bottom[2 * j + 1])
            if width % 2:
                last = kind(top[width - 1]) + kind(bottom[width - 1])
                row[width // 2] = last + last


@njit(cache=True, nogil=True)
def round_sums(sums: Any, shift: int, out: Any) -> None:
    """``out`` = integer ``sums / 2**shift``, rounded half to even."""
    kind = sums.dtype.type
    low, by, one = kind((1 << (shift - 1)) - 1), kind(shift), kind(1)
    for c in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            row, to = sums[c, i], out[c, i]
            for j in range(sums.shape[2]):
                value = row[j]
                to[j] = (value + low + ((value >> by) & one)) >> by


def to_pixels(sums: Array, level: int, dtype: DTypeLike) -> Array:
    """The pixels of a level, of the image's type, from its sums over ``4**level`` pixels."""
    kind = np.dtype(dtype)
    if sums.dtype.kind == "f" or not level:
        mean = sums / 4.0**level
        return mean.astype(kind) if kind.kind == "f" else np.rint(mean).astype(kind)
    out = np.empty(sums.shape, kind)
    round_sums(sums, 2 * level, out)
    return out
