"""Reruns are honest: what changed is done again with all that depends on it, and nothing else is."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from histomri.cli import main
from histomri.cli.why import planned
from histomri.core import Stack
from histomri.io.config import Study, load_study
from histomri.stages.stack import plan_pairs

AFTER_STACK = {"stack_order:block", "stack_solve:block", "mri_pose:block", "mri_refine:block", "mri_verify:block"}
AFTER_STACK |= {"mri_transforms", "evaluate", "report", "provenance"}
EVALUATION = {"evaluate", "report", "provenance"}
NOTHING = "Nothing to be done"


def edges_with(study: Study, section: str) -> set[str]:
    """The batches of pairs in which a section takes part."""
    settings = study.stage("stack")
    batches = plan_pairs(Stack("block", study.sections).sections, settings["reach"], settings["batch"])
    return {f"stack_edges:block:{n}" for n, batch in enumerate(batches) if any(section in pair for pair in batch)}


def resampled(jobs: list[str]) -> set[str]:
    return {job for job in jobs if job.startswith("resample_volume:")}


def test_a_second_run_does_nothing_even_from_another_place(study: Path, workflow: Any):
    outcome = workflow.run(study / "config.yaml")
    assert outcome.status == 0, outcome.text
    assert outcome.jobs == []
    assert NOTHING in outcome.text


def test_a_replaced_slide_redoes_its_section_and_what_depends_on_it_alone(study: Path, workflow: Any):
    known = load_study(study / "config.yaml")
    first, other = (s for s in known.stacks["block"].used[:2])
    assert first.file is not None
    assert other.file is not None
    # with the times of the slide before: a copy with `cp -p`, or from an archive, is often older than the results
    before = first.file.stat()
    shutil.copyfile(other.file, first.file)
    os.utime(first.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    outcome = workflow.run(study / "config.yaml")
    assert outcome.status == 0, outcome.text
    expected = AFTER_STACK | edges_with(known, first.id) | {f"ingest_section:{first.id}"} | resampled(outcome.jobs)
    expected |= {"blockface_place:block"} if known.has_blockface("block") else set()
    assert set(outcome.jobs) == expected
    assert len(outcome.jobs) == len(expected)
    assert resampled(outcome.jobs)
    assert len(edges_with(known, first.id)) < len(list((study / "out/stack/block/edges").glob("*.json")))
    assert NOTHING in workflow.run(study / "config.yaml", "--dry-run").text


def test_a_touched_slide_does_nothing(study: Path, workflow: Any):
    for slide in (study / "slides").iterdir():
        slide.touch()
    (study / "mri.nii.gz").touch()
    assert NOTHING in workflow.run(study / "config.yaml", "--dry-run").text


def test_an_evaluate_key_redoes_evaluate_alone(study: Path, workflow: Any):
    workflow.set_key(study / "config.yaml", "evaluate", "min_mask_dice", 0.55)
    outcome = workflow.run(study / "config.yaml")
    assert outcome.status == 0, outcome.text
    assert set(outcome.jobs) == EVALUATION


def test_a_key_of_the_report_does_not_measure_again(study: Path, workflow: Any):
    workflow.set_key(study / "config.yaml", "evaluate", "report_pixels", 200)
    assert set(workflow.run(study / "config.yaml", "--dry-run").jobs) == {"report", "provenance"}


def test_a_deleted_store_is_made_again(study: Path, workflow: Any):
    known = load_study(study / "config.yaml")
    section = known.stacks["block"].used[0].id
    store = study / "out" / "sections" / f"{section}.ome.zarr"
    shutil.rmtree(store)
    jobs = set(workflow.run(study / "config.yaml", "--dry-run").jobs)
    assert f"ingest_section:{section}" in jobs
    assert {job for job in jobs if job.startswith("ingest_section:")} == {f"ingest_section:{section}"}
    outcome = workflow.run(study / "config.yaml", "--until", "ingest_section")
    assert outcome.status == 0, outcome.text
    assert (store / "zarr.json").is_file()
    # the same pixels as before: the manifest holds what it held, so nothing that follows is stale
    assert set(workflow.run(study / "config.yaml", "--dry-run").jobs) == set()


def add_line(file: Path, line: str) -> None:
    file.write_text(file.read_text() + f"\n{line}\n")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("stages/evaluate.py", EVALUATION),
        ("stages/report.py", EVALUATION),
        ("stages/provenance.py", EVALUATION),
        ("stages/transforms.py", {"mri_transforms", *EVALUATION}),
        # stages/blockface.py, one module, makes the volume of photographs and registers sections to it
        ("registration/pair.py", {"blockface_volume", "blockface_place", "stack_edges", "resample_volume", *AFTER_STACK}),
    ],
)
def test_an_edit_of_the_code_redoes_what_uses_it(study: Path, own_checkout: Path, workflow: Any, module: str, expected: set[str]):
    add_line(own_checkout / "src" / "histomri" / module, "EDITED_BY_A_TEST = 1")
    jobs = workflow.run(study / "config.yaml", "--dry-run", root=own_checkout).jobs
    kinds = {job.partition(":")[0] for job in jobs}
    assert kinds == {e.partition(":")[0] for e in expected}


def test_another_version_of_a_package_redoes_what_computes_with_it_and_says_so(study: Path, own_checkout: Path, workflow: Any):
    # found before the installed one, as an upgrade would be
    fake = own_checkout / "src" / "jinja2-99.0.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Name: Jinja2\nVersion: 99.0\n")
    outcome = workflow.run(study / "config.yaml", "--dry-run", root=own_checkout)
    assert set(outcome.jobs) == EVALUATION
    (said,) = [job.reasons for job in planned(outcome.text) if job.name == "evaluate"]
    assert f"package jinja2: {version('jinja2')} -> 99.0" in said


def test_an_edit_of_a_kernel_redoes_ingest_and_all_that_follows(study: Path, own_checkout: Path, workflow: Any):
    add_line(own_checkout / "src" / "histomri" / "core" / "grid.py", "EDITED_BY_A_TEST = 1")
    jobs = workflow.run(study / "config.yaml", "--dry-run", root=own_checkout).jobs
    known = load_study(study / "config.yaml")
    assert {f"ingest_section:{s.id}" for s in known.stacks["block"].used} <= set(jobs)
    assert set(jobs) >= AFTER_STACK


def test_a_comment_a_docstring_and_another_checkout_redo_nothing(study: Path, own_checkout: Path, workflow: Any):
    for file in [*own_checkout.rglob("*.py"), *own_checkout.rglob("*.smk")]:
        add_line(file, "# a comment of a test")
    grid = own_checkout / "src" / "histomri" / "core" / "grid.py"
    text = grid.read_text()
    assert "A regular grid" in text
    grid.write_text(text.replace("A regular grid", "A very regular grid"))
    outcome = workflow.run(study / "config.yaml", "--dry-run", root=own_checkout)
    assert NOTHING in outcome.text, outcome.text


def test_a_section_that_is_excluded_redoes_its_block_and_no_ingest(study: Path, workflow: Any):
    known = load_study(study / "config.yaml")
    section = known.stacks["block"].used[-1].id
    sheet = study / "sections.tsv"
    rows = [line.split("\t") for line in sheet.read_text().splitlines()]
    status = rows[0].index("status")
    for row in rows[1:]:
        row[status] = "excluded" if row[0] == section else row[status]
    sheet.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    jobs = set(workflow.run(study / "config.yaml", "--dry-run").jobs)
    assert jobs >= AFTER_STACK
    assert not {job for job in jobs if job.startswith(("ingest_section:", "blockface_volume:"))}


def test_a_record_knows_its_inputs_wherever_they_lie_and_tells_which_changed(study: Path, capsys: pytest.CaptureFixture[str]):
    record = study / "out" / "provenance.json"
    assert str(study.parents[1]) not in record.read_text()
    assert main(["reproduce", str(record), "--check-only"]) == 0
    assert "inputs: all 14 as recorded" in capsys.readouterr().out
    first, other = sorted((study / "slides").iterdir())[:2]
    shutil.copyfile(other, first)
    assert main(["reproduce", str(record), "--check-only"]) == 1
    said = capsys.readouterr().out
    assert f"slides/{first.name}: " in said and "nothing is run" in said
    record.rename(study.parent / "provenance.json")
    assert main(["reproduce", str(study.parent / "provenance.json"), "--check-only", "--inputs", str(study)]) == 1
    assert f"slides/{first.name}: " in capsys.readouterr().out
