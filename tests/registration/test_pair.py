"""One section on another, from no initial guess: any angle, either face, any shift, either contrast."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, apart, centred, rigid

from histomri.core import Grid, Image, RegistrationError
from histomri.registration.channels import box_average, make_channels, resample_to
from histomri.registration.pair import Prepared, at_spacing, prepare, register_pair
from histomri.registration.samples import Channels
from histomri.registration.search import _canvas, _turned, rigid_search, rotation

TISSUE = Tissue(2)
ANGLES = np.arange(0.0, 360.0, 6.0)


def _section(matrix: np.ndarray, inverted: bool = False, tissue: Tissue = TISSUE) -> Prepared:
    """The tissue moved by ``matrix``, on a slide with its origin at a corner."""
    grid = Grid((125, 138), np.full(2, 0.1), np.array([-6.0, -7.1]))
    return prepare(*tissue.image(grid, np.linalg.inv(matrix), inverted), 0.25, 0.12)


@pytest.fixture(scope="module")
def fixed() -> Prepared:
    return prepare(*TISSUE.image(centred(112, 0.1)), 0.25, 0.12)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [0.0, 47.0, 90.0, 180.0, 271.0, 357.0])
def test_search_finds_every_angle_face_and_shift(fixed: Prepared, angle: float, mirrored: bool) -> None:
    truth = rigid(angle, mirrored, (1.1, -1.4))
    best = rigid_search(fixed.edges, _section(truth).edges, ANGLES, keep=4)[0]
    assert best.mirrored == mirrored
    assert abs((best.angle_deg - angle + 180) % 360 - 180) <= 3.0
    assert apart(best.matrix, truth) < 0.35


@pytest.mark.parametrize("size", [80, 81])
@pytest.mark.parametrize("step_deg", [10.0, 36.0])
def test_a_quarter_turn_of_a_turned_image_is_the_image_turned_further(size: int, step_deg: float) -> None:
    data = np.zeros((40, 50, 2), np.float32)
    data[8:30, 10:40] = np.random.default_rng(0).random((22, 30, 2))
    channels = Channels(Grid((40, 50), 1.0), data, np.ones((40, 50), np.float32))
    middle, angles = np.array([19.3, 25.1]), np.arange(0.0, 180.0, step_deg)
    expected = np.stack([_canvas(channels, middle, rotation(a), (size, size)) for a in angles])
    np.testing.assert_allclose(_turned(channels, middle, angles, size), expected, atol=1e-5)


def test_search_returns_distinct_candidates_best_first(fixed: Prepared) -> None:
    found = rigid_search(fixed.edges, fixed.edges, ANGLES, keep=6)
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert found[0].score == pytest.approx(1.0, abs=0.06)
    for i, a in enumerate(found):
        for b in found[:i]:
            assert a.mirrored != b.mirrored or abs((a.angle_deg - b.angle_deg + 180) % 360 - 180) >= 15


def test_rotation_is_proper_unless_mirrored() -> None:
    for angle in (0, 33, 180, 271):
        assert np.linalg.det(rotation(angle)) == pytest.approx(1)
        assert np.linalg.det(rotation(angle, True)) == pytest.approx(-1)
        np.testing.assert_allclose(rotation(angle, True) @ rotation(angle, True).T, np.eye(2), atol=1e-12)


@pytest.mark.parametrize(
    ("angle", "mirrored", "inverted"), [(0, False, True), (128, True, False), (180, True, True), (303, False, False)]
)
def test_pair_is_registered_whatever_angle_face_and_contrast(
    fixed: Prepared, angle: float, mirrored: bool, inverted: bool
) -> None:
    truth = rigid(angle, mirrored, (0.9, -1.2))
    result = register_pair(fixed, _section(truth, inverted))
    assert result.mirrored == mirrored
    assert apart(result.matrix, truth) < 0.03
    assert result.score > 0.7
    assert result.score - result.other_face > 0.3
    assert result.margin > 0.3
    assert np.linalg.det(result.other_matrix[:2, :2]) * np.linalg.det(result.matrix[:2, :2]) < 0
    np.testing.assert_allclose(abs(np.linalg.det(result.matrix[:2, :2])), 1, atol=1e-9)


def test_unrelated_tissue_scores_like_the_wrong_face(fixed: Prepared) -> None:
    result = register_pair(fixed, _section(rigid(20), tissue=Tissue(2, seed=8)))
    assert result.score < 0.35
    assert result.margin < 0.15


def test_one_face_is_tried_where_the_other_is_ruled_out(fixed: Prepared) -> None:
    result = register_pair(fixed, _section(rigid(60, True)), mirrors=(False,))
    assert not result.mirrored
    assert result.other_face == -1.0
    assert np.isnan(result.other_matrix).all()


def test_a_hint_restricts_the_angles(fixed: Prepared) -> None:
    moving = _section(rigid(128))
    assert apart(register_pair(fixed, moving, (False,), hints_deg=((120.0, 30.0),)).matrix, rigid(128)) < 0.03
    assert apart(register_pair(fixed, moving, (False,), hints_deg=((-60.0, 30.0),)).matrix, rigid(128)) > 1.0
    # of two hints the images tell the right one
    assert apart(register_pair(fixed, moving, (False,), hints_deg=((-60.0, 30.0), (120.0, 30.0))).matrix, rigid(128)) < 0.03


def test_an_empty_section_is_refused_in_words() -> None:
    grid = centred(40, 0.2)
    with pytest.raises(RegistrationError, match="mask is empty"):
        prepare(Image(grid, np.zeros((40, 40), np.float32)), Image(grid, np.zeros((40, 40), bool)), 0.4, 0.2)


def test_coarser_images_keep_their_place_and_mean() -> None:
    """Half a pixel lost at each level would shift every section."""
    grid = centred(120, 0.05)
    points = grid.points()
    blob = np.exp(-((points - np.array([0.37, -0.52])) ** 2).sum(axis=-1) / 0.5).astype(np.float32)
    image, mask = at_spacing(Image(grid, blob), Image(grid, blob > 0.5), 0.2)
    assert mask.data.dtype == bool
    weighted = (image.grid.points() * image.data[..., None]).sum(axis=(0, 1)) / image.data.sum()
    np.testing.assert_allclose(weighted, [0.37, -0.52], atol=0.01)
    assert image.data.sum() * 0.04 == pytest.approx(blob.sum() * 0.0025, rel=0.01)
    assert mask.data.sum() * 0.04 == pytest.approx((blob > 0.5).sum() * 0.0025, rel=0.1)


def test_resampling_onto_itself_changes_nothing() -> None:
    image, mask = TISSUE.image(centred(50, 0.2))
    np.testing.assert_allclose(resample_to(image, image.grid).data, image.data, atol=1e-5)
    np.testing.assert_array_equal(resample_to(mask, mask.grid).data, mask.data)
    np.testing.assert_array_equal(box_average(image.data, np.array([1.0, 0.5])), image.data)


def test_channels_are_zero_outside_of_the_tissue_and_weigh_a_margin_around_it() -> None:
    image, mask = TISSUE.image(centred(60, 0.2))
    for kind in ("structure", "edges"):
        channels = make_channels(image, mask, kind, weight_margin=3)
        assert not channels.data[~mask.data][:, :-1].any()
        assert (channels.weight[mask.data] == 1).all()
        assert mask.data.sum() < channels.weight.sum() < mask.data.size
