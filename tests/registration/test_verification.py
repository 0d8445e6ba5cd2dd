"""Evidence for a section's place: it must fall where the section lies wrong, however well it came to lie there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from histomri.core import Grid, Image
from histomri.registration.verification import Evidence, Verifier, apart_mm, confidence, expected_error_mm, reasons, verdicts
from histomri.registration.volume import SectionPixels
from histomri.transforms import Affine
from histomri.transforms.placement import Placement

SPACING = 0.5
POSITION = 10.0


@pytest.fixture(scope="module")
def mri() -> tuple[Image, Image]:
    """A lopsided body whose texture differs from plane to plane, (z, y, x) of 0.5 mm."""
    rng = np.random.default_rng(5)
    grid = Grid((40, 90, 110), np.full(3, SPACING))
    z, y, x = np.indices(grid.shape)
    body = ((y - 42) / 34) ** 2 + ((x - 50) / 44) ** 2 + ((z - 20) / 40) ** 2 < 1
    body &= ~((y > 55) & (x > 60))
    texture = ndimage.gaussian_filter(rng.normal(size=grid.shape), (2, 2.5, 2.5))
    data = np.where(body, 1 + texture / texture.std() * 0.3, 0).astype(np.float32)
    return Image(grid, data), Image(grid, body)


@pytest.fixture(scope="module")
def section(mri: tuple[Image, Image]) -> SectionPixels:
    """The MRI's plane at ``POSITION``, in another contrast and with noise of its own."""
    at = int(POSITION / SPACING)
    plane, tissue = mri[0].data[at], mri[1].data[at]
    noise = np.random.default_rng(6).normal(0, 0.05, plane.shape)
    grid = Grid((plane.shape[0], plane.shape[1]), np.full(2, SPACING))
    return SectionPixels(Image(grid, np.where(tissue, 2 - plane + noise, 0).astype(np.float32)), Image(grid, tissue))


def place(matrix: np.ndarray, position_mm: float = POSITION) -> Placement:
    return Placement("s", position_mm, Affine(matrix, "block:b", "section:s"))


def about(section: SectionPixels, linear: np.ndarray, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """(3, 3) that turns about the tissue's middle and shifts, mm."""
    middle = section.mask.grid.to_world(np.argwhere(section.mask.data).mean(axis=0))
    out = np.eye(3)
    out[:2, :2], out[:2, 2] = linear, middle - linear @ middle + shift
    return out


@pytest.fixture(scope="module")
def verifier(mri: tuple[Image, Image], section: SectionPixels) -> Verifier:
    return Verifier({"s": section}, mri, np.eye(4), SPACING)


@pytest.fixture(scope="module")
def right(verifier: Verifier) -> Evidence:
    found = verifier.of(place(np.eye(3)))
    assert found is not None
    return found


def test_section_at_its_true_place_is_sure(right: Evidence) -> None:
    assert right.search_mm < SPACING and right.lead > 4 and abs(right.depth_mm) < SPACING
    assert confidence(right) > 0.9 and reasons(right, confidence(right)) == ()


@pytest.mark.parametrize("wrong", ["mirrored", "turned", "shifted"])
def test_section_at_a_wrong_place_is_unsure_and_says_why(wrong: str, verifier: Verifier, section: SectionPixels) -> None:
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    matrix = {
        "mirrored": about(section, np.diag([1.0, -1.0])),
        "turned": about(section, turn),
        "shifted": about(section, np.eye(2), (6.0, -5.0)),
    }[wrong]
    found = verifier.of(place(matrix))
    assert found is not None
    assert confidence(found) < 0.5
    assert "elsewhere" in " ".join(reasons(found, confidence(found)))


def test_section_of_another_specimen_is_unsure(verifier: Verifier, section: SectionPixels, mri: tuple[Image, Image]) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(9).normal(size=section.image.data.shape), 2.5)
    other = SectionPixels(Image(section.image.grid, np.where(section.mask.data, 1 + noise, 0).astype(np.float32)), section.mask)
    found = Verifier({"s": other}, mri, np.eye(4), SPACING).of(place(np.eye(3)))
    assert found is not None and found.lead < 4
    assert confidence(found) < 0.5


def test_section_on_a_wrong_plane_says_which_one_it_fits(verifier: Verifier) -> None:
    found = verifier.of(place(np.eye(3), POSITION - 2.0))
    assert found is not None
    assert found.depth_mm == pytest.approx(2.0, abs=0.5)


def test_plane_without_mri_tissue_gives_no_evidence(verifier: Verifier) -> None:
    assert verifier.of(place(np.eye(3), 500.0)) is None
    assert verifier.all({"s": place(np.eye(3), 500.0)}) == {}


def test_distance_of_placements_is_that_of_the_tissue(section: SectionPixels) -> None:
    moved = np.eye(3)
    moved[:2, 2] = 3.0, 4.0
    assert apart_mm(np.eye(3), moved, section.mask) == pytest.approx(5.0)
    assert apart_mm(np.eye(3), about(section, -np.eye(2)), section.mask) > 10


def test_expected_error_grows_with_doubt_and_never_beyond_a_wrong_place(right: Evidence) -> None:
    errors = [expected_error_mm(right, c, 0.1, SPACING) for c in (1.0, 0.9, 0.5, 0.0)]
    assert errors == sorted(errors) and errors[-1] == pytest.approx(0.25 * right.size_mm)
    far = dataclasses.replace(right, search_mm=1000.0)
    assert expected_error_mm(far, 1.0, 0.1, SPACING) <= 0.25 * right.size_mm


def test_planes_err_together_so_a_noisy_peak_is_no_error_of_its_neighbours(right: Evidence) -> None:
    evidence = {f"{i}": dataclasses.replace(right, depth_mm=5.0 if i == 4 else 0.0) for i in range(9)}
    found = verdicts(evidence, {k: float(k) for k in evidence}, SPACING)
    assert found["3"].error_mm == pytest.approx(expected_error_mm(evidence["3"], found["3"].confidence, 0.0, SPACING))
    assert found["4"].confidence < found["3"].confidence


def test_sections_that_all_fit_a_plane_behind_their_own_err_by_as_much(right: Evidence) -> None:
    evidence = {f"{i}": dataclasses.replace(right, depth_mm=0.8) for i in range(9)}
    found = verdicts(evidence, {k: float(k) for k in evidence}, SPACING)
    assert found["4"].error_mm > 0.8


def test_why_there_is_no_evidence_is_said_in_words(verifier: Verifier, mri: tuple[Image, Image], section: SectionPixels) -> None:
    assert verifier.missing(place(np.eye(3), 500.0)).startswith("the MRI shows no tissue on its plane")
    crumb = np.zeros_like(section.mask.data)
    crumb[30:33, 40:43] = True
    little = Verifier({"s": SectionPixels(section.image, section.mask.with_data(crumb))}, mri, np.eye(4), SPACING)
    assert little.of(place(np.eye(3))) is None
    assert little.missing(place(np.eye(3))).startswith("it holds too little tissue")
