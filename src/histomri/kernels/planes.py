"""Interleaved pixels, (y, x, c), to planes, (c, y, x)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.kernels.pyramid import many_pixels

Array = NDArray[Any]


def split_planes(pixels: Array, box: tuple[int, int, int, int], planes: Array, corner: tuple[int, int]) -> None:
    """Copy a box (y, x, height, width) of (y, x, c) pixels into ``planes`` (c, y, x), from their corner (y, x) on."""
    (y, x, height, width), (top, left) = box, corner
    is_plain = pixels.flags.c_contiguous and planes.flags.c_contiguous and pixels.dtype == planes.dtype
    if is_plain and pixels.shape[2] == 3 and many_pixels(height * width):
        from histomri.kernels.pyramid_compiled import split_rgb

        split_rgb(pixels, box, planes, corner)
    else:
        part = pixels[y : y + height, x : x + width]
        planes[:, top : top + height, left : left + width] = np.moveaxis(part, -1, 0)
