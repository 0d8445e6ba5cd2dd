"""The numbers of evaluation against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from histomri.core import Grid, Image
from histomri.evaluation import (
    Evidence,
    Thresholds,
    best_threshold,
    contour_roughness,
    deformation,
    dice,
    flag_sections,
    local_ncc,
    nmi,
    plane_grid,
    robust_z,
    section_on_plane,
    summarise,
    transform_parts,
    volume_on_plane,
)
from histomri.evaluation.acceptance import pose_warning
from histomri.evaluation.block import BlockMeasurer, SectionImage, place_all
from histomri.evaluation.planes import tissue_outline_mm
from histomri.registration.search import rotation
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import DOUBTFUL, Placement, Placements


def affine(rotation_deg, scale_x, scale_y, shear, mirror):
    a = np.deg2rad(rotation_deg)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    xy = np.diag([-1.0 if mirror else 1.0, 1.0]) @ turn @ np.array([[scale_x, shear * scale_y], [0, scale_y]])
    return Affine.from_parts(xy[::-1, ::-1], [3.0, 4.0])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("rotation", [-170.0, -90.0, 0.0, 30.0, 179.0])
def test_parts_of_a_transform_are_those_it_was_made_of(rotation, mirror):
    parts = transform_parts(affine(rotation, 0.8, 0.9, 0.05, mirror))
    assert parts.rotation_deg == pytest.approx(rotation) and parts.mirrored is mirror
    assert (parts.scale_x, parts.scale_y, parts.shear) == pytest.approx((0.8, 0.9, 0.05))


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_reported_rotation_can_be_copied_into_the_sheet_as_a_hint(mirrored):
    parts = transform_parts(Affine.from_parts(rotation(40.0, mirrored), [3.0, 4.0]))
    assert parts.rotation_deg == pytest.approx(40.0) and parts.mirrored is mirrored


def test_summary_of_nothing_is_none_and_not_zero():
    assert summarise([]) == {"n": 0, "median": None, "mean": None, "p10": None, "p95": None, "max": None}
    assert summarise([np.nan, 1.0, 3.0]) == {"n": 2, "median": 2.0, "mean": 2.0, "p10": 1.2, "p95": 2.9, "max": 3.0}


def test_drift_along_the_stack_is_no_outlier_and_a_jump_is():
    values = np.linspace(0, 10, 40) + np.random.default_rng(0).normal(0, 0.02, 40)
    assert np.abs(robust_z(values, 8, 0.01)).max() < 4
    values[20] += 5
    z = robust_z(values, 8, 0.01)
    assert np.argmax(z) == 20 and z[20] > 2 * np.delete(z, 20).max()


def test_a_constant_series_has_no_outliers_by_rounding():
    assert np.abs(robust_z([0.9] * 10 + [0.9001], 4, 0.01)).max() < 1


def test_nmi_is_two_for_equal_images_and_near_one_for_unrelated_ones():
    rng = np.random.default_rng(1)
    a, b, mask = rng.random((200, 200)), rng.random((200, 200)), np.ones((200, 200), bool)
    assert nmi(a, a, mask) == pytest.approx(2)
    assert nmi(a, -3 * a + 7, mask) > 1.9
    assert nmi(a, b, mask) < 1.01
    assert np.isnan(nmi(a, b, np.zeros_like(mask)))


def test_local_ncc_sees_through_contrast_and_ignores_what_is_masked():
    rng = np.random.default_rng(2)
    a = rng.random((60, 60)) + 1000
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    assert local_ncc(a, 5 - 2 * a, mask) == pytest.approx(1, abs=1e-6)
    spoilt = np.where(mask, a, rng.random((60, 60)) * 1e5)
    assert local_ncc(a, spoilt, mask) == pytest.approx(1, abs=1e-6)
    assert local_ncc(a, rng.random((60, 60)), mask) < 0.05
    assert local_ncc(a, np.ones((60, 60)), mask) == 0


def test_dice_of_nothing_is_unknown():
    assert np.isnan(dice(np.zeros(4), np.zeros(4))) and dice([1, 1, 0], [0, 1, 1]) == 0.5


def test_threshold_lies_between_background_and_tissue():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(10, 3, 9000), rng.normal(200, 30, 1000), [9999, np.nan]])
    assert 20 < best_threshold(values) < 150
    with pytest.raises(ValueError, match="constant"):
        best_threshold(np.full(10, 3.0))


def test_a_section_lands_where_its_placement_says_and_nothing_lies_outside():
    image = Image(Grid((20, 30), np.array([0.5, 0.5])), np.arange(600, dtype=np.float32).reshape(20, 30))
    mask = image.with_data(np.ones((20, 30), bool))
    to_section = Affine.from_parts(np.array([[0.0, 1.0], [-1.0, 0.0]]), [1.0, 5.0])
    grid = plane_grid([to_section.inverse().map(image.grid.corners()) + end for end in (-4, 4)], 0.5, 0)
    shown, inside = section_on_plane(image, mask, Placement("a", 0.0, to_section), grid)
    block = to_section.inverse().map(image.grid.to_world([7, 11]))
    index = np.round(grid.to_index(block)).astype(int)
    at = image.grid.to_index(to_section.map(grid.to_world(index)))
    assert shown[tuple(index)] == pytest.approx(at @ [30, 1], abs=1e-3) and inside[tuple(index)]
    assert not inside[0, 0] and shown[0, 0] == 0 and inside.sum() * 0.25 == pytest.approx(20 * 30 * 0.25, rel=0.02)


def test_a_turned_section_does_not_widen_the_grid_by_the_corners_of_its_box():
    index = np.moveaxis(np.indices((101, 101)), 0, -1)
    mask = Image(Grid((101, 101), np.array([0.1, 0.1])), np.hypot(*(index - 50).transpose(2, 0, 1)) <= 40)
    for degrees in (0, 30, 45):
        outline = tissue_outline_mm(mask, Placement("a", 0.0, affine(degrees, 1.0, 1.0, 0.0, False)))
        assert np.ptp(outline, axis=0) == pytest.approx([8.0, 8.0], abs=0.1), degrees
    empty = mask.with_data(np.zeros((101, 101), bool))
    assert tissue_outline_mm(empty, Placement("a", 0.0, affine(0, 1.0, 1.0, 0.0, False))).shape == (0, 2)


def test_a_volume_on_a_plane_follows_its_pose_and_is_nan_outside():
    grid = Grid((8, 9, 10), np.array([1.0, 0.5, 0.7]), np.array([1.0, 2.0, 3.0]), np.eye(3)[[1, 0, 2]])
    volume = Image(grid, grid.points() @ [1.0, 10.0, 100.0])
    pose = Affine.from_parts(np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), [0.5, 0.25, -1])
    world = grid.to_world([4, 4, 5])
    z, y, x = pose.map(world)
    plane = Grid((2, 2), np.array([0.1, 0.1]), np.array([y, x]))
    assert volume_on_plane(volume, pose, plane, z)[0, 0] == pytest.approx(world @ [1.0, 10.0, 100.0], abs=1e-3)
    assert np.isnan(volume_on_plane(volume, pose, plane, z + 100)).all()


def test_a_fold_between_nodes_is_found_and_a_mirrored_section_does_not_fold():
    grid = Grid((40, 40), np.array([0.25, 0.25]))
    nodes = Grid((11, 11), np.array([1.0, 1.0]))
    values = np.zeros((11, 11, 2))
    values[5, :, 0] = 1.5  # the next node is overtaken
    tissue = np.ones((40, 40), bool)
    mirror = Affine(np.diag([1.0, -1.0, 1.0]))
    folded = deformation(Placement("a", 0.0, mirror, DisplacementField(nodes, values)), grid, tissue)
    assert folded.folded_px == pytest.approx(4 * 39, abs=39)
    stretch = DisplacementField(nodes, 0.1 * nodes.points())
    smooth = deformation(Placement("a", 0.0, mirror, stretch), grid, tissue)
    assert smooth.folded_px == 0 and smooth.strain == pytest.approx(2 * np.log(1.1), rel=1e-3)
    assert deformation(Placement("a", 0.0, mirror), grid, tissue).strain == 0


def test_roughness_is_the_distance_by_which_an_outline_departs():
    masks = [np.zeros((80, 80), bool) for _ in range(5)]
    for i, mask in enumerate(masks):
        grow = 2 if i == 2 else 0
        mask[20 - grow : 60 + grow, 20 - grow : 60 + grow] = True
    rough = contour_roughness(masks, 0.5)
    assert rough[1] == pytest.approx(2 * 2 * 0.5, rel=0.1)  # 2 px out, from either neighbour
    assert rough[0] == pytest.approx(2 * 0.5, rel=0.2) and contour_roughness(masks[:1] * 4, 0.5).max() == 0


def evidence(n=12, **odd):
    """``n`` unremarkable sections, the sixth with the given values."""
    rng = np.random.default_rng(4)
    plain = [
        Evidence(f"s{i}", "he", density=0.2 + 0.002 * rng.normal(), mask_dice=0.93, confidence=0.9, strain=0.1 + 0.01 * (i % 3))
        for i in range(n)
    ]
    changed = {**plain[5].__dict__, **odd}
    return [*plain[:5], Evidence(**changed), *plain[6:]]


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        ({"density": 0.12}, "pale"),
        ({"density": 0.3}, "dark"),
        ({"mask_dice": 0.8}, "mri_overlap"),
        ({"confidence": 0.05}, "confidence"),
        ({"folding": 0.001}, "folding"),
        ({"nmi_before": 1.2, "nmi_after": 1.15}, "nmi"),
        ({"confidence": 0.29}, "confidence"),
        ({"strain": 0.9}, "strain"),
        ({"strain": 0.2}, None),
        ({"strain": float("nan")}, None),
        ({"sheet_status": "damaged"}, "damaged"),
        ({"ingest_status": "empty", "placed": False}, "no_tissue"),
        ({"ingest_status": "unreadable", "placed": False}, "unreadable"),
        ({"remarks": ("placed between its neighbours",)}, "remark"),
    ],
)
def test_the_one_odd_section_is_flagged_with_a_reason_and_no_other(odd, code):
    flags = flag_sections(evidence(**odd), Thresholds())
    assert [f.code for f in flags[5]][:1] == ([code] if code else [])
    assert all(len(f.reason) > 10 for f in flags[5]) and not any(flags[:5] + flags[6:])


def test_a_section_that_registration_does_not_rely_on_is_never_silent():
    assert Thresholds().min_confidence >= DOUBTFUL


@pytest.mark.parametrize(("confidence", "is_said"), [(0.5, True), (0.74, True), (0.75, False), (1.0, False), (None, False)])
def test_a_pose_in_doubt_is_said_and_a_sure_one_is_not(confidence, is_said):
    warning = pose_warning(confidence, Thresholds().min_pose_confidence)
    assert (warning is not None) == is_said
    assert not is_said or f"{confidence:.2f}" in warning


def test_another_stain_is_no_outlier():
    two = [Evidence(f"s{i}", "he" if i % 2 else "lfb", density=0.2 if i % 2 else 0.05) for i in range(12)]
    assert not any(flag_sections(two, Thresholds()))


def test_too_few_peers_judge_nobody():
    few = evidence(6, mask_dice=0.8)[3:6]
    assert not any(flag_sections(few, Thresholds()))


def _opened(points, half_mm):
    """Where points of whole tissue are once a crack from the left edge past the middle has opened along y = 6 mm."""
    off = points[..., 0] - 6.0
    push = np.where(points[..., 1] < 8.0, np.sign(off) * half_mm * np.exp(-np.abs(off) / 1.5), 0.0)
    return np.stack([push, np.zeros_like(push)], axis=-1)


def test_a_crack_that_the_deformation_closed_is_missing_tissue_all_the_same():
    grid = Grid((121, 121), np.array([0.1, 0.1]))
    points = grid.points()
    whole = ((points > 2) & (points < 10)).all(axis=-1)
    crack = (np.abs(points[..., 0] - 6.0) < 0.3) & (points[..., 1] < 8.0)
    slides = {f"s{i}": Image(grid, (whole & ~(crack & (i == 2))).astype(np.float32)) for i in range(5)}
    images = {k: SectionImage("he", i, i.with_data(i.data > 0)) for k, i in slides.items()}
    closing = DisplacementField(grid, _opened(points, 0.35))
    placed = {k: Placement(k, float(k[1:]), Affine(np.eye(3)), closing if k == "s2" else None) for k in images}
    sections = place_all(images, Placements("b", placed), grid)
    assert sections[2].mask[whole].mean() > 0.99  # next to its neighbours it looks whole
    measures = BlockMeasurer(grid, sections, Placements("b", placed), images=images).measure_all(2)
    missing = {k: m.neighbours.missing for k, m in measures.items()}
    assert missing.pop("s2") > 0.03 and max(missing.values()) == 0


def test_a_sulcus_that_opened_near_the_outline_is_no_crack():
    grid = Grid((121, 121), np.array([0.1, 0.1]))
    points = grid.points()
    whole = ((points > 2) & (points < 10)).all(axis=-1)
    sulcus = (np.abs(points[..., 0] - 6.0) < 0.3) & (points[..., 1] < 2.3)
    images = {f"s{i}": Image(grid, (whole & ~(sulcus & (i == 2))).astype(np.float32)) for i in range(5)}
    known = {k: SectionImage("he", i, i.with_data(i.data > 0)) for k, i in images.items()}
    record = Placements("b", {k: Placement(k, float(k[1:]), Affine(np.eye(3))) for k in known})
    measures = BlockMeasurer(grid, place_all(known, record, grid), record, images=known).measure_all(2)
    assert max(m.neighbours.missing for m in measures.values()) == 0
