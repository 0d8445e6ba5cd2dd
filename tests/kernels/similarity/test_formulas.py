"""Every metric's formula: its force against finite differences, what it must not see, and what it does where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from histomri.kernels.similarity.correlation import ncc_reference
from histomri.kernels.similarity.gradient_fields import ngf_reference
from histomri.kernels.similarity.histogram import information_reference, joint_histogram_reference
from histomri.kernels.similarity.local_correlation import box_sum, lncc_reference
from histomri.kernels.similarity.ratio import cr_reference
from histomri.kernels.similarity.squared import ssd_reference
from histomri.kernels.similarity.windows import shares, slopes

Float = NDArray[np.float64]
Formula = Callable[[Any, Any, Any], tuple[float, Any]]
FORMULAS: dict[str, Formula] = {
    "ssd": ssd_reference,
    "ncc": ncc_reference,
    "lncc": lncc_reference,
    "lncc wide": partial(lncc_reference, radius=4, floor=1e-2),
    "cr": cr_reference,
    "mi": partial(information_reference, kind="mi"),
    "mi cubic": partial(information_reference, kind="mi", window="cubic"),
    "nmi": information_reference,
    "nmi cubic": partial(information_reference, window="cubic", bins=24),
    "ngf": ngf_reference,
}
UNRELATED = {"ssd": np.inf, "mi": 0.0, "mi cubic": 0.0, "nmi": 0.0, "nmi cubic": 0.0}
SHAPES = {2: (24, 31), 3: (11, 13, 12)}
each_metric = pytest.mark.parametrize("name", FORMULAS)
each_ndim = pytest.mark.parametrize("ndim", [2, 3])


def smooth_noise(shape: tuple[int, ...], seed: int, channels: int = 1) -> Float:
    """A random smooth image (*shape, channels), most of it between 0 and 1, some beyond."""
    noise = np.random.default_rng(seed).normal(size=(*shape, channels))
    smooth = ndimage.gaussian_filter(noise, [1.0] * len(shape) + [0])
    return 0.5 + 0.3 * smooth / smooth.std()


def case(ndim: int, channels: int = 1) -> tuple[Float, Float, Float]:
    """Related fixed and warped images, and a weight of 0 in a corner."""
    shape = SHAPES[ndim]
    fixed, other = smooth_noise(shape, 1, channels), smooth_noise(shape, 2, channels)
    weight = np.random.default_rng(3).uniform(0.2, 1, shape)
    weight[tuple(slice(0, n // 3) for n in shape)] = 0
    return fixed, 0.8 * fixed + 0.2 * other, weight


@each_metric
@each_ndim
@pytest.mark.parametrize("channels", [1, 2])
def test_force_is_the_slope_of_the_value(name: str, ndim: int, channels: int) -> None:
    fixed, warped, weight = case(ndim, channels)
    _, force = FORMULAS[name](fixed, warped, weight)
    assert force.shape == warped.shape
    for seed in range(3):
        change = np.random.default_rng(10 + seed).normal(size=warped.shape)
        step = 1e-6
        ends = [FORMULAS[name](fixed, warped + s * step * change, weight)[0] for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        # a few values cross the middle of a bin within the step, where linear windows have a kink
        assert (force * change).sum() == pytest.approx(slope, rel=1e-4, abs=1e-6 * np.abs(force * change).sum())


@each_metric
@each_ndim
def test_better_alignment_costs_less(name: str, ndim: int) -> None:
    fixed, warped, weight = case(ndim)
    values = [FORMULAS[name](fixed, np.roll(warped, shift, axis=ndim - 1), weight)[0] for shift in (0, 1, 3)]
    assert values[0] < values[1] < values[2]


@each_metric
def test_force_descends(name: str) -> None:
    fixed, warped, weight = case(2)
    value, force = FORMULAS[name](fixed, warped, weight)
    assert FORMULAS[name](fixed, warped - 0.02 * force / np.abs(force).max(), weight)[0] < value


@each_metric
@each_ndim
def test_what_has_no_weight_has_no_say(name: str, ndim: int) -> None:
    fixed, warped, weight = case(ndim)
    masked = weight == 0
    other = np.where(masked[..., None], 7.0, warped)
    here, there = FORMULAS[name](fixed, warped, weight), FORMULAS[name](np.where(masked[..., None], -3.0, fixed), other, weight)
    assert here[0] == pytest.approx(there[0], rel=1e-12)
    np.testing.assert_allclose(here[1], there[1], atol=1e-15)
    assert not here[1][masked].any()


@each_metric
def test_weights_count_by_ratio(name: str) -> None:
    fixed, warped, weight = case(2)
    assert FORMULAS[name](fixed, warped, weight)[0] == pytest.approx(FORMULAS[name](fixed, warped, 5 * weight)[0], rel=1e-9)


@each_metric
@each_ndim
def test_nothing_to_compare_is_unrelated_and_not_a_division_by_zero(name: str, ndim: int) -> None:
    fixed, warped, weight = case(ndim)
    value, force = FORMULAS[name](fixed, warped, 0 * weight)
    assert value == UNRELATED.get(name, 1.0)
    assert not force.any()


@each_metric
@pytest.mark.parametrize("level", [0.0, 0.37, 1.0, 1e4])
@pytest.mark.parametrize("which", ["fixed", "warped", "both"])
def test_constant_images_are_unrelated(name: str, level: float, which: str) -> None:
    fixed, warped, weight = case(2)
    fixed = np.full_like(fixed, level) if which != "warped" else fixed
    warped = np.full_like(warped, level) if which != "fixed" else warped
    value, force = FORMULAS[name](fixed, warped, weight)
    assert np.isfinite(force).all()
    if name == "ssd":
        assert value == pytest.approx((weight * (fixed - warped)[..., 0] ** 2).sum() / weight.sum())
        return
    assert value == pytest.approx(UNRELATED.get(name, 1.0), abs=1e-9)
    if which != "fixed" and name not in ("nmi", "mi"):
        assert np.abs(force).max() < 1e-9


@pytest.mark.parametrize("name", ["ncc", "lncc"])
def test_brightness_and_contrast_change_nothing(name: str) -> None:
    fixed, warped, weight = case(2)
    formula = partial(lncc_reference, floor=1e-12) if name == "lncc" else ncc_reference
    assert formula(fixed, 3 * warped - 40, weight)[0] == pytest.approx(formula(fixed, warped, weight)[0], rel=1e-7)


def test_local_correlation_does_not_see_slow_shading_or_its_sign() -> None:
    fixed = smooth_noise((64, 64), 4)
    ramp = np.linspace(1, 3, 64)[:, None, None]
    weight = np.ones((64, 64))
    assert lncc_reference(fixed, -(fixed * ramp + ramp), weight, floor=1e-9)[0] < 0.15
    assert ncc_reference(fixed, fixed * ramp + ramp, weight)[0] > 0.3


@pytest.mark.parametrize("name", ["lncc", "cr", "mi", "nmi", "ngf"])
def test_inverted_contrast_is_as_good(name: str) -> None:
    fixed, warped, weight = case(2)
    warped = np.clip(warped, 0, 1)
    assert FORMULAS[name](fixed, 1 - warped, weight)[0] == pytest.approx(FORMULAS[name](fixed, warped, weight)[0], rel=1e-9)


def test_global_correlation_tells_inverted_from_equal() -> None:
    fixed, _, weight = case(2)
    assert ncc_reference(fixed, 2 * fixed + 1, weight)[0] == pytest.approx(0, abs=1e-12)
    assert ncc_reference(fixed, 1 - fixed, weight)[0] == pytest.approx(2)


@pytest.mark.parametrize("name", ["cr", "mi", "nmi"])
def test_a_mapped_contrast_is_better_than_an_unrelated_image(name: str) -> None:
    """A contrast that rises and falls again: no correlation is left."""
    fixed = np.clip(smooth_noise((96, 96), 1), 0, 1)
    mapped, unrelated = 4 * fixed * (1 - fixed), np.clip(smooth_noise((96, 96), 2), 0, 1)
    weight = np.ones((96, 96))
    assert abs(ncc_reference(fixed, mapped, weight)[0] - 1) < 0.3
    good, bad = (FORMULAS[name](fixed, m, weight)[0] for m in (mapped, unrelated))
    span = {"cr": 1.0, "mi": np.log(32), "nmi": 1.0}[name]
    assert good < bad - 0.3 * span


def test_correlation_ratio_of_a_function_is_almost_nought() -> None:
    fixed = np.clip(smooth_noise((96, 96), 1), 0, 1)
    assert cr_reference(fixed, np.cos(7 * fixed), np.ones((96, 96)), bins=64)[0] < 0.01


def test_parallel_edges_match_and_crossing_ones_do_not() -> None:
    y, x = np.mgrid[:40, :40] / 2.0
    across, along = (np.sin(a)[..., None] * 20 for a in (y, x))
    weight = np.ones((40, 40))
    same, crossed = ngf_reference(across, -across, weight)[0], ngf_reference(across, along, weight)[0]
    assert same < 0.2
    assert crossed > 0.95


def test_box_sum_is_a_sum_over_boxes() -> None:
    image = np.random.default_rng(0).normal(size=(9, 7, 8))
    expected = ndimage.uniform_filter(image, 5, mode="constant") * 125
    np.testing.assert_allclose(box_sum(image, 2), expected, atol=1e-10)


@pytest.mark.parametrize("kind", ["box", "linear", "cubic"])
def test_windows_share_all_and_their_slopes_are_derivatives(kind: str) -> None:
    unit = np.concatenate([np.random.default_rng(0).uniform(0, 1, 200), [0.0, 1.0, -0.5, 1.5]])
    first, share = shares(unit, 16, kind)
    assert first.min() >= 0
    assert first.max() + share.shape[1] <= 16
    np.testing.assert_allclose(share.sum(axis=1), 1)
    if kind == "box":
        return
    slope = slopes(unit, 16, kind)
    np.testing.assert_allclose(slope.sum(axis=1), 0, atol=1e-12)
    assert not slope[-2:].any()
    step = 1e-7
    ends = [shares(unit[:200] + s * step, 16, kind) for s in (1, -1)]
    same_bin = ends[0][0] == ends[1][0]
    np.testing.assert_allclose(((ends[0][1] - ends[1][1]) / (2 * step))[same_bin], slope[:200][same_bin], atol=1e-6)


def test_histogram_of_known_pairs() -> None:
    fixed, warped = np.array([0.0, 1.0, 0.5]), np.array([1.0, 0.25, 0.5])
    expected = np.zeros((3, 3))
    expected[0, 2] = expected[1, 1] = 1
    expected[2, :2] = 0.5
    found = joint_histogram_reference(fixed, warped, np.array([1.0, 1.0, 1.0]), bins=3)
    np.testing.assert_allclose(found, expected / 3)
