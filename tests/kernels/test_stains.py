"""Stain colours are recovered where counting pixels fails, and what is separated adds up to what was there."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from histomri.kernels.named_stains import ALIASES, KINDS, kind_of, nuclear_channel
from histomri.kernels.stains import (
    Look,
    angle_deg,
    common_look,
    concentrations,
    estimate_colours,
    normalised,
    optical_density,
    rescaled,
    strengths_of,
    unit,
)

BACKGROUND = (243.0, 240.0, 245.0)
TOLERANCE_DEG = 2.0


def given(kind: str) -> Any:
    return unit(np.array(KINDS[kind].vectors))


def turned(vectors: Any, degrees: float, seed: int) -> Any:
    """Each vector turned by that angle in a random direction."""
    rng = np.random.default_rng(seed)
    out = []
    for v in vectors:
        across = rng.normal(size=3)
        across = unit(across - (across @ v) * v)
        out.append(np.cos(np.deg2rad(degrees)) * v + np.sin(np.deg2rad(degrees)) * across)
    return unit(np.maximum(out, 0))


def rank(values: Any) -> Any:
    return values.ravel().argsort().argsort().reshape(values.shape) / values.size


def blots(rng: Any, size: int, sigma: float) -> Any:
    """A smooth random field with values spread evenly over 0 to 1."""
    coarse = cv2.GaussianBlur(rng.normal(size=(size // 4, size // 4)), (0, 0), sigma / 4)
    return rank(cv2.resize(coarse, (size, size)))


def scene(rare: float, seed: int, size: int = 384) -> tuple[Any, Any]:
    """Concentrations (y, x, 2) and the tissue, 60 % of all: pure stains, the first on a share ``rare``, and some mixed."""
    rng = np.random.default_rng(seed)
    first = blots(rng, size, 8) < rare
    amount, part = 0.25 + 0.5 * blots(rng, size, 6), blots(rng, size, 5)
    part = np.where(blots(rng, size, 8) < 0.3, part, first)
    c = cv2.GaussianBlur(np.stack([amount * part, amount * (1 - part)], axis=-1), (0, 0), 1.2)
    tissue = blots(rng, size, 40) > 0.4
    c[~tissue] = 0
    return c, tissue


def photographed(c: Any, vectors: Any, noise: float, jpeg: int | None, dirt: float, seed: int) -> Any:
    """The scene as a scanner stores it: noise, black dirt on a share of it, 8 bits, JPEG with its colours at half resolution."""
    rng = np.random.default_rng(seed + 1000)
    light = np.array(BACKGROUND) * 10 ** -(c @ vectors) + rng.normal(size=(*c.shape[:2], 3)) * noise
    light[blots(rng, len(c), 8) < dirt] = 40 + rng.normal(size=3) * 3
    pixels = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    if jpeg is None:
        return pixels
    return cv2.imdecode(cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])[1], 1)[..., ::-1]


def worked(pixels: Any, tissue: Any, factor: int = 4) -> Any:
    """Tissue pixels (m, 3) of the pyramid level that ingestion looks at."""
    size = len(pixels) // factor
    small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    inside = cv2.resize(tissue.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) > 0.99
    return small[inside]


@pytest.mark.parametrize("kind", ["hematoxylin-eosin", "hematoxylin-dab"])
@pytest.mark.parametrize("rare", [0.5, 0.1, 0.9, 0.03])
@pytest.mark.parametrize(("noise", "jpeg", "dirt"), [(5, None, 0.0), (2, 75, 0.0), (3, 85, 0.02)])
def test_colours_within_two_degrees_however_rare_noisy_or_compressed(
    kind: str, rare: float, noise: float, jpeg: int | None, dirt: float
) -> None:
    true = turned(given(kind), 8, seed=round(100 * rare))
    c, tissue = scene(rare, seed=5)
    found = estimate_colours(worked(photographed(c, true, noise, jpeg, dirt, 5), tissue), BACKGROUND, given(kind))
    assert found.found == (True, True) and min(found.confidence) > 0.1
    assert (angle_deg(found.vectors, true) < TOLERANCE_DEG).all(), angle_deg(found.vectors, true)


@pytest.mark.parametrize(
    "kind",
    ["luxol-fast-blue-nissl", "luxol-fast-blue-eosin", "luxol-fast-blue-pas", "hematoxylin-pas", "hematoxylin-alcian-blue"],
)
@pytest.mark.parametrize("rare", [0.5, 0.1])
def test_myelin_and_sugar_stains_within_two_degrees(kind: str, rare: float) -> None:
    """Luxol fast blue and a Nissl stain lie closest, 21 degrees apart."""
    true = turned(given(kind), 8, seed=round(100 * rare))
    c, tissue = scene(rare, seed=5)
    found = estimate_colours(worked(photographed(c, true, 3, 85, 0.02, 5), tissue), BACKGROUND, given(kind))
    assert found.found == (True, True)
    assert (angle_deg(found.vectors, true) < TOLERANCE_DEG).all(), angle_deg(found.vectors, true)


@pytest.mark.parametrize("kind", ["luxol-fast-blue", "silver", "dab"])
def test_a_stain_alone_within_two_degrees(kind: str) -> None:
    true = turned(given(kind), 8, seed=2)
    c, tissue = scene(0.5, seed=5)
    pixels = photographed(c.sum(axis=-1, keepdims=True), true, 3, 85, 0.02, 5)
    found = estimate_colours(worked(pixels, tissue), BACKGROUND, given(kind))
    assert found.found == (True,) and angle_deg(found.vectors, true)[0] < TOLERANCE_DEG


@pytest.mark.parametrize("count", [1, 2, 3])
def test_products_in_pieces_are_the_product(count: int) -> None:
    """More pixels than are multiplied at a time, and no multiple of that."""
    density = np.random.default_rng(0).random((9001, 3), np.float32)
    vectors = unit(np.array([[0.6, 0.7, 0.3], [0.1, 0.9, 0.2], [0.3, 0.5, 0.8]])[:count])
    alone = np.concatenate([concentrations(density[i : i + 1], vectors) for i in range(4090, 4100)])
    assert np.allclose(concentrations(density, vectors)[4090:4100], alone, atol=1e-6)


def test_percentiles_fail_where_the_noise_has_an_edge() -> None:
    """Macenko's percentiles, as published, on the same pixels: what this module is there for."""
    kind = given("hematoxylin-eosin")
    true = turned(kind, 8, seed=10)
    c, tissue = scene(0.1, seed=5)
    pixels = worked(photographed(c, true, 3, 85, 0.02, 5), tissue)
    density = optical_density(pixels, BACKGROUND) * np.log(10)
    density = density[(density > 0.15).all(axis=1)].astype(float)
    axes = np.linalg.eigh(np.cov(density.T))[1][:, :0:-1]
    angles = np.arctan2(*(density @ axes).T[::-1])
    edges = [axes @ (np.cos(a), np.sin(a)) for a in np.percentile(angles, (1, 99))]
    theirs = min(max(angle_deg(np.array(e), true)) for e in (edges, edges[::-1], [-edges[0], -edges[1]], [-edges[1], -edges[0]]))
    ours = max(angle_deg(estimate_colours(pixels, BACKGROUND, kind).vectors, true))
    assert theirs > 2 * TOLERANCE_DEG > 2 * ours


def test_a_section_with_one_of_two_stains_keeps_the_usual_colour_of_the_other() -> None:
    true = turned(given("hematoxylin-dab"), 6, seed=3)
    c, tissue = scene(0.5, seed=2)
    c[..., 0] += c[..., 1]
    c[..., 1] = 0
    found = estimate_colours(worked(photographed(c, true, 2, 90, 0.0, 2), tissue), BACKGROUND, given("hematoxylin-dab"))
    assert not found.found[1] and found.confidence[1] == 0
    assert np.allclose(found.vectors[1], given("hematoxylin-dab")[1])


@pytest.mark.parametrize("pixels", [np.zeros((0, 3)), np.full((5000, 3), 243), np.zeros((5000, 3)), np.full((5000, 3), 128)])
def test_no_pixels_glass_black_and_grey_give_the_named_colours(pixels: Any) -> None:
    kind = given("hematoxylin-eosin")
    found = estimate_colours(pixels.astype(np.uint8), (243.0,) * 3, kind)
    assert np.allclose(found.vectors, kind) and found.found == (False, False) and found.confidence == (0.0, 0.0)


def test_one_stain_is_found_though_it_is_pale() -> None:
    true = turned(given("nissl"), 12, seed=4)
    rng = np.random.default_rng(0)
    amount = rng.uniform(0.02, 0.15, (4000, 1))
    pixels = np.rint(np.array(BACKGROUND) * 10 ** -(amount * true) + rng.normal(size=(4000, 3)))
    found = estimate_colours(pixels.clip(0, 255).astype(np.uint8), BACKGROUND, given("nissl"))
    assert found.found == (True,) and angle_deg(found.vectors, true)[0] < TOLERANCE_DEG


def test_pixels_that_all_mix_both_stains_do_not_pass_for_stains() -> None:
    """A picture so coarse that no pixel holds one stain alone spans a third of the wedge: its edges are nobody's colour."""
    true = turned(given("hematoxylin-dab"), 5, seed=6)
    rng = np.random.default_rng(3)
    part, amount = rng.uniform(0.32, 0.68, (20000, 1)), rng.uniform(0.2, 0.6, (20000, 1))
    light = np.array(BACKGROUND) * 10 ** -(amount * np.hstack([part, 1 - part]) @ true) + rng.normal(size=(20000, 3))
    found = estimate_colours(np.rint(light), BACKGROUND, given("hematoxylin-dab"))
    assert found.found == (False, False) and np.allclose(found.vectors, given("hematoxylin-dab"))


def test_three_stains_are_not_guessed() -> None:
    kind = given("hematoxylin-eosin-dab")
    found = estimate_colours(np.full((5000, 3), 150, np.uint8), BACKGROUND, kind)
    assert np.allclose(found.vectors, kind) and found.confidence == (0.0,) * 3


@pytest.mark.parametrize("kind", ["nissl", "hematoxylin-dab", "hematoxylin-eosin-dab"])
def test_known_amounts_come_back(kind: str) -> None:
    rng = np.random.default_rng(1)
    vectors = given(kind)
    true = rng.uniform(0, 0.6, (500, len(vectors))) * (rng.random((500, len(vectors))) < 0.7)
    light = (np.array(BACKGROUND) + 1) * 10 ** -(true @ vectors) - 1
    assert np.allclose(concentrations(optical_density(light, BACKGROUND), vectors), true, atol=1e-4)


def test_no_amount_is_negative_and_none_explains_more() -> None:
    """Against a search over all amounts: what least squares clipped at 0 gets wrong."""
    rng = np.random.default_rng(2)
    vectors = given("hematoxylin-dab")
    density = rng.normal(0.1, 0.3, (60, 3)).astype(np.float32)
    found = concentrations(density, vectors)
    steps = np.linspace(0, 1.5, 301)
    all_amounts = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    for d, c in zip(density, found, strict=True):
        best = np.linalg.norm(d - all_amounts @ vectors, axis=1).min()
        assert (c >= 0).all() and np.linalg.norm(d - c @ vectors) <= best + 1e-6


def test_vectors_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="independent"):
        concentrations(np.zeros((4, 3)), unit(np.array([[1, 1, 1], [1, 1, 1.0001]])))


def look(vectors: Any, strengths: Any, background: Any = BACKGROUND) -> Look:
    return Look(np.array(background, float), np.array(vectors, float), np.array(strengths, float))


def test_two_sections_of_one_tissue_look_alike_afterwards() -> None:
    c, tissue = scene(0.3, seed=7, size=256)
    kind = given("hematoxylin-eosin")
    other = turned(kind, 10, seed=1)
    first = photographed(c, kind, 0, None, 0.0, 7)
    second = np.rint(np.array((230.0, 235.0, 220.0)) * 10 ** -(1.6 * c @ other)).astype(np.uint8)
    looks = [look(kind, strengths_of(optical_density(first[tissue], BACKGROUND), kind))]
    looks += [look(other, strengths_of(optical_density(second[tissue], (230.0, 235.0, 220.0)), other), (230, 235, 220))]
    wanted = common_look([*looks, looks[0]])
    assert np.array_equal(wanted.strengths, looks[0].strengths), "the odd one out must not move the median"
    before = np.abs(first.astype(float) - second).mean()
    after = np.abs(first.astype(float) - normalised(second, looks[1], wanted)).mean()
    assert before > 15 and after < 1.5


def test_a_section_that_looks_right_keeps_its_pixels() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    own = look(given("hematoxylin-dab"), (0.5, 0.3))
    assert np.abs(normalised(pixels, own, own).astype(int) - pixels).max() <= 1
    wide = rng.integers(0, 65536, (64, 64, 2)).astype(np.uint16)
    own = look(np.eye(2), (900, 300), (100, 120))
    assert np.array_equal(rescaled(wide, own, own), wide)


def test_fluorescence_is_scaled_above_its_background_and_stays_in_its_type() -> None:
    pixels = np.array([[100, 1100, 65000]], np.uint16)[..., None]
    out = rescaled(pixels, look(np.eye(1), (1000,), (100,)), look(np.eye(1), (2000,), (50,)))
    assert out.ravel().tolist() == [50, 2050, 65535] and out.dtype == np.uint16


def test_gains_are_limited() -> None:
    """A section with next to no stain is not blown up to noise."""
    pale, dark = look(np.eye(1), (0.01,), (200,)), look(np.eye(1), (1.0,), (200,))
    out = normalised(np.array([[[190]]], np.uint8), pale, dark)
    assert optical_density(out, (200.0,)).item() < 3.2 * optical_density(np.array([190]), (200.0,)).item()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("H&E", "hematoxylin-eosin"),
        ("he", "hematoxylin-eosin"),
        ("H-DAB", "hematoxylin-dab"),
        ("Cresyl Violet", "nissl"),
        ("LFB", "luxol-fast-blue"),
        ("LFB+CV", "luxol-fast-blue-nissl"),
        ("Klüver-Barrera", "luxol-fast-blue-nissl"),
        ("PAS", "hematoxylin-pas"),
        ("DAPI", "fluorescence"),
        ("histology", None),
        ("Iba1", None),
        ("", None),
    ],
)
def test_stains_are_known_by_the_names_that_people_write(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_every_kind_is_whole() -> None:
    assert set(ALIASES.values()) <= set(KINDS)
    for kind in KINDS.values():
        assert len(kind.names) == len(kind.vectors) and (kind.structure is None or kind.structure in kind.names)
        if kind.vectors:
            assert np.allclose(np.linalg.norm(kind.vectors, axis=1), 1, atol=0.01)
            concentrations(np.zeros((1, 3)), unit(np.array(kind.vectors)))


def test_the_nuclei_are_found_among_channels() -> None:
    assert nuclear_channel(("FITC", "Hoechst 33342", "Cy5")) == "Hoechst 33342"
    assert nuclear_channel(("FITC", "Cy5")) is None
