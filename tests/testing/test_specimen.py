"""The specimen must be the same thing at every pixel size, and must tell its sides apart."""

from __future__ import annotations

from itertools import pairwise

import numba
import numpy as np
import pytest

from histomri.testing.specimen import CHANNELS, LABELS, N_CHANNELS, Specimen

SIZE = (15.0, 25.0, 25.0)
CELLS = CHANNELS.index("cells")


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return Specimen(5, SIZE)


def plane(z: float, step: float = 0.2, half: float = 12.0) -> np.ndarray:
    axis = np.arange(-half, half, step)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([np.full_like(y, z), y, x], axis=-1)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_pixel_has_the_same_value_in_any_tile(specimen: Specimen) -> None:
    points, table = plane(7.0), np.eye(N_CHANNELS)
    whole = specimen.mix(points, table, 0.02)
    np.testing.assert_array_equal(specimen.mix(points[17:60, 30:80], table, 0.02), whole[17:60, 30:80])


def test_threads_do_not_change_the_pixels() -> None:
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = Specimen(5, SIZE).mix(plane(7.0, 0.05), np.ones((N_CHANNELS, 1)), 0.02)
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(Specimen(5, SIZE).mix(plane(7.0, 0.05), np.ones((N_CHANNELS, 1)), 0.02), one)


def test_coarse_pixels_are_averages_of_fine_ones(specimen: Specimen) -> None:
    table = np.eye(N_CHANNELS, 6)
    table[:, 5] = np.eye(N_CHANNELS)[CELLS]
    fine = specimen.mix(plane(7.0, 0.0125, 3.0), table, 0.0125)
    n = len(fine) // 16
    mean = fine[: n * 16, : n * 16].reshape(n, 16, n, 16, 6).mean(axis=(1, 3))
    axis = -3.0 + 0.2 * np.arange(n) + 0.0125 * 7.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    coarse = specimen.mix(np.stack([np.full_like(y, 7.0), y, x], axis=-1), table, 0.2)
    assert np.abs(mean - coarse).mean(axis=(0, 1)).max() < 0.04
    grey = [0, 2, 3, 4]
    share_fine, share_coarse = (v[..., 5].mean() / v[..., grey].sum(axis=-1).mean() for v in (mean, coarse))
    assert share_fine == pytest.approx(share_coarse, rel=0.1)


def test_texture_goes_on_at_every_scale(specimen: Specimen) -> None:
    """Halving the pixel keeps bringing new detail, down to 8 micrometres."""
    points = plane(7.0, 0.008, 1.5)
    table = np.zeros((N_CHANNELS, 1))
    table[8:10] = 1
    values = [specimen.mix(points, table, finest) for finest in (0.2, 0.1, 0.05, 0.025, 0.012)]
    assert all(np.abs(a - b).mean() > 0.02 for a, b in pairwise(values))


def test_all_tissues_are_there(specimen: Specimen) -> None:
    labels = np.concatenate([specimen.labels(plane(z, 0.3)).ravel() for z in (4.0, 6.0, 8.0, 10.0)])
    share = np.bincount(labels, minlength=len(LABELS) + 1) / (labels > 0).sum()
    assert (share[1:3] > 0.2).all() and (share[3:] > 0.004).all()


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_mirror_images_and_turns_can_be_told_apart(seed: int) -> None:
    """No rotation by a multiple of 15 degrees, mirrored or not, comes close to the upright tissue."""
    specimen = Specimen(seed, SIZE)
    points = plane(7.5, 0.25)
    white = specimen.labels(points) == 2
    for mirror in (1, -1):
        for degrees in range(0 if mirror < 0 else 30, 345, 15):
            a = np.deg2rad(degrees)
            turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) @ np.diag([1, mirror])
            other = points.copy()
            other[..., 1:] = points[..., 1:] @ turn.T
            assert dice(white, specimen.labels(other) == 2) < 0.8


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_neighbours_are_alike_and_distant_planes_are_not(seed: int) -> None:
    specimen = Specimen(seed, SIZE)
    z = np.arange(0.5, 14.6, 1.0)
    white = [specimen.labels(plane(v, 0.25)) == 2 for v in z]
    near = [dice(a, b) for a, b in pairwise(white)]
    far = [dice(a, b) for a, b in zip(white, white[5:], strict=False)]
    assert min(near) > 0.6 and np.median(near) > 0.8
    assert np.median(far) < 0.75


def test_other_seeds_are_other_brains() -> None:
    assert dice(Specimen(1, SIZE).labels(plane(7.0)) == 2, Specimen(2, SIZE).labels(plane(7.0)) == 2) < 0.85


def test_nothing_lies_outside_and_nan_is_empty(specimen: Specimen) -> None:
    outside = np.array([[7.0, 40.0, 0.0], [-3.0, 0.0, 0.0], [18.0, 0.0, 0.0], [7.0, np.nan, np.nan]])
    assert not specimen.labels(outside).any()
