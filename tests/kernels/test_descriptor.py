"""The fused MIND against the readable one."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy import ndimage

from histomri.kernels.descriptor import OFFSETS, mind_plane
from histomri.kernels.features import mind, neighbourhood

IMAGE = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(61, 74)), 1.2).astype(np.float32)
INSIDE = np.ones(IMAGE.shape, bool)


@pytest.mark.parametrize(("sigma", "reach"), [(1.0, 2), (0.8, 1), (1.5, 3)])
def test_it_is_mind_with_its_channels_last(sigma: float, reach: int) -> None:
    order = [*OFFSETS, *((-y, -x) for y, x in OFFSETS)]
    expected = mind(IMAGE, INSIDE, sigma, reach)[[neighbourhood(2).index(o) for o in order]]
    inner = slice(10, -10)
    np.testing.assert_allclose(
        np.moveaxis(mind_plane(IMAGE, INSIDE, sigma, reach), -1, 0)[:, inner, inner], expected[:, inner, inner], atol=2e-3
    )


def test_it_does_not_see_contrast() -> None:
    for other in (-IMAGE, 3 * IMAGE + 7):
        np.testing.assert_allclose(mind_plane(other, INSIDE), mind_plane(IMAGE, INSIDE), atol=2e-3)


def test_a_flat_image_has_no_structure() -> None:
    np.testing.assert_allclose(mind_plane(np.full((20, 22), 4.0, np.float32), np.ones((20, 22), bool)), 0.5)
    assert np.isfinite(mind_plane(IMAGE, np.zeros(IMAGE.shape, bool))).all()


@pytest.mark.usefixtures("two_threads")
def test_more_threads_change_no_bit() -> None:
    found = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        found.append(mind_plane(IMAGE, INSIDE))
    np.testing.assert_array_equal(*found)
