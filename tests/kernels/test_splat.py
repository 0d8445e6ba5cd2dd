"""The transpose of a squaring against finite differences of the squaring itself."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from histomri.kernels.splat import square_adjoint

RANDOM = np.random.default_rng(3)


def square(field: np.ndarray) -> np.ndarray:
    nodes = np.stack(np.meshgrid(*map(np.arange, field.shape[:-1]), indexing="ij")) + np.moveaxis(field, -1, 0)
    moved = [map_coordinates(field[..., c], nodes, order=1, mode="nearest") for c in range(field.shape[-1])]
    return field + np.stack(moved, axis=-1)


@pytest.mark.parametrize("shape", [(8, 7), (5, 6, 4)])
def test_transpose_of_the_squaring(shape: tuple[int, ...]) -> None:
    """Displacements beyond a pixel, some beyond the border, in any direction."""
    field, force, along = RANDOM.normal(size=(3, *shape, len(shape)))
    step = 1e-6
    slope = ((square(field + step * along) - square(field - step * along)) * force).sum() / (2 * step)
    assert (square_adjoint(field, force) * along).sum() == pytest.approx(slope, rel=1e-6)


def test_more_threads_change_no_bit(two_threads: None) -> None:
    field, force = RANDOM.normal(size=(2, 9, 40, 30, 3)).astype(np.float32)
    found = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        found.append(square_adjoint(field, force))
    np.testing.assert_array_equal(*found)
