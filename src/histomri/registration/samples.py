"""Feature channels of an image, and the points of it that a linear registration looks at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, RegistrationError

Float = NDArray[np.float64]
MAX_SAMPLES = 60_000


@dataclass(frozen=True, eq=False)
class Channels:
    """Feature channels (*grid.shape, c) float32 of one image, and a weight (*grid.shape) for its samples when it is fixed."""

    grid: Grid
    data: NDArray[np.float32]
    weight: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Samples:
    """Fixed points (n, ndim) relative to ``centre`` over ``radius`` mm, their values (n, c) and weights (n,)."""

    points: Float
    values: NDArray[np.float32]
    weights: NDArray[np.float32]
    centre: Float
    radius: float


def draw_samples(fixed: Channels, limit: int = MAX_SAMPLES) -> Samples:
    """All weighted nodes of the fixed grid, or an even, deterministic choice of ``limit`` of them.

    Raises ``RegistrationError`` when no node has weight.
    """
    index = np.flatnonzero(fixed.weight.ravel() > 0)
    if not len(index):
        raise RegistrationError("The fixed image has no sample with weight: its mask is empty.")
    if len(index) > limit:
        # a golden-ratio low-discrepancy choice has no stripes, unlike every k-th node
        order = np.argsort((np.arange(len(index)) * 0.6180339887498949) % 1.0, kind="stable")
        index = np.sort(index[order[:limit]])
    nodes = np.stack(np.unravel_index(index, fixed.grid.shape), axis=-1)
    world = fixed.grid.to_world(nodes)
    centre = world.mean(axis=0)
    radius = float(np.sqrt(((world - centre) ** 2).sum(axis=1).mean())) or 1.0
    values = fixed.data.reshape(-1, fixed.data.shape[-1])[index]
    weights = fixed.weight.ravel()[index].astype(np.float32)
    return Samples((world - centre) / radius, np.ascontiguousarray(values), weights, centre, radius)
