"""Which focal plane of a stack is used."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from histomri.io.slides.base import Slide

SAMPLE_PX = 512
SAMPLES = 3


def sharpness(slide: Slide) -> float:
    """Mean square of neighbouring pixels' differences, over the variance, in nine boxes spread over level 0.

    The contrast of fine detail relative to that of all; the boxes' variances are summed first, so that empty ones count little.
    """
    height, width = slide.info.shape
    side = min(SAMPLE_PX, height, width)
    fine = spread = 0.0
    for i, j in itertools.product(range(SAMPLES), repeat=2):
        y, x = (round((n - side) * (k + 0.5) / SAMPLES) for n, k in ((height, i), (width, j)))
        pixels = slide.read_region(y, x, side, side).astype(np.float64)
        fine += sum(float(np.square(np.diff(pixels, axis=axis)).mean()) if side > 1 else 0.0 for axis in (0, 1))
        spread += float(pixels.var(axis=(0, 1)).sum())
    return fine / spread if spread > 0 else 0.0


def chosen_plane(setting: str, planes: int, open_plane: Callable[[int], Slide]) -> int:
    """Number, from 0, of the plane that ``setting`` names: ``sharpest``, ``middle``, ``first``, or a number."""
    if setting.isdigit():
        return int(setting)
    if planes == 1 or setting == "first":
        return 0
    if setting == "middle":
        return planes // 2
    if setting != "sharpest":
        raise ValueError(f"The focal plane must be sharpest, middle, first or a number, found {setting!r}.")
    found = []
    for plane in range(planes):
        with open_plane(plane) as slide:
            found.append(sharpness(slide))
    return int(np.argmax(found))
