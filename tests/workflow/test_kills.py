"""Killed at any moment, the same command goes on: nothing finished is repeated, nothing half written is taken for whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from histomri.io.publish import content_sha256

PATIENCE_S = 120


def wait_until(what: Any, process: subprocess.Popen[bytes]) -> None:
    """Poll quickly: a store is half written for a moment only."""
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "what the test waits for did not happen"
        time.sleep(0.002)


def kill(process: subprocess.Popen[bytes]) -> None:
    # a run that ended by itself has been reaped; the test says so in its own words
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def store_hashes(study: Path) -> dict[str, str]:
    return {store.name: content_sha256(store) for store in (study / "out" / "sections").glob("*.ome.zarr")}


def test_a_second_run_at_once_is_refused(fresh: Path, workflow: Any, tmp_path: Path):
    lock = fresh / "out" / ".histomri.lock"
    process = workflow.start(fresh / "config.yaml", tmp_path / "first.log")
    try:
        wait_until(lambda: lock.is_file() and lock.read_text(), process)
        second = workflow.run(fresh / "config.yaml")
        assert process.poll() is None, "the first run ended too soon to tell"
    finally:
        kill(process)
    assert second.status != 0
    assert f"a run of this study is under way (process {process.pid}" in second.text
    assert "Traceback" not in second.text


def test_a_killed_run_goes_on_without_repeating_what_was_finished(fresh: Path, finished: Path, workflow: Any, tmp_path: Path):
    out, log = fresh / "out", tmp_path / "killed.log"
    process = workflow.start(fresh / "config.yaml", log)
    try:
        # in the middle of writing a store, with some section finished
        wait_until(lambda: workflow.outcome(0, log).finished and any(out.glob("sections/*.partial")), process)
    finally:
        kill(process)
    before = workflow.outcome(-9, log).finished
    times = {f: f.stat().st_mtime_ns for f in out.glob("ingest/*/manifest.json")}
    whole = store_hashes(finished)
    # whatever stands under a final name is whole already
    assert store_hashes(fresh).items() <= whole.items()

    outcome = workflow.run(fresh / "config.yaml")
    assert outcome.status == 0, outcome.text
    assert not before & set(outcome.jobs)
    assert all(f.stat().st_mtime_ns == times[f] for f in times if f"ingest_section:{f.parent.name}" in before)
    assert store_hashes(fresh) == whole
    assert not list(out.rglob("*.partial"))
    manifests = [json.loads(f.read_text()) for f in out.glob("ingest/*/manifest.json")]
    assert {m["section"]: m["content_sha256"] for m in manifests} == {k.removesuffix(".ome.zarr"): v for k, v in whole.items()}
    assert "Nothing to be done" in workflow.run(fresh / "config.yaml", "--dry-run").text


def test_a_store_that_lost_its_manifest_is_not_taken_for_whole(study: Path, workflow: Any):
    """The manifest is written last: a store without one was never finished."""
    manifest = next((study / "out" / "ingest").glob("*/manifest.json"))
    manifest.unlink()
    jobs = workflow.run(study / "config.yaml", "--dry-run").jobs
    assert f"ingest_section:{manifest.parent.name}" in jobs
