"""What a user gave for a study, and the names by which a record knows it wherever the study lies."""

from __future__ import annotations

import time
from pathlib import Path

from histomri.core.errors import Problem
from histomri.io.config import Study
from histomri.io.placements import fields_file
from histomri.io.tables import absolute

ELSEWHERE = "elsewhere"
# between the clocks of two machines, at most
FUTURE_S = 60


def given_files(study: Study) -> list[Path]:
    """Every file of the user's that a run reads, absolute, each once: sheets, slides, photographs, landmarks, by hand, MRI."""
    used = [s for b in study.stacks.values() for s in b.used]
    sheets = [study.sections_path, study.blocks_path, study.landmarks, guides_path(study)]
    images = [*(s.file for s in used), *(s.blockface for s in study.sections)]
    locks = [f for s in used if s.lock for f in (s.lock, fields_file(s.lock))]
    volumes = [f for b in study.blocks for f in (b.mri, b.mri_mask, b.pose)]
    found = [*sheets, *images, *(s.transform for s in used), *locks, *volumes]
    return list(dict.fromkeys(f for f in found if f))


def study_folder(study: Study) -> Path:
    """The folder that relative paths of the config belong to."""
    return study.config_path.parent if study.config_path else study.sections_path.parent


def guides_path(study: Study) -> Path | None:
    """The sheet of guides, None without one."""
    return absolute(study.config["guides"], study_folder(study)) if study.config["guides"] else None


def given_names(study: Study) -> dict[str, Path]:
    """The same files by names without machine or user: relative to the study's folder, else ``elsewhere/`` and a name."""
    folder, found = study_folder(study), {}
    for file in given_files(study):
        name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else f"{ELSEWHERE}/{file.name}"
        number, unique = 1, name
        while unique in found:
            number, unique = number + 1, f"{name} ({number + 1})"
        found[unique] = file
    return found


def future_problems(study: Study) -> list[Problem]:
    """The user's files that are dated to the future: Snakemake takes every result for older than them."""
    soon = time.time() + FUTURE_S
    late = [f for f in given_files(study) if f.exists() and f.stat().st_mtime > soon]
    what = "its time lies in the future, so that no result could be newer"
    return [Problem(str(f), what, "correct the clock, or give the file the present time (touch)") for f in late]
