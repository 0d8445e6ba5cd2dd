"""How much memory and time a job will ask of a cluster, from sizes that are known before anything runs.

Each figure is a bound over what was measured (``tests/stages/test_demand.py`` holds the measurements), with room for images and
settings that were not: a job that asks for too little costs a run of its own. Figures hold the program that computes; what
Snakemake itself takes around a job is ``AROUND_MB``.
"""

from __future__ import annotations

from dataclasses import dataclass

# two processes of Snakemake, each with the workflow read, 200 MB measured
AROUND_MB = 500
GROWTH = 1.5
GB = 1 << 30


@dataclass(frozen=True)
class Demand:
    """What one run of a rule takes: MB and minutes for nothing at all, and for each section, million voxels, and GB of files."""

    mb: float
    mb_per_section: float = 0.0
    mb_per_mvox: float = 0.0
    minutes: float = 60.0
    minutes_per_section: float = 0.0
    minutes_per_mvox: float = 0.0
    minutes_per_gb: float = 0.0


@dataclass(frozen=True)
class Size:
    """What a job works on: sections (of a batch of pairs its own), millions of voxels of its MRI or volume, bytes of files."""

    sections: int = 0
    mvox: float = 0.0
    file_bytes: int = 0


DEMANDS = {
    "ingest_section": Demand(200, minutes=30, minutes_per_gb=30),
    "blockface_volume": Demand(800, 25, minutes=60, minutes_per_section=1),
    "blockface_place": Demand(700, 5, minutes=60, minutes_per_section=2),
    "stack_edges": Demand(500, 20, minutes=30, minutes_per_section=4),
    "stack_order": Demand(500, 10, minutes=60, minutes_per_section=1),
    "stack_solve": Demand(500, 10, minutes=30, minutes_per_section=1),
    "stack_deform": Demand(1000, 10, minutes=60, minutes_per_section=1),
    "mri_pose": Demand(800, 5, 16, minutes=120, minutes_per_section=1, minutes_per_mvox=1),
    "mri_refine": Demand(800, 10, 16, minutes=120, minutes_per_section=3, minutes_per_mvox=1),
    "mri_verify": Demand(800, 10, 16, minutes=60, minutes_per_section=1, minutes_per_mvox=1),
    "mri_transforms": Demand(600, 2, minutes=60, minutes_per_section=0.5),
    "evaluate": Demand(900, 5, 8, minutes=60, minutes_per_section=1, minutes_per_mvox=0.2),
    "report": Demand(900, 5, 8, minutes=60, minutes_per_section=1, minutes_per_mvox=0.2),
    "provenance": Demand(500, minutes=60, minutes_per_section=1),
    "resample_begin": Demand(400, 2, minutes=60),
    "resample_part": Demand(600, 2, minutes=120, minutes_per_section=1, minutes_per_mvox=0.2),
    "resample_volume": Demand(600, 2, minutes=120, minutes_per_section=1, minutes_per_mvox=0.2),
}


def memory_mb(rule: str, size: Size, granted_mb: float = 0.0, attempt: int = 1) -> int:
    """Memory of a job in MB; ``granted_mb`` is what the config lets it keep beyond. Half as much again at every retry."""
    d = DEMANDS[rule]
    need = AROUND_MB + d.mb + d.mb_per_section * size.sections + d.mb_per_mvox * size.mvox + granted_mb
    return int(need * GROWTH ** (attempt - 1))


def minutes(rule: str, size: Size, attempt: int = 1) -> int:
    """Time of a job in minutes, on one slow core; half as much again at every retry, for one that ran out of time."""
    d = DEMANDS[rule]
    per_file = d.minutes_per_gb * size.file_bytes / GB
    need = d.minutes + d.minutes_per_section * size.sections + d.minutes_per_mvox * size.mvox + per_file
    return int(need * GROWTH ** (attempt - 1))
