"""The kernels of :mod:`histomri.kernels.pyramid`, compiled: the same numbers, many pixels at a time. They release the GIL.

For unsigned pixels, and sums of up to 32 bits. Each works on one plane, of which it is given the address of the first pixel
and the pixels from one row to the next.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.kernels.native import Kernel, Kernels, load

Array = NDArray[Any]
Box = tuple[int, int, int, int]
Corner = tuple[int, int]


def _add(below: Any, below_row: int, height: int, width: int, sums: Any, sums_row: int) -> None:
    for i in range((height + 1) // 2):
        top, bottom, to = 2 * i * below_row, min(2 * i + 1, height - 1) * below_row, i * sums_row
        for j in range(width // 2):
            left = below[top + 2 * j] + below[bottom + 2 * j]
            sums[to + j] = left + (below[top + 2 * j + 1] + below[bottom + 2 * j + 1])
        if width % 2:
            last = below[top + width - 1] + below[bottom + width - 1]
            sums[to + width // 2] = last + last


def _round(sums: Any, sums_row: int, height: int, width: int, shift: int, out: Any, out_row: int) -> None:
    low = (1 << (shift - 1)) - 1
    for i in range(height):
        row, to = i * sums_row, i * out_row
        for j in range(width):
            value = sums[row + j]
            out[to + j] = (value + low + ((value >> shift) & 1)) >> shift


def _split(pixels: Any, row: int, height: int, width: int, red: Any, green: Any, blue: Any, plane_row: int) -> None:
    for i in range(height):
        at, to = i * row, i * plane_row
        for j in range(width):
            red[to + j], green[to + j], blue[to + j] = pixels[at + 3 * j], pixels[at + 3 * j + 1], pixels[at + 3 * j + 2]


U1, U2, U4 = (np.dtype(name) for name in ("uint8", "uint16", "uint32"))
SUMS = ((U1, U2), (U2, U2), (U2, U4), (U4, U4))
ROUNDED = ((U2, U1), (U4, U1), (U4, U2))
KERNELS: Kernels = {
    **{f"add_{a}_{b}": (_add, (a.name, "i", "i", "i", b.name, "i")) for a, b in SUMS},
    **{f"round_{a}_{b}": (_round, (a.name, "i", "i", "i", "i", b.name, "i")) for a, b in ROUNDED},
    **{f"split_{kind}": (_split, (kind.name, "i", "i", "i", *[kind.name] * 3, "i")) for kind in (U1, U2)},
}


@functools.cache
def _kernel(job: str, *kinds: np.dtype[Any]) -> Kernel:
    return _loaded()["_".join([job, *(kind.name for kind in kinds)])]


@functools.cache
def _loaded() -> dict[str, Kernel]:
    return load(KERNELS)


def can_add(sums: Array, out: Array) -> bool:
    """Whether :func:`add_quads` is compiled for such arrays."""
    return (sums.dtype, out.dtype) in SUMS and _in_rows(sums) and _in_rows(out)


def can_round(sums: Array, out: Array) -> bool:
    """Whether :func:`round_sums` is compiled for such arrays."""
    return (sums.dtype, out.dtype) in ROUNDED and _in_rows(sums) and _in_rows(out)


def _in_rows(planes: Array) -> bool:
    return planes.strides[-1] == planes.itemsize and planes.strides[-2] % planes.itemsize == 0


def _row(plane: Array) -> int:
    return plane.strides[0] // plane.itemsize


def add_quads(sums: Array, box: Box, out: Array, corner: Corner) -> None:
    """``out[c, i, j]`` = sum of ``sums[c, 2i:2i+2, 2j:2j+2]``, in the box and from the corner (y, x) of ``out`` on.

    The last row and column are repeated where the box's size is odd.
    """
    y, x, height, width = box
    kernel = _kernel("add", sums.dtype, out.dtype)
    for plane, into in zip(sums, out, strict=True):
        to = into[corner[0] :, corner[1] :]
        assert to.shape[0] >= (height + 1) // 2 and to.shape[1] >= (width + 1) // 2
        kernel(plane[y:, x:].ctypes.data, _row(plane), height, width, to.ctypes.data, _row(to))


def round_sums(sums: Array, box: Box, shift: int, out: Array) -> None:
    """The corner of ``out`` = integer ``sums / 2**shift`` of a box, rounded half to even."""
    y, x, height, width = box
    kernel = _kernel("round", sums.dtype, out.dtype)
    assert out.shape[1] >= height and out.shape[2] >= width
    for plane, into in zip(sums, out, strict=True):
        kernel(plane[y:, x:].ctypes.data, _row(plane), height, width, shift, into.ctypes.data, _row(into))


def split_rgb(pixels: Array, box: Box, planes: Array, corner: Corner) -> None:
    """Copy a box of (y, x, 3) pixels, contiguous, into ``planes`` (3, y, x), from their corner (y, x) on."""
    (y, x, height, width), (top, left) = box, corner
    part, into = pixels[y : y + height, x : x + width], planes[:, top : top + height, left : left + width]
    assert part.shape[:2] == into.shape[1:] == (height, width)
    at, step = into.ctypes.data, into.strides[0]
    kernel = _kernel("split", pixels.dtype)
    kernel(part.ctypes.data, _row(part), height, width, at, at + step, at + 2 * step, _row(into[0]))
