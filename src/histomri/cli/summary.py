"""``histomri summary CONFIG``: a finished study in a few lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Describe the command's arguments."""
    parser = subparsers.add_parser("summary", help="print a finished study's results in a few lines")
    parser.add_argument("config", type=Path, help="the study's config file")


def run(args: argparse.Namespace) -> int:
    """Print the error against the landmarks, the counts of sections, and where the report is."""
    from histomri.core import InputError
    from histomri.core.errors import Problem
    from histomri.io.config import load_study
    from histomri.io.records import read_metrics

    study = load_study(args.config)
    path = study.output / "evaluation" / "metrics.json"
    if not path.is_file():
        raise InputError(Problem(str(path), "the study has no results yet", f"run: histomri run {args.config}"))
    print("\n".join(summary_lines(read_metrics(path))))
    print(f"report: {study.output / 'report' / 'index.html'}")
    return 0


def summary_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The headline numbers of ``metrics.json`` in words; what was not measured is left out."""
    for block, pose in (metrics.get("pose") or {}).items():
        if pose and pose.get("warning"):
            yield f"WARNING, block {block}: {pose['warning']}."
    sections, tre, dice = (metrics.get(key) or {} for key in ("sections", "tre_mm", "mask_dice"))
    if sections:
        yield "sections: " + ", ".join(f"{sections[key]} {key}" for key in ("placed", "flagged", "lost") if key in sections)
    if None not in (dice.get("median"), dice.get("p10")):
        yield f"overlap of the tissue masks with the MRI (Dice): median {dice['median']:.3f}, 10th percentile {dice['p10']:.3f}"
    if tre.get("n") and None not in (tre.get("median"), tre.get("p95"), tre.get("max")):
        yield (
            f"error at {tre['n']} landmarks (TRE): median {tre['median']:.3f} mm, 95 % within {tre['p95']:.3f} mm, "
            f"at most {tre['max']:.3f} mm"
        )
