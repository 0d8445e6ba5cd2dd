"""``histomri run``: the workflow on a study, with the default profile."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from histomri.io.resources import workflow_root

HELP = "run the whole workflow on a study (what follows CONFIG goes to Snakemake)"
CORES = ("--cores", "-c", "--jobs", "-j")
PROFILES = ("--profile", "--workflow-profile")


def add_parser(subparsers: Any) -> None:
    """Describe the command's arguments."""
    parser = subparsers.add_parser("run", help=HELP)
    parser.add_argument("--cores", metavar="N", help="cores to use (default: all)")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the study's config file")
    parser.add_argument("snakemake", nargs=argparse.REMAINDER, metavar="...", help="--cores N, -n and any option of Snakemake")


def command(args: argparse.Namespace) -> list[str]:
    """The Snakemake command line; a profile or a number of cores after CONFIG takes the place of ours."""
    root = workflow_root()
    rest = [a for a in args.snakemake if a != "--"]
    # -P: a module in the folder where the user stands must not shadow one of ours
    line = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    line += ["--configfile", str(args.config.absolute())]
    if not _has_option(rest, PROFILES):
        line += ["--workflow-profile", str(root / "workflow" / "profiles" / "default")]
    if not _has_option(rest, CORES):
        line += ["--cores", args.cores or "all"]
    return line + ["--dry-run"] * args.dry_run + rest


def _has_option(arguments: list[str], names: tuple[str, ...]) -> bool:
    short = tuple(n for n in names if not n.startswith("--"))
    return any(a.split("=")[0] in names or (short and a.startswith(short) and not a.startswith("--")) for a in arguments)


def run(args: argparse.Namespace) -> int:
    """Run it. Snakemake takes this process's place, so signals, the exit status and a kill mean what they say."""
    if not args.config.is_file():
        print(f"error: {args.config}: there is no such config -> histomri new STUDY_DIR writes one", file=sys.stderr)
        return 1
    line = command(args)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(line[0], line)
