"""What is done to a section must be known exactly, both ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from histomri.testing.distortion import Distortion, Tear
from histomri.testing.spec import DEMO, PhantomSpec
from histomri.testing.truth import Truth, draw_truth

TEAR = Tear(start=(-9.0, 1.0), angle=0.2, length_mm=14.0, half_mm=0.7, sway_mm=0.3)
WAVES = np.array([[0.3, 0.1, 0.4, 0.2, -0.3], [-0.1, 0.4, 2.0, 0.25, 0.2], [0.2, -0.3, 1.0, -0.2, 0.15]])
LINEAR = np.array([[0.4, -1.05], [-1.1, -0.5]])


def plane(n: int = 4000) -> np.ndarray:
    return np.random.default_rng(3).uniform(-11, 11, (n, 2))


@pytest.mark.parametrize("tear", [None, TEAR])
def test_there_and_back_is_exact(tear: Tear | None) -> None:
    distortion = Distortion(LINEAR, np.array([3.0, -2.0]), WAVES, tear)
    points = plane()
    assert np.abs(distortion.to_block(distortion.to_section(points)) - points).max() < 1e-9


def test_a_tear_leaves_a_gap_and_its_lips_meet() -> None:
    torn = Distortion(np.eye(2), np.zeros(2), np.zeros((0, 5)), replace(TEAR, sway_mm=0.0, angle=0.0))
    across = np.linspace(-2, 2, 4001)
    mapped = torn.to_block(np.column_stack([np.full_like(across, -9.0), 1.0 + across]))[:, 1] - 1.0
    gap = np.isnan(mapped)
    assert across[gap].min() == pytest.approx(-0.7, abs=0.002) and across[gap].max() == pytest.approx(0.7, abs=0.002)
    assert mapped[~gap & (across < 0)].max() == pytest.approx(0, abs=0.002)
    assert (np.diff(mapped[~gap]) > -1e-12).all(), "tissue beside the tear is folded"


def test_a_tear_ends_at_its_tip() -> None:
    torn = Distortion(np.eye(2), np.zeros(2), np.zeros((0, 5)), replace(TEAR, angle=0.0))
    beyond = np.column_stack([np.full(50, 5.5), np.linspace(-3, 5, 50)])
    np.testing.assert_array_equal(torn.to_block(beyond), beyond)


def test_moved_origin_shows_the_same_tissue() -> None:
    distortion = Distortion(LINEAR, np.array([3.0, -2.0]), WAVES, TEAR)
    points, offset = plane(50), np.array([-4.0, 7.0])
    np.testing.assert_allclose(distortion.moved(offset).to_block(points - offset), distortion.to_block(points), atol=1e-12)


def test_survives_json_without_loss() -> None:
    distortion = Distortion(LINEAR, np.array([1 / 3, -2.0]), WAVES, TEAR)
    again = Distortion.from_dict(distortion.to_dict())
    np.testing.assert_array_equal(again.to_block(plane(20)), distortion.to_block(plane(20)))


@pytest.fixture(scope="module")
def demo() -> Truth:
    return draw_truth(DEMO)


def test_the_demo_is_as_hard_as_the_issue_asks(demo: Truth) -> None:
    sections = list(demo.sections.values())
    assert len(sections) == 30
    assert sum(s.mirrored for s in sections) >= 3
    assert sum(s.bad is not None for s in sections) >= 3
    assert {s.bad for s in sections} >= {"torn", "lost", "pale", "blotch"}
    shrink = np.array([s.shrink for s in sections])
    assert shrink.min() >= 0.75 and shrink.max() <= 0.95 and np.ptp(shrink.mean(axis=0)) > 0.01
    turns = np.sort([s.rotation_deg for s in sections])
    assert np.diff(turns).max() < 90, "a quarter of the circle has no section"


def test_the_bend_has_the_asked_size_and_nowhere_folds(demo: Truth) -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(-11, 11, 45)] * 2, indexing="ij"), axis=-1)
    rms = []
    for section in demo.sections.values():
        bend = Distortion(np.eye(2), np.zeros(2), section.distortion.waves).to_block(grid) - grid
        rms.append(np.sqrt((bend**2).sum(axis=-1).mean()))
        gradient = np.stack([np.stack(np.gradient(bend[..., i], 0.5), axis=-1) for i in range(2)], axis=-2)
        assert np.linalg.det(np.eye(2) + gradient).min() > 0.2
    assert np.mean(rms) == pytest.approx(DEMO.bend_mm, rel=0.15)


def test_only_mirrored_sections_reverse_the_plane(demo: Truth) -> None:
    for section in demo.sections.values():
        assert (np.linalg.det(section.distortion.linear) < 0) == section.mirrored


def test_the_block_is_turned_and_never_mirrored_into_the_mri(demo: Truth) -> None:
    linear = demo.mri_to_block.linear
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(linear) == pytest.approx(1)


def test_a_block_too_short_for_its_sections_is_refused() -> None:
    with pytest.raises(ValueError, match="need a block 15 mm long, found 10"):
        PhantomSpec(size_mm=(10.0, 25.0, 25.0))
