"""The kernels of :mod:`histomri.kernels.pyramid`, compiled: the same numbers, many pixels at a time. They release the GIL.

For unsigned pixels, and sums of up to 32 bits. They are given the address of the first pixel, and how many pixels lie from one
plane, and from one row, to the next.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.kernels.native import Kernel, Kernels, load

Array = NDArray[Any]
Box = tuple[int, int, int, int]
Corner = tuple[int, int]


def _add(
    below: Any, below_plane: int, below_row: int, count: int, height: int, width: int, sums: Any, plane: int, row: int
) -> None:
    for c in range(count):
        for i in range((height + 1) // 2):
            top = c * below_plane + 2 * i * below_row
            bottom, to = c * below_plane + min(2 * i + 1, height - 1) * below_row, c * plane + i * row
            for j in range(width // 2):
                left = below[top + 2 * j] + below[bottom + 2 * j]
                sums[to + j] = left + (below[top + 2 * j + 1] + below[bottom + 2 * j + 1])
            if width % 2:
                last = below[top + width - 1] + below[bottom + width - 1]
                sums[to + width // 2] = last + last


def _round(
    sums: Any, sums_plane: int, sums_row: int, count: int, height: int, width: int, shift: int, out: Any, plane: int, row: int
) -> None:
    low = (1 << (shift - 1)) - 1
    for c in range(count):
        for i in range(height):
            at, to = c * sums_plane + i * sums_row, c * plane + i * row
            for j in range(width):
                value = sums[at + j]
                out[to + j] = (value + low + ((value >> shift) & 1)) >> shift


def _round_and_add(
    sums: Any, sums_plane: int, sums_row: int, count: int, height: int, width: int, shift: int,
    out: Any, plane: int, row: int, above: Any, above_plane: int, above_row: int,
) -> None:  # fmt: skip
    # row by row, while both find it in the cache: a chunk of sums is larger than that
    low = (1 << (shift - 1)) - 1
    for c in range(count):
        for i in range((height + 1) // 2):
            for k in range(2 * i, min(2 * i + 2, height)):
                at, to = c * sums_plane + k * sums_row, c * plane + k * row
                for j in range(width):
                    value = sums[at + j]
                    out[to + j] = (value + low + ((value >> shift) & 1)) >> shift
            top = c * sums_plane + 2 * i * sums_row
            bottom, to = c * sums_plane + min(2 * i + 1, height - 1) * sums_row, c * above_plane + i * above_row
            for j in range(width // 2):
                left = sums[top + 2 * j] + sums[bottom + 2 * j]
                above[to + j] = left + (sums[top + 2 * j + 1] + sums[bottom + 2 * j + 1])
            if width % 2:
                last = sums[top + width - 1] + sums[bottom + width - 1]
                above[to + width // 2] = last + last


def _split(pixels: Any, row: int, height: int, width: int, red: Any, green: Any, blue: Any, plane_row: int) -> None:
    for i in range(height):
        at, to = i * row, i * plane_row
        for j in range(width):
            red[to + j], green[to + j], blue[to + j] = pixels[at + 3 * j], pixels[at + 3 * j + 1], pixels[at + 3 * j + 2]


U1, U2, U4 = (np.dtype(name) for name in ("uint8", "uint16", "uint32"))
SUMS = ((U1, U2), (U2, U2), (U2, U4), (U4, U4))
ROUNDED = ((U2, U1), (U4, U1), (U4, U2))
BOTH = ((U2, U1, U2), (U2, U1, U4), (U4, U1, U4), (U4, U2, U4))
_CAN_ADD, _CAN_ROUND, _CAN_DO_BOTH = frozenset(SUMS), frozenset(ROUNDED), frozenset(BOTH)
KERNELS: Kernels = {
    **{f"add_{a}_{b}": (_add, (a.name, *"iiiii", b.name, *"ii")) for a, b in SUMS},
    **{f"round_{a}_{b}": (_round, (a.name, *"iiiiii", b.name, *"ii")) for a, b in ROUNDED},
    **{f"both_{a}_{b}_{c}": (_round_and_add, (a.name, *"iiiiii", b.name, *"ii", c.name, *"ii")) for a, b, c in BOTH},
    **{f"split_{kind}": (_split, (kind.name, *"iii", *[kind.name] * 3, "i")) for kind in (U1, U2)},
}


_lock = threading.Lock()


@functools.cache
def _kernel(job: str, *kinds: np.dtype[Any]) -> Kernel:
    # the first time takes seconds, and all workers ask at once
    with _lock:
        return _loaded()["_".join([job, *(kind.name for kind in kinds)])]


@functools.cache
def _loaded() -> dict[str, Kernel]:
    return load(KERNELS)


def can_add(sums: Array, out: Array) -> bool:
    """Whether :func:`add_quads` is compiled for such arrays."""
    return (sums.dtype, out.dtype) in _CAN_ADD and sums.flags.c_contiguous and out.flags.c_contiguous


def can_round(sums: Array, out: Array) -> bool:
    """Whether :func:`round_sums` is compiled for such arrays."""
    return (sums.dtype, out.dtype) in _CAN_ROUND and sums.flags.c_contiguous and out.flags.c_contiguous


def can_round_and_add(sums: Array, out: Array, above: Array) -> bool:
    """Whether :func:`round_and_add` is compiled for such arrays."""
    is_plain = sums.flags.c_contiguous and out.flags.c_contiguous and above.flags.c_contiguous
    return (sums.dtype, out.dtype, above.dtype) in _CAN_DO_BOTH and is_plain


def address(array: Array) -> int:
    """Where the first pixel of a contiguous array lies."""
    # array.ctypes takes four times as long
    return ctypes.addressof(_byte_of(array)) if array.flags.writeable else int(array.ctypes.data)


_byte_of: Any = ctypes.c_char.from_buffer


def _at(planes: Array, box: Box, count: int) -> int:
    """The address of the corner of a box in the first of contiguous planes. Raises ``IndexError`` where it does not fit."""
    y, x, height, width = box
    if min(y, x) < 0 or y + height > planes.shape[1] or x + width > planes.shape[2] or count > len(planes):
        raise IndexError(f"the box {box} leaves {count} planes of {planes.shape}")
    # slices would do, but what Python runs once for each tile finds its own code out of the cache and is slow
    strides = planes.strides
    return address(planes) + y * strides[1] + x * strides[2]


def add_quads(sums: Array, box: Box, out: Array, corner: Corner) -> None:
    """``out[c, i, j]`` = sum of ``sums[c, 2i:2i+2, 2j:2j+2]``, in the box and from the corner (y, x) of ``out`` on.

    The last row and column are repeated where the box's size is odd. Both are contiguous.
    """
    (count, rows, row), (_, out_rows, out_row), (height, width) = sums.shape, out.shape, box[2:]
    to = _at(out, (*corner, (height + 1) // 2, (width + 1) // 2), count)
    kernel = _kernel("add", sums.dtype, out.dtype)
    kernel(_at(sums, box, count), rows * row, row, count, height, width, to, out_rows * out_row, out_row)


def round_sums(sums: Array, box: Box, shift: int, out: Array) -> None:
    """The corner of ``out`` = integer ``sums / 2**shift`` of a box, rounded half to even. Both are contiguous."""
    (count, rows, row), (_, out_rows, out_row), (height, width) = sums.shape, out.shape, box[2:]
    to = _at(out, (0, 0, height, width), count)
    kernel = _kernel("round", sums.dtype, out.dtype)
    kernel(_at(sums, box, count), rows * row, row, count, height, width, shift, to, out_rows * out_row, out_row)


def round_and_add(sums: Array, shift: int, out: Array, above: Array, corner: Corner) -> None:
    """:func:`round_sums` of all of ``sums`` into ``out``, and :func:`add_quads` of them into ``above``. All are contiguous."""
    (count, height, width), (_, out_rows, out_row), (_, above_rows, above_row) = sums.shape, out.shape, above.shape
    to = _at(out, (0, 0, height, width), count)
    up = _at(above, (*corner, (height + 1) // 2, (width + 1) // 2), count)
    kernel, plane = _kernel("both", sums.dtype, out.dtype, above.dtype), height * width
    own = address(sums)
    kernel(own, plane, width, count, height, width, shift, to, out_rows * out_row, out_row, up, above_rows * above_row, above_row)


def split_rgb(pixels: Array, box: Box, planes: Array, corner: Corner) -> None:
    """Copy a box of (y, x, 3) pixels into ``planes`` (3, y, x), from their corner (y, x) on; both are contiguous."""
    height, width = box[2:]
    at, step = _at(planes, (*corner, height, width), 3), planes.strides[0]
    tile = _at(pixels[None], box, 1)
    _kernel("split", pixels.dtype)(tile, 3 * pixels.shape[1], height, width, at, at + step, at + 2 * step, planes.shape[2])


def rgb_splitter() -> Kernel:
    """The kernel behind :func:`split_rgb` for bytes, for callers that know their addresses.

    Its arguments: address and samples in a row of the pixels, rows, columns, addresses of the three planes, columns of a plane.
    """
    return _kernel("split", U1)
