"""``histomri lock CONFIG SECTION ...``: the places of sections in a finished run, for the column ``lock`` of the sheet."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

FOLDER = "locks"


def add_parser(subparsers: Any) -> None:
    """Describe the command's arguments."""
    parser = subparsers.add_parser(
        "lock",
        help="keep sections where a finished run has them, whatever runs later",
        description="Writes the place of each section, as the last run has it, to a file of its own for the column `lock` of "
        "sections.tsv. A locked section keeps exactly that place, and its block the pose that it had.",
    )
    parser.add_argument("config", type=Path, help="the study's config file")
    parser.add_argument("sections", nargs="+", metavar="SECTION", help="ids of the sections to lock")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the files (default: locks beside the sheet of sections)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the files and say what to write into the sheet. Raises ``InputError`` for a section without a place."""
    from histomri.core import InputError
    from histomri.core.errors import Problem
    from histomri.io.by_hand import order_problem, write_lock
    from histomri.io.config import load_study
    from histomri.io.order import UNKNOWN
    from histomri.io.placements import read_placements

    study = load_study(args.config)
    known = {s.id: s for s in study.sections}
    unknown = [s for s in args.sections if s not in known]
    if unknown:
        raise InputError(*(Problem(str(study.sections_path), f"there is no section {s!r}", "correct the name") for s in unknown))
    if study.stage("stack")["order"] == UNKNOWN:
        raise InputError(order_problem(study.sections_path, args.sections))
    sheet_folder = study.sections_path.parent
    folder = args.output or sheet_folder / FOLDER
    for section in args.sections:
        placements = read_placements(study.output / study.final_placements(known[section].block))
        path = folder / f"{section}.json"
        write_lock(path, placements, known[section])
        print(f"section {section}: write into its column lock: {os.path.relpath(path, sheet_folder)}")
    return 0
