"""The tiny digital block on a real SLURM: to the same bits as locally, whatever happens to its jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from histomri.io.cluster import RECORD
from histomri.io.lock import TOKEN, TOKEN_VARIABLE
from histomri.io.publish import content_sha256, digest_of
from histomri.stages.demand import AROUND_MB

pytestmark = pytest.mark.cluster

RUN_TIMEOUT_S = 1500
ONE = "ingest/s001/manifest.json"
# files that say when, how long or how, and not what
OTHERWISE = ("provenance.json", "transforms/SHA256SUMS", "report/", "benchmarks/", "logs/", ".")


def kill_alone(process: subprocess.Popen[bytes], how: int = signal.SIGKILL) -> int:
    """Send a signal to the workflow's own process, and to no other."""
    os.kill(process.pid, how)
    return process.wait(120)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a run that a failed test left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def results(study: Path) -> dict[str, str]:
    """The content of every store, transform and other file of a run that holds results."""
    out = study / "out"
    stores = {p.relative_to(out).as_posix(): content_sha256(p) for p in out.rglob("*.ome.zarr") if p.is_dir()}
    files = [p for p in out.rglob("*") if p.is_file() and ".ome.zarr/" not in p.as_posix() and not p.name.startswith(".")]
    names = {p.relative_to(out).as_posix(): p for p in files}
    return stores | {n: decoded(p) for n, p in names.items() if not n.startswith(OTHERWISE)}


def decoded(file: Path) -> str:
    """The digest of a file; of a transform in HDF5, which holds the time of its writing, that of its numbers."""
    if file.suffix != ".h5":
        return digest_of(file.read_bytes())
    transform = sitk.CompositeTransform(sitk.ReadTransform(str(file)))
    transform.FlattenTransform()
    parts = [transform.GetNthTransform(i) for i in range(transform.GetNumberOfTransforms())]
    numbers = [np.asarray(values) for part in parts for values in (part.GetFixedParameters(), part.GetParameters())]
    return digest_of(b"".join(n.tobytes() for n in numbers))


# ---------------------------------------------------------------- killed, started again, to the same bits


@dataclass
class Story:
    """A run whose workflow was killed alone while its jobs waited and worked, and the run that followed."""

    study: Path
    left_over: set[str] = field(default_factory=set)
    scripts: dict[str, str] = field(default_factory=dict)
    token: str = ""
    second: Any = None
    met: list[set[str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(slurm: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory, make_runs: Any) -> Story:
    """One job at work, one in the queue; kill -9 of the workflow; the same command again, to the end."""
    folder = tmp_path_factory.mktemp("story")
    told = Story(Path(shutil.copytree(tiny, folder / "study", ignore=shutil.ignore_patterns("out"))))
    runs, config = make_runs(folder / "site"), told.study / "config.yaml"
    slurm.node(state="drain", reason="test")
    first = runs.start(config, folder / "first.log")
    try:
        # two groups of sections, and the photographs
        slurm.wait_for(lambda: len(slurm.active()) == 3, "three jobs in the queue", first)
        told.scripts = {i: slurm.script(i) for i in slurm.active()}
        slurm.hold(max(told.scripts, key=int))
        slurm.resume()
        slurm.wait_for(lambda: list((told.study / "out" / "logs").glob("ingest/*.log")), "section at work", first)
        told.token = (told.study / "out" / TOKEN).read_text().strip()
        kill_alone(first)
    finally:
        stop(first)
    # nobody told the cluster
    told.left_over = set(slurm.active())
    assert {"RUNNING", "PENDING"} <= {state for state, _ in slurm.active().values()}
    second = runs.start(config, folder / "second.log")
    try:
        end = time.monotonic() + RUN_TIMEOUT_S
        while second.poll() is None and time.monotonic() < end:
            told.met.append(set(slurm.active()))
            time.sleep(0.5)
    finally:
        stop(second)
    told.second = runs.outcome(second.returncode, folder / "second.log")
    return told


def test_a_run_that_was_killed_alone_leaves_no_job_beside_those_of_the_next(story: Story, slurm: Any):
    """Two jobs must never write one store: the queue never held jobs of both runs."""
    assert re.search(r"Ending [1-3] cluster jobs of an earlier, killed run", story.second.text), story.second.text
    assert all(not (jobs & story.left_over) or jobs <= story.left_over for jobs in story.met)
    assert any(jobs - story.left_over for jobs in story.met)
    assert "CANCELLED" in {slurm.jobs()[i][0] for i in story.left_over}
    slurm.figures["jobs left by kill -9, ended before the next run submitted any"] = len(story.left_over)


def test_the_cluster_gives_the_same_bits_as_this_machine(story: Story, finished: Path, slurm: Any):
    assert story.second.status == 0, story.second.text
    here, there = results(finished), results(story.study)
    assert here.keys() == there.keys()
    assert [n for n in here if here[n] != there[n]] == []
    assert len([n for n in here if n.endswith(".ome.zarr")]) >= 6
    assert not list((story.study / "out").rglob("*.partial"))
    slurm.figures["results compared with a local run, all equal"] = f"{len(here)} (stores, transforms, tables)"
    slurm.figures["jobs on the cluster for the whole block"] = len(set().union(*story.met) - story.left_over)


def test_a_job_of_a_killed_run_that_begins_late_touches_nothing(story: Story, slurm: Any):
    """As one that the cluster could not be asked for, or that waited in another's queue: the very script, begun after all."""
    before = {p: p.stat().st_mtime_ns for p in (story.study / "out").rglob("*") if ".snakemake" not in p.parts and p.is_file()}
    log = story.study / "late.log"
    script = next(text for text in story.scripts.values() if "ingest_section" in text)
    late = slurm.submit(script, log, {TOKEN_VARIABLE: story.token}, story.study / "out")
    slurm.wait_for(lambda: late not in slurm.active(), "end of the late job")
    assert slurm.jobs()[late][0] == "FAILED"
    assert "has begun since" in log.read_text()
    after = {p: p.stat().st_mtime_ns for p in (story.study / "out").rglob("*") if ".snakemake" not in p.parts and p.is_file()}
    assert after == before


def test_every_job_was_granted_more_memory_than_it_took(story: Story, slurm: Any):
    """The figures of the rules against the benchmarks of the same jobs; what Snakemake takes around them is taken off."""
    granted = dict(re.findall(r"benchmark: (\S+)\n(?: .*\n)*?.*resources: .*?mem_mb=(\d+)", story.second.text))
    taken = {file: peak_mb(story.study / "out" / file) for file in granted}
    assert len(taken) >= 15
    assert {f: (mb, granted[f]) for f, mb in taken.items() if mb > int(granted[f]) - AROUND_MB} == {}
    nearest = max(taken, key=lambda f: taken[f] / (int(granted[f]) - AROUND_MB))
    share = taken[nearest] / (int(granted[nearest]) - AROUND_MB)
    slurm.figures["jobs whose memory stayed below what was asked for"] = f"{len(taken)}; nearest {nearest}: {share:.0%}"


def peak_mb(benchmark: Path) -> float:
    """The most memory that a job took, from its benchmark."""
    header, values = (line.split("\t") for line in benchmark.read_text().splitlines())
    return float(dict(zip(header, values, strict=True))["max_rss"])


# ---------------------------------------------------------------- what happens to single jobs


@pytest.fixture(scope="module")
def ingested(tiny: Path, workflow: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of which one section was ingested on this machine, undisturbed."""
    study = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("ingested") / "study", ignore=shutil.ignore_patterns("out")))
    outcome = workflow.run(study / "config.yaml", "--", ONE)
    assert outcome.status == 0, outcome.text
    return study


def test_a_job_on_a_node_that_is_lost_is_done_again(slurm: Any, cluster_runs: Any, fresh: Path, ingested: Path, tmp_path: Path):
    log = tmp_path / "run.log"
    run = cluster_runs.start(fresh / "config.yaml", log, ONE)
    try:
        slurm.wait_for(lambda: "RUNNING" in {s for s, _ in slurm.active().values()}, "job at work", run)
        (lost,) = slurm.active()
        slurm.node(state="down", reason="test")
        slurm.wait_for(lambda: slurm.jobs()[lost][0] == "NODE_FAIL", "loss of the job", run)
        slurm.resume()
        status = run.wait(200)
    finally:
        stop(run)
    outcome = cluster_runs.outcome(status, log)
    assert status == 0, outcome.text
    assert "Trying to restart job" in outcome.text
    assert "COMPLETED" in {state for state, _ in slurm.jobs().values()}
    same(fresh, ingested)
    slurm.figures["jobs lost with their node, done again"] = 1


def test_a_job_killed_for_its_memory_is_tried_with_more(
    slurm: Any, cluster_runs: Any, fresh: Path, ingested: Path, tmp_path: Path
):
    """The cluster kills what takes more than it asked for: Snakemake alone takes 200 MB, and twice that as it forks."""
    less = "ingest_section:mem_mb=int(180*2.25**(attempt-1))"
    before = set(slurm.jobs())
    outcome = cluster_runs.run(fresh / "config.yaml", tmp_path / "run.log", ONE, "--set-resources", less)
    states = [state for i, (state, _) in sorted(slurm.jobs().items(), key=lambda j: int(j[0])) if i not in before]
    assert outcome.status == 0, outcome.text
    assert re.search(r"StepId=\d+.* exceeded memory limit .*being killed", outcome.text)
    assert states[0] in ("OUT_OF_MEMORY", "FAILED")
    assert states[-1] == "COMPLETED"
    # what a job says is in the workflow's log too, so that each figure may stand there several times
    granted = list(dict.fromkeys(int(m) for m in re.findall(r"resources: .*?mem_mb=(\d+)", outcome.text)))
    assert granted == [180, 405, 911][: len(states)]
    same(fresh, ingested)
    slurm.figures["tries of a job killed for its memory, MB granted"] = granted


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_cancelled_run_takes_its_jobs_with_it(state: str, slurm: Any, cluster_runs: Any, fresh: Path, tmp_path: Path):
    """Ctrl-C while its job waits; SIGTERM (a login node that goes down) while it works, upon which Snakemake lets it end."""
    if state == "PENDING":
        slurm.node(state="drain", reason="test")
    run = cluster_runs.start(fresh / "config.yaml", tmp_path / "run.log", ONE)
    try:
        slurm.wait_for(lambda: state in {s for s, _ in slurm.active().values()}, "job in that state", run)
        # Snakemake learns a job's number a moment after the cluster does
        slurm.wait_for(lambda: "has been submitted with SLURM jobid" in (tmp_path / "run.log").read_text(), "submission", run)
        time.sleep(1)
        status = kill_alone(run, signal.SIGINT if state == "PENDING" else signal.SIGTERM)
        slurm.wait_for(lambda: not slurm.active(), "end of the jobs", patience_s=60)
    finally:
        stop(run)
    assert status != 0
    manifest, store = fresh / "out" / ONE, fresh / "out" / "sections" / "s001.ome.zarr"
    assert state == "RUNNING" or not manifest.exists()
    # what is there is whole
    assert not manifest.exists() or json.loads(manifest.read_text())["content_sha256"] == content_sha256(store)
    assert not list((fresh / "out").rglob("*.partial"))
    slurm.figures[f"runs cancelled with a job {state.lower()}, without a job left"] = 1


def same(study: Path, undisturbed: Path) -> None:
    """The section that was asked for is as in an undisturbed run, and nothing half done is beside it."""
    manifests = [json.loads((s / "out" / ONE).read_text()) for s in (study, undisturbed)]
    assert manifests[0]["content_sha256"] == manifests[1]["content_sha256"]
    assert content_sha256(study / "out" / "sections" / "s001.ome.zarr") == manifests[0]["content_sha256"]
    assert not list((study / "out").rglob("*.partial"))
    # a run that ended well has left no job to look for
    assert not (study / "out" / RECORD).exists()
