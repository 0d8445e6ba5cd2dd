"""What a person gives decides where a section lies, whatever its pixels say, and moves nothing else."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, apart, centred, moved, rigid
from test_section_graph import SPACING, all_edges, edge, errors, stack_of
from test_slice_to_volume import TO_MRI, _case, _off, _section

from histomri.core import Image
from histomri.registration.by_hand import (
    Given,
    MriGuides,
    by_hand,
    fits,
    given_edge,
    place_guided,
    rigid_fit,
    similarity_fit,
    solve_with_given,
)
from histomri.registration.pair import prepare
from histomri.registration.rescue import MriPlanes
from histomri.registration.section_graph import Edge, solve_stack
from histomri.registration.slice_to_volume import SliceToVolume
from histomri.registration.volume import SectionPixels
from histomri.transforms import Affine
from histomri.transforms.placement import Placement

POINTS = np.array([[2.0, -1.0], [-1.5, 2.5], [0.5, 3.0], [-2.0, -2.0]])
BOTH = (False, True)


@pytest.mark.parametrize("mirrored", BOTH)
def test_points_give_the_exact_rigid_place_and_face(mirrored: bool) -> None:
    truth = rigid(137, mirrored, (3.0, -2.0))
    (matrix,) = fits(POINTS, moved(truth, POINTS), BOTH)
    np.testing.assert_allclose(matrix, truth, atol=1e-12)


def test_two_points_leave_the_face_open_and_a_declared_face_settles_it() -> None:
    truth = rigid(50, True, (1.0, 2.0))
    two = POINTS[:2]
    assert len(fits(two, moved(truth, two), BOTH)) == 2
    (matrix,) = fits(two, moved(truth, two), (True,))
    np.testing.assert_allclose(matrix, truth, atol=1e-12)


def test_a_similarity_in_space_is_exact_and_keeps_its_hand() -> None:
    points = np.random.default_rng(0).normal(size=(6, 3))
    truth = np.eye(4)
    truth[:3, :3] = 1.13 * np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    truth[:3, :3] *= np.sign(np.linalg.det(truth[:3, :3]))
    truth[:3, 3] = [4.0, -2.0, 9.0]
    matrix, missed = similarity_fit(points, moved(truth, points), mirrored=False)
    np.testing.assert_allclose(matrix, truth, atol=1e-12)
    assert missed < 1e-12
    assert similarity_fit(points, moved(truth, points), mirrored=True)[1] > 0.2


def test_noise_in_the_points_is_averaged() -> None:
    random = np.random.default_rng(3)
    points = random.uniform(-4, 4, (40, 2))
    truth = rigid(20, False, (1.0, 1.0))
    matrix, missed = rigid_fit(points, moved(truth, points) + random.normal(size=points.shape) * 0.1, False)
    assert apart(matrix, truth) < 0.06
    assert 0.1 < missed < 0.17


def _misled(truth: dict[str, np.ndarray], name: str) -> list[Edge]:
    """All pairs of a stack, those of one section agreeing with each other on a wrong place on the wrong face."""
    wrong = {**truth, name: rigid(130, np.linalg.det(truth[name][:2, :2]) > 0, (2.0, -4.0)) @ truth[name]}
    n = len(truth)
    return [edge(wrong, i, j) for i in range(n) for j in range(i + 1, min(n, i + 4))]


def test_a_pair_given_by_hand_outweighs_pairs_that_agree_on_a_wrong_place() -> None:
    truth, sections = stack_of(14, 3)
    solve = partial(solve_stack, sections=sections, spacing_mm=SPACING)
    measured = _misled(truth, "s6")
    blind = errors(solve(measured).block_to_section, truth, "s0")
    assert blind["s6"] > 2.0, "the pairs must mislead, or nothing is tested"
    matrix = truth["s6"] @ np.linalg.inv(truth["s4"])
    given = Edge("s4", "s6", matrix, 0.02, 1.0, np.nan, np.full((3, 3), np.nan), 1.0)
    found = errors(solve_with_given(measured, [given], sections, solve).block_to_section, truth, "s0")
    assert max(found.values()) < 1e-6
    assert set(found) == set(truth)


def test_measured_pairs_that_agree_with_what_is_given_refine_it() -> None:
    truth, sections = stack_of(14, 4)
    solve = partial(solve_stack, sections=sections, spacing_mm=SPACING)
    rough = truth["s6"] @ rigid(1.5, False, (0.1, -0.1)) @ np.linalg.inv(truth["s4"])
    given = Edge("s4", "s6", rough, 0.5, 1.0, np.nan, np.full((3, 3), np.nan), 1.0)
    measured = all_edges(truth)
    alone = errors(solve([e for e in measured if "s6" not in (e.fixed, e.moving)] + [given]).block_to_section, truth, "s0")
    found = errors(solve_with_given(measured, [given], sections, solve).block_to_section, truth, "s0")
    assert found["s6"] < 0.5 * alone["s6"]


def _prepared(tissue: Tissue, matrix: np.ndarray):
    return prepare(*tissue.image(centred(120, 0.1), np.linalg.inv(matrix)), 0.3, 0.12)


def test_the_images_refine_rough_points_of_the_same_tissue() -> None:
    truth = rigid(70, True, (0.4, -0.3))
    noisy = moved(truth, POINTS) + np.random.default_rng(0).normal(size=POINTS.shape) * 0.25
    given = Given("a", "b", POINTS, noisy, "4 guides")
    found = given_edge(given, _prepared(Tissue(2), np.eye(3)), _prepared(Tissue(2), truth), 0.5)
    assert apart(rigid_fit(POINTS, noisy, True)[0], truth) > 0.1
    assert apart(found.matrix, truth) < 0.05


def test_foreign_tissue_does_not_lead_a_section_away_from_its_points() -> None:
    truth = rigid(70, True, (0.4, -0.3))
    given = Given("a", "b", POINTS, moved(truth, POINTS), "4 guides")
    foreign = _prepared(Tissue(2, 9), rigid(200, False, (1.0, 0.5)))
    found = given_edge(given, _prepared(Tissue(2), np.eye(3)), foreign, 0.5)
    assert apart(found.matrix, truth) < 0.4
    assert found.mirrored


def test_points_that_contradict_each_other_or_the_face_are_told_and_careless_ones_are_not() -> None:
    truth = rigid(70, True, (0.4, -0.3))
    swapped = Given("a", "b", POINTS, moved(truth, POINTS)[[1, 0, 2, 3]], "4 guides to section a")
    (flag,) = swapped.doubts(truth, 8.0)
    assert flag.startswith(f"no rigid place fits 4 guides to section a better than {swapped.missed_mm:.2f} mm: some of it is")
    wrong_face = Given("a", "b", POINTS, moved(truth, POINTS), "4 guides to section a", (False,))
    assert "some of it, or flip, is wrong" in wrong_face.doubts(truth, 8.0)[0]
    careless = moved(truth, POINTS) + np.random.default_rng(0).normal(size=POINTS.shape) * 0.2
    assert Given("a", "b", POINTS, careless, "4 guides").doubts(truth, 8.0) == ()


def test_a_place_far_from_the_points_that_were_to_tell_it_is_told() -> None:
    truth = rigid(70, True, (0.4, -0.3))
    given = Given("a", "b", POINTS, moved(truth, POINTS), "a transform from section a")
    assert given.doubts(rigid(0, False, (0.5, 0.0)) @ truth, 8.0) == ()
    (flag,) = given.doubts(rigid(0, False, (1.0, 0.0)) @ truth, 8.0)
    assert flag == "it lies elsewhere than a transform from section a puts it, by 1.00 mm: look which is right"
    assert given.doubts(None, 8.0) == ()


def test_doubts_lower_the_confidence_and_do_not_outlive_what_raised_them() -> None:
    old = Placement("b", 0.5, Affine(np.eye(3)), flags=("odd", "not placed: so far"))
    doubted = by_hand(old, "3 guides", ("no rigid place fits 3 guides better than 1.25 mm: some of it is wrong",))
    assert doubted.confidence == 0.5
    assert len(doubted.flags) == 3
    mended = by_hand(doubted, "4 guides")
    assert (mended.flags, mended.confidence) == (("odd", "placed by hand, by 4 guides"), 1.0)


def _guided_case(guides: int):
    """The stack in its MRI with section s4 foreign, on its face and half a turn off, and points of where it belongs."""
    truth, work = _case()
    right = rigid(25, True, (0.5, -0.2))
    truth["s4"] = right
    foreign = Tissue(3, 11)
    grid = centred(84, 0.16)
    points = np.concatenate([np.zeros((*grid.shape, 1)), moved(np.linalg.inv(rigid(190)), grid.points())], axis=-1)
    inside = foreign.inside(points)
    pixels = SectionPixels(
        Image(grid, np.where(inside, 1.5 + 0.5 * foreign.texture(points), 0).astype(np.float32)), Image(grid, inside)
    )
    at = POINTS[:guides]
    block = np.concatenate([np.full((len(at), 1), work.placements["s4"].position_mm), at], axis=1)
    marks = MriGuides(moved(right, at), moved(TO_MRI, block))
    return truth, work, {**work.pixels, "s4": pixels}, marks


def test_a_mirrored_foreign_section_comes_right_by_three_points_in_the_mri_and_stays() -> None:
    truth, work, pixels, marks = _guided_case(3)
    mri = work.mri.image, work.mri.mask
    assert _off(work.placements["s4"], truth["s4"]) > 2
    planes = MriPlanes(mri, 0.5, 0.2)
    changed = place_guided(work.placements, pixels, {"s4": marks}, {"s4": BOTH}, planes, TO_MRI, "b")
    assert set(changed) == {"s4"}
    assert "placed by hand, by 3 guides to the MRI" in changed["s4"].flags[0]
    assert changed["s4"].confidence == 1
    assert _off(changed["s4"], truth["s4"]) < 1e-6
    again = SliceToVolume(pixels, {**work.placements, **changed}, TO_MRI, mri, work.settings, {"s4": marks})
    again.run()
    # the whole block may move in the MRI a little; the points hold the section to where it belongs
    assert _off(again.placements["s4"], truth["s4"], again.block_to_mri) < 0.4
    assert again.placements["s4"].is_mirrored


def test_two_points_and_the_mri_plane_tell_the_face() -> None:
    truth, work, _, marks = _guided_case(2)
    pixels = {**work.pixels, "s4": _section(work.placements["s4"].position_mm, truth["s4"])}
    planes = MriPlanes((work.mri.image, work.mri.mask), 0.5, 0.2)
    changed = place_guided(work.placements, pixels, {"s4": marks}, {"s4": BOTH}, planes, TO_MRI, "b")
    assert _off(changed["s4"], truth["s4"]) < 1e-6


def test_points_far_off_the_sections_plane_are_told_once_by_the_last_pose() -> None:
    _, work, pixels, marks = _guided_case(3)
    far = MriGuides(marks.section_mm, marks.mri_mm + np.array([2.5, 0, 0]))
    planes = MriPlanes((work.mri.image, work.mri.mask), 0.5, 0.2)
    changed = place_guided(work.placements, pixels, {"s4": far}, {"s4": BOTH}, planes, TO_MRI, "b")
    assert "2.5 mm off its plane" in changed["s4"].flags[-1]
    assert changed["s4"].confidence < 0.9
    again = place_guided(changed, pixels, {"s4": far}, {"s4": BOTH}, planes, TO_MRI, "b")
    assert again["s4"].flags == changed["s4"].flags, "placed twice in a run, it says so once"
    # the pose became better in between
    for better, said in ((1.0, ["its guides lie 1.5 mm off its plane in the MRI"]), (2.5, [])):
        pose = TO_MRI.copy()
        pose[0, 3] += better
        again = place_guided({**work.placements, **changed}, pixels, {"s4": far}, {"s4": BOTH}, planes, pose, "b")["s4"]
        assert [f.split(":")[0] for f in again.flags if "off its plane" in f] == said


def test_points_in_the_mri_that_contradict_each_other_are_told() -> None:
    _, work, pixels, marks = _guided_case(3)
    wrong = MriGuides(marks.section_mm + np.array([[3.0, 0], [0, 0], [0, 0]]), marks.mri_mm)
    planes = MriPlanes((work.mri.image, work.mri.mask), 0.5, 0.2)
    changed = place_guided(work.placements, pixels, {"s4": wrong}, {"s4": (True,)}, planes, TO_MRI, "b")
    assert "no rigid place fits 3 guides to the MRI" in changed["s4"].flags[-1]
    assert changed["s4"].confidence == 0.5


def test_a_locked_section_and_a_held_pose_do_not_move_at_all() -> None:
    import dataclasses

    _, work = _case()
    wrong = Placement("s4", work.placements["s4"].position_mm, Affine(rigid(40, True, (2.0, 1.0)), "block:b", "section:s4"))
    plan = dataclasses.replace(work.settings, hold_pose=True)
    mri = work.mri.image, work.mri.mask
    again = SliceToVolume(work.pixels, {**work.placements, "s4": by_hand(wrong, "a lock")}, TO_MRI, mri, plan)
    again.run()
    np.testing.assert_array_equal(again.placements["s4"].affine.matrix, wrong.affine.matrix)
    assert again.placements["s4"].field is None
    np.testing.assert_array_equal(again.block_to_mri, TO_MRI)
    assert not np.array_equal(again.placements["s3"].affine.matrix, work.placements["s3"].affine.matrix)
