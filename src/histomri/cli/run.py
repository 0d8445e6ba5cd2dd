"""``histomri run``: the workflow on a study, with the default profile."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from histomri.core.errors import InputError, Problem
from histomri.io.config import read_config
from histomri.io.links import link_problems
from histomri.io.resources import workflow_root

HELP = "run the whole workflow on a study (what follows CONFIG goes to Snakemake)"
CORES = ("--cores", "-c", "--jobs", "-j")
WORKFLOW_PROFILE = "--workflow-profile"


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
    rest = _with_profiles([a for a in args.snakemake if a != "--"], root / "workflow" / "profiles")
    # -P: a module in the folder where the user stands must not shadow one of ours
    line = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    line += ["--configfile", str(args.config.absolute())]
    if not _has_option(rest, WORKFLOW_PROFILE):
        line += [WORKFLOW_PROFILE, str(root / "workflow" / "profiles" / "default")]
    if not _has_option(rest, *CORES) and not _is_counted(rest):
        line += ["--cores", args.cores or "all"]
    return line + ["--dry-run"] * args.dry_run + rest


def _with_profiles(arguments: list[str], ours: Path) -> list[str]:
    """The arguments with the workflow profile's path whole: one of ours by its name, or the user's."""
    whole = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        option, is_joined, value = word.partition("=")
        if is_joined and option == WORKFLOW_PROFILE:
            whole.append(f"{option}={_profile(value, ours)}")
        else:
            whole.append(_profile(word, ours) if before == WORKFLOW_PROFILE else word)
    return whole


def _profile(name: str, ours: Path) -> str:
    return next((str(p.absolute()) for p in (ours / name, Path(name)) if p.exists()), name)


def _is_counted(arguments: list[str]) -> bool:
    """Whether the user's workflow profile says how much runs at once: this machine's cores do not bound a cluster's jobs."""
    pairs = zip(["", *arguments], arguments, strict=False)
    words = [w for before, w in pairs if before == WORKFLOW_PROFILE or w.startswith(f"{WORKFLOW_PROFILE}=")]
    files = [Path(w.removeprefix(f"{WORKFLOW_PROFILE}=")) / "config.yaml" for w in words]
    return any({"jobs", "cores"} & set(yaml.safe_load(f.read_text(encoding="utf-8")) or ()) for f in files if f.is_file())


def _has_option(arguments: list[str], *names: str) -> bool:
    short = tuple(n for n in names if not n.startswith("--"))
    return any(a.split("=")[0] in names or (a.startswith(short) and not a.startswith("--")) for a in arguments)


def output_folder(config: Path) -> Path:
    """The study's output folder. Raises ``InputError`` when the config cannot be read or names none."""
    output = read_config(config.absolute()).get("output")
    if not isinstance(output, str) or not output:
        raise InputError(Problem(str(config), "the key output is needed and missing", "name the folder of the results"))
    return config.absolute().parent / output


def run(args: argparse.Namespace) -> int:
    """Run it. Snakemake takes this process's place, so signals, the exit status and a kill mean what they say.

    It starts in the study's output folder, where it keeps its records, and leaves nothing where the user stands.

    Raises
    ------
    InputError
        When the config cannot be read or names no output folder, or that folder holds links that lead out of it.
    """
    line, folder = command(args), output_folder(args.config)
    # before Snakemake writes its own records there
    if problems := link_problems(folder):
        raise InputError(*problems)
    _make(folder)
    os.chdir(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(line[0], line)


def _make(folder: Path) -> None:
    """Make the folder of results and write there once. Raises ``InputError`` where that is not possible."""
    from tempfile import TemporaryFile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        what = f"the folder of results cannot be written ({error.strerror})"
        remedy = "free space or get permission there, or name another folder by the config's key output"
        raise InputError(Problem(str(folder), what, remedy)) from None
