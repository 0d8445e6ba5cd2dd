"""A person mends one section in the sheets, and only what depends on it runs again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from test_reruns import AFTER_STACK, NOTHING, edges_with, resampled

from histomri.cli import main
from histomri.io.config import load_study
from histomri.io.transform_files import write_affine
from histomri.transforms import Affine

AFTER_SOLVE = AFTER_STACK - {"stack_order:block"}
AFTER_REFINE = {"mri_refine:block", "mri_verify:block", "mri_transforms", "evaluate", "report", "provenance"}
GUIDES = "section\tx\ty\tmri_x\tmri_y\tmri_z\tto_section\tto_x\tto_y\n"


def fill(study: Path, section: str, **cells: str) -> None:
    """Write cells into a section's row, in new columns where the sheet has none of that name."""
    sheet = study / "sections.tsv"
    rows = [line.split("\t") for line in sheet.read_text().splitlines()]
    for column, value in cells.items():
        if column not in rows[0]:
            rows = [[*row, column if i == 0 else ""] for i, row in enumerate(rows)]
        for row in rows[1:]:
            if row[0] == section:
                row[rows[0].index(column)] = value
    sheet.write_text("\n".join("\t".join(row) for row in rows) + "\n")


def guide(study: Path, rows: str) -> None:
    (study / "guides.tsv").write_text(GUIDES + rows)
    config = yaml.safe_load((study / "config.yaml").read_text())
    (study / "config.yaml").write_text(yaml.safe_dump({**config, "guides": "guides.tsv"}, sort_keys=False))


def planned(study: Path, workflow: Any) -> set[str]:
    outcome = workflow.run(study / "config.yaml", "--dry-run")
    assert outcome.status == 0, outcome.text
    return set(outcome.jobs) - resampled(outcome.jobs)


def used(study: Path) -> list[str]:
    return [s.id for s in load_study(study / "config.yaml").stacks["block"].used]


def test_guides_to_another_section_redo_the_solve_and_no_pair(study: Path, workflow: Any):
    a, b = used(study)[:2]
    guide(study, f"{b}\t100\t100\t\t\t\t{a}\t100\t100\n{b}\t300\t300\t\t\t\t{a}\t300\t300\n")
    assert planned(study, workflow) == AFTER_SOLVE


def test_guides_to_the_mri_redo_the_refinement_alone_until_they_tell_the_pose(study: Path, workflow: Any):
    a, b = used(study)[:2]
    rows = f"{b}\t100\t100\t0\t0\t0\t\t\t\n{b}\t300\t300\t2\t2\t0\t\t\t\n"
    guide(study, rows)
    assert planned(study, workflow) == AFTER_REFINE
    guide(study, rows + rows.replace(b, a))
    assert planned(study, workflow) == AFTER_REFINE | {"mri_pose:block"}


def test_a_face_redoes_the_pairs_of_its_section_alone(study: Path, workflow: Any):
    known = load_study(study / "config.yaml")
    section = used(study)[0]
    fill(study, section, flip="horizontal")
    again = edges_with(known, section)
    assert planned(study, workflow) - {"blockface_place:block"} == AFTER_STACK | again
    assert len(again) < len(list((study / "out/stack/block/edges").glob("*.json")))


def test_a_rough_transform_redoes_the_solve_and_no_pair(study: Path, workflow: Any):
    a, b = used(study)[:2]
    write_affine(study / "rough.tfm", Affine(Affine.identity(2).matrix))
    fill(study, b, transform="rough.tfm", transform_from=a)
    assert planned(study, workflow) == AFTER_SOLVE


def test_a_rough_pose_redoes_the_pose_and_what_follows(study: Path, workflow: Any):
    write_affine(study / "pose.tfm", Affine(Affine.identity(3).matrix))
    header, *rows = (study / "blocks.tsv").read_text().splitlines()
    (study / "blocks.tsv").write_text("\n".join([f"{header}\tpose", *(f"{row}\tpose.tfm" for row in rows)]) + "\n")
    assert planned(study, workflow) == AFTER_REFINE | {"mri_pose:block"}


def test_a_locked_section_is_where_it_was_after_a_run(study: Path, workflow: Any):
    from histomri.io.placements import read_placements

    section = used(study)[1]
    final = study / "out/mri/block/placements.json"
    before = read_placements(final)
    assert main(["lock", str(study / "config.yaml"), section]) == 0
    fill(study, section, lock=f"locks/{section}.json")
    outcome = workflow.run(study / "config.yaml")
    assert outcome.status == 0, outcome.text
    assert set(outcome.jobs) - resampled(outcome.jobs) == AFTER_SOLVE
    after = read_placements(final)
    assert (after.sections[section].affine.matrix == before.sections[section].affine.matrix).all()
    assert (after.mri_to_block.matrix == before.mri_to_block.matrix).all()
    assert "placed by hand, by a lock" in after.sections[section].flags
    assert NOTHING in workflow.run(study / "config.yaml", "--dry-run").text
