"""Area averages for pyramids, exact: what is carried from level to level are sums, not averages.

A pixel of level k + 1 is the sum of 2 x 2 pixels of level k's sums, so level k holds sums over 4**k pixels of level 0 (a
ragged last row or column is repeated, as in ``numpy.pad(mode="edge")``). A level's pixels are ``sum / 4**k``, rounded half to
even; integers are exact, floats accumulate in float64. All arrays are planar, (c, y, x), and contiguous, with the box to work
on beside them (y, x, height, width): of a contiguous array the compiler knows that a row's pixels are neighbours, and works on
many at once; of a view it does not, and is four to ten times slower. The kernels release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Box = tuple[int, int, int, int]
Corner = tuple[int, int]


def sum_type(dtype: DTypeLike, level: int) -> np.dtype[Any]:
    """The smallest type that holds sums over ``4**level`` pixels of type ``dtype``; float64 for floats."""
    kind = np.dtype(dtype)
    if kind.kind == "f" or kind.itemsize * 8 + 2 * level > 64:
        return np.dtype(np.float64)
    bits = kind.itemsize * 8 + 2 * level
    return np.dtype(f"{kind.kind}{2 if bits <= 16 else 4 if bits <= 32 else 8}")


@njit(cache=True, nogil=True)
def add_quads(sums: Any, box: Box, out: Any, corner: Corner) -> None:
    """``out[c, i, j]`` = sum of ``sums[c, 2i:2i+2, 2j:2j+2]``, in the box and from the corner (y, x) of ``out`` on.

    The last row and column are repeated where the box's size is odd.
    """
    kind = out.dtype.type
    y, x, height, width = box
    for c in range(sums.shape[0]):
        for i in range((height + 1) // 2):
            top = sums[c, y + 2 * i, x : x + width]
            bottom = sums[c, y + min(2 * i + 1, height - 1), x : x + width]
            row = out[c, corner[0] + i, corner[1] : corner[1] + (width + 1) // 2]
            for j in range(width // 2):
                row[j] = kind(top[2 * j]) + kind(top[2 * j + 1]) + kind(bottom[2 * j]) + kind(bottom[2 * j + 1])
            if width % 2:
                last = kind(top[width - 1]) + kind(bottom[width - 1])
                row[width // 2] = last + last


@njit(cache=True, nogil=True)
def round_sums(sums: Any, box: Box, shift: int, out: Any) -> None:
    """The corner of ``out`` = integer ``sums / 2**shift`` of a box, rounded half to even."""
    kind = sums.dtype.type
    low, by, one = kind((1 << (shift - 1)) - 1), kind(shift), kind(1)
    y, x, height, width = box
    for c in range(sums.shape[0]):
        for i in range(height):
            row, to = sums[c, y + i, x : x + width], out[c, i, :width]
            for j in range(width):
                value = row[j]
                to[j] = (value + low + ((value >> by) & one)) >> by


def to_pixels(sums: Array, box: Box, level: int, out: Array) -> None:
    """The pixels of a box of a level from its sums over ``4**level`` pixels, into the corner of ``out``, of the image's type."""
    y, x, height, width = box
    if sums.dtype.kind == "f" or not level:
        mean = sums[:, y : y + height, x : x + width] / 4.0**level
        out[:, :height, :width] = mean if out.dtype.kind == "f" else np.rint(mean)
    else:
        round_sums(sums, box, 2 * level, out)


@njit(cache=True, nogil=True)
def split_rgb(pixels: Any, box: Box, planes: Any, corner: Corner) -> None:
    """Copy a box of contiguous (y, x, 3) pixels into contiguous ``planes`` (3, y, x), from their corner (y, x) on."""
    y, x, height, width = box
    for i in range(height):
        row = pixels[y + i, x : x + width].reshape(-1)
        red = planes[0, corner[0] + i, corner[1] : corner[1] + width]
        green = planes[1, corner[0] + i, corner[1] : corner[1] + width]
        blue = planes[2, corner[0] + i, corner[1] : corner[1] + width]
        for j in range(width):
            red[j], green[j], blue[j] = row[3 * j], row[3 * j + 1], row[3 * j + 2]
