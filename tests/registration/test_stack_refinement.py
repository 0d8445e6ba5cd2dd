"""A stack without an MRI: jitter goes, the shape stays, and bad sections drag nobody."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, centred, moved, rigid

from histomri.core import Image
from histomri.registration.along_stack import slow_part
from histomri.registration.stack_refinement import Smoothing, StackRefinement, unfolded
from histomri.registration.volume import SectionPixels
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement

TISSUE = Tissue(3, 7)
PX = 0.2
STEP = 0.1
PLAN = Smoothing(spacing_mm=PX, affine_sweeps=2, deformable_sweeps=1, shape_sections=3.0)
LATTICE = centred(12, 0.6).points().reshape(-1, 2)


class Specimen:
    """Sections of a tissue, each turned, shifted, sheared and bent; ``slow`` (z -> (y, x) mm) moves the tissue itself."""

    def __init__(self, count: int, bent: float = 0.12, slow=lambda z: np.zeros(2), tissue: dict[int, Tissue] | None = None):
        random = np.random.default_rng(3)
        self.slow, self.tissue = slow, tissue or {}
        self.z = STEP * (np.arange(count) - count // 2)
        self.truth = [rigid(random.uniform(0, 360), False, tuple(random.normal(size=2) * 0.3)) for _ in self.z]
        for matrix in self.truth:
            matrix[:2, :2] = matrix[:2, :2] @ (np.eye(2) + 0.02 * random.normal(size=(2, 2)))
        self.wave = random.normal(size=(count, 2, 2)) * 0.8
        self.phase = random.uniform(0, 2 * np.pi, (count, 2))
        self.bent = bent

    def to_block(self, i: int, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of section i in the block."""
        flat = moved(np.linalg.inv(self.truth[i]), points)
        return flat + self.bent * np.cos(flat @ self.wave[i].T + self.phase[i])

    def pixels(self, i: int) -> SectionPixels:
        grid = centred(72, 0.16)
        yx = self.to_block(i, grid.points()) - self.slow(self.z[i])
        points = np.concatenate([np.full((*yx.shape[:-1], 1), self.z[i]), yx], axis=-1)
        tissue = self.tissue.get(i, TISSUE)
        inside = tissue.inside(points)
        return SectionPixels(
            Image(grid, np.where(inside, 1.5 + 0.5 * tissue.texture(points), 0).astype(np.float32)), Image(grid, inside)
        )

    def placements(self, off: float = 1.0, slow=lambda z: np.zeros(2)) -> dict[str, Placement]:
        """As a rigid solve leaves them: turned right to a degree, a pixel off; ``slow`` (z -> mm) is no drift of the tissue."""
        random = np.random.default_rng(5)
        out = {}
        for i, z in enumerate(self.z):
            wrong = rigid(off * random.normal(), False, tuple(off * PX * 0.7 * random.normal(size=2) - slow(z)))
            nearest = self.truth[i].copy()
            u, _, v = np.linalg.svd(nearest[:2, :2])
            nearest[:2, :2] = u @ v
            out[f"s{i:02d}"] = Placement(f"s{i:02d}", float(z), Affine(nearest @ wrong, "block:b", f"section:s{i:02d}"))
        return out

    def stack(self, placements: dict[str, Placement], plan: Smoothing = PLAN, **changed: SectionPixels) -> StackRefinement:
        pixels = {k: self.pixels(int(k[1:])) for k in placements} | changed
        return StackRefinement(pixels, placements, plan)

    def errors(self, placements: dict[str, Placement]) -> dict[str, np.ndarray]:
        """Where each section's points lie, less where they were cut, over a lattice of the block, (n, 2) in mm."""
        return {k: LATTICE - self.to_block(int(k[1:]), p.block_to_section.map(LATTICE)) for k, p in placements.items()}


def jitter_px(errors: dict[str, np.ndarray]) -> float:
    """Mean error in pixels after the best slow drift was taken off: a cubic along the stack, at each point of the plane."""
    values = np.stack(list(errors.values()))
    z = np.linspace(-1, 1, len(values))
    design = np.stack([z**k for k in range(4)], axis=-1)
    fitted = design @ np.linalg.lstsq(design, values.reshape(len(z), -1), rcond=None)[0]
    return float(np.linalg.norm(values - fitted.reshape(values.shape), axis=-1).mean() / PX)


@cache
def sound() -> tuple[Specimen, dict[str, Placement], dict[str, Placement]]:
    """A specimen of 13 sections, as placed and as refined."""
    specimen = Specimen(13)
    before = specimen.placements()
    work = specimen.stack(before)
    work.run()
    return specimen, before, work.placements


def test_jitter_of_rigid_placements_is_taken_out() -> None:
    specimen, before, after = sound()
    was, now = jitter_px(specimen.errors(before)), jitter_px(specimen.errors(after))
    # measured: 0.75 and 0.37 pixels
    assert was > 0.7 and now < 0.6 * was
    assert sum(p.field is not None for p in after.values()) == 11


def test_ends_with_neighbours_on_one_side_alone_are_only_turned_and_shifted() -> None:
    _, before, after = sound()
    for k in ("s00", "s12"):
        assert after[k].field is None
    assert all(after[k].flags == before[k].flags for k in after)


@pytest.mark.parametrize("whose", ["the specimen's", "the placements'"])
def test_banana_is_neither_made_nor_straightened(whose: str) -> None:
    def banana(z: float) -> np.ndarray:
        return np.array([1.5 * z**2, -0.8 * z**2])

    specimen = Specimen(13, slow=banana) if whose == "the specimen's" else Specimen(13)
    before = specimen.placements(0.3, slow=(lambda z: np.zeros(2)) if whose == "the specimen's" else banana)
    work = specimen.stack(before, replace(PLAN, affine_sweeps=2, deformable_sweeps=0))
    work.run()
    change = np.stack(
        [a - b for a, b in zip(specimen.errors(work.placements).values(), specimen.errors(before).values(), strict=True)]
    )
    slow = slow_part(work.position, change, np.ones(13), 3 * STEP)
    assert np.linalg.norm(slow, axis=-1).mean() < 0.15 * PX


def test_drift_of_the_placements_stays_to_the_last_bit_that_can_be_told() -> None:
    specimen = Specimen(11, bent=0.0)
    before = specimen.placements(0.0, slow=lambda z: np.array([0.8 * z, -0.5 * z]))
    work = specimen.stack(before, replace(PLAN, deformable_sweeps=0))
    work.run()
    centre = [e.mean(axis=0) for e in specimen.errors(work.placements).values()]
    first = [e.mean(axis=0) for e in specimen.errors(before).values()]
    assert np.ptp(first, axis=0).max() > 0.7
    np.testing.assert_allclose(np.polyfit(work.position, centre, 1)[0], np.polyfit(work.position, first, 1)[0], atol=0.05)


def _as_if_missing(specimen: Specimen, work: StackRefinement, bad: str) -> None:
    """The others lie as well as without the bad one, to within what its being there changes of who is fitted to whom."""
    missing = specimen.stack({k: p for k, p in specimen.placements().items() if k != bad})
    missing.run()
    expected, now = specimen.errors(missing.placements), specimen.errors(work.placements)
    now.pop(bad)
    assert jitter_px(now) < 1.15 * jitter_px(expected) + 0.02
    for k, e in expected.items():
        assert np.linalg.norm(now[k] - e, axis=-1).mean() < 0.6 * PX, k


def test_torn_section_drags_none_of_its_neighbours() -> None:
    specimen, before, _ = sound()
    torn = specimen.pixels(6)
    half = np.arange(72)[:, None] < 36
    # one half moved by five pixels, and nothing where it was
    image, mask = (
        np.where(half, np.roll(p.data, -5, axis=0), np.where(np.arange(72)[:, None] < 41, 0, p.data))
        for p in (torn.image, torn.mask)
    )
    work = specimen.stack(
        before, s06=SectionPixels(torn.image.with_data(image.astype(np.float32)), torn.mask.with_data(mask.astype(bool)))
    )
    work.run()
    _as_if_missing(specimen, work, "s06")


def test_foreign_section_loses_its_say_and_is_not_bent_into_its_neighbours() -> None:
    specimen, before, _ = sound()
    foreign = Specimen(13, tissue={6: Tissue(3, 99)})
    work = specimen.stack(before, s06=foreign.pixels(6))
    work.run()
    assert work.trust[6] < 0.2 < min(np.delete(work.trust, 6))
    assert work.placements["s06"].field is None
    _as_if_missing(specimen, work, "s06")


def test_contrast_inverted_half_way_neither_breaks_the_stack_nor_bends_it() -> None:
    """From the seventh section on what was bright is dark."""
    specimen, before, after = sound()
    inverted = {}
    for k in list(before)[6:]:
        pixels = specimen.pixels(int(k[1:]))
        image = np.where(pixels.mask.data, 3.0 - pixels.image.data, 0).astype(np.float32)
        inverted[k] = SectionPixels(pixels.image.with_data(image), pixels.mask)
    work = specimen.stack(before, **inverted)
    work.run()
    assert min(work.trust) > 0.2
    was, as_usual, now = (jitter_px(specimen.errors(p)) for p in (before, after, work.placements))
    assert now < 0.6 * was and now < 1.3 * as_usual, (was, as_usual, now)


def test_missing_run_the_sections_beside_it_are_drawn_neither_across_nor_away() -> None:
    """The tissue moves on by half a pixel from section to section, across the gap too."""
    specimen = Specimen(16, slow=lambda z: np.array([0.5 * PX / STEP * z, 0.0]))
    kept = {k: p for k, p in specimen.placements().items() if not 5 <= int(k[1:]) < 10}
    work = specimen.stack(kept)
    beside, both = work.neighbours(4)
    weights = dict(beside)
    assert both and abs(sum(w * (work.position[j] - work.position[4]) for j, w in weights.items())) < 1e-9
    work.run()
    was, now = jitter_px(specimen.errors(kept)), jitter_px(specimen.errors(work.placements))
    assert now < 0.75 * was


def test_the_order_in_which_sections_are_given_does_not_matter() -> None:
    specimen = Specimen(6)
    plan = replace(PLAN, affine_sweeps=1)
    before = specimen.placements()
    one, other = specimen.stack(before, plan), specimen.stack(dict(reversed(before.items())), plan)
    one.run()
    other.run()
    for k in before:
        np.testing.assert_array_equal(one.placements[k].affine.matrix, other.placements[k].affine.matrix)


def test_doubtful_and_held_sections_stay_where_they_are() -> None:
    specimen = Specimen(7)
    before = specimen.placements()
    before["s03"] = replace(before["s03"], confidence=0.05)
    pixels = {k: specimen.pixels(int(k[1:])) for k in before}
    work = StackRefinement(pixels, before, replace(PLAN, affine_sweeps=1), frozenset({"s02"}))
    work.run()
    assert work.placements["s03"].affine is before["s03"].affine and work.placements["s03"].field is None
    assert work.placements["s02"] is before["s02"] and work.placements["s04"].affine is not before["s04"].affine
    assert 3 not in dict(work.neighbours(4)[0]) and 2 in dict(work.neighbours(4)[0])


def test_a_displacement_that_would_fold_is_halved_until_it_does_not() -> None:
    grid = centred(8, 1.0)
    values = np.zeros((8, 8, 2))
    values[4, :, 0] = 3.0
    found = unfolded(DisplacementField(grid, values)).values
    assert found[4, 0, 0] == 0.75
