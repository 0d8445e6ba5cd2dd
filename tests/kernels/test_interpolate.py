"""Interpolation against scipy, and exact where nothing moves."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy import ndimage

from histomri.kernels.interpolate import sample_3d, warp_2d

RANDOM = np.random.default_rng(3)
PLANE = RANDOM.normal(size=(17, 29, 2)).astype(np.float32)
VOLUME = RANDOM.normal(size=(8, 13, 11, 2)).astype(np.float32)
TO_PLANE = np.array([[0.8, -0.35, 2.3], [0.3, 1.1, -4.2], [0, 0, 1]])
TO_VOLUME = np.array([[0.7, 0.2, -0.1, 0.6], [-0.3, 1.2, 0.1, -1.4], [0.1, 0.3, 0.9, -2.1], [0, 0, 0, 1.0]])
FIELD = (RANDOM.normal(size=(23, 31, 2)) * 1.5).astype(np.float32)


def _scipy(moving: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Zeros all around the image, so that it fades over one pixel."""
    parts = [
        ndimage.map_coordinates(moving[..., c].astype(float), np.moveaxis(where, -1, 0), order=1, mode="grid-constant")
        for c in range(moving.shape[-1])
    ]
    return np.stack(parts, axis=-1)


@pytest.mark.parametrize("field", [None, FIELD], ids=["affine", "bent"])
def test_warp_2d_is_scipys_interpolation(field: np.ndarray | None) -> None:
    nodes = np.stack(np.meshgrid(np.arange(23.0), np.arange(31.0), indexing="ij"), axis=-1)
    where = (nodes if field is None else nodes + field) @ TO_PLANE[:2, :2].T + TO_PLANE[:2, 2]
    fading = ((where > -1) & (where < 0)).any() and ((where > np.array([16, 28])) & (where < np.array([17, 29]))).any()
    assert fading, "the image's edge must be part of the test"
    np.testing.assert_allclose(warp_2d(PLANE, TO_PLANE, (23, 31), field), _scipy(PLANE, where), atol=2e-6)


def test_sample_3d_is_scipys_interpolation() -> None:
    points = RANDOM.uniform(-3, 14, (4000, 3))
    where = points @ TO_VOLUME[:3, :3].T + TO_VOLUME[:3, 3]
    inside = ((where > 0) & (where < np.array([7, 12, 10]))).all(axis=1)
    assert 0.05 < inside.mean() < 0.9
    np.testing.assert_allclose(sample_3d(VOLUME, TO_VOLUME, points), _scipy(VOLUME, where), atol=2e-6)


def test_identity_keeps_every_bit_to_the_last_row() -> None:
    np.testing.assert_array_equal(warp_2d(PLANE, np.eye(3), PLANE.shape[:2]), PLANE)
    np.testing.assert_array_equal(warp_2d(PLANE, np.eye(3), PLANE.shape[:2], np.zeros((*PLANE.shape[:2], 2), np.float32)), PLANE)
    nodes = np.stack(np.meshgrid(*map(np.arange, VOLUME.shape[:3]), indexing="ij"), axis=-1).reshape(-1, 3)
    np.testing.assert_array_equal(sample_3d(VOLUME, np.eye(4), nodes.astype(float)), VOLUME.reshape(-1, 2))


def test_far_outside_is_zero_and_not_the_edge() -> None:
    away = np.eye(3)
    away[:2, 2] = 1e7
    assert not warp_2d(PLANE, away, (5, 5)).any()
    assert not sample_3d(VOLUME, np.eye(4), np.array([[-1e7, 0, 0], [0, 1e7, 0], [np.nan, 0, 0]])).any()


def test_an_image_that_is_not_contiguous_is_read_right() -> None:
    np.testing.assert_array_equal(warp_2d(PLANE.transpose(1, 0, 2), np.eye(3), (29, 17)), PLANE.transpose(1, 0, 2))


def test_more_threads_change_no_bit(two_threads: None) -> None:
    points = RANDOM.uniform(-3, 14, (4000, 3))
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append((warp_2d(PLANE, TO_PLANE, (23, 31), FIELD), sample_3d(VOLUME, TO_VOLUME, points)))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
