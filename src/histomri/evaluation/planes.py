"""Sections and the MRI brought onto the planes of a block, where they can be compared pixel by pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histomri.core import Grid, Image
from histomri.transforms import Transform
from histomri.transforms.placement import Placement

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]


def tissue_outline_mm(mask: Image, placement: Placement) -> NDArray[np.float64]:
    """Where the convex hull of a section's tissue lies in its block's plane: (n, 2) in mm, or (0, 2) without tissue.

    The deformation is left out, because only the extent of a common grid follows from it. Raises ``ValueError`` when
    the section is not placed.
    """
    if placement.affine is None:
        raise ValueError(f"Section {placement.section!r} was not placed, so its tissue has no place in the block.")
    nodes = np.argwhere(mask.data)
    if not len(nodes):
        return np.zeros((0, 2))
    hull = cv2.convexHull(nodes.astype(np.float32))[:, 0]
    return placement.affine.inverse().map(mask.grid.to_world(hull))


def plane_grid(outlines_mm: Iterable[NDArray[np.float64]], spacing_mm: float, max_pixels: int, finest_mm: float = 0.0) -> Grid:
    """The 2D grid of a block's plane that covers the given points, (n, 2) in mm each, with a margin of 3 %.

    A ``spacing_mm`` of 0 chooses one that makes the longer side ``max_pixels`` long, though not finer than ``finest_mm``.
    Raises ``ValueError`` when there is no point.
    """
    points = np.concatenate([np.zeros((0, 2)), *outlines_mm])
    if not len(points):
        raise ValueError("A block's plane needs at least one placed section with tissue, found none.")
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.03 * (high - low).max()
    low, extent = low - margin, high - low + 2 * margin
    spacing = spacing_mm or max(float(extent.max()) / max_pixels, finest_mm)
    shape = tuple(int(n) for n in np.maximum(2, np.ceil(extent / spacing)))
    return Grid(shape, np.array([spacing, spacing]), low)


def sample_2d(image: Image, points_mm: NDArray[np.float64], linear: bool = True) -> Float32:
    """Values of a single-channel 2D image at world points, (..., 2) in mm; 0 outside the image and where a point is NaN."""
    index = np.nan_to_num(image.grid.to_index(points_mm), nan=-1e4).astype(np.float32)
    mode = cv2.INTER_LINEAR if linear else cv2.INTER_NEAREST
    data = np.ascontiguousarray(image.data, dtype=np.float32)
    sampled = cv2.remap(data, index[..., 1], index[..., 0], mode, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(sampled, np.float32)


def section_on_plane(image: Image, mask: Image, placement: Placement, grid: Grid) -> tuple[Float32, Mask]:
    """A section and its tissue mask on the grid of its block's plane: arrays of the grid's shape, 0 and False outside."""
    points = placement.block_to_section.map(grid.points())
    inside = sample_2d(mask.with_data(np.asarray(mask.data, np.float32)), points) >= 0.5
    return sample_2d(image, points), inside


def section_undeformed(image: Image, mask: Image, placement: Placement, grid: Grid) -> tuple[Float32, Mask, Float32 | None]:
    """A section and its mask as :func:`section_on_plane` gives them, but under its affine alone, and the index on the grid
    to which its deformation takes each pixel: (*grid.shape, 2), None without a deformation."""
    image_there, mask_there = section_on_plane(image, mask, dataclasses.replace(placement, field=None), grid)
    if placement.field is None:
        return image_there, mask_there, None
    lies_at = grid.to_index(placement.field.inverse().map(grid.points()))
    return image_there, mask_there, np.nan_to_num(lies_at, nan=-1e4).astype(np.float32)


def plane_points(grid: Grid, position_mm: float) -> NDArray[np.float64]:
    """The block points, (*grid.shape, 3) as (z, y, x) in mm, of a plane's grid at a position along the cutting axis."""
    points = grid.points()
    return np.concatenate([np.full((*grid.shape, 1), position_mm), points], axis=-1)


def volume_on_plane(volume: Image, volume_to_block: Transform, grid: Grid, position_mm: float, order: int = 1) -> Float32:
    """A single-channel volume (z, y, x) on the plane ``z = position_mm`` of a block: the grid's shape, NaN outside the volume."""
    points = volume_to_block.inverse().map(plane_points(grid, position_mm))
    index = np.moveaxis(volume.grid.to_index(points), -1, 0)
    sampled = ndimage.map_coordinates(volume.data, index, order=order, mode="constant", cval=np.nan, output=np.float32)
    return np.asarray(sampled, np.float32)
