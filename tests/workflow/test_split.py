"""A volume that outgrows a job is filled by several, to the same bytes, and leaves nothing of them behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from histomri.io.publish import content_files, digest_of

FINE = {"name": "fine", "spacing_mm": 0.15}
TARGET = "volumes/block/he_in_fine.json"


def filled(study: Path, workflow: Any, max_job_mvox: int) -> tuple[list[str], dict[str, str]]:
    """The jobs that made the fine volume, and the digests of its files and its manifest."""
    workflow.set_key(study / "config.yaml", "resample", "grids", ["mri", FINE])
    workflow.set_key(study / "config.yaml", "resample", "max_job_mvox", max_job_mvox)
    outcome = workflow.run(study / "config.yaml", "--", TARGET)
    assert outcome.status == 0, outcome.text
    out = study / "out"
    files = dict(content_files(out / "volumes" / "block" / "he_in_fine.ome.zarr")) | {"manifest": out / TARGET}
    return outcome.jobs, {name: digest_of(path.read_bytes()) for name, path in files.items()}


def test_a_volume_filled_by_several_jobs_is_that_of_one(study: Path, workflow: Any, tmp_path: Path):
    other = Path(shutil.copytree(study, tmp_path / "other"))
    one, whole = filled(other, workflow, 4000)
    several, parts = filled(study, workflow, 1)
    assert one == ["resample_volume:block:he:fine"]
    count = sum(job.startswith("resample_part:") for job in several)
    assert count >= 2
    assert sorted(set(several) - {j for j in several if j.startswith("resample_part:")}) == [
        "resample_begin:block:he:fine",
        "resample_volume:block:he:fine",
    ]
    assert parts == whole
    left = sorted(p.name for p in (study / "out" / "volumes" / "block").iterdir() if "fine" in p.name)
    assert left == ["he_in_fine.json", "he_in_fine.nii.gz", "he_in_fine.ome.zarr", "he_in_fine_coverage.nii.gz"]
    workflow.set_key(study / "config.yaml", "resample", "max_job_mvox", 2)
    assert not workflow.run(study / "config.yaml", "--dry-run", "--", "ingest/s001/manifest.json").jobs
    # another number of jobs fills this volume again, and redoes nothing that it is made from
    again = workflow.run(study / "config.yaml", "--dry-run", "--", TARGET).jobs
    assert {job.partition(":")[0] for job in again} <= {"resample_begin", "resample_part", "resample_volume"}
