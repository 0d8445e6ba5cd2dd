"""OME-Zarr volumes: written tile by tile, made coarser, and read plane by plane for NIfTI."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from histomri.core import Grid
from histomri.io.omezarr import VERSION, channel_metadata, compressors, multiscale_metadata

COVERAGE = "labels/coverage"
SMALLEST_PX = 64


@dataclass(frozen=True)
class VolumeSpec:
    """What a volume is to hold: name, level-0 grid, channel names, pixel type, chunk (z, y, x) in voxels, codec, and
    the name of its label: ``coverage`` weighs the pixels of coarser levels, any other (``surface``) only lies beside them."""

    name: str
    grid: Grid
    channels: tuple[str, ...]
    dtype: str
    chunk: tuple[int, int, int]
    codec: str
    label: str = "coverage"


def next_factors(grid: Grid) -> tuple[int, ...]:
    """By how much each axis is averaged for the next level: 2, but 1 along axes that are much coarser or one voxel long."""
    fine = grid.spacing_mm.min() * 1.5
    return tuple(2 if n > 1 and s <= fine else 1 for n, s in zip(grid.shape, grid.spacing_mm, strict=True))


def level_grids(grid: Grid) -> list[Grid]:
    """The grids of all levels, until the longest axis that can be averaged is at most 64 voxels."""
    grids = [grid]
    while any(f > 1 and n > SMALLEST_PX for f, n in zip(next_factors(grids[-1]), grids[-1].shape, strict=True)):
        grids.append(grids[-1].downsample(next_factors(grids[-1])))
    return grids


def tiles(shape: Sequence[int], size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most ``size`` that cover ``shape``, in C order."""
    ranges = [range(0, n, s) for n, s in zip(shape, size, strict=True)]
    for corner in itertools.product(*ranges):
        yield tuple(slice(c, min(c + s, n)) for c, s, n in zip(corner, size, shape, strict=True))


class VolumeStore:
    """An OME-Zarr volume (c, z, y, x) and its coverage label, being written. One chunk is one tile is one file: one writer each.

    OME-Zarr 0.5 knows scale and translation only; the attribute ``histomri`` of the group holds ``index_to_world`` of every
    level, (z, y, x, 1) to LPS mm (z, y, x), with the direction of the axes.
    """

    def __init__(self, folder: Path, spec: VolumeSpec, is_there: bool = False):
        """Make the store anew, or open one that is there to go on writing it."""
        self.spec, self.grids = spec, level_grids(spec.grid)
        if is_there:
            group = zarr.open_group(str(folder), mode="r+", zarr_format=3)
            self.pixels: list[Any] = [group[str(i)] for i in range(len(self.grids))]
            self.coverage: list[Any] = [group[f"labels/{spec.label}/{i}"] for i in range(len(self.grids))]
        else:
            self._make(folder)

    def _make(self, folder: Path) -> None:
        spec = self.spec
        scales = multiscale_metadata(spec.name, self.grids, has_channels=True)
        ome: dict[str, Any] = {"version": VERSION, "multiscales": [scales], "omero": channel_metadata(spec.channels, spec.dtype)}
        matrices: list[Any] = [g.index_to_world.tolist() for g in self.grids]
        attributes: dict[str, Any] = {"ome": ome, "histomri": {"index_to_world": matrices, "world": "z, y, x in LPS mm"}}
        group = zarr.open_group(str(folder), mode="w", zarr_format=3, attributes=attributes)
        labels = group.create_group("labels", attributes={"ome": {"version": VERSION, "labels": [spec.label]}})
        label_scales = multiscale_metadata(spec.label, self.grids, has_channels=False)
        label: dict[str, Any] = {
            "version": VERSION,
            "multiscales": [label_scales],
            "image-label": {"source": {"image": "../../"}},
        }
        coverage = labels.create_group(spec.label, attributes={"ome": label})
        count = len(spec.channels)
        self.pixels = [self._array(group, i, (count, *g.shape), spec.dtype) for i, g in enumerate(self.grids)]
        self.coverage = [self._array(coverage, i, g.shape, "uint8") for i, g in enumerate(self.grids)]

    def _array(self, group: Any, level: int, shape: tuple[int, ...], dtype: str) -> Any:
        chunk = tuple(min(c, n) for c, n in zip(self.spec.chunk, shape[-3:], strict=True))
        return group.create_array(
            str(level),
            shape=shape,
            dtype=np.dtype(dtype),
            chunks=(*shape[:-3], *chunk),
            compressors=compressors(self.spec.codec),
            fill_value=0,
            dimension_names=("c", "z", "y", "x")[-len(shape) :],
        )

    def write(self, level: int, box: tuple[slice, ...], pixels: NDArray[Any], coverage: NDArray[np.uint8]) -> None:
        """Write one tile, pixels (z, y, x, c) and coverage (z, y, x); one without coverage is left to the fill value 0."""
        if coverage.any() or self.spec.label != "coverage":
            self.pixels[level][(slice(None), *box)] = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
            self.coverage[level][box] = coverage

    def make_levels(self) -> None:
        """Average each level from the one below it, tile by tile; uncovered voxels count for nothing."""
        for level in range(1, len(self.grids)):
            factors = next_factors(self.grids[level - 1])
            fine = self.grids[level - 1].shape
            for box in tiles(self.grids[level].shape, self.spec.chunk):
                below = tuple(slice(b.start * f, min(b.stop * f, n)) for b, f, n in zip(box, factors, fine, strict=True))
                self.write(level, box, *self._averaged(level - 1, below, factors))

    def _averaged(self, level: int, box: tuple[slice, ...], factors: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        label = self.coverage[level][box].astype(np.float32)
        weight = _summed(label if self.spec.label == "coverage" else np.ones_like(label), factors)
        pixels = self.pixels[level][(slice(None), *box)].astype(np.float32)
        means = np.stack([_summed(p, factors) for p in pixels], axis=-1) / np.maximum(weight, 1)[..., None]
        covered = _summed(label, factors) * 2 >= np.prod(factors)
        if self.spec.label == "coverage":
            means = np.where(covered[..., None], means, 0)
        kind = np.dtype(self.spec.dtype)
        return (np.rint(means) if kind.kind in "ui" else means).astype(kind), covered.astype(np.uint8)


def _summed(values: NDArray[np.float32], factors: tuple[int, ...]) -> NDArray[np.float32]:
    """Sums over blocks of ``factors``, a ragged last one padded with 0."""
    pad = [(0, -n % f) for n, f in zip(values.shape, factors, strict=True)]
    values = np.pad(values, pad)
    split = [k for n, f in zip(values.shape, factors, strict=True) for k in (n // f, f)]
    total: NDArray[np.float32] = values.reshape(split).sum(axis=(1, 3, 5), dtype=np.float32)
    return total


class Planes:
    """A lazy (z, y, x, c) or (z, y, x) view of a stored (c, z, y, x) or (z, y, x) array that reads whole rows of chunks.

    Asked for one z after the other, as NIfTI is written, it decompresses every chunk once.
    """

    def __init__(self, array: Any):
        self.array = array
        self._has_channels = array.ndim == 4
        self._single = self._has_channels and array.shape[0] == 1
        self._row: tuple[int, NDArray[Any]] | None = None
        spatial = tuple(array.shape[-3:])
        self.shape = (*spatial, array.shape[0]) if self._has_channels and not self._single else spatial
        self.dtype = np.dtype(array.dtype)
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """The plane ``view[z]``, or a part of it as NumPy would index it: ``view[z, :, :, c]``."""
        z, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        depth = self.array.chunks[-3]
        if self._row is None or self._row[0] != z // depth:
            rows = slice(z // depth * depth, (z // depth + 1) * depth)
            self._row = (z // depth, np.asarray(self.array[:, rows] if self._has_channels else self.array[rows]))
        block = self._row[1]
        plane = np.moveaxis(block[:, z % depth], 0, -1) if self._has_channels else block[z % depth]
        plane = plane[..., 0] if self._single else plane
        return plane[rest] if rest else plane
