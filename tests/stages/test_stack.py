"""The stack from slides to placements: bad sections are flagged and routed around, photographs are believed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

sys.path.insert(0, str(Path(__file__).parents[1] / "registration"))
from synthetic import Tissue, apart, centred, rigid

from histomri.core import Section
from histomri.io.placements import read_placements, write_placements
from histomri.registration.pair import prepare
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.stages.stack import (
    StackSettings,
    _measure,
    faces_to_try,
    measure_edges,
    plan_pairs,
    solve,
    turns_hinted,
    typical_size_mm,
)
from histomri.transforms import Affine
from histomri.transforms.placement import Placement, Placements

PIXEL_MM = 0.08
N = 160
SETTINGS = StackSettings(search_px=36, fine_px=80, reach=3)
TRUTH = {"s0": rigid(0), "s1": rigid(75, False, (0.5, 0.2)), "s4": rigid(200, True, (-0.3, 0.6)), "s5": rigid(310)}


def _sections(n: int, **changes: dict[str, object]) -> list[Section]:
    return [Section(f"s{i}", Path(f"s{i}.png"), 0.5 * i, **changes.get(f"s{i}", {})) for i in range(n)]  # type: ignore[arg-type]


def _slide(path: Path, block_to_section: np.ndarray) -> None:
    """Dark tissue on a bright slide."""
    grid = centred(N, PIXEL_MM)
    image, _ = Tissue(2).image(grid, np.linalg.inv(block_to_section))
    Picture.fromarray(np.clip(240 - 70 * image.data, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Section], dict[str, Path]]:
    """Four good slides, one that cannot be read (s2), one that is empty (s3), one that is missing (s6); pairs measured."""
    folder = tmp_path_factory.mktemp("stack")
    sections = _sections(7, s6={"status": "missing"})
    for name, matrix in TRUTH.items():
        _slide(folder / f"{name}.png", matrix)
    (folder / "s2.png").write_bytes((folder / "s0.png").read_bytes()[:700])
    Picture.fromarray(np.full((N, N), 240, np.uint8)).save(folder / "s3.png")
    sections = [Section(s.id, folder / f"{s.id}.png", s.position_mm, status=s.status) for s in sections]
    manifests = {}
    for s in sections[:6]:
        manifests[s.id] = folder / "ingest" / s.id / "manifest.json"
        ingest_section(s, folder / "sections" / f"{s.id}.ome.zarr", manifests[s.id], IngestSettings(), PIXEL_MM)
    (batch,) = plan_pairs(sections, SETTINGS.reach, 16)
    measure_edges(sections, manifests, batch, folder / "edges.json", SETTINGS)
    return folder, sections, manifests


def _in_slide(block_to_section: np.ndarray) -> np.ndarray:
    """The same in ``section:`` mm, whose origin is the centre of the top left pixel."""
    shift = np.eye(3)
    shift[:2, 2] = (N - 1) / 2 * PIXEL_MM
    return shift @ block_to_section


def test_unreadable_empty_and_missing_sections_are_flagged_and_routed_around(study) -> None:
    folder, sections, manifests = study
    records = json.loads((folder / "edges.json").read_text())["edges"]
    assert not {"s2", "s3", "s6"} & {r[k] for r in records for k in ("fixed", "moving")}
    solve(sections, manifests, [folder / "edges.json"], folder / "placements.json", SETTINGS)
    placements = read_placements(folder / "placements.json")
    assert list(placements.sections) == [s.id for s in sections]
    assert set(placements.placed) == set(TRUTH)
    for name in ("s2", "s3"):
        assert placements.sections[name].flags == ("not placed: no tissue could be read",)
    assert placements.sections["s6"].flags == ("not placed: status missing",)
    assert all(placements.sections[n].confidence == 0 for n in ("s2", "s3", "s6"))
    found = {n: p.affine.matrix for n, p in placements.placed.items()}
    gauge = np.linalg.inv(_in_slide(TRUTH["s0"])) @ found["s0"]
    for name, matrix in TRUTH.items():
        assert apart(np.linalg.inv(found[name]), np.linalg.inv(_in_slide(matrix) @ gauge), 3.0) < 0.15, name
    assert placements.sections["s4"].is_mirrored
    assert not placements.sections["s5"].is_mirrored
    assert placements.quality["components"] == 1


def test_a_place_from_a_photograph_is_kept_and_an_unsure_one_is_not(study) -> None:
    folder, sections, manifests = study
    known = _in_slide(TRUTH["s1"]) @ rigid(20, False, (3.0, -2.0))
    sure = Placement("s1", 99.0, Affine(known, "block:block", "section:s1"), confidence=0.9)
    unsure = Placement("s5", 2.5, Affine(np.eye(3), "block:block", "section:s5"), confidence=0.2)
    write_placements(folder / "blockface.json", Placements("block", {"s1": sure, "s5": unsure}))
    solve(sections, manifests, [folder / "edges.json"], folder / "with.json", SETTINGS, folder / "blockface.json")
    placements = read_placements(folder / "with.json")
    np.testing.assert_array_equal(placements.sections["s1"].affine.matrix, known)
    assert placements.sections["s1"].position_mm == 0.5, "positions are the sheet's"
    gauge = np.linalg.inv(_in_slide(TRUTH["s1"])) @ known
    for name in ("s0", "s4", "s5"):
        expected = _in_slide(TRUTH[name]) @ gauge
        found = placements.sections[name].affine.matrix
        assert np.linalg.norm((np.linalg.inv(found) - np.linalg.inv(expected)) @ [6.4, 6.4, 1]) < 0.2, name


def test_a_block_of_which_nothing_can_be_read_is_a_record_and_no_crash(study) -> None:
    folder, sections, manifests = study
    bad = [s for s in sections if s.id in ("s2", "s3")]
    (batch,) = plan_pairs(bad, 3, 16)
    measure_edges(bad, manifests, batch, folder / "none.json", SETTINGS)
    solve(bad, manifests, [folder / "none.json"], folder / "nothing.json", SETTINGS)
    placements = read_placements(folder / "nothing.json")
    assert set(placements.sections) == {"s2", "s3"}
    assert not placements.placed


def test_a_section_no_pair_of_which_was_accepted_is_a_flagged_guess(study) -> None:
    folder, sections, manifests = study
    records = json.loads((folder / "edges.json").read_text())["edges"]
    for r in records:
        if "s5" in (r["fixed"], r["moving"]):
            r["score"], r["margin"] = 0.01, -0.1
    (folder / "doubt.json").write_text(json.dumps({"edges": records}))
    solve(sections, manifests, [folder / "doubt.json"], folder / "guess.json", SETTINGS)
    guess = read_placements(folder / "guess.json").sections["s5"]
    assert guess.is_placed
    assert "placed by a guess" in guess.flags[0]
    assert guess.confidence < 0.1


def test_pairs_reach_over_sections_without_pixels_and_each_is_planned_once() -> None:
    sections = _sections(9, s2={"status": "missing"}, s5={"status": "excluded"}, s6={"status": "damaged"})
    batches = plan_pairs(sections[::-1], reach=2, batch=3)
    pairs = [p for batch in batches for p in batch]
    assert len(pairs) == len(set(pairs)) == 2 * 7 - 3
    assert ("s1", "s3") in pairs and ("s4", "s6") in pairs
    assert not {"s2", "s5"} & {name for pair in pairs for name in pair}
    assert [b[0][0] for b in batches] == ["s0", "s4"]
    assert plan_pairs(sections[:1], 3, 4) == []
    assert plan_pairs([], 3, 4) == []


@pytest.mark.parametrize(
    ("fixed", "moving", "faces"),
    [
        ("auto", "auto", (False, True)),
        ("auto", "none", (False, True)),
        ("none", "none", (False,)),
        ("horizontal", "horizontal", (False,)),
        ("none", "horizontal", (True,)),
    ],
)
def test_declared_faces_are_not_searched_again(fixed: str, moving: str, faces: tuple[bool, ...]) -> None:
    assert faces_to_try(Section("a", None, 0.0, flip=fixed), Section("b", None, 0.5, flip=moving)) == faces


HINTED = {"a": 40.0, "b": 140.0}  # mirrored, a turns the pair by -100: far from the 100 that it does upright


def _hinted_pair(mirrored: tuple[bool, bool], known: bool, off: float = 0.0) -> float:
    """How far in mm a pair lies off that is compared only within 12 degrees of its hints, that of b ``off`` by so much."""
    truth = {n: rigid(HINTED[n], m, (0.3, -0.2)) for n, m in zip("ab", mirrored, strict=True)}
    prepared = {n: prepare(*Tissue(2).image(centred(80, 0.16), np.linalg.inv(m)), 0.4, 0.2) for n, m in truth.items()}
    flips = [("none", "horizontal")[m] if known else "auto" for m in mirrored]
    a = Section("a", None, 0.0, flip=flips[0], rotation_deg=HINTED["a"])
    b = Section("b", None, 0.5, flip=flips[1], rotation_deg=HINTED["b"] + off)
    found = _measure(a, b, prepared, StackSettings(hint_deg=12.0))
    return apart(np.array(found["matrix"]), truth["b"] @ np.linalg.inv(truth["a"]))


@pytest.mark.parametrize("mirrored", [(False, False), (False, True), (True, False), (True, True)])
def test_hints_of_both_lead_to_the_truth_on_every_face_known_or_not(mirrored: tuple[bool, bool]) -> None:
    assert _hinted_pair(mirrored, known=True) < 0.1
    assert _hinted_pair(mirrored, known=False) < 0.1
    assert _hinted_pair(mirrored, known=True, off=150.0) > 1.0, "the hints must restrict the search, or nothing is tested"


def test_a_hint_of_one_section_says_nothing_of_a_pair() -> None:
    alone, other = Section("a", None, 0.0, rotation_deg=30.0), Section("b", None, 0.5)
    assert turns_hinted(alone, other) == turns_hinted(other, alone) == ()


@pytest.mark.parametrize(("flip", "turns"), [("none", (50.0,)), ("horizontal", (-50.0,)), ("auto", (-50.0, 50.0))])
@pytest.mark.parametrize("other", ["none", "horizontal", "auto"])
def test_the_face_of_the_first_section_decides_which_way_its_pair_turns(flip: str, turns: tuple[float, ...], other: str) -> None:
    first = Section("a", None, 0.0, flip=flip, rotation_deg=-20.0)
    assert turns_hinted(first, Section("b", None, 0.5, flip=other, rotation_deg=30.0)) == turns


def test_one_huge_section_does_not_set_the_scale() -> None:
    assert typical_size_mm([100.0, 110.0, 90.0, 1e6]) < 20


def test_remarks_on_the_order_become_flags(study) -> None:
    folder, sections, manifests = study
    (folder / "order.json").write_text(json.dumps({"flags": {"s1": ["in the wrong place"]}, "pairs": 0}))
    solve(sections, manifests, [folder / "edges.json"], folder / "told.json", SETTINGS, remarks=folder / "order.json")
    placements = read_placements(folder / "told.json")
    assert placements.sections["s1"].flags == ("in the wrong place",)
    assert placements.sections["s0"].flags == ()


def test_where_no_pair_was_accepted_at_all_no_section_is_sure_and_each_says_so(study) -> None:
    folder, sections, manifests = study
    records = json.loads((folder / "edges.json").read_text())["edges"]
    doubt = [r | {"score": 0.02, "margin": -0.1} for r in records]
    (folder / "none.json").write_text(json.dumps({"edges": doubt}))
    solve(sections, manifests, [folder / "none.json"], folder / "lost.json", SETTINGS)
    found = read_placements(folder / "lost.json")
    assert {"s0", "s1"} <= set(found.placed) <= set(TRUTH)
    assert all(p.is_doubtful and p.flags[0].startswith("no pair was accepted") for p in found.placed.values())
    assert all(found.sections[n].flags[0].startswith("not placed") for n in set(TRUTH) - set(found.placed))


def test_a_section_by_itself_is_sure_of_its_place(study) -> None:
    folder, sections, manifests = study
    alone = [s for s in sections if s.id in ("s1", "s2", "s3")]
    measure_edges(alone, manifests, plan_pairs(alone, 3, 16)[0], folder / "alone.json", SETTINGS)
    solve(alone, manifests, [folder / "alone.json"], folder / "one.json", SETTINGS)
    (placed,) = read_placements(folder / "one.json").placed.values()
    assert (placed.section, placed.confidence, placed.flags) == ("s1", 1.0, ())
