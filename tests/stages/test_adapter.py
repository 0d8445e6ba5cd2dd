"""Whatever a job says or dies of is in its log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from histomri.io.fingerprint import file_fingerprint

PROGRAM = """
import os, sys
from types import SimpleNamespace
from histomri.core.errors import InputError, Problem
from histomri.stages.adapter import job

snakemake = SimpleNamespace(log=["logs/deep/job.log"], threads=3, rule="some_rule", params={{}}, input={{}})
with job(snakemake):
    {body}
"""


def run(folder: Path, body: str) -> tuple[int, str, str]:
    """Status, log and what reached the terminal."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")}
    line = [sys.executable, "-c", PROGRAM.format(body=body)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, (folder / "logs/deep/job.log").read_text(), done.stdout + done.stderr


def test_a_traceback_reaches_the_log_and_the_terminal_hears_one_line(tmp_path: Path):
    status, log, terminal = run(tmp_path, "print('before'); raise ValueError('broken here')")
    assert status != 0
    assert log.startswith("before\n")
    assert "Traceback" in log
    assert "ValueError: broken here" in log
    assert terminal == "some_rule: ValueError: broken here\n"


def test_an_error_of_ours_says_where_and_the_remedy(tmp_path: Path):
    status, log, terminal = run(tmp_path, "raise InputError(Problem('sections.tsv', 'no pixel size', 'give one'))")
    assert status != 0
    assert "Traceback" in log
    assert terminal == "some_rule: error: sections.tsv: no pixel size -> give one\n"


def test_a_file_that_changes_or_goes_under_the_run_fails_the_job_before_and_after_its_work(tmp_path: Path):
    (tmp_path / "a.tif").write_bytes(b"one slide")
    given = f"snakemake.params['slide'] = {file_fingerprint(tmp_path / 'a.tif')!r}; snakemake.input['slide'] = 'a.tif'"
    check = "from histomri.stages.adapter import check_given; check_given(snakemake)"
    status, _, terminal = run(tmp_path, f"{given}; {check}")
    assert (status, terminal) == (0, "")
    status, _, terminal = run(tmp_path, f"{given}; {check}; open('a.tif', 'w').write('another')")
    assert status != 0
    assert "a.tif: this file changed since the run began: its content is another" in terminal
    (tmp_path / "a.tif").unlink()
    status, _, terminal = run(tmp_path, f"{given}; {check}")
    assert status != 0
    assert "it is gone -> put it back" in terminal


def test_what_a_library_writes_reaches_the_log(tmp_path: Path):
    status, log, terminal = run(tmp_path, "os.system('echo from a child'); os.write(2, b'from C\\n')")
    assert status == 0
    assert "from a child\n" in log
    assert "from C\n" in log
    assert terminal == ""


def test_numba_still_compiles_after_threads_were_granted_to_a_process_that_had_it_loaded():
    body = """
import os
from numba import njit, prange
from histomri.stages.adapter import use_threads

@njit(parallel=True)
def first(x):
    for i in prange(len(x)):
        x[i] += 1

@njit(parallel=True)
def second(x):
    for i in prange(len(x)):
        x[i] += 2

x = __import__("numpy").zeros(8)
first(x)
use_threads(1)
second(x)
assert (x == 3).all() and __import__("numba").get_num_threads() == 1
"""
    surroundings = {k: v for k, v in os.environ.items() if k != "NUMBA_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", body], env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_libraries_get_the_threads_that_were_granted(tmp_path: Path):
    body = "import numba; print('numba', numba.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    status, log, _ = run(tmp_path, body)
    assert status == 0, log
    assert "numba 3 3\n" in log


def test_a_second_try_starts_a_new_log(tmp_path: Path):
    run(tmp_path, "print('first')")
    assert "first" not in run(tmp_path, "print('second')")[1]
