"""The Gauss-Newton sums against their formula in NumPy, against finite differences, and against other numbers of threads."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from histomri.kernels.normal_equations import BLOCK, normal_equations

Float = NDArray[np.float64]
SHAPES = {2: (19, 23), 3: (9, 11, 10)}


def _case(
    ndim: int, n: int = 3000, channels: int = 3
) -> tuple[Float, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], Float]:
    """Points, values, weights, moving image and matrix; about a third of the points leave the image, some have no weight."""
    random = np.random.default_rng(ndim)
    points = random.uniform(-1, 1, (n, ndim))
    moving = ndimage.gaussian_filter(random.normal(size=(*SHAPES[ndim], channels)), [1.0] * ndim + [0]).astype(np.float32)
    matrix = np.eye(ndim + 1)
    matrix[:-1, :-1] = np.diag(np.array(SHAPES[ndim]) * 0.6) + random.normal(size=(ndim, ndim)) * 0.4
    matrix[:-1, -1] = (np.array(SHAPES[ndim]) - 1) / 2
    weights = np.where(random.random(n) < 0.2, 0, random.uniform(0.2, 1, n)).astype(np.float32)
    return points, random.normal(size=(n, channels)).astype(np.float32), weights, moving, matrix


def _cell(moving: NDArray[np.float32], where: Float) -> tuple[Float, Float, NDArray[np.bool_]]:
    """Values (n, c) and gradients (n, ndim, c) by the corners of each point's cell, and which points are inside."""
    shape = np.array(moving.shape[:-1])
    ndim = len(shape)
    inside = ((where >= 0) & (where < shape - 1)).all(axis=1)
    base = np.where(inside[:, None], np.floor(where), 0).astype(int)
    part = np.where(inside[:, None], where - base, 0)
    value, gradient = np.zeros((len(where), moving.shape[-1])), np.zeros((len(where), ndim, moving.shape[-1]))
    for corner in np.ndindex(*[2] * ndim):
        share = np.where(corner, part, 1 - part)
        here = moving[tuple((base + corner).T)].astype(float)
        value += share.prod(axis=1)[:, None] * here
        for a in range(ndim):
            slope = np.delete(share, a, axis=1).prod(axis=1) * (1 if corner[a] else -1)
            gradient[:, a] += slope[:, None] * here
    return value * inside[:, None], gradient * inside[:, None, None], inside


@pytest.mark.parametrize("ndim", [2, 3])
def test_sums_are_their_formula(ndim: int) -> None:
    points, fixed, weights, moving, matrix = _case(ndim)
    full = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    value, gradient, inside = _cell(moving, full @ matrix[:-1].T)
    assert 0.2 < inside.mean() < 0.9, "both sides of the image's edge are needed"
    jacobian = np.einsum("nac,nj->ncaj", gradient, full).reshape(len(points), fixed.shape[1], -1)
    residual, w = value - fixed, weights / weights.sum(dtype=float)
    cost, slope, curve = normal_equations(points, fixed, weights, moving, matrix)
    assert cost == pytest.approx(float((w[:, None] * residual**2).sum()), rel=1e-5)
    np.testing.assert_allclose(slope, np.einsum("n,nc,nci->i", w, residual, jacobian), atol=1e-6)
    np.testing.assert_allclose(curve, np.einsum("n,nci,ncj->ij", w, jacobian, jacobian), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradient_is_half_the_slope_of_the_cost(ndim: int) -> None:
    points, fixed, weights, moving, matrix = _case(ndim)
    # samples near the faces of a cell or of the image would cross it, where the cost has a kink
    full = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    where = full @ matrix[:-1].T
    weights = weights * (np.abs(where - np.round(where)) > 1e-3).all(axis=1)
    _, slope, _ = normal_equations(points, fixed, weights.astype(np.float32), moving, matrix)
    step = 2e-4
    for i in np.ndindex(ndim, ndim + 1):
        ends = []
        for sign in (1, -1):
            moved = matrix.copy()
            moved[i] += sign * step
            ends.append(normal_equations(points, fixed, weights.astype(np.float32), moving, moved)[0])
        assert (ends[0] - ends[1]) / (4 * step) == pytest.approx(slope[i[0] * (ndim + 1) + i[1]], rel=1e-3, abs=2e-5), i


@pytest.mark.parametrize("ndim", [2, 3])
def test_more_threads_change_no_bit(ndim: int, two_threads: None) -> None:
    case = _case(ndim, n=5 * BLOCK + 17)
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append(normal_equations(*case))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_array_equal(results[0][2], results[1][2])


def test_no_weight_is_an_error_and_not_a_division_by_zero() -> None:
    points, fixed, weights, moving, matrix = _case(2, n=10)
    with pytest.raises(ValueError, match="mask is empty"):
        normal_equations(points, fixed, weights * 0, moving, matrix)
