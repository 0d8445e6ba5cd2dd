"""Interleaved pixels, (y, x, c), to planes, (c, y, x)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.kernels.scratch import scratch

Array = NDArray[Any]


def split_planes(
    pixels: Array, box: tuple[int, int, int, int], planes: Array, corner: tuple[int, int], compiled: bool = False
) -> None:
    """Copy a box (y, x, height, width) of (y, x, c) pixels into ``planes`` (c, y, x), from their corner (y, x) on."""
    (y, x, height, width), (top, left) = box, corner
    is_plain = pixels.flags.c_contiguous and planes.flags.c_contiguous and pixels.dtype == planes.dtype
    part, into = pixels[y : y + height, x : x + width], planes[:, top : top + height, left : left + width]
    is_plain &= pixels.shape[2] == 3 and pixels.dtype in (np.uint8, np.uint16)
    if is_plain and compiled:
        from histomri.kernels.pyramid_compiled import split_rgb

        split_rgb(pixels, box, planes, corner)
    elif is_plain:
        import cv2

        # by way of whole planes: into rows of larger ones OpenCV is five times slower
        own = scratch("split", (3, height, width), pixels.dtype)
        cv2.split(part, list(own))
        into[...] = own
    else:
        into[...] = np.moveaxis(part, -1, 0)
