"""What every job needs around its one stage function: a log that gets everything, threads, and the mark that it is at work."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from histomri.core.errors import HistomriError, InputError, Problem
from histomri.io.fingerprint import NO_FILE, file_fingerprint
from histomri.io.lock import hold_job

Key = TypeVar("Key")

NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# inputs that the user gave; the param of the same name holds what they were when the run began
GIVEN = ("slide", "photographs", "mri", "landmarks", "by_hand")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "BLOSC_NTHREADS",
)


def use_threads(threads: int) -> None:
    """Grant the numerical libraries this many threads, those that are imported already and those that will be."""
    loaded = sys.modules
    for variable in THREAD_VARIABLES:
        # a loaded numba refuses to compile once its own variable says something else than it began with
        if not (variable == "NUMBA_NUM_THREADS" and "numba" in loaded):
            os.environ[variable] = str(threads)
    if "numba" in loaded:
        loaded["numba"].set_num_threads(min(threads, loaded["numba"].config.NUMBA_NUM_THREADS))
    if "cv2" in loaded:
        loaded["cv2"].setNumThreads(threads)
    if "SimpleITK" in loaded:
        loaded["SimpleITK"].ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def files_of(ids: Sequence[Key], files: Sequence[str]) -> dict[Key, Path]:
    """The files of sections, blocks or volumes, which a rule gives in the order of their ids, by id."""
    return {i: Path(f) for i, f in zip(ids, files, strict=True)}


def check_given(snakemake: Any) -> None:
    """Raises ``InputError`` where a file of the user's is not what it was when the run began.

    The run keeps record of what it was then: a job on another file would pass for one on that.
    """
    problems = []
    for name in GIVEN:
        known, files = (_listed(part.get(name)) for part in (snakemake.params, snakemake.input))
        for file, before in zip(files, known, strict=False):
            if (now := file_fingerprint(file)) != before:
                what = "it is gone" if now == NO_FILE else "its content is another"
                remedy = "put it back, or correct the sheet, and give the same command again"
                problems.append(Problem(str(file), f"this file changed since the run began: {what}", remedy))
    if problems:
        raise InputError(*problems)


def _in_words(error: Exception) -> str:
    if isinstance(error, HistomriError):
        return str(error)
    if isinstance(error, OSError) and error.errno in NOT_WRITTEN:
        where = error.filename or "the folder of results"
        return f"{where} could not be written ({error.strerror}): free space there, and give the same command again"
    return f"{type(error).__name__}: {error}"


def _listed(value: Any) -> list[str]:
    """What a rule gives for a name: one, several or none."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run the body as one job of the workflow, in the study's output folder.

    Everything written to stdout and stderr, by Python or by a library, goes to the job's log, and so does a traceback; an
    error of ours goes there in words too. Ends the process with status 1 when the body raises.
    """
    terminal = _send_output_to(Path(str(snakemake.log[0])))
    use_threads(snakemake.threads)
    started = time.monotonic()
    try:
        hold_job(Path.cwd())
        check_given(snakemake)
        yield
        # what changed while it was read is worth nothing
        check_given(snakemake)
    except Exception as error:
        # a full disk takes no traceback either
        with suppress(OSError):
            traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        os.write(terminal, f"{snakemake.rule}: {_in_words(error)}\n".encode())
        # not sys.exit: its traceback and the interpreter's clean-up say nothing more, and may hang on a library's threads
        os._exit(1)
    print(f"{snakemake.rule}: done in {time.monotonic() - started:.1f} s", flush=True)


def _send_output_to(log: Path) -> int:
    """Point the process's stdout and stderr at the log; returns the former stderr."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.dup(2)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    # a file is written block by block otherwise: nothing to follow, and what was said comes after the traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return terminal
