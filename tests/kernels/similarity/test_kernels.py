"""The fused kernels against their formulas, against other numbers of threads, and against sizes that tiles do not divide."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from histomri.backend import has_gpu, to_device
from histomri.kernels.similarity import boxes, parzen
from histomri.kernels.similarity.correlation import ncc, ncc_reference
from histomri.kernels.similarity.gradient_fields import ngf, ngf_reference
from histomri.kernels.similarity.histogram import information, information_reference, joint_histogram, joint_histogram_reference
from histomri.kernels.similarity.local_correlation import lncc, lncc_reference
from histomri.kernels.similarity.ratio import cr, cr_reference
from histomri.kernels.similarity.squared import ssd, ssd_reference

Array = NDArray[np.float32]
Formula = Callable[[Any, Any, Any], tuple[float, Any]]
PAIRS: dict[str, tuple[Formula, Formula]] = {
    "ssd": (ssd, ssd_reference),
    "ncc": (ncc, ncc_reference),
    "lncc": (lncc, lncc_reference),
    "lncc wide": (partial(lncc, radius=4, floor=1e-2), partial(lncc_reference, radius=4, floor=1e-2)),
    "cr": (cr, cr_reference),
    "mi": (partial(information, kind="mi"), partial(information_reference, kind="mi")),
    "mi cubic": (partial(information, kind="mi", window="cubic"), partial(information_reference, kind="mi", window="cubic")),
    "nmi": (information, information_reference),
    "nmi cubic": (partial(information, window="cubic", bins=24), partial(information_reference, window="cubic", bins=24)),
    "ngf": (ngf, ngf_reference),
}
each_metric = pytest.mark.parametrize("name", PAIRS)
SHAPES = {"image": (70, 301), "volume": (18, 41, 139), "row": (1, 40), "tiny": (2, 3, 2), "flat": (1, 9, 11)}


def case(shape: tuple[int, ...], channels: int = 1) -> tuple[Array, Array, Array]:
    """Related images far from 0 in places, and a weight with holes, all float32."""
    random = np.random.default_rng(len(shape))
    noise = ndimage.gaussian_filter(random.normal(size=(2, *shape, channels)), [0] + [1.0] * len(shape) + [0])
    fixed = 0.5 + 0.3 * noise[0] / max(noise[0].std(), 1e-3)
    warped = 0.7 * fixed + 0.1 * noise[1] / max(noise[1].std(), 1e-3)
    weight = np.where(random.random(shape) < 0.1, 0, random.uniform(0.2, 1, shape))
    weight[tuple(slice(0, n // 3) for n in shape)] = 0
    return fixed.astype(np.float32), warped.astype(np.float32), weight.astype(np.float32)


@each_metric
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernel_is_its_formula(name: str, shape: tuple[int, ...]) -> None:
    kernel, formula = PAIRS[name]
    images = case(shape)
    (value, force), (expected, slope) = kernel(*images), formula(*images)
    assert value == pytest.approx(expected, rel=2e-6, abs=2e-6)
    assert force.dtype == np.float32
    np.testing.assert_allclose(force, slope, atol=1e-4 * np.abs(slope).max() + 1e-12)


@each_metric
def test_kernel_is_its_formula_for_channels(name: str) -> None:
    kernel, formula = PAIRS[name]
    images = case((40, 37), channels=3)
    (value, force), (expected, slope) = kernel(*images), formula(*images)
    assert value == pytest.approx(expected, rel=2e-6, abs=2e-6)
    np.testing.assert_allclose(force, slope, atol=1e-4 * np.abs(slope).max())


@each_metric
@pytest.mark.parametrize("level", [0.0, 0.4, 1.0, 3000.0])
def test_constant_or_unweighted_images_are_as_the_formula_says(name: str, level: float) -> None:
    kernel, formula = PAIRS[name]
    fixed, warped, weight = case((40, 37))
    flat = np.full_like(warped, level)
    for images in ((fixed, flat, weight), (flat, warped, weight), (flat, flat, weight), (fixed, warped, 0 * weight)):
        value, force = kernel(*images)
        assert value == pytest.approx(formula(*images)[0], rel=1e-5, abs=1e-6)
        assert np.isfinite(force).all()


@each_metric
def test_more_threads_change_no_bit(name: str, two_threads: None) -> None:
    kernel, _ = PAIRS[name]
    results = []
    images = case((70, 301))
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append(kernel(*images))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("shape", [(70, 301), (18, 41, 139)])
def test_tiles_of_local_correlation_leave_no_seams(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    images = case(shape)
    whole = lncc(*images)
    monkeypatch.setattr(boxes, "TILE_2D", (17, 1, 23))
    monkeypatch.setattr(boxes, "TILE_3D", (5, 13, 40))
    tiled = lncc(*images)
    assert tiled[0] == pytest.approx(whole[0], abs=1e-9)
    np.testing.assert_allclose(tiled[1], whole[1], atol=1e-6 * np.abs(whole[1]).max())


def test_local_correlation_keeps_its_digits_on_a_bright_background() -> None:
    fixed, warped, weight = case((60, 64))
    value = lncc(fixed + np.float32(100), warped + np.float32(-50), weight)[0]
    assert value == pytest.approx(lncc(fixed, warped, weight)[0], abs=2e-5)


@pytest.mark.parametrize("window", ["linear", "cubic"])
def test_histogram_of_a_flat_region_does_not_lose_voxels(window: str) -> None:
    """More voxels than float32 can count one by one, all in one bin."""
    shape = (parzen.LEAST, 3)
    half = np.full(shape, 0.51, np.float32)
    weight = np.full(shape, 0.7, np.float32)
    counts = parzen.joint_histogram(half, half, weight, 32, window)
    assert counts.sum() == pytest.approx(0.7 * weight.size, rel=1e-4)


@pytest.mark.parametrize("window", ["linear", "cubic"])
@pytest.mark.parametrize("bins", [16, 64])
def test_histogram_is_its_formula_up_to_the_ends_and_beyond(window: str, bins: int) -> None:
    random = np.random.default_rng(0)
    fixed, warped = random.uniform(-0.2, 1.2, (2, 50_001)).astype(np.float32)
    fixed[:4], warped[:4] = [0, 1, 1, 0], [0, 1, 0, 1]
    weight = random.uniform(0, 1, 50_001).astype(np.float32)
    found, expected = (h(fixed, warped, weight, bins, window) for h in (joint_histogram, joint_histogram_reference))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_pixel_that_is_not_a_number_stays_within_the_histogram() -> None:
    fixed, warped, weight = case((40, 37))
    warped[5, 5], fixed[6, 6], warped[7, 7] = np.nan, np.inf, -np.inf
    counts = parzen.joint_histogram(fixed, warped, weight, 32, "linear")
    assert counts.sum() == pytest.approx(weight.sum(), rel=1e-5)


@pytest.mark.gpu
@each_metric
@pytest.mark.skipif(not has_gpu(), reason="no GPU: CuPy is missing or finds no device")
def test_kernel_on_the_gpu_is_its_formula(name: str) -> None:
    kernel, formula = PAIRS[name]
    images = case((18, 41, 39))
    value, force = kernel(*(to_device(a, "gpu") for a in images))
    expected, slope = formula(*images)
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(to_device(force, "cpu"), slope, atol=1e-4 * np.abs(slope).max())
