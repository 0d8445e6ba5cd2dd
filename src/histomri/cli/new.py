"""``histomri new STUDY_DIR [--slides FOLDER]``: a config and sheets to fill in."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from histomri.core import InputError
from histomri.core.errors import Problem
from histomri.core.section import READING_ORDERS


def add_parser(subparsers: Any) -> None:
    """Describe the command's arguments."""
    parser = subparsers.add_parser(
        "new",
        help="write a commented config and sheets for a study, filled from the slides found",
        description="Writes config.yaml, sections.tsv and blocks.tsv into STUDY_DIR. Overwrites nothing.",
    )
    parser.add_argument("study_dir", type=Path, metavar="STUDY_DIR", help="folder of the new study, made where it does not exist")
    parser.add_argument("--slides", type=Path, metavar="FOLDER", help="fill the sheet with the slides in this folder and below")
    parser.add_argument(
        "--sections-per-slide", type=int, metavar="N", help="sections on each slide: find them, a row with its region for each"
    )
    parser.add_argument(
        "--reading-order", default="row-major", choices=READING_ORDERS, help="their order on a slide (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the files and say what is left to do."""
    from histomri.io.template import write_study

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is told here, in our words

    if args.sections_per_slide is not None and args.sections_per_slide < 1:
        raise InputError(
            Problem("--sections-per-slide", f"at least 1 was expected, found {args.sections_per_slide}", "correct it")
        )
    found = write_study(args.study_dir, args.slides, args.sections_per_slide, args.reading_order)
    for slide in found:
        if slide.problem:
            print(f"warning: {slide.path}: {slide.problem}")
    slides = "" if args.sections_per_slide is None else f" of {len({slide.path for slide in found})} slides"
    print(f"{args.study_dir}: config.yaml, blocks.tsv and sections.tsv with {len(found)} sections{slides} written")
    print("Fill in what config.yaml marks TO FILL IN and the MRI in blocks.tsv, then run:")
    print(f"    histomri check {args.study_dir / 'config.yaml'}")
    return 0
