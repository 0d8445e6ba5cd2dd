"""Structure tensor and force of the volumes' deformation against their formula, and the solve against NumPy's."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy import ndimage

from histomri.kernels.flow_3d import COST, FORCE, TERMS, flow_terms_3d, solve_3d

RANDOM = np.random.default_rng(5)
SHAPE, THERE = (9, 12, 11), (10, 11, 13)
FIXED = RANDOM.normal(size=(*SHAPE, 3)).astype(np.float32)
MOVING = ndimage.gaussian_filter(RANDOM.normal(size=(*THERE, 3)), (1, 1, 1, 0)).astype(np.float32)
WEIGHT = np.where(RANDOM.random(SHAPE) < 0.2, 0, RANDOM.random(SHAPE)).astype(np.float32)
MATRIX = np.array([[0.9, -0.2, 0.1, 0.7], [0.25, 1.05, -0.1, -1.1], [-0.05, 0.15, 0.95, 1.3], [0, 0, 0, 1]])
FIELD = RANDOM.normal(size=(*SHAPE, 3)).astype(np.float32)
PAIRS = [(i, j) for i in range(3) for j in range(i, 3)]


def _where(field: np.ndarray) -> np.ndarray:
    nodes = np.stack(np.meshgrid(*[np.arange(float(n)) for n in SHAPE], indexing="ij"), axis=-1)
    return (nodes + field) @ MATRIX[:3, :3].T + MATRIX[:3, 3]


def _inside(where: np.ndarray) -> np.ndarray:
    return ((where >= 0) & (where < np.array(THERE) - 1)).all(axis=-1)


def _value(where: np.ndarray) -> np.ndarray:
    order = np.moveaxis(where, -1, 0)
    return np.stack([ndimage.map_coordinates(MOVING[..., c].astype(float), order, order=1) for c in range(3)], axis=-1)


def _reference(field: np.ndarray) -> np.ndarray:
    """Per voxel; the slope within a cell is a difference of values at its faces, exactly."""
    where = _where(field)
    inside = _inside(where)
    assert 0.3 < inside.mean() < 0.95
    slopes = []
    for axis in range(3):
        low, high = where.copy(), where.copy()
        low[..., axis] = np.floor(where[..., axis])
        high[..., axis] = low[..., axis] + 1
        slopes.append(_value(high) - _value(low))
    g = np.einsum("ai,zyxac->zyxic", MATRIX[:3, :3], np.stack(slopes, axis=-2)) * inside[..., None, None]
    r = _value(where) * inside[..., None] - FIXED
    tensor = np.einsum("zyxic,zyxjc->zyxij", g, g)
    force = np.einsum("zyxc,zyxic->zyxi", r, g)
    terms = [tensor[..., i, j] for i, j in PAIRS] + [force[..., i] for i in range(3)] + [(r**2).sum(axis=-1)]
    return np.stack(terms, axis=-1) * WEIGHT[..., None]


def _blocks(values: np.ndarray, step: int) -> np.ndarray:
    full = np.pad(values, [(0, -n % step) for n in SHAPE] + [(0, 0)])
    a, b, c = (n // step for n in full.shape[:3])
    return full.reshape(a, step, b, step, c, step, -1).sum(axis=(1, 3, 5))


def test_terms_are_their_formula() -> None:
    terms = flow_terms_3d(FIXED, MOVING, WEIGHT, MATRIX, FIELD)
    assert terms.shape == (*SHAPE, TERMS)
    np.testing.assert_allclose(terms, _reference(FIELD), rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("step", [2, 3])
def test_nodes_sum_their_blocks_and_the_field_is_linear_between_them(step: int) -> None:
    nodes = tuple(-(-n // step) for n in SHAPE)
    coarse = RANDOM.normal(size=(*nodes, 3)).astype(np.float32)
    at = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / step - 0.5 for n in SHAPE], indexing="ij"))
    dense = np.stack([ndimage.map_coordinates(coarse[..., k], at, order=1, mode="nearest") for k in range(3)], axis=-1)
    terms = flow_terms_3d(FIXED, MOVING, WEIGHT, MATRIX, coarse, step)
    np.testing.assert_allclose(terms, _blocks(_reference(dense), step), rtol=1e-3, atol=2e-4)


def test_force_is_half_the_slope_of_the_error() -> None:
    """In the displacement itself, so the map to the moving image is in it."""
    terms = flow_terms_3d(FIXED, MOVING, WEIGHT, MATRIX, FIELD)
    where = _where(FIELD)
    calm = (np.abs(where - np.round(where)) > 0.02).all(axis=-1) & _inside(where) & (where > 0.1).all(axis=-1)
    assert calm.sum() > 100
    for axis in range(3):
        step = np.zeros(3, np.float32)
        step[axis] = 0.01
        ends = [flow_terms_3d(FIXED, MOVING, WEIGHT, MATRIX, FIELD + sign * step)[..., COST] for sign in (1, -1)]
        np.testing.assert_allclose(((ends[0] - ends[1]) / 0.04)[calm], terms[..., FORCE][calm][:, axis], atol=2e-3)


def test_voxels_without_weight_have_no_say_even_where_the_map_is_nonsense() -> None:
    field = FIELD.copy()
    field[WEIGHT == 0] = 1e6
    terms = flow_terms_3d(FIXED, MOVING, WEIGHT, MATRIX, field)
    assert not terms[WEIGHT == 0].any()
    np.testing.assert_array_equal(terms[WEIGHT > 0], flow_terms_3d(FIXED, MOVING, WEIGHT, MATRIX, FIELD)[WEIGHT > 0])


def test_a_field_on_other_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="node every 2 voxels"):
        flow_terms_3d(FIXED, MOVING, WEIGHT, MATRIX, FIELD, 2)


def test_the_solve_is_that_of_the_ridged_system() -> None:
    terms = flow_terms_3d(FIXED, MOVING, WEIGHT, MATRIX, FIELD)
    tensor = np.zeros((*SHAPE, 3, 3))
    for k, (i, j) in enumerate(PAIRS):
        tensor[..., i, j] = tensor[..., j, i] = terms[..., k]
    expected = -np.linalg.solve(tensor + 0.5 * np.eye(3), terms[..., FORCE][..., None].astype(float))[..., 0]
    np.testing.assert_allclose(solve_3d(terms, 0.5, 1e6), expected, rtol=2e-3, atol=1e-4)


def test_a_step_is_no_longer_than_its_limit_and_nothing_moves_without_structure() -> None:
    terms = np.zeros((2, 2, 2, TERMS), np.float32)
    terms[0, 0, 0, FORCE] = (30.0, -40.0, 0.0)
    step = solve_3d(terms, 1.0, 2.0)
    np.testing.assert_allclose(step[0, 0, 0], (-1.2, 1.6, 0.0), rtol=1e-5)
    assert not step[1].any()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("step", [1, 2])
def test_more_threads_change_no_bit(step: int) -> None:
    field = np.ascontiguousarray(FIELD[::step, ::step, ::step])
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        terms = flow_terms_3d(FIXED, MOVING, WEIGHT, MATRIX, field, step)
        results.append((terms, solve_3d(terms, 0.1, 1.0)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
