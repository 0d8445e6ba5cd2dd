"""The separable Gaussian: compiled = readable = scipy, and the same for any threads."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy import ndimage

from histomri.kernels.gaussian import gaussian, gaussian_reference, gaussian_weights

# float32 sums of values of about 1
TOLERANCE = 2e-6
RANDOM = np.random.default_rng(5)
# more rows than one block, and axes shorter than the kernel
SHAPES = [(150, 61), (5, 3), (9, 70, 23), (2, 3, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels", [(), (1,), (3,)], ids=str)
def test_compiled_is_the_formula_and_scipys(shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
    values = RANDOM.normal(size=(*shape, *channels)).astype(np.float32)
    sigmas = [1.7, 0.8, 2.4][: len(shape)]
    found = gaussian(values, sigmas, len(shape))
    np.testing.assert_allclose(found, gaussian_reference(values, sigmas, len(shape)), atol=TOLERANCE)
    truth = ndimage.gaussian_filter(values.astype(float), [*sigmas, *(0 for _ in channels)], mode="nearest", truncate=3.0)
    np.testing.assert_allclose(found, truth, atol=TOLERANCE)


def test_what_is_constant_stays_and_sigma_0_keeps_every_bit() -> None:
    values = RANDOM.normal(size=(20, 30, 2)).astype(np.float32)
    np.testing.assert_array_equal(gaussian(values, 0, 2), values)
    np.testing.assert_allclose(gaussian(np.full((20, 30), 7.0, np.float32), 3.0, 2), 7.0, rtol=1e-6)
    assert gaussian(np.empty((0, 4), np.float32), 1.0, 2).shape == (0, 4)


def test_weights_sum_to_one_and_end_at_the_truncation() -> None:
    for sigma in (0.1, 0.5, 2.0, 7.3):
        weights = gaussian_weights(sigma)
        assert 2 * weights.sum() - weights[0] == pytest.approx(1, abs=1e-6)
        assert len(weights) == int(3 * sigma + 0.5) + 1


def test_more_threads_change_no_bit(two_threads: None) -> None:
    for shape in SHAPES:
        values, results = RANDOM.normal(size=(*shape, 2)).astype(np.float32), []
        for threads in (1, 2):
            numba.set_num_threads(threads)
            results.append(gaussian(values, 1.5, len(shape)))
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("sigma", [-1.0, np.nan, np.inf, [1.0]])
def test_impossible_widths_are_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        gaussian(np.zeros((4, 4), np.float32), sigma, 2)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2D or 3D"):
        gaussian(np.zeros((4,), np.float32), 1.0, 2)
