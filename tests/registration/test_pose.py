"""Pose of a block in its MRI, from no initial guess: any rotation, one scale per axis, never a mirror image unasked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, apart, centred

from histomri.core import Grid, Image, RegistrationError
from histomri.registration.pose import (
    PoseResult,
    Scaled,
    _Correlation,
    at_spacing_3d,
    axis_prior,
    different,
    expected_strain,
    find_pose,
    possible,
    refine_given,
    refine_pose,
    search_orientations,
    super_fibonacci,
)

ROTATIONS = 300


def _truth(seed: int, mirrored: bool = False) -> np.ndarray:
    """Block to MRI: any rotation, the block shrunk to 0.8 to 0.95 along its own axes, the MRI somewhere else in the world."""
    random = np.random.default_rng(seed)
    hand = np.diag([1.0, 1.0, -1.0 if mirrored else 1.0])
    out = np.eye(4)
    out[:3, :3] = Rotation.random(random_state=seed).as_matrix() @ np.diag(1 / random.uniform(0.8, 0.95, 3)) @ hand
    out[:3, 3] = random.uniform(-8, 8, 3)
    return out


def _found(truth: np.ndarray, hands: tuple[bool, ...] = (False,), **part: Any) -> PoseResult:
    return find_pose(*_pair(truth, **part), hands, ROTATIONS, keep=2)


def _pair(
    truth: np.ndarray, symmetric: bool = False, planes: slice = slice(None), columns: int = 28, seen: slice = slice(0, 32)
) -> tuple[Scaled, Scaled]:
    """The block with room along the cutting axis, or a part of it, and its MRI, or what an MRI has ``seen``, contrast inverted."""
    tissue = Tissue(3, 7, symmetric)
    shape = np.array([72, 28, 28])
    grid = Grid(tuple(shape), np.full(3, 0.42), -(shape - 1) / 2 * 0.42)
    cut = grid.crop((planes.start or 0, 0, 0), (planes.stop or 72, 28, columns))
    block = tissue.image(cut)
    whole = Grid((32, 32, 32), np.full(3, 0.46), truth[:3, 3] - 0.46 * 15.5)
    mri = tissue.image(whole.crop((0, 0, seen.start), (32, 32, seen.stop)), np.linalg.inv(truth), inverted=True)
    return Scaled(*block), Scaled(*mri)


@pytest.mark.parametrize("seed", [0])
def test_any_rotation_and_shrinkage_is_found_and_sure(seed: int) -> None:
    truth = _truth(seed)
    result = _found(truth)
    assert apart(result.best.block_to_mri, truth) < 0.15
    assert not result.best.mirrored
    assert result.confidence > 0.95
    assert result.best.dice > 0.93


def test_a_slab_is_compared_over_its_planes_alone() -> None:
    """All shifts against the formula; the plain product, which the brightest place wins, is led astray."""
    random = np.random.default_rng(0)
    moving = random.random((2, 10, 10, 10)).astype(np.float32)
    moving[:, 7:] += 2
    slab, half = np.zeros((2, 10, 10, 10), np.float32)
    slab[2:6] = half[2:6, :5] = 1
    for known in (slab, half):
        fixed = (moving + random.normal(scale=0.02, size=moving.shape).astype(np.float32)) * known
        surface = _Correlation(fixed, (None, slab, known)).surfaces(moving)[-1]
        assert np.unravel_index(surface.argmax(), surface.shape) == (0, 0, 0)
        np.testing.assert_array_equal(_Correlation(fixed, (known,)).surfaces(moving)[0], surface)
        assert np.argmax([(moving * np.roll(fixed, s, axis=1)).sum() for s in range(10)]) != 0
        for shift in [(0, 0, 0), (3, 1, 9), (7, 4, 2)]:
            moved = np.roll(moving, [-s for s in shift], axis=(1, 2, 3)) * known
            expected = (moved * fixed).sum() / np.linalg.norm(moved) / np.linalg.norm(fixed)
            np.testing.assert_allclose(surface[shift], expected, atol=1e-5)


def test_a_slab_out_of_a_specimen_is_found() -> None:
    """Its first and last planes are no surface of the specimen."""
    truth = _truth(4)
    assert apart(_found(truth, planes=slice(31, 40)).best.block_to_mri, truth) < 0.6


@pytest.mark.parametrize("seed", [4, 7])
def test_half_of_a_specimen_is_sought_by_its_tissue(seed: int) -> None:
    """As a hemisphere in the MRI of the whole brain: where all of the MRI counts, the best start is 4 to 6 mm off."""
    truth = _truth(seed)
    half = _pair(truth, planes=slice(24, 48), columns=14)
    best = {name: search_orientations(*half, 0.45, (False,), 600, 1, (name,))[0] for name in ("all", "tissue")}
    assert apart(best["tissue"], truth) < 1.5 < 3.5 < apart(best["all"], truth)


def test_an_mri_that_misses_a_part_of_the_specimen_is_found_or_in_doubt() -> None:
    """As an MRI whose field of view is too small: most of the specimen is enough, half of it is not, and that is said."""
    truth = _truth(4)
    most, half = (_found(truth, seen=slice(4, end)) for end in (26, 20))
    assert apart(most.best.block_to_mri, truth) < 0.15
    assert most.confidence > 0.95
    assert half.confidence < 0.75


def test_a_mirror_image_is_found_only_where_it_is_allowed() -> None:
    truth = _truth(2, mirrored=True)
    allowed, refused = _found(truth, (False, True)), _found(truth)
    assert allowed.best.mirrored
    assert apart(allowed.best.block_to_mri, truth) < 0.15
    assert allowed.confidence > 0.9
    # the mirror image that may not be taken is tried all the same, and fits better: a reason to doubt what is left
    assert not refused.best.mirrored
    assert any(c.mirrored for c in refused.candidates[1:])
    assert refused.confidence < 0.1
    assert refused.best.quality < allowed.best.quality - 0.3


def test_a_symmetric_specimen_leaves_doubt() -> None:
    assert _found(_truth(3), symmetric=True).confidence < 0.75


@pytest.mark.parametrize("turn", [(0, 0, 0), (180, 0, 0), (0, 180, 0), (0, 0, 180)])
def test_a_given_pose_decides_where_several_fit_alike(turn: tuple[float, float, float]) -> None:
    """An even ellipsoid lies as well after a half turn about any of its axes; the one that is given is refined and kept."""
    truth = _truth(3)
    other = truth.copy()
    other[:3, :3] = truth[:3, :3] @ Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    rough = other.copy()
    rough[:3, :3] = other[:3, :3] @ Rotation.from_euler("xyz", (4, -3, 5), degrees=True).as_matrix()
    rough[:3, 3] += [0.3, -0.2, 0.3]
    stack, mri = _pair(truth, symmetric=True)
    result = refine_given(stack, mri, rough)
    assert result.confidence == 1
    assert not different(result.best.block_to_mri, other, stack.mask)
    assert result.best.dice > 0.93


def test_a_pose_that_is_to_be_kept_is_kept_to_the_last_bit() -> None:
    rough = _truth(3) + 1e-3
    rough[3] = [0, 0, 0, 1]
    result = refine_given(*_pair(_truth(3)), rough, keep=True)
    np.testing.assert_array_equal(result.best.block_to_mri, rough)


def test_a_given_pose_that_is_wrong_is_not_left_for_another() -> None:
    truth = _truth(0)
    wrong = truth.copy()
    wrong[:3, :3] = truth[:3, :3] @ Rotation.from_euler("xyz", (0, 90, 0), degrees=True).as_matrix()
    stack, mri = _pair(truth)
    assert not different(refine_given(stack, mri, wrong).best.block_to_mri, wrong, stack.mask)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_the_slope_of_the_axis_prior_is_that_of_its_value(scale: float) -> None:
    rng = np.random.default_rng(3)
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([scale, 1.1, 1.2]) + rng.normal(scale=0.05, size=(3, 3))
    prior, step = axis_prior(matrix, 0.7), np.eye(4)
    value, slope, curve = prior(step)
    for i in range(12):
        nudged = step.copy()
        nudged[:3].ravel()[i] += 1e-6
        # half of the derivative, as the sums of the images give it
        assert slope[i] == pytest.approx(0.5 * (prior(nudged)[0] - value) / 1e-6, abs=2e-4 * max(1.0, abs(slope).max()))
    np.testing.assert_allclose(curve * value, np.outer(slope, slope), rtol=1e-9, atol=1e-12)


def test_an_axis_between_its_own_scale_and_that_of_the_plane_is_expected() -> None:
    def weighted(along: float) -> float:
        return axis_prior(np.diag([along, 1.21, 1.21, 1.0]), 1.0)(np.eye(4))[0]

    assert weighted(1.1) == pytest.approx(0, abs=1e-12)
    assert weighted(1.0) == pytest.approx(weighted(1.21), rel=1e-9)
    assert weighted(0.7) > 9 > weighted(0.9)
    # the same in the words of the depths
    strain, spread = expected_strain(np.diag([0.88, 1.21, 1.21, 1.0]))
    assert 0.88 * (1 + strain) == pytest.approx(1.1)
    assert spread == pytest.approx(0.1)


def test_few_sections_do_not_let_the_scale_along_the_axis_run_away() -> None:
    """Three planes alike say nothing of their distances: without a prior whatever noise says is believed."""
    grid = Grid((9, 24, 24), np.ones(3), np.array([-4.0, -11.5, -11.5]))
    z, y, x = grid.points().transpose(3, 0, 1, 2)
    inside = (y**2 + x**2 < 90) & (abs(z) < 3.5)
    column = (1 + 0.5 * np.cos(y) * np.sin(0.8 * x)) * inside
    noise = np.random.default_rng(2).normal(scale=0.08, size=column.shape) * inside
    stack = Image(grid, (column + noise).astype(np.float32)), Image(grid, inside)
    mri = Scaled(Image(grid, column.astype(np.float32)), Image(grid, inside))
    start = np.diag([0.85, 1.0, 1.0, 1.0])
    found = [refine_pose(Scaled(*stack, sections), mri, start, (1.0,), ("affine",)) for sections in (None, 1)]
    along = [float(np.linalg.norm(c.block_to_mri[:3, 0])) for c in found if c is not None]
    assert abs(along[1] - 1) < abs(along[0] - 1)
    assert abs(along[1] - 1) < 0.1


def test_no_tissue_is_an_error_in_words() -> None:
    grid = centred(8, 1.0, 3)
    nothing = Scaled(Image(grid, np.zeros(grid.shape, np.float32)), Image(grid, np.zeros(grid.shape, bool)))
    with pytest.raises(RegistrationError, match="one of the masks is empty"):
        find_pose(nothing, nothing)


def test_rotations_cover_all_orientations_evenly() -> None:
    turns = super_fibonacci(2000)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    for other in Rotation.random(50, random_state=0).as_matrix():
        cosine = (np.einsum("nij,ij->n", turns, other).max() - 1) / 2
        assert np.degrees(np.arccos(min(cosine, 1.0))) < 20


def test_impossible_scales_are_refused() -> None:
    """The matrix takes the block to the MRI, so a shrunk block has scales above 1."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.random(random_state=1).as_matrix()
    assert possible(turn @ np.diag([1.1, 1.3, 1.2, 1]))
    assert not possible(turn @ np.diag([1.1, 2.5, 1.2, 1]))
    assert not possible(turn @ np.diag([1.1, 0.3, 1.2, 1]))
    assert not possible(turn @ np.diag([1.1, 0.0, 1.2, 1]))


def test_poses_differ_by_where_they_put_tissue() -> None:
    _, mask = Tissue(3).image(centred(24, 0.5, 3))
    small, large = np.eye(4), np.eye(4)
    small[:3, 3], large[:3, 3] = 0.3, 2.0
    assert not different(np.eye(4), small, mask)
    assert different(np.eye(4), large, mask)


def test_coarser_volumes_keep_their_place() -> None:
    grid = Grid((40, 44, 48), np.array([0.3, 0.2, 0.25]), np.array([1.0, -2.0, 3.0]), Rotation.random(random_state=4).as_matrix())
    centre = grid.centre_mm + np.array([0.3, -0.2, 0.4])
    blob = np.exp(-((grid.points() - centre) ** 2).sum(axis=-1) / 2).astype(np.float32)
    image, mask = at_spacing_3d(Image(grid, blob), Image(grid, blob > 0.4), 0.6)
    where = (image.grid.points() * image.data[..., None]).sum(axis=(0, 1, 2)) / image.data.sum()
    np.testing.assert_allclose(where, centre, atol=0.02)
    assert mask.data.sum() * 0.6**3 == pytest.approx((blob > 0.4).sum() * 0.015, rel=0.1)


def test_an_image_is_resampled_once_for_each_spacing() -> None:
    grid = centred(12, 0.5, 3)
    scaled = Scaled(*Tissue(3).image(grid))
    assert scaled.at(0.8)[0] is scaled.at(0.8)[0]
    assert scaled.at(0.8)[0].grid.shape != scaled.at(1.1)[0].grid.shape
