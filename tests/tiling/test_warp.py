"""Warps over parts give the bits of the whole, whatever the tiling and wherever the arrays are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr

from histomri.kernels import interpolate
from histomri.kernels.interpolate import CoarseField
from histomri.tiling.warp import source_box, warp, warp_part

RANDOM = np.random.default_rng(5)
SHAPES = {2: (37, 53), 3: (11, 17, 23)}
TILES = {2: [(37, 53), (16, 16), (7, 50), (1, 9)], 3: [(11, 17, 23), (4, 8, 16), (3, 17, 5)]}
MATRICES = {
    2: np.array([[0.8, -0.3531, 6.317], [0.2973, 1.1, -5.219], [0, 0, 1]]),
    3: np.array([[0.7, 0.2137, -0.1, 0.613], [-0.3, 1.2, 0.1713, -1.437], [0.1, 0.2931, 0.9, -2.111], [0, 0, 0, 1]]),
}


def field_of(kind: str, ndim: int) -> Any:
    if kind == "none":
        return None
    if kind == "dense":
        return (3 * RANDOM.normal(size=(*SHAPES[ndim], ndim))).astype(np.float32)
    nodes = RANDOM.normal(size=(*(4, 5, 6)[:ndim], ndim)).astype(np.float32)
    return CoarseField(3 * nodes, (0.11, 0.19, 0.137)[:ndim], (-0.3, 0.2, 0.7)[:ndim])


class Watched:
    """An array that is kept elsewhere, as a file is, and counts the pixels that are read of it."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.shape, self.dtype, self.largest = data, data.shape, data.dtype, 0

    def __getitem__(self, box: Any) -> np.ndarray:
        part = self.data[box]
        self.largest = max(self.largest, part.size)
        return part


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("outside", ["zero", "edge"])
@pytest.mark.parametrize("order", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("kind", ["none", "dense", "coarse"])
def test_tiles_leave_no_seam(ndim: int, outside: Any, order: Any, kind: str) -> None:
    moving = RANDOM.normal(size=(*(29, 31, 19)[:ndim], 2)).astype(np.float32)
    field = field_of(kind, ndim)
    whole = interpolate.warp(moving, MATRICES[ndim], SHAPES[ndim], field, order, outside=outside)
    assert (whole != 0).mean() > 0
    for tile in TILES[ndim]:
        np.testing.assert_array_equal(
            warp(Watched(moving), MATRICES[ndim], SHAPES[ndim], field, order, outside=outside, tile=tile), whole
        )


def test_gradients_of_parts_are_those_of_the_whole() -> None:
    moving, field = RANDOM.normal(size=(29, 31, 2)).astype(np.float32), field_of("dense", 2)
    values, slopes = interpolate.warp_with_gradient(moving, MATRICES[2], SHAPES[2], field, outside="edge")
    box = (slice(5, 21), slice(40, 53))
    part = warp_part(Watched(moving), MATRICES[2], box, field, outside="edge", gradient=True)
    np.testing.assert_array_equal(part[0], values[box])
    np.testing.assert_array_equal(part[1], slopes[box])


def test_a_field_that_is_not_a_number_still_gives_the_whole() -> None:
    moving, field = RANDOM.normal(size=(29, 31)).astype(np.float32), field_of("dense", 2)
    field[20, 30] = np.nan
    field[4, 4] = 1e9
    for outside in ("zero", "edge"):
        whole = interpolate.warp(moving, MATRICES[2], SHAPES[2], field, outside=outside)
        np.testing.assert_array_equal(warp(Watched(moving), MATRICES[2], SHAPES[2], field, outside=outside, tile=(8, 8)), whole)


@pytest.mark.parametrize("kept", ["zarr", "dask"])
def test_chunked_arrays_are_read_and_written_in_parts(kept: str, tmp_path: Path) -> None:
    moving, field = RANDOM.integers(0, 255, (60, 70, 3)).astype(np.uint8), field_of("dense", 2)
    whole = interpolate.warp(moving, MATRICES[2], SHAPES[2], field)
    if kept == "zarr":
        there = zarr.create_array(tmp_path / "m", data=moving, chunks=(16, 16, 3))
        bend = zarr.create_array(tmp_path / "f", data=field, chunks=(16, 16, 2))
        out = zarr.create_array(tmp_path / "o", shape=whole.shape, chunks=(8, 8, 3), dtype="float32")
    else:
        there, bend, out = dask.array.from_array(moving, (16, 17, 3)), dask.array.from_array(field, (9, 16, 2)), None
    found = warp(there, MATRICES[2], SHAPES[2], bend, tile=(16, 24), out=out)
    np.testing.assert_array_equal(np.asarray(found[...]), whole)


def test_a_part_reads_only_what_it_needs() -> None:
    moving = Watched(RANDOM.normal(size=(200, 200)).astype(np.float32))
    field = RANDOM.uniform(-2, 2, (200, 200, 2)).astype(np.float32)
    warp(moving, np.eye(3), (200, 200), field, tile=(20, 20))
    assert moving.largest <= (20 + 2 * (2 + 3)) ** 2


def test_the_box_of_a_part_beyond_the_image_is_not_empty() -> None:
    far = np.array([[1.0, 0, 500], [0, 1, -500], [0, 0, 1]])
    box = source_box(far, (slice(0, 4), slice(0, 4)), None, (30, 40))
    assert all(b.stop - b.start >= 1 and b.start >= 0 and b.stop <= n for b, n in zip(box, (30, 40), strict=True))
