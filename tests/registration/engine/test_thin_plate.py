"""Thin-plate splines: through their landmarks, affine where these are, and back again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from histomri.core import InputError
from histomri.registration.engine import landmark_spline

RANDOM = np.random.default_rng(4)


def points(ndim: int, n: int = 14) -> tuple[np.ndarray, np.ndarray]:
    fixed = RANDOM.uniform(-20, 20, (n, ndim)) + 5
    return fixed, fixed * 1.1 + 3 + RANDOM.normal(size=fixed.shape) * 0.4


@pytest.mark.parametrize("ndim", [2, 3])
def test_it_goes_through_its_landmarks_and_is_the_spline_of_scipy(ndim: int) -> None:
    fixed, moving = points(ndim)
    spline = landmark_spline(fixed, moving)
    np.testing.assert_allclose(spline.map(fixed), moving, atol=1e-9)
    # in 3D the biharmonic spline has the kernel r, which scipy calls linear
    kernel = {2: "thin_plate_spline", 3: "linear"}[ndim]
    elsewhere = RANDOM.uniform(-25, 30, (50, ndim))
    expected = RBFInterpolator(fixed, moving, kernel=kernel, degree=1)(elsewhere)
    np.testing.assert_allclose(spline.map(elsewhere), expected, atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_approximation_ends_in_the_least_squares_affine(ndim: int) -> None:
    fixed, moving = points(ndim)
    off = [float(np.linalg.norm(landmark_spline(fixed, moving, a).map(fixed) - moving)) for a in (0.0, 1e-3, 0.1, 1e6)]
    assert off == sorted(off) and off[1] > 1e-3
    plane = np.concatenate([np.ones((len(fixed), 1)), fixed], axis=1)
    best = plane @ np.linalg.lstsq(plane, moving, rcond=None)[0]
    np.testing.assert_allclose(landmark_spline(fixed, moving, 1e6).map(fixed), best, atol=1e-3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_jacobian_and_inverse(ndim: int) -> None:
    fixed, moving = points(ndim)
    spline = landmark_spline(fixed, moving, 1e-3)
    at = RANDOM.uniform(-15, 20, (30, ndim))
    for axis in range(ndim):
        step = np.eye(ndim)[axis] * 1e-5
        numeric = (spline.map(at + step) - spline.map(at - step)) / 2e-5
        np.testing.assert_allclose(spline.jacobian(at)[..., axis], numeric, atol=1e-5)
    np.testing.assert_allclose(spline.inverse().map(spline.map(at)), at, atol=1e-6)
    np.testing.assert_allclose(spline.jacobian(fixed[:2])[0], spline.jacobian(fixed[:1])[0])


def test_landmarks_of_which_no_map_can_be_made() -> None:
    fixed, moving = points(2)
    with pytest.raises(InputError, match="at least 3 are needed, found 2"):
        landmark_spline(fixed[:2], moving[:2])
    with pytest.raises(InputError, match="on a line"):
        landmark_spline(fixed * [1, 0], moving)
    with pytest.raises(InputError, match="same fixed point"):
        landmark_spline(np.concatenate([fixed, fixed[:1]]), np.concatenate([moving, moving[:1] + 1]))
    with pytest.raises(InputError, match="two lists"):
        landmark_spline(fixed, moving[:-1])
    with pytest.raises(InputError, match="finite"):
        landmark_spline(fixed, np.where(moving > 5, np.nan, moving))
