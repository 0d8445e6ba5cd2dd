"""An image under a transform, tile by tile: what is read of the moving image is the box that a tile needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.kernels.interpolate import sample_3d, warp_2d
from histomri.transforms import Transform

Float = NDArray[np.float64]

TILE_PX = 1024
SLAB_VOXELS = 1 << 21
# coordinates are computed on every STEP-th pixel and are bilinear in between, where that is exact to TOLERANCE pixels
STEP = 8
TOLERANCE = 0.02


def warped(moving: Image, transform: Transform, grid: Grid, nearest: bool = False) -> NDArray[Any]:
    """The moving image on ``grid``, (*shape[, c]) in its own type; 0 where it has nothing. All of the result is held."""
    channels = (len(moving.channels),) if moving.channels else ()
    out = np.zeros((*grid.shape, *channels), moving.data.dtype)
    for box in boxes(grid.shape):
        out[box] = warped_box(moving, transform, grid, box, nearest)
    return out


def boxes(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Tiles of 1024 pixels in 2D, slabs of about two million voxels in 3D, in C order."""
    if len(shape) == 3:
        depth = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
        yield from (
            (slice(z, min(z + depth, shape[0])), slice(0, shape[1]), slice(0, shape[2])) for z in range(0, shape[0], depth)
        )
        return
    for y in range(0, shape[0], TILE_PX):
        for x in range(0, shape[1], TILE_PX):
            yield slice(y, min(y + TILE_PX, shape[0])), slice(x, min(x + TILE_PX, shape[1]))


def warped_box(moving: Image, transform: Transform, grid: Grid, box: tuple[slice, ...], nearest: bool = False) -> NDArray[Any]:
    """One box of :func:`warped`: linear (or nearest) interpolation of float32, rounded to the moving image's type."""
    index = _source_indices(moving.grid, transform, grid, box)
    low, high = _source_box(index, moving.grid.shape)
    shape = index.shape[:-1] + ((len(moving.channels),) if moving.channels else ())
    if (high <= low).any():
        return np.zeros(shape, moving.data.dtype)
    source = np.asarray(moving.data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
    index -= low
    if nearest:
        return _nearest(source, index)
    values = source.reshape(*source.shape[: grid.ndim], -1).astype(np.float32)
    return _typed(_linear(values, index).reshape(shape), moving.data.dtype)


def _source_indices(moving: Grid, transform: Transform, grid: Grid, box: tuple[slice, ...]) -> Float:
    """Continuous indices of the moving image, (*box, ndim)."""
    if grid.ndim == 2:
        lattice, exact = _lattice(moving, transform, grid, box, STEP)
        if exact:
            return lattice
    nodes = np.stack(np.meshgrid(*(np.arange(b.start, b.stop) for b in box), indexing="ij"), axis=-1)
    return moving.to_index(transform.map(grid.to_world(nodes)))


def _lattice(moving: Grid, transform: Transform, grid: Grid, box: tuple[slice, ...], step: int) -> tuple[Float, bool]:
    """Indices interpolated from every ``step``-th pixel, and whether that is exact: nodes lie in their neighbours' middle."""
    from histomri.kernels.plane import lattice_points

    shape = tuple(b.stop - b.start for b in box)
    axes = [b.start + np.arange(-(-n // step) + 2) * step for b, n in zip(box, shape, strict=True)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    lattice = moving.to_index(transform.map(grid.to_world(nodes)))
    bends = [np.abs(np.diff(lattice, 2, axis=axis)).max(initial=0.0) / 2 for axis in (0, 1)]
    if not max(bends) <= TOLERANCE:
        return lattice, False
    return lattice_points(lattice, step, (shape[0], shape[1])), True


def _source_box(index: Float, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last + 1 pixel that the indices ask for, one to spare; none: last <= first."""
    flat = index.reshape(-1, index.shape[-1])
    first = np.clip(np.floor(np.nanmin(flat, axis=0)) - 1, 0, shape)
    last = np.clip(np.ceil(np.nanmax(flat, axis=0)) + 2, 0, shape)
    return first.astype(np.int64), last.astype(np.int64)


def _linear(values: NDArray[np.float32], index: Float) -> NDArray[np.float32]:
    """Within half a pixel of the image the edge value holds, 0 lies beyond."""
    ndim = index.shape[-1]
    top = np.asarray(values.shape[:ndim]) - 1.0
    outside = ((index < -0.5) | (index > top + 0.5) | np.isnan(index)).any(axis=-1)
    inside = np.clip(np.nan_to_num(index), 0, top)
    if ndim == 3:
        out = sample_3d(values, np.eye(4), inside.reshape(-1, 3)).reshape(*index.shape[:-1], -1)
    else:
        here = np.stack(np.meshgrid(*map(np.arange, index.shape[:2]), indexing="ij"), axis=-1)
        out = warp_2d(values, np.eye(3), index.shape[:2], (inside - here).astype(np.float32))  # type: ignore[arg-type]
    out[outside] = 0
    return out


def _nearest(source: NDArray[Any], index: Float) -> NDArray[Any]:
    ndim = index.shape[-1]
    at = np.floor(np.nan_to_num(index, nan=-1e9) + 0.5).astype(np.int64)
    inside = ((at >= 0) & (at < np.asarray(source.shape[:ndim]))).all(axis=-1)
    out = np.zeros(index.shape[:-1] + source.shape[ndim:], source.dtype)
    out[inside] = source[tuple(at[inside].T)]
    return out


def _typed(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "b":
        return values >= 0.5
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)
