"""One run at a time in an output folder, by locks that die with the processes that hold them.

Snakemake's own lock is a file that a killed run leaves behind. These are held by the kernel (``flock``), so a kill -9, a lost
terminal or a reboot leaves nothing to unlock.

A job may also begin late: on a cluster it waits in a queue that outlives the run. Each run therefore writes a token of its own
into the folder and hands it to its jobs; a job that finds another token there belongs to a run that is over, and touches nothing.
On one machine a job ends with its run: the next run would do it again anyhow, and need not wait.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import IO

from histomri.core.errors import InputError, Problem
from histomri.io.cluster import end_left_over
from histomri.io.publish import back_from_future, remove_leftovers

RUN_LOCK = ".histomri.lock"
JOBS_LOCK = ".histomri.jobs.lock"
TOKEN = ".histomri.run"
# the run that a process belongs to; jobs inherit it, on a cluster too
TOKEN_VARIABLE = "HISTOMRI_RUN"
# the process of that run and its machine
PROCESS_VARIABLE = "HISTOMRI_RUN_PROCESS"
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl
# an open file holds its lock; these stay open until the process ends
_held: list[IO[str]] = []


def hold_run(folder: Path) -> None:
    """Take the folder's one run for the rest of this process, once the jobs that a killed run left behind have ended.

    Raises
    ------
    InputError
        When another run holds it.
    """
    file = _open(folder / RUN_LOCK)
    if not _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise InputError(Problem(str(folder), f"a run of this study is under way ({owner})", "wait for it to end, or stop it"))
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held.append(file)
    _write_token(folder)
    end_left_over(folder)
    _wait_for_jobs(folder)
    # nobody is at work now
    remove_leftovers(folder)
    back_from_future(folder)


def hold_job(folder: Path) -> None:
    """Mark, for the rest of this process, that a job is at work in the folder; any number may be.

    Raises
    ------
    InputError
        When the job is one of an earlier run: it was waiting in a cluster's queue while another began.
    """
    file = _open(folder / JOBS_LOCK)
    _lock(file, fcntl.LOCK_SH)
    _held.append(file)
    # only now: a run that begins from here on waits for this job
    own, current = os.environ.get(TOKEN_VARIABLE), _token(folder)
    if own and current and own != current:
        what = f"this job belongs to run {own} of the study, and run {current} has begun since"
        raise InputError(Problem(str(folder), what, "nothing: the later run does what is left to do"))
    _end_with_run()


def _end_with_run() -> None:
    """End this process, however busy it is, as soon as its run's process or its own parent ends; on the run's machine alone."""
    pid, _, machine = os.environ.get(PROCESS_VARIABLE, "").partition("@")
    if sys.platform != "linux" or machine != _machine():
        return
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    try:
        watched = os.pidfd_open(int(pid))
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_end_after, args=(watched,), daemon=True).start()


def _machine() -> str:
    """This machine; a job that a cluster started there is the cluster's to end."""
    return f"{socket.gethostname()} {os.environ.get('SLURM_JOB_ID', '')}"


def _end_after(watched: int) -> None:
    # readable once that process has ended
    select.select([watched], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


def _write_token(folder: Path) -> None:
    os.environ[TOKEN_VARIABLE] = token = secrets.token_hex(8)
    os.environ[PROCESS_VARIABLE] = f"{os.getpid()}@{_machine()}"
    # in place: over NFS, another node may go on seeing a file that was replaced
    (folder / TOKEN).write_text(token + "\n", encoding="utf-8")


def _token(folder: Path) -> str:
    try:
        return (folder / TOKEN).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _wait_for_jobs(folder: Path) -> None:
    """Jobs outlive a workflow that was killed alone; two writers of one store must never meet."""
    with _open(folder / JOBS_LOCK) as file:
        if not _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            print(f"Waiting for the jobs of an earlier, killed run in {folder} to end.", file=sys.stderr, flush=True)
            _lock(file, fcntl.LOCK_EX)


def _open(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+", encoding="utf-8")


def _lock(file: IO[str], how: int) -> bool:
    """Whether the lock was taken; file systems without locks are said, and taken as free."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        message = f"warning: {file.name}: this file system has no locks ({error.strerror}); run one workflow at a time."
        print(message, file=sys.stderr)
    return True
