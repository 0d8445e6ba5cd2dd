"""Killed at random moments, by a seed: the same command goes on, repeats no finished job, and ends with the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from disturbed import RULES, Run, durations, results, start, unequal, wait_until

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("HISTOMRI_KILLS", "100"))
SEED = int(os.environ.get("HISTOMRI_SEED", "6"))
# a run that is killed again and again goes on with what is left: several kills share one study
PER_STUDY = 50
START = "start"  # while Snakemake reads the study, before any job
MANNERS = ("group", "main", "job")
GONE_S = 20


def plan(kills: int, seed: int) -> list[list[tuple[str, str, float]]]:
    """Kills as (rule, manner, how far into the job), spread over the rules, in the order of a run, for each study."""
    draw = random.Random(seed)
    rules = [(START, *RULES)[i % (1 + len(RULES))] for i in draw.sample(range(kills), kills)]
    planned = [(rule, MANNERS[i % 3] if rule != START else "group", draw.random()) for i, rule in enumerate(rules)]
    draw.shuffle(planned)
    order = (START, *RULES)
    parts = [planned[i : i + PER_STUDY] for i in range(0, kills, PER_STUDY)]
    return [sorted(part, key=lambda k: order.index(k[0])) for part in parts]


def come_to(going: Run, rule: str, far: float, seconds: dict[str, float]) -> bool:
    """Wait until a job of the rule is that far; False where the run ended before."""
    if rule == START:
        time.sleep(4 * far)
        return going.process.poll() is None
    if not wait_until(lambda: rule in going.at_work(), going.process):
        return False
    time.sleep(far * (seconds[rule] + 0.5))
    return going.process.poll() is None


def strike(going: Run, manner: str) -> str:
    """Kill in that manner; what was killed."""
    jobs = going.job_processes()
    if manner == "job" and jobs:
        jobs[0].kill()
        # the others go on; the run ends by itself and says that one failed
        going.wait()
        return "job"
    if manner == "main":
        os.kill(going.process.pid, signal.SIGKILL)
        going.process.wait()
        _, alive = psutil.wait_procs(jobs, timeout=GONE_S)
        assert not alive, "a job outlived its run"
        return "main"
    os.killpg(going.process.pid, signal.SIGKILL)
    going.process.wait()
    return "group"


def jump_clock(out: Path, draw: random.Random) -> None:
    """A clock that jumps: files of ours get times up to two days before or after what they had."""
    files = [f for at in ("ingest", "stack", "blockface", "mri", "transforms") for f in (out / at).rglob("*") if f.is_file()]
    for file in draw.sample(files, min(3, len(files))):
        moved = file.stat().st_mtime + draw.uniform(-2, 2) * 86400
        os.utime(file, (moved, moved))


def test_kills_at_random_moments_change_no_bit_and_repeat_no_finished_job(
    tiny: Path, undisturbed: Path, expected: dict[str, Any], tmp_path: Path, figures: dict[str, Any]
):
    seconds, draw = durations(undisturbed / "out"), random.Random(SEED)
    by_rule: Counter[str] = Counter()
    by_manner: Counter[str] = Counter()
    repeated, runs = set(), 0
    for number, kills in enumerate(plan(KILLS, SEED)):
        study = Path(shutil.copytree(tiny, tmp_path / f"study{number}"))
        done: set[str] = set()
        for rule, manner, far in [*kills, (None, "", 0.0)]:
            runs += 1
            # two cores, the undisturbed run had one: several jobs at once, and other numbers of threads
            going = start(study, tmp_path / f"{number}-{runs}.log", cores=2)
            try:
                if rule is not None and come_to(going, rule, far, seconds):
                    at_work = going.at_work() or [START]
                    by_manner[strike(going, manner)] += 1
                    by_rule[at_work[0]] += 1
                else:
                    assert going.wait() == 0, going.text
            finally:
                going.end()
            repeated |= done & set(going.started.values())
            assert not repeated, going.text
            done |= going.finished
            jump_clock(study / "out", draw)
            print(f"{sum(by_rule.values())} of {KILLS}: {manner} in {at_work[0] if rule else 'no rule'}", flush=True)
        assert unequal(results(study / "out"), expected) == []
        shutil.rmtree(study)
    figures["kills"] = sum(by_rule.values())
    figures["kills by rule"], figures["kills by manner"] = dict(sorted(by_rule.items())), dict(by_manner)
    figures["runs"], figures["finished jobs repeated"], figures["files compared"] = runs, len(repeated), len(expected)
    assert sum(by_rule.values()) >= 0.9 * KILLS
