"""Levels: both images averaged to about one pixel size, their masks, and the features that the metric compares.

Level 0 is the finest. A level is named for its downsample factor, counted in the fixed image's smallest spacing; axes of larger
spacing are averaged less, so that pixels become isotropic as soon as they can.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module, to_device
from histomri.core import Grid
from histomri.kernels.interpolate import warp
from histomri.registration.engine.objective import Level
from histomri.registration.metrics import Metric

Float = NDArray[np.float64]
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

# metrics whose features look along the axes of the image: the moving image is turned into the fixed frame before they are made
ORIENTED = ("mind",)
# pixels from the fixed image's border within which its features rest on what lies beyond it, and count for less
BORDER_PX = {"mind": 4}
# how far the turned moving image reaches beyond the fixed one, as a share of its extent
MARGIN = 0.25
COARSEST = {2: 32, 3: 16}
LINEAR_FINEST = {2: 256, 3: 64}
FINEST = {2: 1024, 3: 192}


@dataclass(frozen=True, eq=False)
class Source:
    """One image, (*shape, c) float32 and finite, and where it is to be used, bool (*shape)."""

    grid: Grid
    data: Array
    mask: Mask


def factors(grid: Grid, linear: bool) -> tuple[int, ...]:
    """Downsample factors, coarse to fine: powers of two from about 32 pixels (2D; 3D: 16) to what the kind of model can use."""
    longest = int((grid.extent_mm / grid.spacing_mm.min()).max())
    finest = (LINEAR_FINEST if linear else FINEST)[grid.ndim]
    last = max(0, int(np.ceil(np.log2(longest / finest))))
    first = max(last, int(np.floor(np.log2(max(longest / COARSEST[grid.ndim], 1)))))
    first = min(first, last + 3)
    return tuple(2**k for k in range(first, last - 1, -1))


def axis_factors(grid: Grid, spacing_mm: float) -> NDArray[np.int64]:
    """Whole factors along each axis that bring a grid nearest to a spacing from below, leaving every axis at least 4 nodes."""
    wanted = np.maximum(1, np.floor(spacing_mm / grid.spacing_mm + 1e-6)).astype(np.int64)
    return np.asarray(np.minimum(wanted, np.maximum(1, np.asarray(grid.shape) // 4)), np.int64)


def shrink(source: Source, factor: NDArray[np.int64]) -> Source:
    """Averages of what the mask holds over blocks of ``factor`` pixels; the mask is where it holds at least half of the block."""
    if (factor == 1).all():
        return source
    count = _block_sums(source.mask[..., None].astype(np.float32), factor)
    total = _block_sums(np.where(source.mask[..., None], source.data, np.float32(0)), factor)
    every = _block_sums(np.ones((*source.grid.shape, 1), np.float32), factor)
    plain = _block_sums(source.data, factor) / every
    data = np.where(count > 0, total / np.maximum(count, 1), plain)
    mask = (count / every)[..., 0] >= 0.5
    if not mask.any():
        mask = count[..., 0] > 0
    return Source(source.grid.downsample(tuple(int(f) for f in factor)), np.ascontiguousarray(data, np.float32), mask)


def _block_sums(data: Array, factor: NDArray[np.int64]) -> Array:
    for axis, f in enumerate(factor):
        if f > 1:
            data = np.add.reduceat(data, np.arange(0, data.shape[axis], f), axis=axis)
    return data


def make_level(fixed: Source, moving: Source, matrix: Float, factor: int, metric: Metric, device: str = "cpu") -> Level:
    """The level of a downsample factor, given the matrix (fixed mm to moving mm) as it is known so far, on a device."""
    spacing = factor * float(fixed.grid.spacing_mm.min())
    small = shrink(fixed, axis_factors(fixed.grid, spacing))
    scale = abs(float(np.linalg.det(matrix[:-1, :-1]))) ** (1 / fixed.grid.ndim)
    other = shrink(moving, axis_factors(moving.grid, max(spacing * scale, float(small.grid.spacing_mm.min()) * scale)))
    outer = np.eye(fixed.grid.ndim + 1)
    if metric.name in ORIENTED:
        other, outer = _turned(other, matrix, small.grid), matrix
    return Level(
        small.grid,
        other.grid,
        _features(small, metric, device),
        _features(other, metric, device),
        to_device(small.mask * from_border(small.grid.shape, BORDER_PX.get(metric.name, 0)), device),
        to_device(_inner_weight(other.mask), device),
        outer,
        device=device,
    )


def from_border(shape: tuple[int, ...], reach_px: int) -> Array:
    """A weight (*shape) that falls to 0 over ``reach_px`` pixels towards the border, along each axis; 1 for a reach of 0."""
    weight = np.ones(shape, np.float32)
    if reach_px > 0:
        for axis, n in enumerate(shape):
            distance = np.minimum(np.arange(n), np.arange(n)[::-1]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
            weight *= np.minimum((distance + 0.5) / reach_px, 1).astype(np.float32)
    return weight


def _features(source: Source, metric: Metric, device: str) -> Array:
    """What the metric compares, made where it is compared."""
    made = metric.features(to_device(source.data, device), to_device(source.mask, device))
    return array_module(made).ascontiguousarray(made, np.float32)  # type: ignore[no-any-return]


def _inner_weight(mask: Mask) -> Array:
    """The mask without the outermost pixels, beyond which there is nothing to interpolate with."""
    weight = mask.astype(np.float32)
    for axis, n in enumerate(mask.shape):
        if n > 2:
            weight[(slice(None),) * axis + ([0, -1],)] = 0
    return weight


def _turned(source: Source, matrix: Float, like: Grid) -> Source:
    """The source under a pose, on a grid with the axes and spacing of ``like`` that covers what of it lies near."""
    inverse = np.asarray(np.linalg.inv(matrix), np.float64)
    corners = like.to_index(source.grid.corners() @ inverse[:-1, :-1].T + inverse[:-1, -1])
    reach = np.ceil(MARGIN * np.asarray(like.shape)) + 2
    start = np.maximum(np.floor(corners.min(axis=0)), -reach).astype(int)
    stop = np.minimum(np.ceil(corners.max(axis=0)) + 1, np.asarray(like.shape) + reach).astype(int)
    grid = like.crop(start, np.maximum(stop, start + 4))
    onto = source.grid.world_to_index @ matrix @ grid.index_to_world
    both = np.concatenate([source.data, source.mask[..., None].astype(np.float32)], axis=-1)
    out = warp(both, onto, grid.shape)
    share = out[..., -1:]
    return Source(grid, np.ascontiguousarray(out[..., :-1]), share[..., 0] >= 0.5)
