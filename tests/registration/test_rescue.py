"""Sections that no neighbour could place must be found on their MRI planes, whatever their angle and face."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, apart, centred, moved, rigid

from histomri.core import Grid, Image
from histomri.registration.rescue import MriPlanes, PlaneOfMri, rescue
from histomri.registration.volume import SectionPixels
from histomri.transforms import Affine
from histomri.transforms.placement import Placement

TISSUE = Tissue(3, 7)
EITHER = (False, True)
TO_MRI = np.eye(4)
TO_MRI[:3, 3] = [10.0, -4.0, 7.0]


def _section(z: float, block_to_section: np.ndarray) -> SectionPixels:
    """The plane ``z`` of the tissue as it lies on its slide."""
    grid = centred(90, 0.16)
    yx = moved(np.linalg.inv(block_to_section), grid.points())
    points = np.concatenate([np.full((*yx.shape[:-1], 1), z), yx], axis=-1)
    inside = TISSUE.inside(points)
    return SectionPixels(
        Image(grid, np.where(inside, 1.5 + 0.5 * TISSUE.texture(points), 0).astype(np.float32)), Image(grid, inside)
    )


def _placement(z: float, matrix: np.ndarray | None, confidence: float, flags: tuple[str, ...] = ()) -> Placement:
    affine = None if matrix is None else Affine(matrix, "block:b", "section:s")
    return Placement("s", z, affine, None, flags, confidence)


@pytest.fixture(scope="module")
def plane_at() -> Callable[[float], PlaneOfMri | None]:
    image, mask = TISSUE.image(centred(60, 0.2, 3))
    grid = Grid(image.grid.shape, image.grid.spacing_mm, image.grid.origin_mm + TO_MRI[:3, 3])
    planes = MriPlanes((Image(grid, image.data), Image(grid, mask.data)), 0.4, 0.16)
    return lambda z: planes.at(z, TO_MRI)


@pytest.mark.parametrize(("angle", "mirrored"), [(0.0, False), (133.0, False), (41.0, True), (250.0, True)])
def test_a_section_without_a_place_is_found(plane_at, angle: float, mirrored: bool) -> None:
    truth = rigid(angle, mirrored, (0.6, -0.8))
    lost = _placement(0.4, None, 0.0, ("not placed: no neighbour resembles it", "little tissue"))
    found = rescue({"s": lost}, {"s": _section(0.4, truth)}, {"s": EITHER}, plane_at, "b")["s"]
    assert found.is_mirrored == mirrored
    assert apart(found.affine.matrix, truth) < 0.15
    assert found.confidence > 0.3
    assert "little tissue" in found.flags and any("found on its MRI plane" in f for f in found.flags)
    assert not any(f.startswith("not placed") for f in found.flags)


def test_a_wrong_guess_is_replaced_and_a_right_one_stays_right(plane_at) -> None:
    truth = rigid(70.0, False, (0.3, 0.2))
    pixels = {"s": _section(-0.6, truth)}
    wrong = _placement(-0.6, rigid(-110.0), 0.05)
    found = rescue({"s": wrong}, pixels, {"s": EITHER}, plane_at, "b")["s"]
    assert apart(found.affine.matrix, truth) < 0.15
    again = rescue({"s": _placement(-0.6, truth, 0.05)}, pixels, {"s": EITHER}, plane_at, "b").get("s")
    assert again is None or apart(again.affine.matrix, truth) < 0.15


def test_a_sure_section_is_left_alone(plane_at) -> None:
    pixels = {"s": _section(0.0, np.eye(3))}
    assert rescue({"s": _placement(0.0, rigid(90.0), 0.9)}, pixels, {"s": EITHER}, plane_at, "b") == {}


def test_a_declared_face_is_obeyed(plane_at) -> None:
    pixels = {"s": _section(0.0, rigid(30.0, True))}
    found = rescue({"s": _placement(0.0, None, 0.0)}, pixels, {"s": (False,)}, plane_at, "b")["s"]
    assert not found.is_mirrored


def test_no_plane_where_the_mri_shows_no_tissue(plane_at) -> None:
    assert plane_at(30.0) is None
    assert rescue({"s": _placement(30.0, None, 0.0)}, {"s": _section(0.0, np.eye(3))}, {"s": EITHER}, plane_at, "b") == {}
