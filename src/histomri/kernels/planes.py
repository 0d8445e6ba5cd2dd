"""Interleaved pixels, (y, x, c), to planes, (c, y, x)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.kernels.scratch import scratch

Array = NDArray[Any]
SPLIT = (np.dtype(np.uint8), np.dtype(np.uint16))


def split_planes(
    pixels: Array, box: tuple[int, int, int, int], planes: Array, corner: tuple[int, int], compiled: bool = False
) -> None:
    """Copy a box (y, x, height, width) of (y, x, c) pixels into ``planes`` (c, y, x), from their corner (y, x) on."""
    is_plain = pixels.flags.c_contiguous and planes.flags.c_contiguous and pixels.dtype == planes.dtype
    is_plain &= pixels.shape[2] == len(planes) == 3 and pixels.dtype in SPLIT
    if is_plain and compiled:
        _compiled()(pixels, box, planes, corner)
        return
    (y, x, height, width), (top, left) = box, corner
    part, into = pixels[y : y + height, x : x + width], planes[:, top : top + height, left : left + width]
    if is_plain:
        import cv2

        # by way of whole planes: into rows of larger ones OpenCV is five times slower
        own = scratch("split", (3, height, width), pixels.dtype)
        cv2.split(part, list(own))
        into[...] = own
    else:
        into[...] = np.moveaxis(part, -1, 0)


@functools.cache
def _compiled() -> Callable[..., None]:
    from histomri.kernels.pyramid_compiled import split_rgb

    return split_rgb
