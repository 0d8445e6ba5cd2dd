"""Gauss-Newton on nodes: sums, solve and composition against their formulas."""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import pytest
from scipy import ndimage

from histomri.kernels.flow_nodes import (
    Looks,
    composed,
    laplacian,
    least_jacobian,
    node_terms,
    node_terms_reference,
    relaxed,
)

RANDOM = np.random.default_rng(3)
SHAPE, WIDE, STRIDE, OFFSET = (24, 32), (30, 37), 4, (3, 2)


def _looks(shape: tuple[int, int]) -> Looks:
    smooth = ndimage.gaussian_filter(RANDOM.normal(size=(*shape, 9)), (1, 1, 0)).astype(np.float32)
    weight = np.where(RANDOM.random(shape) < 0.1, 0, 1).astype(np.float32)
    return Looks(np.ascontiguousarray(smooth[..., :8]), np.ascontiguousarray(smooth[..., 8]), weight)


FIXED, MOVING = _looks(SHAPE), _looks(WIDE)
FIELD = RANDOM.normal(size=(6, 8, 2)).astype(np.float32) * 2
GAIN = RANDOM.uniform(-1, 1, SHAPE).astype(np.float32)


def test_terms_are_their_formula() -> None:
    terms = node_terms(FIXED, MOVING, GAIN, FIELD, STRIDE, OFFSET, 0.7)
    expected = node_terms_reference(FIXED, MOVING, GAIN, FIELD, STRIDE, OFFSET, 0.7)
    assert 0 < terms[..., 6].min() < terms[..., 6].max() <= STRIDE**2, "some pixels must leave the moving image"
    np.testing.assert_allclose(terms, expected, rtol=2e-3, atol=2e-4)


def _with_extras(look: Looks) -> Looks:
    outline, colour = ndimage.gaussian_filter(RANDOM.normal(size=(2, *look.weight.shape)), (0, 1, 1)).astype(np.float32) * 4
    return replace(look, outline=outline, colour=colour)


def test_outline_and_colour_are_their_formula() -> None:
    fixed, moving = _with_extras(FIXED), _with_extras(MOVING)
    given = fixed, moving, GAIN, FIELD, STRIDE, OFFSET, 0.7
    terms = node_terms(*given, 0.3)
    np.testing.assert_allclose(terms, node_terms_reference(*given, 0.3), rtol=2e-3, atol=4e-4)
    assert np.abs(terms - node_terms(*given, 3.0))[..., :6].max() > 0.1, "the colour's own scale must count"


def test_force_is_half_the_slope_of_the_cost_where_images_agree_in_slope() -> None:
    """Of one image against itself the mean of both gradients is its gradient."""
    y, x = np.meshgrid(np.arange(40.0), np.arange(40.0), indexing="ij")
    ramps = np.stack([0.1 * y + 0.05 * x, 0.2 * x] * 4, axis=-1).astype(np.float32)
    ones = np.ones((40, 40), np.float32)
    image, far = Looks(ramps, ones, ones), 1e9
    pushed = np.full((10, 10, 2), 0.3, np.float32)
    costs = []
    for step in (-0.05, 0.05):
        moved = pushed + np.array([step, 0], np.float32)
        costs.append(node_terms(image, image, 0 * ones, moved, 4, (0, 0), far)[2:-2, 2:-2, 5])
    slope = (costs[1] - costs[0]) / 0.1
    np.testing.assert_allclose(2 * node_terms(image, image, 0 * ones, pushed, 4, (0, 0), far)[2:-2, 2:-2, 3], slope, rtol=1e-3)


def test_what_was_not_imaged_says_nothing() -> None:
    away = np.full((6, 8, 2), 500.0, np.float32)
    assert not node_terms(FIXED, MOVING, GAIN, away, STRIDE, OFFSET, 1.0).any()
    blank = replace(MOVING, weight=np.zeros(WIDE, np.float32))
    assert not node_terms(FIXED, blank, GAIN, FIELD, STRIDE, OFFSET, 1.0).any()


def test_an_outlier_loses_its_say() -> None:
    wild = replace(FIXED, descriptor=FIXED.descriptor + 100)
    calm = node_terms(FIXED, MOVING, 0 * GAIN, FIELD, STRIDE, OFFSET, 1.0)
    assert (
        np.abs(node_terms(wild, MOVING, 0 * GAIN, FIELD, STRIDE, OFFSET, 1.0)[..., :5]).max() < 0.05 * np.abs(calm[..., :5]).max()
    )


def test_inverted_tones_fit_with_a_negative_gain() -> None:
    other = replace(FIXED, tone=-FIXED.tone)
    still = np.zeros((6, 8, 2), np.float32)
    for gain, fits in ((-1.0, True), (1.0, False)):
        cost = node_terms(FIXED, other, np.full(SHAPE, gain, np.float32), still, STRIDE, (0, 0), 1e9)[..., 5].sum()
        assert (cost < 1e-9) == fits


def test_the_solve_is_that_of_the_whole_system() -> None:
    terms = node_terms(FIXED, MOVING, GAIN, FIELD, STRIDE, OFFSET, 1.0)
    alpha, ridge = 0.8, 0.4
    update = relaxed(terms, FIELD, alpha, ridge, 400).astype(float)
    tensor = terms[..., [0, 1, 1, 2]].reshape(6, 8, 2, 2).astype(float) + ridge * np.eye(2)
    left = np.einsum("ijab,ijb->ija", tensor, update) + alpha * laplacian(update)
    np.testing.assert_allclose(left, -terms[..., 3:5] - alpha * laplacian(FIELD), atol=2e-3)


def test_the_laplacian_is_the_slope_of_the_squared_differences() -> None:
    def energy(u: np.ndarray) -> float:
        return sum(float((np.diff(u, axis=a) ** 2).sum()) for a in (0, 1)) / 2

    u, d = RANDOM.normal(size=(2, 5, 7, 2))
    expected = (energy(u + 1e-4 * d) - energy(u - 1e-4 * d)) / 2e-4
    assert float((laplacian(u) * d).sum()) == pytest.approx(expected, rel=1e-6)


def test_composition_applies_the_update_first() -> None:
    ramp = np.zeros((12, 12, 2), np.float32)
    ramp[..., 0] = 0.4 * np.arange(12)[:, None]
    shift = np.zeros_like(ramp)
    shift[..., 0] = 2.0
    np.testing.assert_allclose(
        composed(ramp, shift, 4)[:10, :, 0], 0.4 * (np.arange(10)[:, None] + 0.5) + 2 + np.zeros((10, 12)), rtol=1e-5
    )


def test_the_least_jacobian_finds_a_fold_between_any_two_nodes() -> None:
    assert least_jacobian(np.zeros((6, 8, 2), np.float32), 4) == 1.0
    for at in ((2, 3), (0, 0), (5, 7)):
        field = np.zeros((6, 8, 2), np.float32)
        field[at] = (5.0, -5.0)
        assert least_jacobian(field, 4) < 0
    linear = np.zeros((6, 8, 2), np.float32)
    linear[..., 1] = -0.5 * 4 * np.arange(8)
    assert least_jacobian(linear, 4) == pytest.approx(0.5)


@pytest.mark.usefixtures("two_threads")
def test_more_threads_change_no_bit() -> None:
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        terms = node_terms(FIXED, MOVING, GAIN, FIELD, STRIDE, OFFSET, 1.0)
        results.append((terms, relaxed(terms, FIELD, 1.0, 0.1, 7)))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
