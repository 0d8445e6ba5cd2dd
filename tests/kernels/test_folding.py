"""What decides whether a displacement folds must not miss a fold of one pixel."""

from __future__ import annotations

import numpy as np
import pytest

from histomri.kernels.fields import jacobian_determinant
from histomri.kernels.folding import least_jacobian, least_jacobian_reference

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
