"""Two sections from no guess at all: any angle, face, size and contrast, bent, cut off by the image, or not related."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numba
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, centred, moved, rigid

from histomri.core import Grid, Image, RegistrationError
from histomri.registration.alignment import Guide, View
from histomri.registration.bending import level_grids
from histomri.registration.planar import PlanarSettings, as_stiff_at, find_start, half_way, register_planar
from histomri.transforms import Chain, DisplacementField

TISSUE = Tissue(2)
GRID = centred(140, 0.085)


def _bend(points: np.ndarray, height: float = 0.2) -> np.ndarray:
    """A smooth displacement of about ``height`` / 2 mm rms."""
    y, x = points[..., 0], points[..., 1]
    wave = np.stack([np.sin(0.9 * x + 0.4) * np.cos(0.6 * y), np.cos(0.8 * y - 0.3) * np.sin(0.5 * x + 1)], axis=-1)
    return height * wave


def _fixed(height: float = 0.2, grid: Grid = GRID) -> View:
    """The tissue seen through the bend: fixed(p) = tissue(p + bend(p))."""
    there = grid.points() + _bend(grid.points(), height)
    inside = TISSUE.inside(there)
    return View(Image(grid, np.where(inside, 1 + 0.5 * TISSUE.texture(there), 0).astype(np.float32)), Image(grid, inside))


def _moving(matrix: np.ndarray, inverted: bool = False, grid: Grid | None = None) -> View:
    """The tissue moved by ``matrix``, on a slide of its own."""
    slide = grid or Grid((190, 180), np.full(2, 0.085), np.array([-8.2, -7.9]))
    return View(*TISSUE.image(slide, np.linalg.inv(matrix), inverted))


def _errors(view: View, transform: Chain, matrix: np.ndarray, height: float = 0.2) -> np.ndarray:
    """Distances in fixed mm, at the tissue's points, between what was found and what is true."""
    points = view.image.grid.points()[np.asarray(view.mask.data)][::7]
    true = moved(matrix, points + _bend(points, height))
    size = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    return np.asarray(np.linalg.norm(transform.map(points) - true, axis=1) / size)


def _scaled(matrix: np.ndarray, scale: float) -> np.ndarray:
    return np.diag([scale, scale, 1.0]) @ matrix


@pytest.fixture(scope="module")
def fixed() -> View:
    return _fixed()


@pytest.mark.parametrize(
    ("angle", "mirrored", "scale", "inverted"),
    [(47, True, 0.7, False), (180, False, 1.25, True)],
)
def test_any_angle_face_size_and_contrast(fixed: View, angle: float, mirrored: bool, scale: float, inverted: bool) -> None:
    truth = _scaled(rigid(angle, mirrored, (0.9, -1.1)), scale)
    found = register_planar(fixed, _moving(truth, inverted), Guide())
    error = _errors(fixed, found.transform, truth)
    assert found.status == "converged"
    assert np.median(error) < 0.05
    assert np.percentile(error, 95) < 0.12


def test_the_start_is_near_without_the_deformation(fixed: View) -> None:
    truth = _scaled(rigid(123, True, (0.5, 0.4)), 0.8)
    start = find_start(fixed, _moving(truth), Guide())
    assert np.median(_errors(fixed, Chain((start,)), truth)) < 0.15


def test_the_deformation_never_folds_even_between_tissues_that_are_not_related(fixed: View) -> None:
    other = View(*Tissue(2, seed=8).image(GRID))
    for moving in (_moving(rigid(30)), other):
        steps = Chain.steps_of(register_planar(fixed, moving, Guide()).transform)
        assert isinstance(steps[0], DisplacementField)
        assert np.isfinite(steps[0].values).all()
        assert steps[0].jacobian_determinant().min() > 0


def test_what_was_not_imaged_does_not_draw_the_tissue(fixed: View) -> None:
    """The moving image ends within the tissue: its edge is no outline."""
    half = Grid((190, 118), np.full(2, 0.085), np.array([-8.2, -7.9]))
    found = register_planar(fixed, _moving(np.eye(3), grid=half), Guide())
    points = fixed.image.grid.points()[np.asarray(fixed.mask.data)]
    true = points + _bend(points)
    seen = true[:, 1] < half.to_world((0, 111))[1]
    assert seen.mean() > 0.3
    assert np.median(np.linalg.norm(found.transform.map(points) - true, axis=1)[seen]) < 0.05


def test_landmarks_lead_where_the_images_cannot() -> None:
    """A disc of one colour looks the same however it is turned."""
    disc = View(*Tissue(2, symmetric=True).image(GRID))
    points = np.array([[-2.0, 0.0], [2.0, 0.5], [0.3, 3.0], [-0.4, -3.0]])
    truth = rigid(180, False, (0.3, 0.2))
    found = register_planar(disc, _moving_disc(truth), Guide(landmarks=(points, moved(truth, points))))
    assert np.linalg.norm(found.transform.map(points) - moved(truth, points), axis=1).max() < 0.25


def _moving_disc(matrix: np.ndarray) -> View:
    slide = Grid((190, 180), np.full(2, 0.085), np.array([-8.2, -7.9]))
    return View(*Tissue(2, symmetric=True).image(slide, np.linalg.inv(matrix)))


def test_without_a_search_the_images_are_taken_as_they_lie(fixed: View) -> None:
    small = rigid(4, False, (0.2, -0.1))
    found = register_planar(fixed, _moving(small), Guide(search=False))
    assert np.median(_errors(fixed, found.transform, small)) < 0.05


def test_a_turned_grid_is_a_turned_world(fixed: View) -> None:
    """The fixed image's own axes differ from the world's."""
    turned = Grid(GRID.shape, GRID.spacing_mm, rigid(35)[:2, :2] @ GRID.origin_mm, rigid(35)[:2, :2])
    view = _fixed(grid=turned)
    found = register_planar(view, _moving(rigid(80)), Guide())
    assert np.median(_errors(view, found.transform, rigid(80))) < 0.05


def test_an_empty_image_is_refused_in_words(fixed: View) -> None:
    nothing = View(Image(GRID, np.zeros(GRID.shape, np.float32)), Image(GRID, np.zeros(GRID.shape, bool)))
    for pair in ((fixed, nothing), (nothing, fixed)):
        with pytest.raises(RegistrationError, match="mask is empty"):
            register_planar(*pair, Guide())


def test_more_pixels_than_the_working_size_bring_no_more_work() -> None:
    grids = level_grids(Grid((9000, 12000), 0.001), 12.0 / 1024, 40, 4)
    assert max(grids[-1].shape) <= 1024 + 64
    assert max(grids[0].shape) <= 2 * (40 + 4)
    for coarse, fine in pairwise(grids):
        assert tuple(2 * n for n in coarse.shape) == fine.shape
        np.testing.assert_allclose(coarse.to_world((-0.5, -0.5)), fine.to_world((-0.5, -0.5)))
        assert all(n % 4 == 0 for n in coarse.shape)


def test_progress_goes_up_to_the_end(fixed: View) -> None:
    told: list[float] = []
    register_planar(fixed, _moving(rigid(10)), Guide(), lambda share, _: told.append(share), PlanarSettings(working_px=64))
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 1


def test_more_threads_change_no_bit(fixed: View) -> None:
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("numba has one thread only")
    before, found = numba.get_num_threads(), []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        transform = register_planar(fixed, _moving(rigid(47, True)), Guide(), settings=PlanarSettings(working_px=96)).transform
        found.append(transform.map(np.array([[0.1, 0.2], [1.5, -2.0]])))
    numba.set_num_threads(before)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_face_that_lies_up_does_not_matter(fixed: View, axis: int) -> None:
    """The moving image mirrored on its slide, an odd number of pixels across: the same places, far closer than a pixel."""
    slide = Grid((191, 181), np.full(2, 0.085), np.array([-8.2, -7.9]))
    moving = _moving(rigid(20), grid=slide)
    mirrored = View(*(Image(slide, np.ascontiguousarray(np.flip(i.data, axis))) for i in (moving.image, moving.mask)))
    points = fixed.image.grid.points()[np.asarray(fixed.mask.data)][::7]
    here, there = (register_planar(fixed, view, Guide()).transform.map(points) for view in (moving, mirrored))
    there[:, axis] = 2 * slide.centre_mm[axis] - there[:, axis]
    apart = np.linalg.norm(here - there, axis=1) / 0.085
    assert np.median(apart) < 0.05
    assert np.percentile(apart, 95) < 0.25


def test_masks_that_were_given_are_outlines() -> None:
    """A bent disc of one colour: only its outline says how."""
    fixed, disc = _fixed(0.3), View(*Tissue(2, symmetric=True).image(GRID))
    flat = View(Image(GRID, np.asarray(fixed.mask.data, np.float32)), fixed.mask)
    even = View(Image(GRID, np.asarray(disc.mask.data, np.float32)), disc.mask)
    points, inside = GRID.points(), np.asarray(fixed.mask.data)
    missed = []
    for outlines in (False, True):
        found = register_planar(flat, even, Guide(search=False, outlines=outlines)).transform
        index = np.rint(GRID.to_index(found.map(points.reshape(-1, 2)))).astype(int)
        known = ((index >= 0) & (index < GRID.shape)).all(axis=1)
        moved_mask = np.zeros(len(index), bool)
        moved_mask[known] = np.asarray(disc.mask.data)[tuple(index[known].T)]
        missed.append(int((moved_mask.reshape(inside.shape) != inside).sum()))
    assert missed[1] < missed[0], missed


def test_the_mean_of_a_field_and_its_own_inverse_way_is_the_field() -> None:
    grid = Grid((40, 50), 0.5)
    points = grid.points()
    u = DisplacementField(grid, 0.6 * np.stack([np.sin(points[..., 1] / 4), np.cos(points[..., 0] / 5)], axis=-1))
    fine = Grid((400, 400), 0.1, np.array([-5.0, -10.0]))
    # the exact way back: q -> q + v(q) undoes p -> p + u(p)
    back = u.inverse().map(fine.points()) - fine.points()
    found = half_way(u, DisplacementField(fine, back))
    inner = (slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(found.values[inner], u.values[inner], atol=0.01)


def test_ways_that_disagree_are_met_half_way() -> None:
    grid = Grid((20, 20), 1.0)
    shift = DisplacementField(grid, np.full((20, 20, 2), 2.0))
    nothing = DisplacementField(grid, np.zeros((20, 20, 2)))
    np.testing.assert_allclose(half_way(shift, nothing).values, 1.0, atol=1e-6)


def test_a_mean_that_would_fold_is_not_taken() -> None:
    grid = Grid((20, 20), 1.0)
    forward = np.zeros((20, 20, 2))
    forward[..., 0] = np.clip(8 - 0.85 * np.arange(20), -8.0, 8.0)[:, None]
    backward = np.zeros((20, 20, 2))
    backward[10:, :, 1] = 30.0
    found = half_way(DisplacementField(grid, forward), DisplacementField(grid, backward))
    assert found.jacobian_determinant().min() > 0


def test_stiffness_is_a_share_of_the_image() -> None:
    """Half the pixels, a quarter of the weight: nodes are twice as far apart in the image, and bend over half as many."""
    plan = PlanarSettings().plan
    assert as_stiff_at(plan, 1.0) == plan
    assert as_stiff_at(plan, 0.5).bending.alpha == pytest.approx(plan.bending.alpha / 4)
    assert as_stiff_at(plan, 0.01) == as_stiff_at(plan, 0.1), "tiny images are not bent freely"
