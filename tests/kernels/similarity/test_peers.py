"""Values against SimpleITK's, where it computes the same thing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

from histomri.kernels.similarity.correlation import ncc
from histomri.kernels.similarity.histogram import information_value
from histomri.kernels.similarity.local_correlation import lncc
from histomri.kernels.similarity.squared import ssd

Array = NDArray[np.float32]
each_ndim = pytest.mark.parametrize("ndim", [2, 3])


def related(ndim: int) -> tuple[Array, Array]:
    """Two related textures."""
    noise = np.random.default_rng(0).normal(size=(2, *{2: (48, 56), 3: (18, 22, 20)}[ndim]))
    fixed, other = (ndimage.gaussian_filter(n, 1.2) for n in noise)
    return fixed.astype(np.float32), (0.8 * fixed + 0.4 * other + 0.1).astype(np.float32)


def evaluated(fixed: Array, warped: Array, choose: Callable[[SimpleITK.ImageRegistrationMethod], None]) -> float:
    """A metric of SimpleITK over all voxels of two images that lie on one grid."""
    method = SimpleITK.ImageRegistrationMethod()
    choose(method)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetInitialTransform(SimpleITK.Transform(fixed.ndim, SimpleITK.sitkIdentity))
    return float(method.MetricEvaluate(*(SimpleITK.GetImageFromArray(a) for a in (fixed, warped))))


def weights(image: Array) -> Array:
    return np.ones(image.shape, np.float32)


@each_ndim
def test_mean_squares(ndim: int) -> None:
    fixed, warped = related(ndim)
    theirs = evaluated(fixed, warped, lambda m: m.SetMetricAsMeanSquares())
    assert ssd(fixed[..., None], warped[..., None], weights(fixed))[0] == pytest.approx(theirs, rel=1e-5)


@each_ndim
def test_correlation(ndim: int) -> None:
    """Theirs is minus the square."""
    fixed, warped = related(ndim)
    theirs = evaluated(fixed, warped, lambda m: m.SetMetricAsCorrelation())
    ours = ncc(fixed[..., None], warped[..., None], weights(fixed))[0]
    assert -((1 - ours) ** 2) == pytest.approx(theirs, rel=1e-5)


@each_ndim
@pytest.mark.parametrize("radius", [2, 4])
def test_neighbourhood_correlation(ndim: int, radius: int) -> None:
    """Theirs is minus the mean of the squares, in boxes that the border cuts off."""
    fixed, warped = related(ndim)
    theirs = evaluated(fixed, warped, lambda m: m.SetMetricAsANTSNeighborhoodCorrelation(radius))
    ours = lncc(fixed[..., None], warped[..., None], weights(fixed), radius, floor=1e-9)[0]
    assert ours - 1 == pytest.approx(theirs, rel=1e-4)


@each_ndim
@pytest.mark.parametrize("bins", [24, 50])
def test_mattes_mutual_information(ndim: int, bins: int) -> None:
    fixed, warped = related(ndim)
    theirs = evaluated(fixed, warped, lambda m: m.SetMetricAsMattesMutualInformation(bins))
    units = [((a - a.min()) / np.ptp(a))[..., None] for a in (fixed, warped)]
    ours = information_value(units[0], units[1], weights(fixed), bins, "cubic", "mi")
    assert ours == pytest.approx(theirs, rel=1e-4)
