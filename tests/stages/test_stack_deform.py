"""A block without an MRI, from slides to deformed placements: what is written, and what is said of a foreign section."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

sys.path.insert(0, str(Path(__file__).parents[1] / "registration"))
from synthetic import Tissue, centred, moved, rigid

from histomri.core import Section
from histomri.io.placements import fields_file, read_placements, write_placements
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.stages.stack import StackSettings
from histomri.stages.stack_deform import deform
from histomri.transforms import Affine
from histomri.transforms.placement import Placement, Placements

PIXEL_MM = 0.16
N = 80
STEP = 0.1
FOREIGN = "s4"
SETTINGS = StackSettings(work_px=60, affine_sweeps=1, deformable_sweeps=1, shape_sections=3.0)


def _slide(path: Path, z: float, in_slide: np.ndarray, tissue: Tissue) -> None:
    """The plane ``z`` of a tissue, dark on a bright slide, a little bent."""
    yx = moved(np.linalg.inv(in_slide), centred(N, PIXEL_MM).points())
    yx = yx + 0.1 * np.sin(yx[..., ::-1] * 1.3 + 20 * z)
    points = np.concatenate([np.full((*yx.shape[:-1], 1), z), yx], axis=-1)
    shade = np.where(tissue.inside(points), 1.5 + 0.5 * tissue.texture(points), 0)
    Picture.fromarray(np.clip(240 - 70 * shade, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Section], dict[str, Path]]:
    """Eight slides of one tissue and one of another; their rigid placements, one section missing."""
    folder, random = tmp_path_factory.mktemp("deform"), np.random.default_rng(0)
    sections, manifests, placed = [], {}, {}
    shift = np.eye(3)
    shift[:2, 2] = (N - 1) / 2 * PIXEL_MM
    for i in range(9):
        name, z = f"s{i}", STEP * i
        sections.append(Section(name, folder / f"{name}.png", z))
        turn = rigid(random.uniform(0, 360), False, tuple(random.normal(size=2) * 0.2))
        _slide(folder / f"{name}.png", z - 0.4, turn, Tissue(3, 99 if name == FOREIGN else 7))
        manifests[name] = folder / "ingest" / name / "manifest.json"
        ingest_section(sections[-1], folder / "sections" / f"{name}.ome.zarr", manifests[name], IngestSettings(), PIXEL_MM)
        off = rigid(random.normal(), False, tuple(random.normal(size=2) * 0.1))
        placed[name] = Placement(name, z, Affine(shift @ turn @ off, "block:block", f"section:{name}"))
    placed["s9"] = Placement("s9", 9 * STEP, None, None, ("not placed: status missing",), 0.0)
    sections.append(Section("s9", None, 9 * STEP, status="missing"))
    write_placements(folder / "placements.json", Placements("block", placed, None, {"components": 1, "note": "as it was"}))
    return folder, sections, manifests


def test_placements_say_what_was_done_and_what_cannot_be_known(study) -> None:
    folder, sections, manifests = study
    deform(sections, manifests, folder / "placements.json", folder / "deformed.json", SETTINGS)
    before, after = read_placements(folder / "placements.json"), read_placements(folder / "deformed.json")
    assert list(after.sections) == list(before.sections) and fields_file(folder / "deformed.json").is_file()
    assert "cannot be known" in after.quality["note"] and after.quality["components"] == 1
    assert any(p.field is not None for p in after.placed.values())
    assert all(0 < p.quality["neighbour_score"] < 1 for p in after.placed.values())
    missing = after.sections["s9"]
    assert not missing.is_placed and missing.flags == ("not placed: status missing",)


def test_foreign_section_is_said_to_resemble_its_neighbours_less_and_others_are_not(study) -> None:
    folder, sections, manifests = study
    deform(sections, manifests, folder / "placements.json", folder / "deformed.json", SETTINGS)
    after = read_placements(folder / "deformed.json")
    assert [k for k, p in after.placed.items() if p.flags] == [FOREIGN]
    assert "resembles its neighbours less than is usual" in after.sections[FOREIGN].flags[0]
    assert after.sections[FOREIGN].field is None


@pytest.mark.parametrize("source", [{"source": "blockface"}, {"by_hand": "a lock"}], ids=["photograph", "locked by hand"])
def test_a_section_that_is_known_keeps_its_place(study, source: dict[str, str]) -> None:
    folder, sections, manifests = study
    given = read_placements(folder / "placements.json")
    known = dataclasses.replace(given.sections["s2"], quality=source)
    write_placements(folder / "known.json", dataclasses.replace(given, sections={**given.sections, "s2": known}))
    deform(sections, manifests, folder / "known.json", folder / "held.json", dataclasses.replace(SETTINGS, deformable_sweeps=0))
    after = read_placements(folder / "held.json")
    np.testing.assert_array_equal(after.sections["s2"].affine.matrix, known.affine.matrix)
    assert not np.array_equal(after.sections["s3"].affine.matrix, given.sections["s3"].affine.matrix)


def test_without_sweeps_the_rigid_placements_pass_through(study) -> None:
    folder, sections, manifests = study
    none = dataclasses.replace(SETTINGS, affine_sweeps=0, deformable_sweeps=0)
    deform(sections, manifests, folder / "placements.json", folder / "same.json", none)
    before, after = read_placements(folder / "placements.json"), read_placements(folder / "same.json")
    assert after.quality == before.quality
    for k, p in before.placed.items():
        np.testing.assert_array_equal(after.sections[k].affine.matrix, p.affine.matrix)


def test_a_doubtful_section_says_that_it_was_left_where_its_pairs_put_it(study) -> None:
    folder, sections, manifests = study
    given = read_placements(folder / "placements.json")
    unsure = dataclasses.replace(given.sections["s2"], confidence=0.25)
    write_placements(folder / "unsure.json", dataclasses.replace(given, sections={**given.sections, "s2": unsure}))
    deform(sections, manifests, folder / "unsure.json", folder / "left.json", dataclasses.replace(SETTINGS, deformable_sweeps=0))
    after = read_placements(folder / "left.json").sections["s2"]
    np.testing.assert_array_equal(after.affine.matrix, unsure.affine.matrix)
    assert len(after.flags) == 1 and "not fitted to its neighbours" in after.flags[0]


def test_where_all_sections_are_doubtful_none_moves(study) -> None:
    folder, sections, manifests = study
    given = read_placements(folder / "placements.json")
    unsure = {k: dataclasses.replace(p, confidence=min(p.confidence, 0.05)) for k, p in given.sections.items()}
    write_placements(folder / "unsure.json", dataclasses.replace(given, sections=unsure))
    deform(sections, manifests, folder / "unsure.json", folder / "left.json", dataclasses.replace(SETTINGS, deformable_sweeps=0))
    after = read_placements(folder / "left.json")
    assert len(after.placed) == len(given.placed)
    for k, p in given.placed.items():
        np.testing.assert_allclose(after.sections[k].affine.matrix, p.affine.matrix, atol=1e-9)
