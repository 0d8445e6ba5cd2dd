"""Runs of the workflow that are to be disturbed, and what they leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from runs import FINISHED, Outcome

from histomri.io.checksums import checksums

ROOT = Path(__file__).parents[2]
# below what .ci/run grants, so that what hangs fails by name
PATIENCE_S = 600
# in the order in which one core comes to them
RULES = (
    "ingest_section",
    "blockface_volume",
    "blockface_place",
    "stack_edges",
    "stack_order",
    "stack_solve",
    "mri_pose",
    "mri_refine",
    "mri_verify",
    "mri_transforms",
    "resample_begin",
    "resample_part",
    "resample_volume",
    "evaluate",
    "report",
    "provenance",
)
# what carries times, a process or the machine; ITK's HDF5 files carry the time of writing, and are compared decoded
TIMED = ("provenance.json", ".histomri.lock", ".histomri.run", "SHA256SUMS")


@dataclass
class Run:
    """One start of the workflow on a study."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        """What it said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def started(self) -> dict[str, str]:
        """The jobs that it started, by Snakemake's number: ``rule`` or ``rule:wildcard values``."""
        return Outcome(0, self.text).started

    @property
    def finished(self) -> set[str]:
        """The jobs that Snakemake reported as done."""
        started = self.started
        return {started[i] for i in FINISHED.findall(self.text) if i in started}

    def at_work(self) -> list[str]:
        """The rules whose jobs are started and not done."""
        done = self.finished
        return [job.partition(":")[0] for job in self.started.values() if job not in done]

    def job_processes(self) -> list[psutil.Process]:
        """The processes that run a stage's code now."""
        found = []
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    words = child.cmdline()
                    if "python" in Path(words[0]).name and any(".snakemake/scripts" in w for w in words):
                        found.append(child)
        return found

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(timeout=PATIENCE_S)

    def end(self) -> None:
        """Kill what is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(study: Path, log: Path, *arguments: str, cores: int = 1, preexec: Any = None, **variables: str) -> Run:
    """``histomri run`` in a process group of its own."""
    line = [sys.executable, "-P", "-m", "histomri", "run", "--cores", str(cores), str(study / "config.yaml"), *arguments]
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **one, **variables}
    with log.open("wb") as file:
        process = subprocess.Popen(
            line, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=surroundings, preexec_fn=preexec
        )
    return Run(process, log)


def run(study: Path, log: Path, *arguments: str, **more: Any) -> Run:
    """The same, to its end."""
    found = start(study, log, *arguments, **more)
    try:
        found.wait()
    finally:
        found.end()
    return found


def results(out: Path) -> dict[str, Any]:
    """The checksum of every decoded array and transform below a folder of results, and the bytes of everything else public."""
    found: dict[str, Any] = {}
    for at, folders, files in os.walk(out):
        stores = [name for name in folders if name.endswith(".zarr")]
        folders[:] = [n for n in folders if n not in stores and n not in (".snakemake", "logs", "benchmarks")]
        for path in (Path(at) / name for name in [*stores, *files] if name not in TIMED):
            own = checksums(path)
            found[path.relative_to(out).as_posix()] = own or path.read_bytes()
    return found


def unequal(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The files that are not the same."""
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def durations(out: Path) -> dict[str, float]:
    """About how many seconds a job of each rule takes, by its benchmark."""
    found: dict[str, float] = {}
    for file in (out / "benchmarks").rglob("*.tsv"):
        stage = file.relative_to(out / "benchmarks").parts[0]
        found[_rule_of(stage, file)] = float(file.read_text().splitlines()[1].split("\t")[0])
    return found


def _rule_of(stage: str, benchmark: Path) -> str:
    last = re.match(r"begin|part", benchmark.stem.rpartition(".")[2])
    places = {"edges": "stack_edges", "ingest": "ingest_section", "resample": f"resample_{last[0] if last else 'volume'}"}
    named = (r for r in RULES if r in (f"{stage}_{benchmark.stem}", benchmark.stem))
    return places.get(benchmark.parent.name) or places.get(stage) or next(named, stage)


def wait_until(what: Any, process: subprocess.Popen[bytes], seconds: float = PATIENCE_S) -> bool:
    """Whether it came true before the process ended."""
    end = time.monotonic() + seconds
    while not what():
        if process.poll() is not None:
            return bool(what())
        assert time.monotonic() < end, "what the test waits for did not happen"
        time.sleep(0.05)
    return True
