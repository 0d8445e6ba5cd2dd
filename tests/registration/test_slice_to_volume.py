"""Sections that were pushed off their planes' image must come back, and must not be torn away from it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, centred, moved, rigid

from histomri.core import Image
from histomri.registration.slice_to_volume import Refinement, SliceToVolume
from histomri.registration.volume import SectionPixels
from histomri.transforms import Affine
from histomri.transforms.placement import Placement

TISSUE = Tissue(3, 7)
POSITIONS = np.arange(-2.0, 2.1, 0.5)
TO_MRI = np.eye(4)
TO_MRI[:3, 3] = [10.0, -4.0, 7.0]


def _section(z: float, block_to_section: np.ndarray) -> SectionPixels:
    """The plane ``z`` of the tissue as it lies on its slide."""
    grid = centred(84, 0.16)
    yx = moved(np.linalg.inv(block_to_section), grid.points())
    points = np.concatenate([np.full((*yx.shape[:-1], 1), z), yx], axis=-1)
    inside = TISSUE.inside(points)
    return SectionPixels(
        Image(grid, np.where(inside, 1.5 + 0.5 * TISSUE.texture(points), 0).astype(np.float32)), Image(grid, inside)
    )


def _off(placement: Placement, truth: np.ndarray, block_to_mri: np.ndarray = TO_MRI) -> float:
    """Rms distance in mm in the section between where the MRI's tissue is found and where it is.

    Through the MRI, because a shift of all sections and the opposite one of the block's pose are the same.
    """
    grid = centred(40, 0.3)
    points = np.concatenate([np.full((*grid.shape, 1), placement.position_mm), grid.points()], axis=-1)
    points = points[TISSUE.inside(points)]
    block = moved(np.linalg.inv(block_to_mri), moved(TO_MRI, points))
    error = placement.block_to_section.map(block[:, 1:]) - moved(truth, points[:, 1:])
    return float(np.sqrt((error**2).sum(axis=1).mean()))


def _case() -> tuple[dict[str, np.ndarray], SliceToVolume]:
    """Sections turned, shifted and stretched by a few degrees, half a millimetre and a few percent; one of them hardly tissue."""
    random = np.random.default_rng(0)
    truth, pixels, placements = {}, {}, {}
    for i, z in enumerate(POSITIONS):
        name = f"s{i}"
        truth[name] = rigid(random.normal() * 4, False, tuple(random.normal(size=2) * 0.3))
        truth[name][:2, :2] = truth[name][:2, :2] @ np.diag(random.uniform(0.96, 1.04, 2))
        pixels[name] = _section(float(z), truth[name])
        placements[name] = Placement(name, float(z), Affine(np.eye(3), "block:b", f"section:{name}"))
    placements["lost"] = Placement("lost", 0.25, None, flags=("not placed",))
    mri = TISSUE.image(centred(52, 0.25, 3))
    shifted = Image(
        mri[0].grid.__class__(mri[0].grid.shape, mri[0].grid.spacing_mm, mri[0].grid.origin_mm + TO_MRI[:3, 3]), mri[0].data
    )
    plan = Refinement(spacing_mm=0.2, volume_mm=0.5, affine_sweeps=2, deformable_sweeps=1, max_gap_mm=1.5)
    return truth, SliceToVolume(pixels, placements, TO_MRI, (shifted, Image(shifted.grid, mri[1].data)), plan)


def test_perturbed_sections_come_back() -> None:
    truth, work = _case()
    before = [_off(p, truth[k]) for k, p in work.placements.items() if p.is_placed]
    work.run()
    result = work.result("b", {"note": 1})
    after = [_off(p, truth[k], work.block_to_mri) for k, p in result.placed.items()]
    assert np.median(before) > 0.3
    assert np.median(after) < 0.1
    assert max(after) < 0.35
    assert result.sections["lost"].flags == ("not placed",)
    assert not result.sections["lost"].is_placed
    assert result.mri_to_block is not None
    np.testing.assert_allclose(result.mri_to_block.map(TO_MRI[:3, 3]), np.zeros(3), atol=0.3)
    # what is left out says so, and what is said to be deformed is
    bent = {k for k, p in result.placed.items() if p.field is not None}
    assert 0 < len(bent) < len(result.placed)
    assert bent == {k for k, p in result.placed.items() if p.quality["deformable"] == "yes"}
    assert work.mean_score() > 0.6


def test_sections_that_lie_right_stay_there() -> None:
    truth, work = _case()
    for k in work.order:
        work.placements[k] = Placement(k, work.placements[k].position_mm, Affine(truth[k]))
        work.first[k] = work.placements[k].affine
    for i, k in enumerate(work.order):
        assert _off(work._affine(i), truth[k]) < 0.08


def test_a_section_never_turns_over_nor_grows_beyond_the_limit() -> None:
    _, work = _case()
    first = work.first["s3"].matrix
    assert work._possible("s3", first @ rigid(50))
    assert work._possible("s3", first @ np.diag([1.2, 0.85, 1]))
    assert not work._possible("s3", first @ np.diag([1.0, -1.0, 1]))
    assert not work._possible("s3", first @ np.diag([1.4, 1.0, 1]))
    assert not work._possible("s3", first @ np.diag([1.0, 0.6, 1]))


def test_little_tissue_gets_neither_six_parameters_nor_a_deformation() -> None:
    _, work = _case()
    small = work.pixels["s4"]
    crumb = np.zeros_like(small.mask.data)
    crumb[40:48, 40:48] = True
    pixels = {**work.pixels, "s4": SectionPixels(small.image.with_data(small.image.data * crumb), small.mask.with_data(crumb))}
    other = SliceToVolume(pixels, work.placements, TO_MRI, (work.mri.image, work.mri.mask), work.settings)
    assert other.large == set(work.order) - {"s4"}
    linear = other._affine(4).affine.linear
    np.testing.assert_allclose(linear.T @ linear, np.eye(2), atol=1e-9)
    assert other._deform(4).field is None


def test_neighbours_count_by_closeness_and_never_more_than_the_mri() -> None:
    _, work = _case()
    shares = dict(work._neighbours(4))
    assert list(shares) == ["s2", "s3", "s5", "s6"]
    assert shares["s3"] == pytest.approx(shares["s5"]) and shares["s2"] == pytest.approx(shares["s6"])
    assert shares["s3"] > shares["s2"] > 0
    assert sum(shares.values()) == pytest.approx(work.settings.neighbour_weight)
    work.placements["s4"] = dataclasses.replace(work.placements["s4"], position_mm=100.0)
    assert work._neighbours(4) == []


def test_the_mri_plane_is_the_plane_of_the_section() -> None:
    _, work = _case()
    image, mask = work.mri_plane(0.5)
    points = np.concatenate([np.full((*work.plane.shape, 1), 0.5), work.plane.points()], axis=-1)
    inside = TISSUE.inside(points)
    assert 2 * (mask.data & inside).sum() / (mask.data.sum() + inside.sum()) > 0.97
    both = mask.data & inside
    assert np.corrcoef(image.data[both], TISSUE.texture(points)[both])[0, 1] > 0.9
