"""Jobs on a SLURM cluster that outlive the run that submitted them: known by the run's name, ended before another run begins.

A run that is killed leaves its jobs in the cluster's queue and at work. Each run writes down the name of its jobs before the
first is submitted; the next run of the study asks ``squeue`` for jobs of that name, cancels them and waits until they are gone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from histomri.core.errors import InputError, Problem

RECORD = ".histomri.cluster.json"
ANSWER_S = 60
LONGEST_PAUSE_S = 10.0
TRIES = 3


@dataclass(frozen=True)
class QueuedJob:
    """A job that the cluster still knows as waiting, at work, or coming to its end."""

    id: str
    state: str
    user: str


def record_run(folder: Path, name: str) -> None:
    """Write down, before the first job is submitted, what the jobs of this run are called."""
    content = {"folder": _identity(folder), "runs": [*recorded_runs(folder), name]}
    temporary = folder / f"{RECORD}.new"
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    # a machine that goes down must leave neither an empty record nor none of jobs that are at work elsewhere
    _to_disk(temporary)
    temporary.replace(folder / RECORD)
    _to_disk(folder)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def recorded_runs(folder: Path) -> list[str]:
    """The names of the runs in this folder whose jobs may still be there; of a copied or moved folder none.

    Raises ``InputError`` where the record is damaged: nobody then knows what its jobs are called.
    """
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        known, runs = content["folder"], content["runs"]
        is_whole = isinstance(known, str) and isinstance(runs, list) and all(isinstance(name, str) and name for name in runs)
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        is_whole = False
    if not is_whole:
        remedy = f"see with `squeue --me` which are this study's, end them with scancel, and remove {folder / RECORD}"
        raise _unknown(folder, f"the record of their names, {RECORD}, is damaged", remedy)
    return runs if known == _identity(folder) else []


def end_left_over(folder: Path) -> int:
    """Cancel the jobs of earlier runs in the folder and wait until they are gone; returns how many there were.

    Raises
    ------
    InputError
        When there may be some and the cluster cannot be asked.
    """
    runs = recorded_runs(folder)
    found = _queued(folder, runs) if runs else []
    if found:
        print(f"Ending {len(found)} cluster jobs of an earlier, killed run in {folder}.", file=sys.stderr, flush=True)
        _cancel(found)
        _wait_until_gone(folder, runs)
    forget_runs(folder)
    return len(found)


def forget_runs(folder: Path) -> None:
    """Say that no run's jobs are there any more: all of them have ended."""
    (folder / RECORD).unlink(missing_ok=True)


def _identity(folder: Path) -> str:
    """The folder itself, whatever links lead to it, and not a copy of it."""
    return f"{folder.resolve()} {folder.stat().st_ino}"


def _queued(folder: Path, runs: list[str]) -> list[QueuedJob]:
    """The jobs of these runs that have not ended. A cluster that is busy is asked again."""
    if not shutil.which("squeue"):
        raise _unknown(folder, "there is no squeue here to ask")
    command = ["squeue", "--noheader", "--format=%A|%T|%u", f"--name={','.join(runs)}"]
    for attempt in range(TRIES):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_S)
            return [QueuedJob(*line.strip().split("|")) for line in done.stdout.splitlines() if line.strip()]
        except (subprocess.SubprocessError, OSError) as error:
            why = str(getattr(error, "stderr", "") or error).strip()
            time.sleep(2**attempt)
    raise _unknown(folder, f"squeue does not answer ({why})")


def _unknown(folder: Path, why: str, remedy: str = "") -> InputError:
    what = f"jobs of an earlier run on the cluster may still be at work here, and {why}"
    otherwise = f"start it where squeue answers; or, if you know that those jobs have ended, remove {folder / RECORD}"
    return InputError(Problem(str(folder), what, remedy or otherwise))


def _cancel(jobs: list[QueuedJob]) -> None:
    """Ask for their end; another user's cannot be cancelled, and are waited for."""
    command = ["scancel", *sorted({j.id for j in jobs})]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    if done.returncode:
        print(f"scancel: {done.stderr.strip()}; waiting for the jobs to end.", file=sys.stderr, flush=True)


def _wait_until_gone(folder: Path, runs: list[str]) -> None:
    pause_s = 0.5
    while _queued(folder, runs):
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
