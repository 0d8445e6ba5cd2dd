"""The pipeline adapts to what is there: every mode is planned, with the jobs that it needs and no others."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histomri.core import Section
from histomri.stages.stack import plan_pairs

SECTIONS = 6
USED = SECTIONS - 1
ALWAYS = {"mri_transforms": 1, "evaluate": 1, "report": 1, "provenance": 1}


def batches() -> int:
    sections = tuple(Section(str(i), None, i * 0.5, status="missing" if i == 2 else "ok") for i in range(SECTIONS))
    return len(plan_pairs(sections, 2, 2))


@pytest.mark.parametrize("blockface", [False, True], ids=["no photographs", "photographs"])
@pytest.mark.parametrize(
    ("blocks", "stains"),
    [
        ({"a": True}, ("nissl",)),
        ({"a": False}, ("nissl", "myelin")),
        ({"a": True, "b": False}, ("nissl", "myelin")),
    ],
    ids=["MRI", "two stains without MRI", "two blocks, one with MRI"],
)
def test_no_mode_plans_a_job_too_many_or_too_few(
    workflow: Any, sheets: Callable[..., Path], blocks: dict[str, bool], stains: tuple[str, ...], blockface: bool
):
    outcome = workflow.run(sheets(blocks, stains, blockface), "--dry-run")
    assert outcome.status == 0, outcome.text
    counts = Counter(job.partition(":")[0] for job in outcome.jobs)
    with_mri = sum(blocks.values())
    expected = Counter(ALWAYS)
    expected["ingest_section"] = USED * len(blocks)
    expected["stack_edges"] = batches() * len(blocks)
    expected["stack_order"] = len(blocks)
    expected["stack_solve"] = len(blocks)
    expected["stack_deform"] = len(blocks) - with_mri
    # without an MRI the volumes lie on the block's own grid
    expected["resample_volume"] = len(stains) * len(blocks)
    expected["mri_pose"] = expected["mri_refine"] = expected["mri_verify"] = with_mri
    expected["blockface_volume"] = expected["blockface_place"] = len(blocks) if blockface else 0
    assert counts == +expected


def test_a_lost_section_is_not_ingested_but_its_photograph_is_used(workflow: Any, sheets: Callable[..., Path]):
    outcome = workflow.run(sheets({"a": True}, blockface=True), "--dry-run")
    assert "ingest_section:a2" not in outcome.jobs
    assert "ingest_section:a1" in outcome.jobs
    volume = next(part for part in outcome.text.split("\n\n") if "rule blockface_volume:" in part)
    assert "a2.jpg" in volume


def test_a_sheet_with_faults_is_refused_in_words_without_a_stack_trace(workflow: Any, sheets: Callable[..., Path]):
    config = sheets({"a": True})
    sheet = config.with_name("sections.tsv")
    sheet.write_text(sheet.read_text().replace("a1.tif", "gone.tif").replace("a3.tif", "lost.tif"))
    outcome = workflow.run(config, "--dry-run")
    assert outcome.status != 0
    assert "gone.tif" in outcome.text
    assert "lost.tif" in outcome.text
    assert "Traceback" not in outcome.text


def test_files_dated_to_the_future_and_links_out_of_the_output_are_refused_together(workflow: Any, sheets: Callable[..., Path]):
    config = sheets({"a": True}, blockface=True)
    study, late = config.parent, time.time() + 86400
    for name in ("a1.tif", "a2.jpg", "mri.nii.gz", "sections.tsv", "config.yaml"):
        os.utime(study / name, (late, late))
    (study / "elsewhere").mkdir()
    (study / "out").mkdir()
    (study / "out" / "stack").symlink_to(study / "elsewhere")
    outcome = workflow.run(config)
    said = [line.split(": its time lies in the future")[0] for line in outcome.text.splitlines() if "(touch)" in line]
    assert outcome.status != 0 and "Traceback" not in outcome.text
    # the config is no input of a job: its time is no matter
    assert {Path(where).name for where in said} == {"a1.tif", "a2.jpg", "mri.nii.gz", "sections.tsv"}
    assert f"out of the folder of results, to {study / 'elsewhere'}" in outcome.text
    assert [f.name for f in (study / "out").iterdir()] == ["stack"] and not [*(study / "elsewhere").iterdir()]


def test_an_overridden_config_is_refused_in_words(workflow: Any, sheets: Callable[..., Path]):
    config = sheets({"a": True})
    assert "write the key into the config file" in workflow.run(config, "--dry-run", "--config", "device=gpu").text


def test_the_linter_finds_nothing(workflow: Any, sheets: Callable[..., Path]):
    outcome = workflow.run(sheets({"a": True}, blockface=True), "--lint")
    assert outcome.status == 0, outcome.text
    assert "good condition" in outcome.text


def test_an_unknown_order_compares_all_with_all_and_is_refused_where_that_is_too_much(workflow: Any, sheets: Callable[..., Path]):
    config = sheets({"a": True})
    workflow.set_key(config, "stack", "order", "unknown")
    outcome = workflow.run(config, "--dry-run")
    assert outcome.status == 0, outcome.text
    sections = tuple(Section(str(i), None, i * 0.5, status="missing" if i == 2 else "ok") for i in range(SECTIONS))
    planned = plan_pairs(sections, 2, 2, "unknown")
    assert sum(map(len, planned)) == USED * (USED - 1) // 2
    assert sum(job.startswith("stack_edges:") for job in outcome.jobs) == len(planned)
    many = sheets({"a": True}, stains=("nissl", "he"), sections=202)
    workflow.set_key(many, "stack", "order", "unknown")
    refused = workflow.run(many, "--dry-run")
    assert refused.status != 0
    assert "block a has 201 sections; unknown is for 200 at most" in refused.text
    assert "block a has 2 stains (he, nissl); unknown is for one" in refused.text
