"""Every model: its gradient is the derivative of its displacement, its inverse undoes it, a diffeomorphism never folds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from histomri.core import Grid
from histomri.kernels.fields import compose, jacobian_determinant
from histomri.kernels.folding import least_jacobian
from histomri.registration.engine.models import LINEAR, Bounds, BSpline, Diffeomorphic, Linear, Velocity, frame_of, unfolded
from histomri.registration.engine.splines import SplineGrid, resampled

RANDOM = np.random.default_rng(7)
SHAPE = {2: (17, 20), 3: (11, 9, 12)}


def linear(name: str, ndim: int) -> Linear:
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(ndim, ndim)))[0]
    fixed = Grid(SHAPE[ndim], np.array([0.5, 0.4, 0.6])[:ndim], np.full(ndim, -2.0))
    moving = Grid((8,) * ndim, np.full(ndim, 0.7), np.full(ndim, 1.0), turned)
    base = np.eye(ndim + 1)
    base[:-1, -1] = 0.3
    return Linear(name, fixed, moving, base, frame_of(fixed.points().reshape(-1, ndim)))


def smooth(ndim: int, size: float, sigma: float = 2.0) -> np.ndarray:
    field = ndimage.gaussian_filter(RANDOM.normal(size=(*SHAPE[ndim], ndim)), (*[sigma] * ndim, 0))
    return (field * size / np.linalg.norm(field, axis=-1).max()).astype(np.float32)


def deformable(name: str, ndim: int) -> Any:
    made: dict[str, Any] = {
        "bspline": BSpline(SHAPE[ndim], 5.0),
        "diffeomorphic": Diffeomorphic(SHAPE[ndim], 2.0, 0.0),
        "velocity": Velocity(SHAPE[ndim], 2.0),
    }
    return made[name]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_models(name: str, ndim: int) -> None:
    model = linear(name, ndim)
    theta, along = RANDOM.normal(size=(2, len(model.start()))) * 0.2
    np.testing.assert_allclose(model.matrix(model.start()), model.base)
    force, step = RANDOM.normal(size=(ndim, ndim + 1)), 1e-6
    ends = [(model.displacement(theta + s * along)[:-1] * force).sum() for s in (step, -step)]
    assert model.pull_back(theta, force) @ along == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)
    np.testing.assert_allclose(model.inverse(theta) @ model.displacement(theta), np.eye(ndim + 1), atol=1e-9)
    square = model.matrix(theta)[:-1, :-1].T @ model.matrix(theta)[:-1, :-1]
    if name in ("translation", "rigid"):
        np.testing.assert_allclose(square, np.eye(ndim), atol=1e-9)
    elif name == "similarity":
        np.testing.assert_allclose(square, np.eye(ndim) * square[0, 0], atol=1e-9)
    assert model.jacobian(theta) == pytest.approx(np.linalg.det(model.matrix(theta)[:-1, :-1]))


def test_the_reach_of_a_linear_step_is_what_it_moves() -> None:
    model = linear("translation", 2)
    assert model.reach(np.array([1.0, 0.0])) == pytest.approx(model.frame[0, 0] / np.sqrt(0.5 * 0.4))


def test_bounds_hold_scale_stretch_and_mirror() -> None:
    bounds = Bounds(scale=1.5, stretch=1.4)
    assert bounds.allow(np.diag([1.2, 1.0]))
    for beyond in (
        np.eye(2) * 1.6,
        np.eye(2) * 0.6,
        np.diag([1.5, 1.0]),
        np.diag([-1.0, 1.0]),
        np.array([[1.0, 0.5], [0.0, 1.0]]),
    ):
        assert not bounds.allow(beyond)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", ["bspline", "velocity"])
def test_pull_back_is_the_derivative_of_the_shifted_displacement(name: str, ndim: int) -> None:
    model = Velocity(SHAPE[ndim], 1.0) if name == "velocity" else deformable(name, ndim)
    theta, along = RANDOM.normal(size=(2, *model.start().shape))
    if name == "velocity":  # 0 near the border, where the Gaussian is not its own transpose
        theta, along = smooth(ndim, 2.5), np.pad(smooth(ndim, 1.0)[(slice(3, -3),) * ndim], [*[(3, 3)] * ndim, (0, 0)])
    force = smooth(ndim, 1.0)
    ends = [float((model.displacement(model.shift(theta, s * along)).astype(float) * force).sum()) for s in (0.02, -0.02)]
    # linear interpolation has a kink at every node that a point passes
    margin = 1e-3 if name == "bspline" else 0.05
    assert float((model.pull_back(theta, force) * along).sum()) == pytest.approx((ends[0] - ends[1]) / 0.04, rel=margin)


@pytest.mark.parametrize("ndim", [2, 3])
def test_pull_back_of_a_composition_is_its_derivative(ndim: int) -> None:
    """Away from the border, where the Gaussian is not its own transpose."""
    model = Diffeomorphic(SHAPE[ndim], 1.0, 0.0)
    window = np.zeros((*SHAPE[ndim], 1), np.float32)
    window[(slice(4, -4),) * ndim] = 1
    theta, force, along = smooth(ndim, 1.5, 3.0), smooth(ndim, 1.0) * window, smooth(ndim, 1.0) * window
    ends = [float((model.advance(theta, s * along).astype(float) * force).sum()) for s in (0.1, -0.1)]
    assert float((model.pull_back(theta, force) * along).sum()) == pytest.approx((ends[0] - ends[1]) / 0.2, rel=0.05)
    chart = model.chart()
    ends = [float((chart.shift(theta, s * along).astype(float) * force).sum()) for s in (0.1, -0.1)]
    assert float((chart.pull_back(theta, force) * along).sum()) == pytest.approx((ends[0] - ends[1]) / 0.2, rel=1e-3)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", ["bspline", "diffeomorphic", "velocity"])
def test_the_inverse_undoes_the_map(name: str, ndim: int) -> None:
    model = deformable(name, ndim)
    theta = model.nearest(smooth(ndim, 0.8, 3.0))
    left = compose(model.inverse(theta), model.displacement(theta))
    inside = (slice(3, -3),) * ndim
    assert np.linalg.norm(left[inside], axis=-1).max() < (0.01 if name != "velocity" else 0.06)
    assert np.linalg.norm(model.displacement(theta), axis=-1).max() > 0.5
    numeric = jacobian_determinant(model.displacement(theta))
    np.testing.assert_allclose(model.jacobian(theta)[inside], numeric[inside], atol=0.06)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", ["diffeomorphic", "velocity"])
def test_no_step_folds_however_violent(name: str, ndim: int) -> None:
    """Rough steps of many pixels, one after the other: the least one-sided determinant stays above 0."""
    model = deformable(name, ndim)
    theta = model.start()
    for _ in range(12):
        rough = RANDOM.normal(size=theta.shape).astype(np.float32)
        theta = model.advance(theta, rough * np.float32(3.0 / model.reach(rough)))
        assert least_jacobian(model.displacement(theta)) > 0.05
    assert np.linalg.norm(model.displacement(theta), axis=-1).max() > 0.5


def test_a_step_that_cannot_be_taken_leaves_the_transform_as_it_is() -> None:
    model = Diffeomorphic((12, 12), 1.0, 0.0)
    step = np.zeros((12, 12, 2), np.float32)
    step[5, 5] = np.nan
    np.testing.assert_array_equal(model.advance(model.start(), step), model.start())


def test_outside_the_mask_the_map_may_fold() -> None:
    mask = np.ones((20, 20), bool)
    mask[:, 10:] = False
    step = np.zeros((20, 20, 2), np.float32)
    step[8:12, 15, 1] = 40.0
    free, held = (Diffeomorphic((20, 20), 1.0, 0.0, m).advance(np.zeros_like(step), step) for m in (mask, None))
    assert least_jacobian(free) < 0 < least_jacobian(held)


def test_unfolded_smooths_just_enough() -> None:
    good, bad = smooth(2, 0.4, 3.0), smooth(2, 6.0, 1.0)
    assert least_jacobian(good) > 0.1 and least_jacobian(bad) < 0
    np.testing.assert_array_equal(unfolded(good, None), good)
    assert least_jacobian(unfolded(bad, None)) > 0.1
    assert np.abs(unfolded(bad, None)).max() > 0.05


@pytest.mark.parametrize("shape", [(19, 23), (9, 11, 8)])
def test_splines_are_smooth_functions_and_are_found_again(shape: tuple[int, ...]) -> None:
    splines = SplineGrid(shape, 4.0)
    control = RANDOM.normal(size=(*splines.size, 2))
    values = splines.values(control)
    np.testing.assert_allclose(splines.values(np.ones((*splines.size, 1))), 1.0)
    np.testing.assert_allclose(splines.values(splines.fitted(values)), values, atol=1e-6)
    other = RANDOM.normal(size=values.shape)
    assert (values * other).sum() == pytest.approx((control * splines.transposed(other)).sum())
    numeric = np.gradient(values, axis=0)[2:-2]
    np.testing.assert_allclose(splines.derivatives(control)[2:-2, ..., 0], numeric, atol=0.12)


def test_resampled_is_linear_and_keeps_the_edge() -> None:
    values = np.arange(6.0)[:, None] * np.ones((6, 4))
    out = resampled(values[..., None], (4, 4), np.array([0.5, 0.0]), np.array([2.0, 1.0]))[..., 0]
    np.testing.assert_allclose(out[:, 0], [0.5, 2.5, 4.5, 5.0])
