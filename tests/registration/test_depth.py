"""Depth from single planes: a planted offset, scale and tilt come out, whatever a few bad sections say."""

from __future__ import annotations

import numpy as np
import pytest

from histomri.core import Grid
from histomri.registration.depth import depth_correction, peak, section_depths
from histomri.registration.samples import Channels


def scattered(seed: int, n: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).uniform((0, -20, -30), (60, 25, 30), (n, 3))


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_z_shift_scale_and_tilt_come_out_despite_bad_sections(share: float) -> None:
    points = scattered(1)
    true = np.array([0.4, 0.012, -0.01, 0.006])
    depths = true[0] + points @ true[1:]
    random = np.random.default_rng(2)
    bad = random.random(len(points)) < share
    depths = np.where(bad, random.uniform(-3, 3, len(points)), depths + random.normal(scale=0.05, size=len(points)))
    change = depth_correction(points, depths)
    assert change is not None
    found = change[0, :3] @ points.T + change[0, 3] - points[:, 0]
    assert np.abs(found - (true[0] + points @ true[1:])).max() < 0.08
    assert np.array_equal(change[1:], np.eye(4)[1:]), "only depth may change"


def test_a_strain_that_few_quarters_cannot_tell_is_drawn_to_what_is_expected() -> None:
    """Four sections, 16 quarters, no strain: what noise says of it is halved by a prior as wide as the noise."""
    found = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        points = np.column_stack([np.repeat([0.5, 1.5, 2.5, 3.5], 4), random.uniform(-5, 5, (16, 2))])
        depths = 0.2 + random.normal(scale=0.4, size=16)
        fits = [depth_correction(points, depths, strain) for strain in ((0.0, np.inf), (0.0, 0.1), (0.03, 0.001))]
        found.append([fit[0, 0] - 1 for fit in fits if fit is not None])
    free, held, sure = np.array(found).T
    assert np.sqrt((held**2).mean()) < 0.7 * np.sqrt((free**2).mean())
    np.testing.assert_allclose(sure, 0.03, atol=0.002)


def test_a_strain_that_many_sections_show_is_believed() -> None:
    points = scattered(5)
    depths = points[:, 0] * -0.15 + np.random.default_rng(6).normal(scale=0.05, size=len(points))
    change = depth_correction(points, depths, (0.05, 0.1))
    assert change is not None
    assert change[0, 0] - 1 == pytest.approx(-0.15, abs=0.005)


def test_too_few_sections_change_nothing() -> None:
    points = scattered(3, 8)
    assert depth_correction(points, np.ones(8)) is None


def test_sections_in_one_plane_change_nothing() -> None:
    points = scattered(4)
    points[:, 0] = 3.0
    assert depth_correction(points, np.ones(len(points))) is None


@pytest.mark.parametrize("top", [-0.7, 0.0, 0.45])
def test_peak_of_a_parabola_is_exact(top: float) -> None:
    offsets = np.arange(-3, 4) * 0.5
    assert peak(offsets, 1 - (offsets - top) ** 2) == pytest.approx(top, abs=1e-9)


def test_best_plane_at_the_end_of_the_range_is_not_believed() -> None:
    offsets = np.arange(-3, 4) * 0.5
    assert np.isnan(peak(offsets, offsets))


def texture(z: float, n: int = 64) -> Channels:
    """Structure that turns into something else over a few mm of depth, on a square of tissue."""
    y, x = np.indices((n, n)) / n
    data = np.stack([np.cos(9 * y + 1.1 * z), np.sin(11 * x - 0.9 * z), np.cos(7 * (x + y) + 1.3 * z), np.ones((n, n))], axis=-1)
    return Channels(Grid((n, n), 0.5), data.astype(np.float32), np.ones((n, n), np.float32))


def test_z_shift_of_one_section_is_told_in_each_quarter() -> None:
    offsets = 0.25 * np.arange(-3, 4)
    found = section_depths(10.0, texture(10.2), texture, offsets)
    assert len(found) == 4
    assert [round(float(p[0]), 6) for p, _ in found] == [10.0] * 4
    assert np.allclose([d for _, d in found], 0.2, atol=0.03)


def test_section_without_tissue_says_nothing() -> None:
    empty = texture(0.0)
    empty.data[..., -1] = 0
    assert section_depths(0.0, empty, texture, 0.25 * np.arange(-3, 4)) == []
