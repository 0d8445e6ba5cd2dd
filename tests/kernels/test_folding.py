"""What decides whether a displacement folds must not miss a fold of one pixel."""

from __future__ import annotations

import numpy as np
import pytest

from histomri.kernels.fields import jacobian_determinant
from histomri.kernels.folding import least_jacobian, least_jacobian_reference, nodes_below

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(7, 9), (5, 4, 6), (1, 6), (2, 2, 2)])
@pytest.mark.parametrize("size", [0.02, 0.4])
def test_kernel_and_formula_agree(shape: tuple[int, ...], size: float) -> None:
    field = (RANDOM.normal(size=(*shape, len(shape))) * size).astype(np.float32)
    mask = RANDOM.random(shape) < 0.5
    for inside in (None, mask):
        assert least_jacobian(field, inside) == pytest.approx(least_jacobian_reference(field, inside), abs=1e-5)


def test_a_fold_that_central_differences_miss_is_seen() -> None:
    """A single pixel thrown over its neighbour: symmetric, so that the central difference at it is 0."""
    field = np.zeros((9, 9, 2), np.float32)
    field[4, 4, 1] = 1.4
    assert jacobian_determinant(field)[4, 4] == pytest.approx(1.0)
    assert least_jacobian(field) == pytest.approx(-0.4, abs=1e-6)


def test_only_the_mask_counts() -> None:
    field = np.zeros((3, 8, 8, 3), np.float32)
    field[1, 1, 1, 2] = 2.0
    mask = np.ones((3, 8, 8), bool)
    mask[:, :4, :4] = False
    assert least_jacobian(field) < 0
    assert least_jacobian(field, mask) == pytest.approx(1.0)
    assert least_jacobian(field, np.zeros_like(mask)) == np.inf


@pytest.mark.parametrize("limit", [-0.2, 0.0, 0.1, 0.6, 1.2])
def test_each_node_is_judged_as_alone(limit: float) -> None:
    field = (RANDOM.normal(size=(4, 5, 6, 3)) * 0.3).astype(np.float32)
    alone = np.zeros(field.shape[:3], bool)
    for node in np.ndindex(*alone.shape):
        mask = np.zeros_like(alone)
        mask[node] = True
        alone[node] = least_jacobian_reference(field, mask) < limit
    np.testing.assert_array_equal(nodes_below(field, limit), alone)
    assert limit <= 0 or alone.any()


def test_what_is_no_number_folds() -> None:
    field = np.zeros((5, 5, 5, 3), np.float32)
    field[2, 2, 2, 0] = np.nan
    assert nodes_below(field, 0.1)[2, 2, 2]
