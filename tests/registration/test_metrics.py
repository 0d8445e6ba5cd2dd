"""The menu: every metric takes any image, in 2D and 3D, plain or with channels, and tells aligned from displaced."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from histomri.kernels.interpolate import warp
from histomri.registration.metrics import METRICS, Metric, at_unit_gradient, at_unit_range, channels_last

Array = NDArray[np.float32]
SHAPES = {2: (40, 44), 3: (18, 20, 19)}
each_metric = pytest.mark.parametrize("name", METRICS)
each_ndim = pytest.mark.parametrize("ndim", [2, 3])


def texture(ndim: int, seed: int = 0) -> Array:
    """A smooth image with values of a scanner's size."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPES[ndim]), 1.5)
    return (800 + 200 * noise / noise.std()).astype(np.float32)


def compared(metric: Metric, fixed: Array, warped: Array) -> tuple[float, Array]:
    """Value and force of two images whose masks leave out the outermost pixels."""
    mask = np.zeros(fixed.shape, bool)
    mask[tuple(slice(2, -2) for _ in fixed.shape)] = True
    return metric.evaluate(metric.features(fixed, mask), metric.features(warped, mask), mask.astype(np.float32))


@each_metric
@each_ndim
def test_shifted_images_cost_more_the_farther(name: str, ndim: int) -> None:
    image, metric = texture(ndim), METRICS[name]
    values = [compared(metric, image, np.roll(image, s, axis=-1))[0] for s in (0, 1, 3)]
    assert values[0] < values[1] < values[2]


def band_limited(ndim: int, shift: float) -> Array:
    """A periodic image without frequencies above a quarter per pixel, moved by ``shift`` pixels along its last axis, exactly."""
    shape = (64,) * 2 if ndim == 2 else (28,) * 3
    at = np.stack(np.meshgrid(*[np.fft.fftfreq(n) for n in shape], indexing="ij"))
    spectrum = np.fft.fftn(np.random.default_rng(4).normal(size=shape)) * np.exp(-2 * (np.pi * 1.2) ** 2 * (at**2).sum(axis=0))
    moved = np.where((np.abs(at) < 0.25).all(axis=0), spectrum * np.exp(-2j * np.pi * shift * at[-1]), 0)
    return np.fft.ifftn(moved).real.astype(np.float32)


SEEN = [(name, c) for name in METRICS for c in ("plain", "inverted") if c == "plain" or name not in ("ssd", "ncc")]


@pytest.mark.parametrize(("name", "contrast"), SEEN)
@each_ndim
@pytest.mark.parametrize("shift", [0.3, 0.6])
def test_shifts_by_parts_of_a_pixel_are_not_drawn_to_the_grid(name: str, ndim: int, contrast: str, shift: float) -> None:
    """Linear interpolation flattens between the pixels, most half way: what rewards strong contrast prefers whole pixels."""
    metric, fixed, moving = METRICS[name], band_limited(ndim, 0.0), band_limited(ndim, shift)
    weight = np.zeros(fixed.shape, np.float32)
    weight[(slice(5, -5),) * ndim] = 1
    features = metric.features(fixed), metric.features(1 - moving if contrast == "inverted" else moving)
    values = []
    for trial in np.arange(-0.2, 1.21, 0.1):
        matrix = np.eye(ndim + 1)
        matrix[-2, -1] = trial
        values.append(metric.value(features[0], warp(features[1], matrix, fixed.shape), weight))
    least = int(np.argmin(values))
    a, b, c = values[least - 1 : least + 2]
    assert -0.2 + 0.1 * (least + 0.5 * (a - c) / (a - 2 * b + c)) == pytest.approx(shift, abs=0.04)


@each_metric
@each_ndim
def test_force_is_float32_of_the_features_shape_and_value_agrees(name: str, ndim: int) -> None:
    metric, image = METRICS[name], texture(ndim)
    fixed, warped = metric.features(image), metric.features(texture(ndim, 1))
    weight = np.ones(image.shape, np.float32)
    value, force = metric.evaluate(fixed, warped, weight)
    assert fixed.dtype == force.dtype == np.float32
    assert fixed.shape[:-1] == image.shape
    assert force.shape == warped.shape
    assert metric.value(fixed, warped, weight) == pytest.approx(value, rel=1e-6, abs=1e-7)
    assert (metric.name, metric.residual) == (name, name in ("ssd", "mind"))


@each_metric
def test_channels_are_compared_each_with_its_own(name: str) -> None:
    metric, image, other = METRICS[name], texture(2), texture(2, 1)
    both, twice = np.stack([image, other], axis=-1), np.stack([image, image], axis=-1)
    mask = np.ones(image.shape, bool)
    weight = mask.astype(np.float32)
    fixed = metric.features(both, mask)
    assert fixed.shape[-1] % 2 == 0
    same, swapped = (metric.evaluate(fixed, metric.features(b, mask), weight)[0] for b in (both, both[..., ::-1]))
    half = metric.evaluate(fixed, metric.features(twice, mask), weight)[0]
    assert same < half < swapped


@each_metric
@pytest.mark.parametrize("image", [np.zeros((20, 21)), np.full((20, 21), 255.0)], ids=["empty", "constant"])
def test_an_image_without_structure_gives_numbers(name: str, image: Array) -> None:
    metric, mask = METRICS[name], np.zeros(image.shape, bool)
    for use in (None, mask, ~mask):
        features = metric.features(image, use)
        assert np.isfinite(features).all()
        for weight in (mask, ~mask):
            value, force = metric.evaluate(features, features, weight.astype(np.float32))
            assert not np.isnan(value)
            assert np.isfinite(force).all()


@pytest.mark.parametrize("name", ["lncc", "ncc", "cr", "mi", "nmi", "ngf", "mind"])
def test_units_of_the_scanner_do_not_matter(name: str) -> None:
    metric, fixed, warped = METRICS[name], texture(2), np.roll(texture(2), 1, axis=0)
    assert compared(metric, fixed, warped * 0.01)[0] == pytest.approx(compared(metric, fixed, warped)[0], rel=1e-3, abs=1e-4)


def test_range_is_the_masks_and_a_rare_pixel_does_not_stretch_it() -> None:
    image, mask = texture(2), np.ones(SHAPES[2], bool)
    mask[0, 0], image[0, 0], image[5, 5] = False, -1e9, 1e6
    scaled = at_unit_range(image, mask)[..., 0]
    assert np.mean((scaled >= 0) & (scaled <= 1)) > 0.95
    almost_flat = np.zeros((30, 30), np.float32)
    almost_flat[3, 3] = 5
    assert at_unit_range(almost_flat).max() == 1


def test_gradient_is_measured_in_the_mask() -> None:
    image = np.zeros((20, 40), np.float32)
    image[:, :20] = 3 * np.arange(20)
    image[:, 20:] = 100 * np.arange(20)
    mask = np.zeros(image.shape, bool)
    mask[:, 2:18] = True
    np.testing.assert_allclose(np.diff(at_unit_gradient(image, mask)[:, 3:18, 0], axis=1), 1, rtol=1e-5)


def test_axes_and_channels_are_told_apart_by_the_mask() -> None:
    thin = np.zeros((9, 8, 3))
    assert channels_last(thin).shape == (9, 8, 3)
    assert channels_last(thin, np.ones(thin.shape, bool)).shape == (9, 8, 3, 1)
    assert channels_last(np.zeros((9, 8))).shape == (9, 8, 1)
    assert channels_last(np.zeros((4, 9, 8, 5))).shape == (4, 9, 8, 5)
