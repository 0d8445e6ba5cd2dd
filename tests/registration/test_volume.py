"""The coarse block volume: every section stands for its share of the depth, and none twice."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import centred, rigid

from histomri.core import Grid, Image
from histomri.registration.volume import (
    SectionPixels,
    block_grid,
    field_pixels,
    on_plane,
    plane_grid,
    reconstruct,
    slabs,
    stain_tones,
)
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement

GRID = Grid((31, 20, 20), np.array([0.25, 0.5, 0.5]), np.array([-1.0, -4.75, -4.75]))


@pytest.mark.parametrize("positions", [[0.0, 1.0, 2.0, 3.0], [3.0, 0.2, 0.9, 4.4], [0.13, 0.88, 1.9]])
def test_shares_sum_to_the_whole_depth_between_the_outer_sections(positions: list[float]) -> None:
    shares = slabs(np.array(positions), GRID, max_gap_mm=10.0)
    total, z = np.sum(shares, axis=0), GRID.origin_mm[0] + 0.25 * np.arange(31)
    inner = (z - 0.125 > min(positions)) & (z + 0.125 < max(positions))
    np.testing.assert_allclose(total[inner], 1.0, atol=1e-12)
    assert total.max() < 1 + 1e-12
    assert inner.sum() > 5
    for position, share in zip(positions, shares, strict=True):
        assert share[np.argmin(abs(z - position))] > 0, "a section stands for its own plane first"


def test_a_gap_that_is_too_wide_stays_empty() -> None:
    shares = slabs(np.array([0.0, 5.0]), GRID, max_gap_mm=1.0)
    z = GRID.origin_mm[0] + 0.25 * np.arange(31)
    assert [round(float(s.sum()) * 0.25, 6) for s in shares] == [1.0, 1.0]
    assert not np.sum(shares, axis=0)[(z > 0.7) & (z < 4.3)].any()


def test_one_section_alone_stands_for_the_gap_that_is_allowed() -> None:
    (share,) = slabs(np.array([1.0]), GRID, max_gap_mm=0.5)
    assert share.sum() * 0.25 == pytest.approx(0.5)


def _section(level: float, stain: str = "a", matrix: np.ndarray | None = None) -> SectionPixels:
    """An even disc, as it lies on its slide when ``matrix`` takes the block to it."""
    grid = centred(80, 0.2)
    points = (grid.points() - (0 if matrix is None else matrix[:2, 2])) @ np.linalg.inv(
        np.eye(2) if matrix is None else matrix[:2, :2]
    ).T
    mask = ((points - [0.5, -0.5]) ** 2).sum(axis=-1) < 3.0**2
    return SectionPixels(Image(grid, (mask * level).astype(np.float32)), Image(grid, mask), stain)


def _placed(name: str, z: float, matrix: np.ndarray | None = None) -> Placement:
    return Placement(name, z, Affine(np.eye(3) if matrix is None else matrix))


def test_stains_of_other_strength_do_not_stripe_the_volume() -> None:
    turn = rigid(70, True, (1.0, 0.4))
    pixels = {"p": _section(1.0), "q": _section(7.0, matrix=turn), "r": _section(2.0), "other": _section(50.0, "b")}
    placements = {"p": _placed("p", 0.0), "q": _placed("q", 1.0, turn), "r": _placed("r", 2.0), "other": _placed("other", 1.5)}
    image, mask = reconstruct(pixels, placements, GRID, max_gap_mm=2.0)
    inner = np.hypot(*(plane_grid(GRID).points() - [0.5, -0.5]).transpose(2, 0, 1)) < 2.4
    z = GRID.origin_mm[0] + 0.25 * np.arange(31)
    between = (z > 0) & (z < 2)
    np.testing.assert_allclose(image.data[between][:, inner], 1.0, atol=0.02)
    assert mask.data[between][:, inner].all()
    assert not mask.data[z > 3.5].any()
    outside = np.hypot(*(plane_grid(GRID).points() - [0.5, -0.5]).transpose(2, 0, 1)) > 3.7
    assert not mask.data[:, outside].any()


def _rings(stain: str, tone: np.ndarray | None) -> SectionPixels:
    """Four rings of tissue, each with its tone; noise where there is none."""
    grid = centred(80, 0.2)
    radius = np.hypot(*grid.points().transpose(2, 0, 1))
    shown = np.random.default_rng(5).random(radius.shape) if tone is None else tone[np.minimum(radius, 3.99).astype(int)]
    return SectionPixels(Image(grid, (shown * (radius < 4)).astype(np.float32)), Image(grid, radius < 4), stain)


LIGHT_TO_DARK = np.array([2.0, 1.5, 1.0, 0.5])
FINE = Grid((31, 72, 72), np.array([0.25, 0.125, 0.125]), np.array([-1.0, -4.4375, -4.4375]))


def test_stains_of_other_contrast_do_not_turn_the_volume_inside_out() -> None:
    """The second stain shows the rings with another order of tones; its planes must look like those of the leading one."""
    other = np.array([0.3, 2.0, 0.9, 1.4])
    pixels = {"p": _rings("a", LIGHT_TO_DARK), "x": _rings("b", other), "q": _rings("a", LIGHT_TO_DARK)}
    placements = {"p": _placed("p", 0.0), "x": _placed("x", 1.0), "q": _placed("q", 2.0)}
    image, _ = reconstruct(pixels, placements, FINE, max_gap_mm=4.0)
    z = FINE.origin_mm[0] + 0.25 * np.arange(31)
    radius = np.hypot(*plane_grid(FINE).points().transpose(2, 0, 1))
    # between two rings a pixel has a tone that means another ring
    inner = (radius < 3.8) & (abs(radius % 1 - 0.5) < 0.3)
    own, second = (image.data[int(np.argmin(abs(z - at)))][inner] for at in (0.0, 1.0))
    assert np.corrcoef(own, second)[0, 1] > 0.97


def test_a_marker_that_says_nothing_of_the_tissue_is_in_the_mask_alone() -> None:
    pixels = {"p": _rings("a", LIGHT_TO_DARK), "x": _rings("marker", None), "q": _rings("a", LIGHT_TO_DARK)}
    placements = {"p": _placed("p", 0.0), "x": _placed("x", 1.0), "q": _placed("q", 2.0)}
    assert list(stain_tones(pixels, placements, plane_grid(FINE), 4.0)) == ["a"]
    without = reconstruct({k: pixels[k] for k in "pq"}, {k: placements[k] for k in "pq"}, FINE, max_gap_mm=4.0)[0]
    np.testing.assert_array_equal(reconstruct(pixels, placements, FINE, max_gap_mm=4.0)[0].data, without.data)


def test_a_stain_too_far_from_the_leading_one_is_not_guessed() -> None:
    pixels = {"p": _rings("a", LIGHT_TO_DARK), "q": _rings("a", LIGHT_TO_DARK), "x": _rings("b", LIGHT_TO_DARK)}
    placements = {"p": _placed("p", 0.0), "q": _placed("q", 1.0), "x": _placed("x", 5.0)}
    assert list(stain_tones(pixels, placements, plane_grid(FINE), 2.0)) == ["a"]
    assert list(stain_tones(pixels, placements, plane_grid(FINE), 4.5)) == ["a", "b"]


def test_sections_without_a_place_or_without_pixels_are_left_out() -> None:
    placements = {"p": _placed("p", 0.0), "lost": Placement("lost", 0.5, None), "gone": _placed("gone", 1.0)}
    image, _ = reconstruct({"p": _section(1.0), "lost": _section(9.0)}, placements, GRID, max_gap_mm=2.0)
    assert image.data.max() == pytest.approx(1.0, abs=0.02)
    with pytest.raises(ValueError, match="lost"):
        on_plane(_section(1.0), placements["lost"], plane_grid(GRID))


def test_block_grid_holds_the_tissue_where_it_is_placed() -> None:
    turn = rigid(140, True, (20.0, -30.0))
    pixels = {"p": _section(1.0), "q": _section(1.0)}
    grid = block_grid(pixels, {"p": _placed("p", 0.0), "q": _placed("q", 2.0)}, 0.25)
    low, high = grid.origin_mm, grid.to_world(np.array(grid.shape) - 1)
    assert (low < [0, -2.5, -3.5]).all() and (high > [2, 3.5, 2.5]).all()
    assert (low > [-2, -4.5, -5.5]).all() and (high < [4, 5.5, 4.5]).all()
    moved = block_grid(pixels, {"p": _placed("p", 0.0, turn)}, 0.25)
    tissue = np.linalg.inv(turn) @ [0.5, -0.5, 1]
    np.testing.assert_allclose(moved.centre_mm[1:], tissue[:2], atol=1.0)
    with pytest.raises(ValueError, match="No placed section"):
        block_grid(pixels, {"p": Placement("p", 0.0, None)}, 0.25)


def test_a_field_on_another_grid_keeps_its_millimetres() -> None:
    grid = centred(9, 1.0)
    field = DisplacementField(grid, np.broadcast_to([0.3, -0.6], (9, 9, 2)).copy())
    fine = centred(20, 0.2)
    assert field_pixels(None, fine) is None
    np.testing.assert_allclose(field_pixels(field, fine), np.broadcast_to([1.5, -3.0], (20, 20, 2)), rtol=1e-6)
    bent = Placement("p", 0.0, Affine(np.eye(3)), field)
    straight = Placement("p", 0.0, Affine(np.array([[1, 0, 0.3], [0, 1, -0.6], [0, 0, 1]])))
    np.testing.assert_allclose(on_plane(_section(1.0), bent, fine), on_plane(_section(1.0), straight, fine), atol=1e-5)
