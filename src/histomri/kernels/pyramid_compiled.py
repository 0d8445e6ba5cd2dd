"""The kernels of :mod:`histomri.kernels.pyramid`, compiled: the same numbers, many pixels at a time. They release the GIL."""

from __future__ import annotations

from typing import Any

from numba import njit

Box = tuple[int, int, int, int]
Corner = tuple[int, int]


@njit(cache=True, nogil=True)
def add_quads(sums: Any, box: Box, out: Any, corner: Corner) -> None:
    """``out[c, i, j]`` = sum of ``sums[c, 2i:2i+2, 2j:2j+2]``, in the box and from the corner (y, x) of ``out`` on.

    The last row and column are repeated where the box's size is odd. Columns are summed first.
    """
    kind = out.dtype.type
    y, x, height, width = box
    for c in range(sums.shape[0]):
        for i in range((height + 1) // 2):
            top = sums[c, y + 2 * i, x : x + width]
            bottom = sums[c, y + min(2 * i + 1, height - 1), x : x + width]
            row = out[c, corner[0] + i, corner[1] : corner[1] + (width + 1) // 2]
            for j in range(width // 2):
                row[j] = (kind(top[2 * j]) + kind(bottom[2 * j])) + (kind(top[2 * j + 1]) + kind(bottom[2 * j + 1]))
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
