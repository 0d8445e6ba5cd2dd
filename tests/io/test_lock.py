"""Two runs never meet in one folder, and no kill leaves a lock behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from histomri.io.lock import TOKEN, TOKEN_VARIABLE

HOLD = """
import pathlib, sys, time
from histomri.io import lock
lock.{how}(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(how: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock until it ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(how=how), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def is_held(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "held\n"


def test_a_second_run_is_refused_and_told_who_is_at_work(tmp_path: Path):
    with holder("hold_run", tmp_path) as first:
        assert is_held(first)
        with holder("hold_run", tmp_path) as second:
            _, said = second.communicate(timeout=30)
            assert second.returncode != 0
            assert f"process {first.pid}" in said
            assert "under way" in said


def test_a_killed_run_leaves_no_lock(tmp_path: Path):
    with holder("hold_run", tmp_path) as first:
        assert is_held(first)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    with holder("hold_run", tmp_path) as second:
        assert is_held(second)


def test_studies_do_not_lock_each_other(tmp_path: Path):
    with holder("hold_run", tmp_path / "a") as first, holder("hold_run", tmp_path / "b") as second:
        assert is_held(first)
        assert is_held(second)


def test_a_run_waits_for_the_jobs_of_a_killed_one(tmp_path: Path):
    """A workflow killed alone leaves its jobs writing; a new one must not start a second writer beside them."""
    with holder("hold_job", tmp_path) as job, holder("hold_job", tmp_path) as other:
        assert is_held(job)
        assert is_held(other)
        with holder("hold_run", tmp_path) as run:
            assert run.stderr is not None
            assert "Waiting for the jobs" in run.stderr.readline()
            time.sleep(0.3)
            assert run.poll() is None
            job.kill()
            other.kill()
            assert is_held(run)


def test_a_job_that_begins_late_does_nothing_in_a_later_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a cluster a job waits in a queue that outlives the run; by the time it begins, another run may be at work."""
    with holder("hold_run", tmp_path) as run:
        assert is_held(run)
        monkeypatch.setenv(TOKEN_VARIABLE, (tmp_path / TOKEN).read_text().strip())
        with holder("hold_job", tmp_path) as job:
            assert is_held(job)
        run.kill()
        run.wait()
    with holder("hold_run", tmp_path) as run:
        assert is_held(run)
        with holder("hold_job", tmp_path) as late:
            _, said = late.communicate(timeout=30)
    assert late.returncode != 0
    assert "has begun since" in said


def test_a_job_of_the_run_is_not_held_up(tmp_path: Path):
    with holder("hold_run", tmp_path) as run, holder("hold_job", tmp_path) as job:
        assert is_held(run)
        assert is_held(job)


def test_an_unwritable_folder_is_an_error_and_not_a_lock(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.touch()
    with holder("hold_run", blocked / "out") as run:
        _, said = run.communicate(timeout=30)
        assert run.returncode != 0
        assert "Error" in said


PARENT = """
import pathlib, subprocess, sys, time
from histomri.io import lock
lock.hold_run(pathlib.Path(sys.argv[1]))
job = "import pathlib, sys, os, time; from histomri.io import lock; lock.hold_job(pathlib.Path(sys.argv[1])); "
job += "print(os.getpid(), flush=True); time.sleep(60)"
subprocess.run(["sh", "-c", '"$0" -c "$1" "$2"; true', sys.executable, job, sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a process's end on Linux alone")
@pytest.mark.parametrize("victim", ["run", "shell"])
def test_a_job_ends_with_its_run_and_with_the_shell_that_started_it(tmp_path: Path, victim: str):
    """One that went on would write beside the next run's, and that run would wait for work that it does again anyhow."""
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        job = psutil.Process(int(run.stdout.readline()))
        (run if victim == "run" else job.parent()).kill()
        job.wait(timeout=30)
        run.kill()
    with holder("hold_run", tmp_path) as following:
        assert is_held(following)


def test_what_killed_writers_left_is_gone_once_a_run_holds_the_folder(tmp_path: Path):
    store = tmp_path / "sections" / "a.ome.zarr"
    left_over = [tmp_path / "sections" / name for name in ("a.ome.zarr.node-1-0a1b2c3d.partial", ".a.ome.zarr.claim")]
    left_over.append(tmp_path / "transforms" / ".partial-12-graph.json")
    kept = [store / "zarr.json", store / "0.partial", tmp_path / "stack" / "edges" / "0.json"]
    for file in (*left_over, *kept):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with holder("hold_run", tmp_path) as run:
        assert is_held(run)
    assert not any(file.exists() for file in left_over)
    assert all(file.exists() for file in kept)
