"""Interleaved pixels, (y, x, c), to planes, (c, y, x)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def split_planes(pixels: Array, box: tuple[int, int, int, int], planes: Array, corner: tuple[int, int]) -> None:
    """Copy a box (y, x, height, width) of (y, x, c) pixels into ``planes`` (c, y, x), from their corner (y, x) on."""
    (y, x, height, width), (top, left) = box, corner
    part, into = pixels[y : y + height, x : x + width], planes[:, top : top + height, left : left + width]
    if pixels.shape[2] == 3 and pixels.flags.c_contiguous and pixels.dtype in (np.uint8, np.uint16):
        # into new planes and on from there: into rows of larger ones OpenCV is five times slower
        for plane, own in zip(into, cv2.split(part), strict=True):
            plane[...] = own
    else:
        into[...] = np.moveaxis(part, -1, 0)
