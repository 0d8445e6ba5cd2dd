"""From the sheets to placements: guides, rough transforms and locks decide where their sections lie, and say so."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

sys.path.insert(0, str(Path(__file__).parents[1] / "registration"))
from synthetic import Tissue, apart, centred, moved, rigid

from histomri.core import Block, Grid, InputError, Section
from histomri.io.placements import read_placements, write_placements
from histomri.io.sheets import SectionGuide
from histomri.io.transform_files import write_affine
from histomri.registration.by_hand import MriGuides
from histomri.registration.verification import Verdict
from histomri.stages.by_hand import given_pose, locked_places
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.stages.stack import StackSettings, measure_edges, plan_pairs, solve
from histomri.stages.verification import judged
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement, Placements

PIXEL_MM = 0.08
N = 160
SETTINGS = StackSettings(search_px=36, fine_px=80, reach=3)
TRUTH = {"s0": rigid(0), "s1": rigid(75, False, (0.5, 0.2)), "s2": rigid(250, True, (0.2, -0.3)), "s3": rigid(310)}
POINTS = np.array([[2.0, -1.0], [-1.5, 2.5], [0.5, 3.0]])


def _in_slide(block_to_section: np.ndarray) -> np.ndarray:
    """The same in ``section:`` mm, whose origin is the centre of the top left pixel."""
    shift = np.eye(3)
    shift[:2, 2] = (N - 1) / 2 * PIXEL_MM
    return shift @ block_to_section


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Section], dict[str, Path]]:
    """Four slides; s2 shows foreign tissue whose outline leads the search to another face and angle than the truth's."""
    folder = tmp_path_factory.mktemp("by_hand")
    sections = [Section(f"s{i}", folder / f"s{i}.png", 0.5 * i) for i in range(4)]
    manifests = {s.id: folder / "ingest" / s.id / "manifest.json" for s in sections}
    for s in sections:
        tissue, matrix = (Tissue(2, 9), rigid(20)) if s.id == "s2" else (Tissue(2), TRUTH[s.id])
        image, _ = tissue.image(centred(N, PIXEL_MM), np.linalg.inv(matrix))
        Picture.fromarray(np.clip(240 - 70 * image.data, 0, 255).astype(np.uint8)).save(s.file)
        ingest_section(s, folder / "sections" / f"{s.id}.ome.zarr", manifests[s.id], IngestSettings(), PIXEL_MM)
    (batch,) = plan_pairs(sections, SETTINGS.reach, 16)
    measure_edges(sections, manifests, batch, folder / "edges.json", SETTINGS)
    return folder, sections, manifests


def _solved(study, sections: list[Section], guides: tuple[SectionGuide, ...] = ()) -> Placements:
    folder, _, manifests = study
    solve(sections, manifests, [folder / "edges.json"], folder / "out.json", SETTINGS, guides=guides)
    return read_placements(folder / "out.json")


def _errors(placements: Placements) -> dict[str, float]:
    found = {n: p.affine.matrix for n, p in placements.placed.items()}
    gauge = np.linalg.inv(_in_slide(TRUTH["s0"])) @ found["s0"]
    return {n: apart(np.linalg.inv(m), np.linalg.inv(_in_slide(TRUTH[n]) @ gauge), 3.0) for n, m in found.items()}


def _px(name: str) -> np.ndarray:
    return moved(_in_slide(TRUTH[name]), POINTS) / PIXEL_MM


def _guides() -> tuple[SectionGuide, ...]:
    pairs = zip(_px("s2"), _px("s1"), strict=True)
    return tuple(SectionGuide("s2", tuple(here), None, "s1", tuple(there)) for here, there in pairs)


def test_without_help_the_foreign_section_lies_wrong(study) -> None:
    placements = _solved(study, study[1])
    assert _errors(placements).get("s2", 99.0) > 2
    assert max(v for n, v in _errors(placements).items() if n != "s2") < 0.1


def test_three_points_bring_it_right_and_leave_the_others_alone(study) -> None:
    before, placements = _solved(study, study[1]), _solved(study, study[1], _guides())
    errors = _errors(placements)
    assert errors["s2"] < 0.3
    assert max(v for n, v in errors.items() if n != "s2") < 0.1
    assert placements.sections["s2"].is_mirrored
    assert placements.sections["s2"].flags == ("placed by hand, by 3 guides to section s1 (rigidly 0.00 mm off)",)
    assert placements.sections["s2"].confidence == 1
    assert not any("by hand" in f for n in ("s0", "s1", "s3") for f in placements.sections[n].flags)
    assert not any("by hand" in f for p in before.sections.values() for f in p.flags)


def test_a_rough_transform_does_the_same(study) -> None:
    rough = TRUTH["s2"] @ rigid(3, False, (0.2, 0.1)) @ np.linalg.inv(TRUTH["s1"])
    write_affine(study[0] / "rough.tfm", Affine(_in_slide(rough) @ np.linalg.inv(_in_slide(np.eye(3)))))
    changed = [
        dataclasses.replace(s, transform=study[0] / "rough.tfm", transform_from="s1") if s.id == "s2" else s for s in study[1]
    ]
    placements = _solved(study, changed)
    # its own 0.27 mm, and as far as foreign tissue may lead it away
    assert _errors(placements)["s2"] < 0.27 + 0.02 * 10 + 0.1
    assert placements.sections["s2"].flags == ("placed by hand, by a transform from section s1 (rigidly 0.00 mm off)",)


def test_a_point_outside_of_its_section_stops_the_stage_and_tells_its_row(study) -> None:
    first, second, third = _guides()
    outside = dataclasses.replace(first, point_px=(10.0, 160.0))
    with pytest.raises(InputError) as error:
        _solved(study, study[1], (outside, second, third))
    (problem,) = error.value.problems
    assert problem.what == "x 160, y 10 lies outside of section s2, which has 160 x 160 pixels"
    assert problem.where == "guides, row of section s2 with x 160, y 10"
    there = [dataclasses.replace(g, to_px=(10.0, 170.0)) for g in (second, third)]
    with pytest.raises(InputError) as error:
        _solved(study, study[1], (first, *there))
    assert [p.what.partition(" lies")[0] for p in error.value.problems] == ["to_x 170, to_y 10"] * 2
    assert f"with x {second.point_px[1]:g}, y {second.point_px[0]:g}" in error.value.problems[0].where


def test_points_mistaken_for_each_other_are_told_and_lower_the_confidence(study) -> None:
    first, second, third = _guides()
    mistaken = (dataclasses.replace(first, to_px=third.to_px), second, dataclasses.replace(third, to_px=first.to_px))
    placed = _solved(study, study[1], mistaken).sections["s2"]
    assert "placed by hand, by 3 guides to section s1 (rigidly 1.8" in placed.flags[0]
    assert placed.flags[1].startswith("no rigid place fits 3 guides to section s1 better than 1.8")
    assert placed.confidence == 0.5
    assert not any("; " in flag for flag in placed.flags), "the report takes flags apart there"


def test_a_rough_transform_on_a_face_that_the_sheet_rules_out_is_told(study) -> None:
    rough = _in_slide(TRUTH["s2"] @ np.linalg.inv(TRUTH["s1"])) @ np.linalg.inv(_in_slide(np.eye(3)))
    write_affine(study[0] / "mirrored.tfm", Affine(rough))
    given = {"transform": study[0] / "mirrored.tfm", "transform_from": "s1"}
    sections = [dataclasses.replace(s, flip="none", **(given if s.id == "s2" else {})) for s in study[1]]
    placed = _solved(study, sections).sections["s2"]
    assert "no rigid place fits a transform from section s1 better than" in placed.flags[1]
    assert "some of it, or flip, is wrong" in placed.flags[1]
    assert placed.confidence == 0.5


def test_guides_to_two_sections_that_contradict_each_other_are_told(study) -> None:
    elsewhere = moved(rigid(20, False, (2.0, 2.0)), _px("s3") * PIXEL_MM) / PIXEL_MM
    others = tuple(SectionGuide("s2", tuple(p), None, "s3", tuple(q)) for p, q in zip(_px("s2"), elsewhere, strict=True))
    placed = _solved(study, study[1], _guides() + others).sections["s2"]
    assert any(f.startswith("it lies elsewhere than 3 guides to section s") for f in placed.flags)
    assert placed.confidence == 0.5
    assert "3 guides to section s1 (rigidly 0.00 mm off) and 3 guides to section s3 (rigidly 0.00 mm off)" in placed.flags[0]


def test_guides_to_a_section_without_tissue_are_told_on_the_section_that_they_were_to_mend(study, capsys) -> None:
    folder, sections, manifests = study
    empty = Section("s9", folder / "s9.png", 4.5)
    Picture.fromarray(np.full((N, N), 240, np.uint8)).save(empty.file)
    manifests = {**manifests, "s9": folder / "ingest" / "s9" / "manifest.json"}
    ingest_section(empty, folder / "sections" / "s9.ome.zarr", manifests["s9"], IngestSettings(), PIXEL_MM)
    guides = tuple(dataclasses.replace(g, to_section="s9") for g in _guides())
    solve([*sections, empty], manifests, [folder / "edges.json"], folder / "idle.json", SETTINGS, guides=guides)
    flags = read_placements(folder / "idle.json").sections["s2"].flags
    text = "its guides to section s9 could not be used: too little tissue was found in section s9"
    assert flags[-1] == text
    assert f"s2: {text}" in capsys.readouterr().out
    assert not any("by hand" in f for f in flags)


def test_a_locked_section_keeps_its_place_and_the_block_its_pose(study) -> None:
    folder = study[0]
    place = Placement("s2", 1.0, Affine(_in_slide(TRUTH["s2"]) @ rigid(33), "block:block", "section:s2"), flags=("odd",))
    pose = Affine(np.diag([1.1, 1.2, 1.3, 1.0]), "mri", "block:block")
    values = np.zeros((2, 2, 2, 3))
    values[1, :, :, 0] = 0.25
    bend = DisplacementField(Grid((2, 2, 2), 5.0), values)
    write_placements(folder / "lock.json", Placements("block", {"s2": place}, pose, plane_bend=bend))
    locked = [dataclasses.replace(s, lock=folder / "lock.json") if s.id == "s2" else s for s in study[1]]
    placements = _solved(study, locked)
    np.testing.assert_array_equal(placements.sections["s2"].affine.matrix, place.affine.matrix)
    assert placements.sections["s2"].flags == ("placed by hand, by a lock",), "what an earlier run said of it is over"
    np.testing.assert_array_equal(placements.mri_to_block.matrix, pose.matrix)
    np.testing.assert_array_equal(placements.plane_bend.values, values)
    found, how = given_pose(Block("block"), placements, {})
    np.testing.assert_allclose(found, np.linalg.inv(pose.matrix))
    assert how == "a lock"


def test_a_section_locked_again_and_again_does_not_gather_reasons(study) -> None:
    folder, sections, manifests = study
    (folder / "order.json").write_text('{"flags": {"s2": ["swapped with section s1"]}}')
    place = Placement("s2", 1.0, Affine(_in_slide(TRUTH["s2"]), "block:block", "section:s2"))
    locked = [dataclasses.replace(s, lock=folder / "again.json") if s.id == "s2" else s for s in sections]
    for _ in range(3):
        write_placements(folder / "again.json", Placements("block", {"s2": place}))
        solve(locked, manifests, [folder / "edges.json"], folder / "out.json", SETTINGS, remarks=folder / "order.json")
        place = judged(read_placements(folder / "out.json").sections["s2"], Verdict(0.1, 2.0, ("lies elsewhere",), {}))
        assert place.flags == ("placed by hand, by a lock", "swapped with section s1", "lies elsewhere")
        assert place.suspicions == place.flags[1:] and place.notes == place.flags[:1]


def test_locks_of_two_runs_do_not_go_together(study) -> None:
    folder = study[0]
    for name, scale in (("s1", 1.1), ("s2", 1.2)):
        place = Placement(name, 0.5 * int(name[1]), Affine(np.eye(3)))
        pose = Affine(np.diag([scale, 1.0, 1.0, 1.0]), "mri", "block:block")
        write_placements(folder / f"{name}.json", Placements("block", {name: place}, pose))
    sections = [dataclasses.replace(s, lock=folder / f"{s.id}.json") for s in study[1] if s.id in ("s1", "s2")]
    with pytest.raises(InputError, match="another pose in the lock of s2 than in that of s1"):
        locked_places(sections)


def _stack() -> Placements:
    places = {n: Placement(n, 2.0 * i, Affine(m, "block:block", f"section:{n}")) for i, (n, m) in enumerate(TRUTH.items())}
    return Placements("block", places)


def _seen(names: tuple[str, ...], pose: np.ndarray, points: np.ndarray = POINTS) -> dict[str, MriGuides]:
    """Guides of sections as a block at ``pose`` (block to MRI) would show them."""
    stack, out = _stack(), {}
    for name in names:
        here = np.concatenate([np.full((len(points), 1), stack.sections[name].position_mm), points], axis=1)
        out[name] = MriGuides(moved(TRUTH[name], points), moved(pose, here))
    return out


def _pose() -> np.ndarray:
    pose = np.eye(4)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    pose[:3, :3] = 1.1 * turn * np.sign(np.linalg.det(turn))
    pose[:3, 3] = [5.0, -8.0, 3.0]
    return pose


def test_guides_in_two_sections_give_the_pose_exactly() -> None:
    found, how = given_pose(Block("block"), _stack(), _seen(("s0", "s3"), _pose()))
    np.testing.assert_allclose(found, _pose(), atol=1e-9)
    assert how == "6 guides in 2 sections"


def test_guides_of_one_section_on_a_line_or_that_do_not_fit_leave_the_pose_to_the_search() -> None:
    pose, block = _pose(), Block("block")
    assert given_pose(block, _stack(), _seen(("s0",), pose)) is None
    flat = {k: MriGuides(v.section_mm[:1], v.mri_mm[:1]) for k, v in _seen(("s0", "s1", "s3"), pose).items()}
    assert given_pose(block, _stack(), flat) is None
    # s2 is guided because the stack has it wrong: its points contradict those of the others
    wrong = _seen(("s0", "s2"), pose)
    wrong["s2"] = MriGuides(moved(rigid(150, True, (3.0, 2.0)), wrong["s2"].section_mm), wrong["s2"].mri_mm)
    assert given_pose(block, _stack(), wrong) is None
    mirrored = pose @ np.diag([1.0, 1.0, -1.0, 1.0])
    assert given_pose(block, _stack(), _seen(("s0", "s3"), mirrored)) is None
    assert given_pose(Block("block", mirror="yes"), _stack(), _seen(("s0", "s3"), mirrored)) is not None
