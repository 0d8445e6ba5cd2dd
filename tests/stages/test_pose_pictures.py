"""The pictures of the best poses show the MRI where each pose has the block, and each different pose once."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "registration"))
from synthetic import Tissue, centred

from histomri.registration.pose import PoseCandidate, Scaled
from histomri.stages.pose_pictures import LABEL_PX, MOST, SIDE_PX, write_pose_pictures


def _candidate(angle_deg: float) -> PoseCandidate:
    """Turned about the cutting axis."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[c, s], [-s, c]]
    return PoseCandidate(matrix, 0.5, -0.1, 0.9, False)


def _pictures(path: Path, angles: list[float]) -> list[np.ndarray]:
    """The columns of a picture: the block, then the MRI by each pose, without their labels and outlines."""
    volume = Scaled(*Tissue(3, 7).image(centred(48, 0.25, 3)))
    write_pose_pictures(path, volume, volume, [_candidate(a) for a in angles], 0.25)
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.shape[0] == LABEL_PX + 2 * SIDE_PX
    columns = np.split(picture[LABEL_PX:].astype(float), picture.shape[1] // SIDE_PX, axis=1)
    return [c.mean(axis=-1) for c in columns]


def test_the_right_pose_looks_like_the_block_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    block, right, wrong = _pictures(tmp_path / "pose.png", [0.0, 90.0])
    # above the middle plane, below the cut along the axis
    for half in (slice(0, SIDE_PX), slice(SIDE_PX, None)):
        np.testing.assert_allclose(right[half], block[half], atol=2)
        assert np.abs(wrong[half] - block[half]).mean() > 10


def test_one_pose_is_shown_once_and_no_more_than_the_best_few(tmp_path: Path) -> None:
    assert len(_pictures(tmp_path / "pose.png", [0.0, 0.5, 90.0, 90.4])) == 1 + 2
    assert len(_pictures(tmp_path / "pose.png", [0.0, 60.0, 120.0, 180.0, 240.0, 300.0])) == 1 + MOST
