"""Area averages for pyramids, exact: what is carried from level to level are sums, not averages.

A pixel of level k + 1 is the sum of 2 x 2 pixels of level k's sums, so level k holds sums over 4**k pixels of level 0 (a
ragged last row or column is repeated, as in ``numpy.pad(mode="edge")``). A level's pixels are ``sum / 4**k``, rounded half to
even; integers are exact, floats accumulate in float64. All arrays are planar, (c, y, x), and contiguous, with the box to work
on beside them (y, x, height, width): of a contiguous array the compiler knows that a row's pixels are neighbours, and works on
many at once; of a view it does not, and is four to ten times slower.

The formulas stand here; for large images of unsigned pixels their compiled forms (``pyramid_compiled``) take over, which give the
same bits.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from histomri.kernels.scratch import scratch

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


# compiled code takes 0.1 s to load, and saves it on so many pixels (the formulas below take 3 to 4 ms a megapixel more)
WORTH_COMPILED_PX = 1 << 25


def worth_compiling(pixels: int) -> bool:
    """Whether an image of so many pixels pays for loading the compiled kernels."""
    return pixels > WORTH_COMPILED_PX


@functools.cache
def _compiled() -> Any:
    """The compiled forms; an import statement for each chunk would take longer than this."""
    from histomri.kernels import pyramid_compiled

    return pyramid_compiled


def add_quads(sums: Array, box: Box, out: Array, corner: Corner, compiled: bool = False) -> None:
    """``out[c, i, j]`` = sum of ``sums[c, 2i:2i+2, 2j:2j+2]``, in the box and from the corner (y, x) of ``out`` on.

    The last row and column are repeated where the box's size is odd. Columns are summed first (floats would tell).
    """
    if compiled and _compiled().can_add(sums, out):
        _compiled().add_quads(sums, box, out, corner)
        return
    y, x, height, width = box
    half = (height + 1) // 2, (width + 1) // 2
    for plane, into in zip(sums, out, strict=True):
        part, to = plane[y : y + height, x : x + width], into[corner[0] : corner[0] + half[0], corner[1] : corner[1] + half[1]]
        rows = scratch("rows", (half[0], width), out.dtype)
        np.add(part[0 : height - 1 : 2], part[1::2], out=rows[: height // 2], dtype=out.dtype)
        if height % 2:
            np.add(part[-1], part[-1], out=rows[-1], dtype=out.dtype)
        np.add(rows[:, 0 : width - 1 : 2], rows[:, 1::2], out=to[:, : width // 2])
        if width % 2:
            np.add(rows[:, -1], rows[:, -1], out=to[:, -1])


def round_sums(sums: Array, box: Box, shift: int, out: Array, compiled: bool = False) -> None:
    """The corner of ``out`` = integer ``sums / 2**shift`` of a box, rounded half to even."""
    if compiled and _compiled().can_round(sums, out):
        _compiled().round_sums(sums, box, shift, out)
        return
    y, x, height, width = box
    kind = sums.dtype.type
    for plane, into in zip(sums, out, strict=True):
        value = plane[y : y + height, x : x + width]
        even = np.right_shift(value, kind(shift), out=scratch("even", (height, width), sums.dtype))
        even &= kind(1)
        even += value
        even += kind((1 << (shift - 1)) - 1)
        even >>= kind(shift)
        into[:height, :width] = even


def to_pixels(sums: Array, box: Box, level: int, out: Array, compiled: bool = False) -> None:
    """The pixels of a box of a level from its sums over ``4**level`` pixels, into the corner of ``out``, of the image's type."""
    y, x, height, width = box
    if sums.dtype.kind == "f" or not level:
        mean = sums[:, y : y + height, x : x + width] / 4.0**level
        out[:, :height, :width] = mean if out.dtype.kind == "f" else np.rint(mean)
    else:
        round_sums(sums, box, 2 * level, out, compiled)


def to_pixels_and_above(sums: Array, level: int, out: Array, above: Array, corner: Corner, compiled: bool = False) -> None:
    """:func:`to_pixels` of all of a level's ``sums`` into the corner of ``out``, and :func:`add_quads` of them into ``above``."""
    if compiled and _compiled().can_round_and_add(sums, out, above):
        _compiled().round_and_add(sums, 2 * level, out, above, corner)
        return
    box = 0, 0, sums.shape[1], sums.shape[2]
    to_pixels(sums, box, level, out, compiled)
    add_quads(sums, box, above, corner, compiled)
