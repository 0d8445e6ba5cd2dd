"""``histomri check CONFIG``: everything wrong with a study, in one go and in seconds."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Describe the command's arguments."""
    parser = subparsers.add_parser(
        "check",
        help="find everything that is wrong with a study, before anything is computed",
        description="Looks at the config, the sheets and every file they name; computes and writes nothing. "
        "Exit status: 0 without errors (warnings may be printed), 1 with errors.",
    )
    parser.add_argument("config", type=Path, help="the study's config file")


def run(args: argparse.Namespace) -> int:
    """Print every problem, errors last, and how many there are."""
    from histomri.io.check import check_study

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is told here, in our words

    problems = sorted(check_study(args.config), key=lambda p: p.severity != "warning")
    for problem in problems:
        print(f"{problem.severity}: {problem.where}\n    {problem.what}\n    -> {problem.remedy}")
    errors = sum(p.severity == "error" for p in problems)
    print(f"{args.config}: {_count(errors, 'error')}, {_count(len(problems) - errors, 'warning')}")
    return 1 if errors else 0


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
