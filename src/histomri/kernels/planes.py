"""Interleaved pixels, (y, x, c), to planes, (c, y, x)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
OPENCV_TYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")


def split_planes(pixels: Array, planes: Array) -> None:
    """Copy (y, x, c) pixels into (c, y, x) ``planes`` of the same size, whose rows may be strided."""
    import cv2

    count = pixels.shape[2]
    if 2 <= count <= 4 and pixels.dtype == planes.dtype and pixels.dtype.name in OPENCV_TYPES:
        # into planes of its own: into strided ones OpenCV splits three times slower
        for plane, split in zip(planes, cv2.split(pixels), strict=True):
            plane[...] = split
    else:
        planes[...] = np.moveaxis(pixels, -1, 0)
