"""Gaussians over parts: the halo is as wide as the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from histomri.backend import array_module
from histomri.kernels.gaussian import gaussian as smoothed
from histomri.kernels.gaussian import gaussian_weights
from histomri.tiling.boxes import Box, boxes, grown, read


def reach(sigma: float | Sequence[float], ndim: int, truncate: float = 3.0) -> tuple[int, ...]:
    """How many pixels along each axis a Gaussian looks at."""
    sigmas = [float(sigma)] * ndim if isinstance(sigma, int | float) else list(sigma)
    return tuple(len(gaussian_weights(s, truncate)) - 1 for s in sigmas)


def gaussian_part(values: Any, sigma: float | Sequence[float], box: Box, truncate: float = 3.0) -> Any:
    """What :func:`kernels.gaussian.gaussian` gives in a part of ``values`` (*shape) or (*shape, c)."""
    ndim = len(box)
    outer, core = grown(box, reach(sigma, ndim, truncate), values.shape[:ndim])
    return smoothed(read(values, outer), sigma, ndim, truncate)[core]


def gaussian(
    values: Any, sigma: float | Sequence[float], ndim: int, truncate: float = 3.0, *, tile: Sequence[int], out: Any = None
) -> Any:
    """The Gaussian of the whole, tile by tile, into ``out`` (by default an array of NumPy)."""
    for box in boxes(values.shape[:ndim], tile):
        part = gaussian_part(values, sigma, box, truncate)
        out = array_module(part).empty(values.shape, part.dtype) if out is None else out
        out[box] = part
    return out
