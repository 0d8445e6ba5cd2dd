"""The warp where its vectors of pixels meet the ends of arrays, rows and tiles: the same bits as inside, nothing from beyond."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from histomri.kernels.interpolate import Tile, warp, warp_reference, warp_with_gradient

TOLERANCE = 1e-5
RANDOM = np.random.default_rng(29)


def _shifted(ndim: int, shift: float) -> np.ndarray:
    matrix = np.eye(ndim + 1)
    matrix[:-1, -1] = shift
    return matrix


@pytest.mark.parametrize("outside", ["zero", "edge"])
def test_an_edge_at_any_place_of_a_vector(outside: Any) -> None:
    moving = RANDOM.normal(size=(5, 23, 1)).astype(np.float32)
    field = RANDOM.uniform(-0.4, 0.4, size=(9, 45, 2)).astype(np.float32)
    for shift in np.arange(-24.25, 5, 1.5):
        matrix = np.array([[1, 0, -1.25], [0, 1, shift], [0, 0, 1]])
        values, slopes = warp_reference(moving, matrix, (9, 45), field, outside=outside)
        found, gradient = warp_with_gradient(moving, matrix, (9, 45), field, outside=outside)
        np.testing.assert_allclose(found, values, atol=TOLERANCE)
        np.testing.assert_allclose(gradient, slopes, atol=TOLERANCE)
        np.testing.assert_array_equal(warp(moving, matrix, (9, 45), field, outside=outside), found)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("outside", ["zero", "edge"])
def test_every_form_of_the_sum_gives_the_same_bits(ndim: int, outside: Any) -> None:
    size, shape = ((19, 70), (23, 81)) if ndim == 2 else ((7, 9, 40), (8, 11, 50))
    moving = RANDOM.normal(size=(*size, 4)).astype(np.float32)
    field = (2 * RANDOM.normal(size=(*shape, ndim))).astype(np.float32)
    matrix = _shifted(ndim, -1.625)
    together = warp_with_gradient(moving, matrix, shape, field, outside=outside)
    few = warp(moving[..., :3], matrix, shape, field, outside=outside)
    for c in range(4):
        alone = warp_with_gradient(np.ascontiguousarray(moving[..., c]), matrix, shape, field, outside=outside)
        np.testing.assert_array_equal(alone[0], together[0][..., c])
        np.testing.assert_array_equal(alone[1], together[1][..., c, :])
        if c < 3:
            np.testing.assert_array_equal(alone[0], few[..., c])
    assert (together[0] != 0).mean() > 0.4


def test_a_tile_may_begin_at_any_column_and_be_one_pixel_wide() -> None:
    moving = RANDOM.normal(size=(6, 90)).astype(np.float32)
    field = RANDOM.normal(size=(6, 75, 2)).astype(np.float32)
    for matrix in (_shifted(2, 0.75), np.array([[0.9, 0.1, 1.3], [-0.07, 1.013, -2.1], [0, 0, 1]])):
        whole = warp(moving, matrix, (6, 75), field)
        for first, width in product(range(0, 75, 7), (1, 17)):
            last = min(first + width, 75)
            tile = warp(moving, matrix, (6, last - first), field[:, first:last], tile=Tile((0, first), (0, 0)))
            np.testing.assert_array_equal(tile, whole[:, first:last])


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1, 1), (1, 9, 9), (9, 1, 9), (9, 9, 1), (2, 2, 2)], ids=str)
def test_arrays_of_one_pixel_along_an_axis(size: tuple[int, ...]) -> None:
    ndim, moving = len(size), RANDOM.normal(size=(*size, 1)).astype(np.float32)
    shape = (21, 35) if ndim == 2 else (5, 6, 19)
    field = (2 * RANDOM.normal(size=(*shape, ndim))).astype(np.float32)
    for order, outside in product(("nearest", "linear", "cubic"), ("zero", "edge")):
        expected = warp_reference(moving, np.eye(ndim + 1), shape, field, order, outside=outside)[0]
        found = warp(moving, np.eye(ndim + 1), shape, field, order, outside=outside)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=f"{order} {outside}")


def test_points_beyond_every_number_of_the_array_are_outside() -> None:
    moving = RANDOM.normal(size=(9, 33)).astype(np.float32) + 5
    for far in (3e8, 3e9, 1e20, 3e38):
        field = np.zeros((9, 33, 2), np.float32)
        field[::2, :, 1], field[1::2, :, 1] = far, -far
        for order in ("nearest", "linear", "cubic"):
            assert not warp(moving, np.eye(3), (9, 33), field, order).any()  # type: ignore[arg-type]
            kept = warp(moving, np.eye(3), (9, 33), field, order, outside="edge")  # type: ignore[arg-type]
            np.testing.assert_array_equal(kept[::2], np.repeat(moving[::2, -1:], 33, 1))
            np.testing.assert_array_equal(kept[1::2], np.repeat(moving[1::2, :1], 33, 1))
        for shift in (float(far), -float(far), np.nan):
            assert not warp(moving, _shifted(2, shift), (9, 33)).any()


def test_a_pixel_that_is_not_a_number_reaches_no_further_than_its_weights() -> None:
    moving = np.ones((5, 20), np.float32)
    moving[:, 1] = moving[:, -2] = np.nan
    found, slopes = warp_with_gradient(moving, _shifted(2, 0.0) + np.array([[0, 0, 0], [0, 0, -0.5], [0, 0, 0]]), (5, 21))
    np.testing.assert_array_equal(found[:, [0, -1]], 0.5)
    assert np.isfinite(slopes[:, [0, -1]]).all()
    assert np.isnan(found[:, [1, 2, -3, -2]]).all() and np.isfinite(found[:, 3:-3]).all()


def test_far_from_the_first_pixel_coordinates_are_as_exact() -> None:
    start, ramp = 3_000_000, np.arange(60, dtype=np.float32)[None].repeat(3, 0)
    for step in (1.0, 1.0 + 2.0**-20):
        matrix = np.array([[1, 0, 0], [0, step, 0.3], [0, 0, 1]])
        origin = int(start * step)
        found = warp(ramp, matrix, (3, 40), tile=Tile((0, start), (0, origin)))
        expected = np.arange(start, start + 40) * step + 0.3 - origin
        np.testing.assert_allclose(found, expected[None].repeat(3, 0), atol=1e-5)


@pytest.mark.parametrize("order", ["nearest", "linear"])
def test_more_pixels_than_an_int32_counts(order: Any) -> None:
    try:
        moving = np.zeros((3, 2**15, 2**15), np.uint8)  # never touched but for a corner, so hardly any memory
    except MemoryError:
        pytest.skip("3.2 GB of addresses are more than this machine gives")
    corner = RANDOM.integers(0, 255, size=(2, 6, 40), dtype=np.uint8)
    moving[-2:, -6:, -40:] = corner
    matrix = np.eye(4)
    matrix[:-1, -1] = [1, 2**15 - 6, 2**15 - 40]
    np.testing.assert_array_equal(warp(moving, matrix, (2, 6, 40), order=order), corner)
