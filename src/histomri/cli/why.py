"""``histomri why CONFIG [TARGET]``: what a run would do now, and why, in words."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histomri.cli.run import command, output_folder
from histomri.core.errors import InputError, Problem

JOB = re.compile(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", re.MULTILINE)
PARAMS = re.compile(r"Params have changed since last execution: .*?before: (.*?) now: (.*)", re.DOTALL)
# with the packages that it computes with, where the run that is asked about knew them
CODE = re.compile(r"([0-9a-f]{64})(?: (.+))?")
CONTENT = re.compile(r"\d+:[0-9a-f]{64}")
PHRASES = {
    "Missing output files": "its results are not there",
    "Updated input files": "its input has changed",
    "Input files updated by another job": "its input is made anew",
    "Set of input files has changed since last execution": "it has other inputs than before",
    "Forced execution": "it is asked for",
    "Incomplete output files": "an earlier run was stopped in the middle of it",
}
SHOWN = 3
MOST_CHARACTERS = 60


@dataclass(frozen=True)
class Planned:
    """A job that would run: its name with its wildcards, its outputs, and the reasons in words."""

    name: str
    outputs: tuple[str, ...]
    reasons: tuple[str, ...]


def add_parser(subparsers: Any) -> None:
    """Describe the command's arguments."""
    parser = subparsers.add_parser(
        "why",
        help="say which jobs a run would do now, and why",
        description="Says of every job that `histomri run` would do now why it would: results that are not there, an input, a "
        "setting or the code that has changed, or a job before it. Nothing is computed.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the study's config file")
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help="only jobs of this rule, section or block, or that make this file"
    )


def run(args: argparse.Namespace) -> int:
    """Print each job with its reasons, those that start a chain first in the order of the workflow.

    Raises
    ------
    InputError
        Where the workflow cannot be planned, with what Snakemake says.
    """
    args.cores, args.dry_run, args.snakemake = "1", True, []
    folder = output_folder(args.config)
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command(args), cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise InputError(Problem(str(args.config), f"the run cannot be planned:\n{said.strip()[-2000:]}", "correct it first"))
    jobs = [job for job in planned(said) if _is_wanted(job, args.target)]
    for job in jobs:
        print(f"{job.name}\n" + "".join(f"    {reason}\n" for reason in job.reasons), end="")
    print(f"{len(jobs)} jobs would run" if jobs else "nothing would run: every result is up to date")
    return 0


def _is_wanted(job: Planned, target: str | None) -> bool:
    return target is None or target in re.split(r"[ =,]+", job.name) or any(target in (o, Path(o).name) for o in job.outputs)


def planned(said: str) -> Iterator[Planned]:
    """The jobs of what Snakemake's dry run said."""
    for rule, body in JOB.findall(said):
        if rule != "all":
            name = " ".join(filter(None, [rule, _field(body, "wildcards")]))
            yield Planned(name, tuple(_field(body, "output").split(", ")), tuple(dict.fromkeys(_reasons(_field(body, "reason")))))


def _field(body: str, name: str) -> str:
    found = re.search(rf"^    {name}: (.*)$", body, re.MULTILINE)
    return found[1].strip() if found else ""


def _reasons(text: str) -> Iterator[str]:
    """Snakemake's reasons, joined by semicolons, in our words."""
    if found := PARAMS.search(text):
        yield from changed_params(_values(found[1]), _values(found[2]))
        text = text[: found.start()]
    for part in filter(None, text.split("; ")):
        phrase, _, names = part.partition(": ")
        files = sorted(n for n in names.split(", ") if n)
        listed = f": {', '.join(files[:SHOWN])}{f' and {len(files) - SHOWN} more' if len(files) > SHOWN else ''}" if files else ""
        yield PHRASES.get(phrase, phrase.lower()) + listed


def _values(text: str) -> list[Any]:
    """The values that Snakemake lists; one text where they are none of Python's."""
    cleaned = text.strip().rstrip(";").strip()
    if cleaned in ("", "<nothing exclusive>"):
        return []
    try:
        return list(ast.literal_eval(f"({cleaned},)"))
    except (ValueError, SyntaxError):
        return [cleaned]


def changed_params(before: list[Any], now: list[Any]) -> Iterator[str]:
    """What has changed among the values that a rule depends on: settings, code, content of files, rows of the sheets."""
    texts = [v for v in (*before, *now) if isinstance(v, str)]
    yield from _changed_code(*([m for m in map(CODE.fullmatch, filter(_is_text, part)) if m] for part in (before, now)))
    if any(CONTENT.fullmatch(v) for v in (*texts, *(x for v in now if isinstance(v, list) for x in v if isinstance(x, str)))):
        yield "a file that it reads has other content"
    old = {k: v for part in before if isinstance(part, dict) for k, v in part.items()}
    new = {k: v for part in now if isinstance(part, dict) for k, v in part.items()}
    for key in dict.fromkeys([*old, *new]):
        was, is_now = (_short(part[key]) if key in part else "not used" for part in (old, new))
        if old.get(key, old) != new.get(key, new):
            yield f"setting {key}: {was} -> {is_now}"
    if any(isinstance(v, list) and any(isinstance(x, dict) for x in v) for v in (*before, *now)):
        yield "rows of its sheets have changed"
    others = [[v for v in values if not isinstance(v, dict | list) and v not in _known(texts)] for values in (before, now)]
    if any(others):
        yield f"a value has changed: {_short(others[0])} -> {_short(others[1])}"


def _changed_code(before: list[re.Match[str]], now: list[re.Match[str]]) -> Iterator[str]:
    """An edit of the code, and packages of other versions; a record without packages was made before they counted."""
    if {found[1] for found in before} != {found[1] for found in now} or any(found[2] is None for found in before):
        yield "the code that it runs has changed"
        return
    was, is_now = (dict(entry.split(" ") for found in part for entry in found[2].split(", ")) for part in (before, now))
    for name in sorted({*was, *is_now}, key=str.lower):
        if was.get(name) != is_now.get(name):
            yield f"package {name}: {was.get(name, 'not there')} -> {is_now.get(name, 'not there')}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _known(texts: list[str]) -> list[str]:
    return [v for v in texts if CODE.fullmatch(v) or CONTENT.fullmatch(v)]


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
