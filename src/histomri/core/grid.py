"""Geometry of a regular lattice: where an array lies in the world."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of 2 or 3 dimensions in array order: (y, x) or (z, y, x).

    Voxel centres are integer indices. ``world = origin_mm + direction @ (index * spacing_mm)``; vectors are in
    array order too, so column ``i`` of ``direction`` is the unit world vector of array axis ``i``.

    Raises
    ------
    ValueError
        When the lengths disagree, a size is not positive, a spacing is not positive and finite, or the direction is singular.
    """

    shape: tuple[int, ...]
    spacing_mm: Float
    origin_mm: Float = field(default=None)  # type: ignore[assignment, arg-type]
    direction: Float = field(default=None)  # type: ignore[assignment, arg-type]

    def __post_init__(self) -> None:
        ndim = len(self.shape)
        fill = object.__setattr__
        fill(self, "shape", tuple(int(n) for n in self.shape))
        fill(self, "spacing_mm", np.broadcast_to(np.asarray(self.spacing_mm, float), (ndim,)).copy())
        fill(self, "origin_mm", np.zeros(ndim) if self.origin_mm is None else np.asarray(self.origin_mm, float))
        fill(self, "direction", np.eye(ndim) if self.direction is None else np.asarray(self.direction, float))
        if self.origin_mm.shape != (ndim,) or self.direction.shape != (ndim, ndim):
            raise ValueError(
                f"Grid of shape {self.shape} needs an origin of {ndim} numbers and a {ndim} x {ndim} direction, found "
                f"{self.origin_mm.shape} and {self.direction.shape}."
            )
        if min(self.shape, default=0) < 1:
            raise ValueError(f"Grid sizes must be at least 1, found {self.shape}.")
        if not (np.isfinite(self.spacing_mm).all() and (self.spacing_mm > 0).all()):
            raise ValueError(f"Grid spacing must be positive and finite, found {self.spacing_mm} mm.")
        if not abs(np.linalg.det(self.direction)) > 1e-6:
            raise ValueError("Grid direction is singular: its axes do not span the space.")

    @property
    def ndim(self) -> int:
        """Number of dimensions, 2 or 3."""
        return len(self.shape)

    @property
    def index_to_world(self) -> Float:
        """Homogeneous matrix, (ndim + 1, ndim + 1), from index to world in mm."""
        matrix = np.eye(self.ndim + 1)
        matrix[:-1, :-1] = self.direction * self.spacing_mm
        matrix[:-1, -1] = self.origin_mm
        return matrix

    @property
    def world_to_index(self) -> Float:
        """Homogeneous matrix, (ndim + 1, ndim + 1), from world in mm to index."""
        return np.asarray(np.linalg.inv(self.index_to_world), np.float64)

    @property
    def extent_mm(self) -> Float:
        """Distance between the outermost voxel centres along each axis, plus one spacing."""
        return np.asarray(self.shape) * self.spacing_mm

    @property
    def centre_mm(self) -> Float:
        """World position of the middle of the grid."""
        return self.to_world((np.asarray(self.shape) - 1) / 2)

    def to_world(self, index: ArrayLike) -> Float:
        """World positions in mm, (..., ndim), of the given indices, (..., ndim)."""
        index = np.asarray(index, float)
        return index @ self.index_to_world[:-1, :-1].T + self.origin_mm

    def to_index(self, world: ArrayLike) -> Float:
        """Continuous indices, (..., ndim), of world positions in mm, (..., ndim)."""
        matrix = self.world_to_index
        return np.asarray(world, float) @ matrix[:-1, :-1].T + matrix[:-1, -1]

    def contains(self, world: ArrayLike) -> NDArray[np.bool_]:
        """True where a world position lies within half a voxel of the grid."""
        index = self.to_index(world)
        return np.asarray(((index >= -0.5) & (index <= np.asarray(self.shape) - 0.5)).all(axis=-1), bool)

    def points(self) -> Float:
        """World positions, (*shape, ndim), of all voxel centres. For small grids only."""
        return self.to_world(np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1))

    def corners(self) -> Float:
        """World positions, (2**ndim, ndim), of the outermost voxel centres."""
        ends = [(0, n - 1) for n in self.shape]
        return self.to_world(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, self.ndim))

    def crop(self, start: ArrayLike, stop: ArrayLike) -> Grid:
        """The sub-grid of indices ``start`` to ``stop`` (exclusive)."""
        start, stop = np.asarray(start, int), np.asarray(stop, int)
        return Grid(tuple(stop - start), self.spacing_mm, self.to_world(start), self.direction)

    def with_spacing(self, spacing_mm: ArrayLike) -> Grid:
        """A grid over the same extent (outer voxel faces kept) at another spacing."""
        spacing = np.broadcast_to(np.asarray(spacing_mm, float), (self.ndim,))
        shape = np.maximum(1, np.round(self.extent_mm / spacing - 1e-6).astype(int))
        # outer faces coincide at index -0.5; the far face may move by less than half a voxel
        origin = self.to_world(-0.5 + 0.5 * spacing / self.spacing_mm)
        return Grid(tuple(shape), spacing, origin, self.direction)

    def downsample(self, factor: int | tuple[int, ...]) -> Grid:
        """The grid of area averages over ``factor`` voxels; a ragged last voxel is kept."""
        factors = np.broadcast_to(np.asarray(factor, int), (self.ndim,))
        shape = -(-np.asarray(self.shape) // factors)
        return Grid(tuple(shape), self.spacing_mm * factors, self.to_world((factors - 1) / 2), self.direction)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and self.shape == other.shape
            and np.allclose(self.index_to_world, other.index_to_world, rtol=0, atol=1e-9)
        )

    __hash__ = None  # type: ignore[assignment]
