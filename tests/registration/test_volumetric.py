"""Volumes: any contrast, any orientation, no folds; what cannot be registered is said to have failed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, apart, centred

from histomri.core import Grid, Image, RegistrationError
from histomri.kernels.folding import least_jacobian
from histomri.kernels.interpolate import warp
from histomri.registration import volumetric
from histomri.registration.alignment import Guide, View
from histomri.registration.mending import unfolded
from histomri.registration.recolouring import conditional_mean
from histomri.registration.volumetric import (
    DEFAULTS,
    MIN_JACOBIAN,
    MIRROR_LEAD,
    Level,
    Nodes,
    Soft,
    Step,
    advance,
    deform,
    detailed,
    find_start,
    finest_spacing,
    foreground,
    loosened,
    make_level,
    matching,
    mirror_lead,
    register_volumes,
    stiffened,
)
from histomri.transforms import Affine, DisplacementField

TISSUE = Tissue(3)
GRID = centred(46, 0.26, 3)
RANDOM = np.random.default_rng(3)
QUICK = replace(DEFAULTS, factors=(4, 2, 1), nodes=(1, 1, 2), window=(1.5, 1.5, 2.0), stiffness=(1.5, 1.5, 2.0))
QUICK = replace(QUICK, iterations=(15, 12, 8), local=(2.0, 2.0, 2.5))


def _bend(points: np.ndarray) -> np.ndarray:
    """A smooth field of about 0.35 mm rms."""
    z, y, x = np.moveaxis(points, -1, 0)
    parts = [np.sin(0.6 * y + 0.4) * np.cos(0.5 * x), np.cos(0.6 * z - 0.3) * np.sin(0.5 * x + 1), np.sin(0.5 * z + 0.5 * y)]
    return 0.4 * np.stack(parts, axis=-1)


def _view(points: np.ndarray, grid: Grid, contrast: str = "plain") -> View:
    """The tissue at ``points`` (*grid.shape, 3) as a volume on a grid, with a background of 0."""
    inside = TISSUE.inside(points)
    value = 1.5 + 0.5 * np.clip(TISSUE.texture(points), -2, 2)
    value = {"plain": value, "inverted": 3.2 - value, "mapped": 1 + 2 * (value - 1.5) ** 2 + value / 4}[contrast]
    return View(Image(grid, np.where(inside, value, 0).astype(np.float32)), Image(grid, inside))


@pytest.fixture(scope="module")
def fixed() -> View:
    return _view(GRID.points() + _bend(GRID.points()), GRID)


@pytest.fixture(scope="module")
def moving() -> View:
    return _view(GRID.points(), GRID)


def _error(field_values: np.ndarray, grid: Grid, mask: View) -> np.ndarray:
    inner = ndimage.binary_erosion(mask.mask.data, iterations=2)
    points = GRID.points()[inner]
    at = np.moveaxis(grid.to_index(points), -1, 0)
    found = np.stack([ndimage.map_coordinates(field_values[..., k], at, order=1, mode="nearest") for k in range(3)], axis=-1)
    return np.linalg.norm(found - _bend(points), axis=-1)


@pytest.mark.parametrize("contrast", ["plain", "inverted", "mapped"])
def test_a_smooth_field_is_found_in_any_contrast(contrast: str, fixed: View) -> None:
    moving = _view(GRID.points(), GRID, contrast)
    field, _, _ = deform(Soft.of(fixed), Soft.of(moving), np.eye(4), QUICK)
    error = _error(field.values, field.grid, fixed)
    true = np.linalg.norm(_bend(GRID.points()[fixed.mask.data]), axis=-1)
    assert true.mean() > 0.35, "there must be something to find"
    assert np.median(error) < (0.09 if contrast == "mapped" else 0.06)
    assert np.percentile(error, 95) < 0.25
    assert field.jacobian_determinant().min() > MIN_JACOBIAN / 2


def test_axes_that_run_backwards_and_spacings_that_differ_change_nothing(fixed: View, moving: View) -> None:
    """The field is in world mm, whatever way the fixed grid's axes run."""
    flipped = Grid(GRID.shape, GRID.spacing_mm, GRID.to_world([0, 0, GRID.shape[2] - 1]), np.diag([1.0, 1.0, -1.0]))
    turned = View(Image(flipped, fixed.image.data[..., ::-1]), Image(flipped, fixed.mask.data[..., ::-1]))
    thick = Grid((23, 46, 46), np.array([0.52, 0.26, 0.26]), GRID.origin_mm + np.array([0.13, 0, 0]))
    slabs = _view(thick.points(), thick)
    assert finest_spacing(Soft.of(turned), Soft.of(slabs), np.eye(4), 1e9) == pytest.approx(0.26 * 2 ** (1 / 3))
    field, _, _ = deform(Soft.of(turned), Soft.of(slabs), np.eye(4), QUICK)
    points = GRID.points()[ndimage.binary_erosion(fixed.mask.data, iterations=2)]
    error = np.linalg.norm(field.at(points) - _bend(points), axis=-1)
    assert np.median(error) < 0.1


@pytest.mark.parametrize("case", ["noise", "swapped", "loose"])
def test_it_never_folds_whatever_it_is_given(case: str, fixed: View, moving: View) -> None:
    settings = replace(QUICK, iterations=(6, 6, 4))
    if case == "noise":
        moving = View(moving.image.with_data(RANDOM.normal(size=GRID.shape).astype(np.float32)), moving.mask)
    elif case == "swapped":
        moving = View(*(i.with_data(np.ascontiguousarray(i.data[::-1, ::-1])) for i in (moving.image, moving.mask)))
    else:
        settings = replace(settings, window=(0.5,) * 3, stiffness=(0.0,) * 3, ridge=1e-4)
    field, _, _ = deform(Soft.of(fixed), Soft.of(moving), np.eye(4), settings)
    assert np.isfinite(field.values).all()
    assert field.jacobian_determinant().min() > 0


def test_an_update_that_would_fold_does_not() -> None:
    still = np.zeros((12, 12, 12, 3), np.float32)
    wild = still.copy()
    wild[6:, ..., 0] = -6.0
    for update in (wild, (RANDOM.normal(size=still.shape) * 3).astype(np.float32)):
        moved = advance(still, update, Step(1, 1.0, 0.0, 1))
        assert least_jacobian(moved) >= MIN_JACOBIAN


def test_one_bad_place_does_not_keep_the_rest_from_moving() -> None:
    """Two nodes thrown over each other: only what is near them is mended."""
    still = np.zeros((24, 24, 24, 3), np.float32)
    update = still.copy()
    update[..., 1] = 0.5
    update[4, 4, 4, 2], update[4, 4, 5, 2] = 1.5, -1.5
    moved = advance(still, update, Step(1, 1.0, 0.0, 1))
    assert least_jacobian(moved) >= MIN_JACOBIAN
    np.testing.assert_allclose(moved[14:], update[14:], atol=1e-5)
    assert (moved[..., 1] > 0.2).all(), "the rest of the update is kept even there"


def test_a_folded_field_is_smoothed_where_it_folds_and_nowhere_else() -> None:
    rough = np.zeros((24, 24, 24, 3), np.float32)
    rough[:8] = RANDOM.normal(size=rough[:8].shape) * 0.8
    rough[16:] = RANDOM.normal(size=rough[16:].shape) * 0.02
    smooth = unfolded(rough, MIN_JACOBIAN)
    assert smooth is not None and least_jacobian(smooth) >= MIN_JACOBIAN
    np.testing.assert_array_equal(smooth[18:], rough[18:])


def test_stiffness_leaves_bends_alone_and_takes_jags_away() -> None:
    z = np.arange(40, dtype=np.float32)
    bend = np.zeros((40, 8, 8, 3), np.float32)
    bend[..., 0] = (0.01 * (z - 20) ** 2)[:, None, None]
    np.testing.assert_allclose(stiffened(bend, 2.0)[14:26], bend[14:26], atol=2e-3)
    jags = np.zeros_like(bend)
    jags[::2, ..., 0] = 1.0
    assert np.ptp(stiffened(jags, 2.0)[10:30, 4, 4, 0]) < 0.01


def test_a_field_on_coarse_nodes_says_the_same_as_written_out() -> None:
    grid = Grid((9, 10, 11), np.full(3, 0.5), np.array([1.0, -2.0, 3.0]), np.diag([1.0, -1.0, 1.0]))
    nodes = Nodes(grid.downsample(2), RANDOM.normal(size=(5, 5, 6, 3)).astype(np.float32) * 0.4)
    image = RANDOM.random((*grid.shape, 2)).astype(np.float32)
    dense, coarse = (warp(image, np.eye(4), grid.shape, f) for f in (nodes.on(grid), nodes.coarse_for(grid)))
    np.testing.assert_allclose(dense, coarse, atol=1e-4)
    assert np.abs(dense - image).max() > 0.1


def test_the_function_is_taken_in_the_direction_that_loses_nothing() -> None:
    """Two intensities that look alike in one image cannot be told apart in it: the other one is recoloured."""
    one = RANDOM.random((16, 16, 16)).astype(np.float32)
    two = (one - 0.5) ** 2
    assert conditional_mean(one.ravel(), two.ravel()).ratio > 0.98 > conditional_mean(two.ravel(), one.ravel()).ratio
    same, curve = matching(two.ravel(), one.ravel())
    assert same is None and curve is not None
    np.testing.assert_allclose(curve.apply(one), two, atol=0.04)
    curve, same = matching(one.ravel(), two.ravel())
    assert same is None and curve is not None
    np.testing.assert_allclose(curve.apply(one), two, atol=0.04)


def _wiggled(other: str) -> tuple[Level, np.ndarray]:
    """A level on which finer detail or noise is left, and no displacement on its nodes, two voxels apart."""
    points = GRID.points()
    wiggle = 0.3 * np.sin(4.0 * np.roll(points, 1, axis=-1)) if other == "another anatomy" else 0.0
    one, two = (Soft.of(_view(p, GRID)) for p in (points + wiggle, points))
    if other == "noise":
        spoilt = one.data.copy()
        spoilt[..., 0] += 0.1 * RANDOM.normal(size=spoilt.shape[:3]) * spoilt[..., 1]
        one = Soft(one.grid, spoilt)
    level = make_level(one.data, two.on(one.grid, np.eye(4)), one.grid, None, 4.0)
    return level, np.zeros((*one.grid.downsample(2).shape, 3), np.float32)


@pytest.mark.parametrize("other", ["another anatomy", "noise"])
def test_finer_detail_is_kept_where_the_anatomy_differs_and_not_where_noise_does(other: str) -> None:
    level, still = _wiggled(other)
    found = loosened(level, still, Step(2, 4.0, 4.0, 8), DEFAULTS)
    assert (found is still) == (other == "noise")


def test_detail_finer_than_two_voxels_is_followed_where_the_anatomy_differs() -> None:
    level, still = _wiggled("another anatomy")
    step, begun = Step(2, 4.0, 4.0, 8), Nodes.of(still, level, 2)
    coarse, dense = (detailed(level, begun, step, replace(DEFAULTS, dense_iterations=n)) for n in (0, 3))
    assert dense.grid == level.grid
    fields = [np.asarray(n.values / level.grid.spacing_mm, np.float32) for n in (coarse, dense)]
    costs = [volumetric._cost(level, f, 1) for f in fields]
    assert costs[1] < 0.9 * costs[0]
    assert least_jacobian(fields[1]) >= 0.99 * MIN_JACOBIAN
    level, still = _wiggled("noise")
    begun = Nodes.of(still, level, 2)
    assert detailed(level, begun, step, DEFAULTS) is begun


def test_slabs_of_a_step_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = RANDOM.random((21, 9, 8, 10)).astype(np.float32)
    whole = volumetric._update(terms, Step(2, 4.0, 4.0, 8), 0.01)
    monkeypatch.setattr(volumetric, "SLAB", 5)
    np.testing.assert_array_equal(volumetric._update(terms, Step(2, 4.0, 4.0, 8), 0.01), whole)


def test_the_smaller_volume_is_a_part_of_the_larger_either_way(moving: View) -> None:
    """A half, turned: as the fixed and as the moving volume."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(60) * np.array([0.6, -0.64, 0.48])).as_matrix()
    back = np.linalg.inv(matrix)
    whole = _view(GRID.points() @ back[:3, :3].T, GRID)
    kept = moving.mask.data & (GRID.points()[..., 0] > 0)
    half = View(moving.image.with_data(np.where(kept, moving.image.data, 0).astype(np.float32)), moving.mask.with_data(kept))
    assert apart(find_start(half, whole, Guide()).matrix, matrix) < 0.4
    assert apart(find_start(whole, half, Guide()).matrix, back) < 0.4


def test_tissue_is_found_where_no_mask_says_where_it_is(moving: View) -> None:
    everywhere = moving.mask.with_data(np.ones(GRID.shape, bool))
    np.testing.assert_array_equal(foreground(View(moving.image, everywhere)), moving.mask.data)
    noisy = moving.image.with_data(moving.image.data + RANDOM.normal(size=GRID.shape).astype(np.float32) * 0.05)
    found = foreground(View(noisy, everywhere))
    assert (found ^ moving.mask.data).sum() < 0.02 * moving.mask.data.sum()
    half = moving.mask.data & (GRID.points()[..., 0] > 0)
    np.testing.assert_array_equal(foreground(View(moving.image, moving.mask.with_data(half))), half)


def test_an_empty_mask_is_refused(fixed: View, moving: View) -> None:
    empty = View(moving.image, moving.mask.with_data(np.zeros(GRID.shape, bool)))
    with pytest.raises(RegistrationError, match="mask is empty"):
        register_volumes(fixed, empty, Guide(search=False), settings=QUICK)


def test_any_orientation_and_size_is_found(moving: View) -> None:
    """Turned by more than a right angle about an oblique axis, moved, and twice as large; the moving volume is also inverted."""
    matrix = np.eye(4)
    matrix[:3, :3] = 2.0 * Rotation.from_rotvec(np.radians(140) * np.array([0.6, -0.64, 0.48])).as_matrix()
    matrix[:3, 3] = [5.0, -8.0, 3.0]
    there = Grid((50, 50, 50), np.full(3, 0.52), np.full(3, -24.5 * 0.52) + matrix[:3, 3])
    back = np.linalg.inv(matrix)
    turned = _view(there.points() @ back[:3, :3].T + back[:3, 3], there, "inverted")
    found = find_start(moving, turned, Guide())
    assert apart(found.matrix, matrix) < 0.2


def test_landmarks_alone_give_the_start_and_without_a_search_the_images_stay_as_they_lie(moving: View) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([0.0, 0.0, 2.5]).as_matrix()
    back = np.linalg.inv(matrix)
    turned = _view(GRID.points() @ back[:3, :3].T, GRID)
    here = RANDOM.uniform(-3, 3, (6, 3))
    guide = Guide(landmarks=(here, here @ matrix[:3, :3].T + RANDOM.normal(size=(6, 3)) * 0.1))
    assert apart(find_start(moving, turned, guide).matrix, matrix) < 0.15
    assert apart(find_start(moving, turned, Guide(search=False)).matrix, matrix) > 2
    with pytest.raises(RegistrationError, match="mirror image"):
        find_start(moving, turned, Guide(landmarks=(here, here * np.array([1, 1, -1]))))


def test_the_whole_registration_says_how_it_ended(fixed: View, moving: View) -> None:
    found = register_volumes(fixed, moving, Guide(search=False), settings=QUICK)
    points = GRID.points()[ndimage.binary_erosion(fixed.mask.data, iterations=2)]
    error = np.linalg.norm(found.transform.map(points) - points - _bend(points), axis=-1)
    assert np.median(error) < 0.06
    assert found.status in ("converged", "stopped")
    assert found.after < found.before < 0
    noise = View(moving.image.with_data(RANDOM.normal(size=GRID.shape).astype(np.float32)), moving.mask)
    assert register_volumes(fixed, noise, Guide(search=False), settings=QUICK).status == "failed"


def test_a_deformation_that_spoils_a_right_affine_is_left_out(fixed: View, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = DisplacementField(GRID, np.broadcast_to(np.float32([0.6, -0.6, 0.6]), (*GRID.shape, 3)))
    monkeypatch.setattr(volumetric, "deform", lambda *a, **k: (spoilt, "converged", [1.0, 0.5]))
    found = register_volumes(fixed, fixed, Guide(search=False), settings=QUICK)
    assert isinstance(found.transform, Affine) and "left out" in found.reason and found.status == "converged"
    assert np.abs(found.transform.matrix - np.eye(4)).max() < 0.01


@pytest.mark.usefixtures("two_threads")
def test_more_threads_change_no_bit(fixed: View, moving: View) -> None:
    found = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        found.append(deform(Soft.of(fixed), Soft.of(moving), np.eye(4), replace(QUICK, iterations=(3, 3, 3)))[0].values)
    np.testing.assert_array_equal(*found)


def _exchanged(view: View) -> View:
    """Left for right."""
    return View(*(v.with_data(v.data[..., ::-1].copy()) for v in (view.image, view.mask)))


def test_a_mirror_image_is_told_from_the_volume_itself(moving: View) -> None:
    """Left and right exchanged in a file: the best proper pose still looks like something, the mirrored one far more."""
    exchanged = _exchanged(moving)
    assert mirror_lead(moving, moving, np.eye(4)) < 0
    assert mirror_lead(moving, exchanged, np.eye(4)) > MIRROR_LEAD


def test_a_mirrored_volume_is_never_registered_in_silence(moving: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumetric, "find_start", lambda *_: Affine.identity(3))
    exchanged = _exchanged(moving)
    found = register_volumes(moving, exchanged, Guide())
    assert found.status == "failed"
    assert "mirror image" in found.reason
