"""resample, of a volume that outgrows a job: several jobs fill one store, each with chunks that are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histomri.io.placements import read_placements
from histomri.io.sheets import block_from_dict, section_from_dict
from histomri.io.volumes import VolumeStore, tiles
from histomri.stages.adapter import files_of
from histomri.stages.parts import begin, current, ready, record_part, share
from histomri.stages.resample import ResampleSettings, VolumePlan, fill, plan_volume, spec_of


def planned_by(job: Any) -> tuple[VolumePlan, tuple[str, str]]:
    """The volume that a job of the workflow (Snakemake's ``snakemake``) is about, and its ``choice`` = (grid name, stain)."""
    choice = (job.wildcards.grid, job.wildcards.stain)
    plan = plan_volume(
        tuple(map(section_from_dict, job.params.sections)),
        files_of(job.params.manifest_sections, job.input.manifests),
        block_from_dict(job.params.block),
        read_placements(Path(job.input.placements)),
        choice,
        ResampleSettings(**job.params.settings, max_memory_mb=job.resources.max_memory_mb),
    )
    return plan, choice


def make_empty(plan: VolumePlan, choice: tuple[str, str], working: Path) -> None:
    """The store of ``choice`` = (grid name, stain) without a voxel, in a working folder that is emptied first."""
    store = begin(working)
    VolumeStore(store, spec_of(plan, choice))
    ready(working, store)


def write_part(plan: VolumePlan, choice: tuple[str, str], working: Path, part: tuple[int, int], done: Path) -> None:
    """Fill the chunks of ``part`` = (its number from 0, of how many); ``done`` is written last. The same bytes for any number."""
    store = current(working)
    volume = VolumeStore(store, spec_of(plan, choice), is_there=True)
    boxes = share(list(tiles(plan.grid.shape, plan.chunk)), *part)
    record_part(done, store, *part, fill(volume, plan, boxes))
