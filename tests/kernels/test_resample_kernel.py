"""The resampling kernel against its formula, other tilings, other threads and scipy."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy import ndimage

from histomri.io.volumes import tiles
from histomri.kernels.resample import (
    FLAT,
    PlaneBend,
    PlaneWeight,
    SectionSource,
    accumulate,
    accumulate_reference,
    finished,
    needed_box,
    weight_reference,
)

RANDOM = np.random.default_rng(11)
PIXELS = RANDOM.integers(0, 255, (70, 90, 3), dtype=np.uint8)
# not a single tie: which of two equally near pixels is taken may hang on rounding
TO_BLOCK = 1.00012345 * np.array([[0.11, 0.02, -0.03, -0.8], [0.02, 0.21, 0.05, 0.4], [-0.01, 0.04, 0.19, 0.3]])
TO_INDEX = 0.99987654 * np.array([[9.0, 1.5, -3.0], [-1.2, 11.0, 2.0]])
SHAPE = (14, 23, 31)
PLANE = PlaneWeight(0.3, -0.4, 0.9, 1.0, 0.3, False)


def _source(bent: bool = True, nearest: bool = False, pixels: np.ndarray = PIXELS) -> SectionSource:
    field = RANDOM.normal(size=(6, 7, 2)) * 0.1 if bent else np.zeros((0, 0, 2))
    frame = np.array([[0.2, -0.1], [1.0, 0.9]])
    return SectionSource(pixels, np.zeros(2, np.int64), np.array(pixels.shape[:2]), TO_INDEX, field, frame, nearest)


def _whole(
    source: SectionSource, plane: PlaneWeight = PLANE, shape: tuple[int, ...] = SHAPE, bend: PlaneBend = FLAT
) -> np.ndarray:
    sums = np.zeros((*shape, source.pixels.shape[2] + 1), np.float32)
    accumulate(sums, np.zeros(3, np.int64), TO_BLOCK, plane, source, bend)
    return sums


def test_bent_planes_are_drawn_where_the_formula_has_them_and_a_bend_of_nothing_changes_no_bit() -> None:
    source, along = _source(), RANDOM.normal(size=(4, 3, 5)) * 0.3
    bend = PlaneBend(along, np.array([[-0.5, 0.5, 0.2], [0.6, 2.0, 1.4]]), float(along.min()), float(along.max()))
    expected = np.zeros((*SHAPE, 4), np.float32)
    accumulate_reference(expected, np.zeros(3, np.int64), TO_BLOCK, PLANE, source, bend)
    sums = _whole(source, bend=bend)
    np.testing.assert_allclose(sums, expected, atol=2e-3)
    flat = _whole(source)
    assert np.abs(sums - flat)[..., -1].mean() > 0.05
    np.testing.assert_array_equal(_whole(source, bend=bend._replace(along=0 * along, low=0.0, high=0.0)), flat)


@pytest.mark.parametrize("bent", [True, False])
@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("through", [True, False])
def test_the_kernel_is_its_formula(bent: bool, nearest: bool, through: bool) -> None:
    source, plane = _source(bent, nearest), PLANE._replace(nearest=through)
    expected = np.zeros((*SHAPE, 4), np.float32)
    accumulate_reference(expected, np.zeros(3, np.int64), TO_BLOCK, plane, source)
    sums = _whole(source, plane)
    assert 0.1 < (sums[..., -1] > 0).mean() < 0.99
    np.testing.assert_allclose(sums, expected, atol=2e-3)


@pytest.mark.parametrize("size", [(1, 1, 31), (3, 7, 10), (5, 23, 8), (14, 4, 31)])
def test_ragged_tiles_with_boxes_of_their_own_give_every_bit_of_the_whole(size: tuple[int, ...]) -> None:
    source = _source()
    whole, tiled = _whole(source), np.zeros((*SHAPE, 4), np.float32)
    for box in tiles(SHAPE, size):
        start = np.array([b.start for b in box])
        ends = np.stack(np.meshgrid(*[(b.start, b.stop - 1) for b in box], indexing="ij"), -1).reshape(-1, 3)
        first, until = needed_box(ends @ TO_BLOCK[:, :3].T + TO_BLOCK[:, 3], source)
        if (until > first).all():
            part = np.ascontiguousarray(PIXELS[first[0] : until[0], first[1] : until[1]])
            sums = np.zeros((*(b.stop - b.start for b in box), 4), np.float32)
            accumulate(sums, start, TO_BLOCK, PLANE, source._replace(pixels=part, origin=first))
            tiled[box] = sums
    np.testing.assert_array_equal(tiled, whole)


def test_threads_change_no_bit() -> None:
    source, before = _source(), numba.get_num_threads()
    whole = _whole(source)
    numba.set_num_threads(1)
    try:
        np.testing.assert_array_equal(_whole(source), whole)
    finally:
        numba.set_num_threads(before)


def test_linear_agrees_with_scipy() -> None:
    sums = _whole(_source(bent=False), PlaneWeight(0.0, -np.inf, np.inf, 1.0, 100.0, False))
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    block = index @ TO_BLOCK[:, :3].T + TO_BLOCK[:, 3]
    q = block[..., 1:] @ TO_INDEX[:, :2].T + TO_INDEX[:, 2]
    inside = ((q >= 0) & (q <= np.array([69, 89]))).all(-1)
    for c in range(3):
        expected = ndimage.map_coordinates(PIXELS[..., c].astype(np.float64), np.moveaxis(q, -1, 0), order=1)
        np.testing.assert_allclose(sums[..., c][inside], expected[inside], atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_identity_gives_back_every_bit(dtype: type) -> None:
    pixels = (RANDOM.random((20, 30, 2)) * (1 if dtype is np.float32 else np.iinfo(dtype).max)).astype(dtype)
    to_block = np.array([[0.5, 0, 0, 1.0], [0, 0.007, 0, 0], [0, 0, 0.007, 0]])
    to_index = np.array([[1 / 0.007, 0, 0], [0, 1 / 0.007, 0]])
    source = SectionSource(
        pixels, np.zeros(2, np.int64), np.array([20, 30]), to_index, np.zeros((3, 3, 2)), np.ones((2, 2)), False
    )
    sums = np.zeros((3, 20, 30, 3), np.float32)
    accumulate(sums, np.zeros(3, np.int64), to_block, PlaneWeight(1.5, 1.0, 2.0, 1.0, 0.25, False), source)
    values, coverage = finished(sums, dtype)
    np.testing.assert_array_equal(values[1], pixels)
    assert (coverage == np.array([0, 1, 0])[:, None, None]).all()


def test_weights_of_two_neighbours_add_up_and_a_wide_gap_stays_open() -> None:
    z = np.linspace(0, 1, 101)
    for nearest in (False, True):
        below, above = (PlaneWeight(p, b, a, 1.0, 0.2, nearest) for p, b, a in [(0.0, -np.inf, 1.0), (1.0, 0.0, np.inf)])
        np.testing.assert_allclose(weight_reference(z, below) + weight_reference(z, above), 1)
    wide = [p._replace(max_gap=0.9) for p in (below, above)]
    total = weight_reference(z, wide[0]) + weight_reference(z, wide[1])
    np.testing.assert_array_equal(total, (z <= 0.2) | (z >= 0.8))


def test_where_the_nearer_section_has_nothing_there_is_no_coverage() -> None:
    sums = np.zeros((1, 1, 3, 2), np.float32)
    sums[0, 0] = [[30.0, 0.3], [60.0, 0.6], [100.0, 1.0]]
    values, coverage = finished(sums, np.uint8)
    np.testing.assert_array_equal(values[0, 0, :, 0], [0, 100, 100])
    np.testing.assert_array_equal(coverage[0, 0], [0, 1, 1])


def test_an_invalid_displacement_leaves_a_hole_and_not_a_guess() -> None:
    source = _source()
    source.field[3, 3] = np.nan
    sums = _whole(source)
    assert np.isfinite(sums).all()
    assert (sums[..., -1] == 0).sum() > (_whole(_source(bent=False))[..., -1] == 0).sum()
