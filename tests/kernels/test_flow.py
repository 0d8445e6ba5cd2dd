"""Structure tensor and force of the deformable registration against their formula."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy import ndimage

from histomri.kernels.flow import flow_terms

RANDOM = np.random.default_rng(5)
FIXED = RANDOM.normal(size=(21, 26, 3)).astype(np.float32)
MOVING = ndimage.gaussian_filter(RANDOM.normal(size=(18, 24, 3)), (1, 1, 0)).astype(np.float32)
WEIGHT = np.where(RANDOM.random((21, 26)) < 0.2, 0, RANDOM.random((21, 26))).astype(np.float32)
MATRIX = np.array([[0.9, -0.2, 1.7], [0.25, 1.05, -3.1], [0, 0, 1]])
FIELD = RANDOM.normal(size=(21, 26, 2)).astype(np.float32)


def _interpolated(where: np.ndarray) -> np.ndarray:
    parts = [ndimage.map_coordinates(MOVING[..., c].astype(float), np.moveaxis(where, -1, 0), order=1) for c in range(3)]
    return np.stack(parts, axis=-1)


def _where(field: np.ndarray) -> np.ndarray:
    nodes = np.stack(np.meshgrid(np.arange(21.0), np.arange(26.0), indexing="ij"), axis=-1)
    return (nodes + field) @ MATRIX[:2, :2].T + MATRIX[:2, 2]


def _reference() -> np.ndarray:
    where = _where(FIELD)
    inside = ((where >= 0) & (where < np.array([17, 23]))).all(axis=-1)
    assert 0.3 < inside.mean() < 0.95
    cell = np.where(inside[..., None], np.floor(where), 0)
    part = np.where(inside[..., None], where - cell, 0)

    def corner(y: int, x: int) -> np.ndarray:
        index = np.add(cell, (y, x)).astype(int)
        return MOVING[index[..., 0], index[..., 1]].astype(float)

    fy, fx = part[..., :1], part[..., 1:]
    gy = (corner(1, 0) - corner(0, 0)) * (1 - fx) + (corner(1, 1) - corner(0, 1)) * fx
    gx = (corner(0, 1) - corner(0, 0)) * (1 - fy) + (corner(1, 1) - corner(1, 0)) * fy
    g = np.einsum("ai,yxac->yxic", MATRIX[:2, :2], np.stack([gy, gx], axis=-2)) * inside[..., None, None]
    r = _interpolated(where) * inside[..., None] - FIXED
    tensor = np.einsum("yxic,yxjc->yxij", g, g)
    force = np.einsum("yxc,yxic->yxi", r, g)
    terms = [tensor[..., 0, 0], tensor[..., 0, 1], tensor[..., 1, 1], force[..., 0], force[..., 1], (r**2).sum(axis=-1)]
    return np.stack(terms, axis=-1) * WEIGHT[..., None]


def test_terms_are_their_formula() -> None:
    np.testing.assert_allclose(flow_terms(FIXED, MOVING, WEIGHT, MATRIX, FIELD), _reference(), rtol=1e-4, atol=2e-5)


def test_force_is_half_the_slope_of_the_error() -> None:
    """In the displacement itself, so the map to the moving image is in it."""
    terms = flow_terms(FIXED, MOVING, WEIGHT, MATRIX, FIELD)
    where = _where(FIELD)
    calm = (np.abs(where - np.round(where)) > 0.02).all(axis=-1) & ((where > 0.1) & (where < np.array([16.9, 22.9]))).all(axis=-1)
    for axis in (0, 1):
        step = np.zeros(2, np.float32)
        step[axis] = 0.01
        ends = [flow_terms(FIXED, MOVING, WEIGHT, MATRIX, FIELD + sign * step)[..., 5] for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / 0.04
        assert calm.sum() > 100
        np.testing.assert_allclose(slope[calm], terms[..., 3 + axis][calm], atol=1e-3)


def test_pixels_without_weight_have_no_say_even_where_the_map_is_nonsense() -> None:
    field = FIELD.copy()
    field[WEIGHT == 0] = 1e6
    terms = flow_terms(FIXED, MOVING, WEIGHT, MATRIX, field)
    assert not terms[WEIGHT == 0].any()
    np.testing.assert_array_equal(terms[WEIGHT > 0], flow_terms(FIXED, MOVING, WEIGHT, MATRIX, FIELD)[WEIGHT > 0])


@pytest.mark.usefixtures("two_threads")
def test_more_threads_change_no_bit() -> None:
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append(flow_terms(FIXED, MOVING, WEIGHT, MATRIX, FIELD))
    np.testing.assert_array_equal(*results)
