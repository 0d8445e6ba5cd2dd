"""Killed at random moments, by a seed: the same command goes on, repeats no finished job, and ends with the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
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
ANY = "any"  # whatever job comes first
MANNERS = ("group", "main", "job")
GONE_S = 20


def plan(kills: int, seed: int) -> list[Counter[str]]:
    """How many kills each rule of each study is to get: all the same, but for what does not divide."""
    draw = random.Random(seed)
    rules = [(*RULES, START)[i % (1 + len(RULES))] for i in range(kills)]
    draw.shuffle(rules)
    return [Counter(rules[i : i + PER_STUDY]) for i in range(0, kills, PER_STUDY)]


def studies(plans: list[Counter[str]]) -> Iterator[Counter[str]]:
    """Each study's kills; then as many studies more as it takes for those whose job ended before its moment came."""
    yield from plans
    while missed := sum(sum(left.values()) for left in plans):
        plans = [Counter({ANY: missed})]
        yield from plans


def come_to(going: Run, left: Counter[str], seconds: dict[str, float], draw: random.Random) -> str | None:
    """Wait for a random moment in a job of a rule that is to be killed still, and say which; None where the run ends before."""
    if left[START] and draw.random() < 0.5:
        time.sleep(4 * draw.random())
        return START

    def due() -> list[str]:
        return [rule for rule in going.at_work() if left[rule] or left[ANY]]

    if not wait_until(due, going.process) or going.process.poll() is not None:
        return None
    rule = due()[0]
    time.sleep(0.8 * draw.random() * seconds[rule])
    return rule if going.process.poll() is None else None


def strike(going: Run, manner: str, jobs: list[psutil.Process]) -> str:
    """Kill in that manner, where these processes are at work on jobs; what was killed."""
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
    repeated, runs, in_work = set(), 0, 0
    for number, left in enumerate(studies(plan(KILLS, SEED))):
        study = Path(shutil.copytree(tiny, tmp_path / f"study{number}"))
        done: set[str] = set()
        rule: str | None = START
        while rule is not None:
            runs += 1
            # two cores, the undisturbed run had one: several jobs at once, and other numbers of threads
            going = start(study, tmp_path / f"{number}-{runs}.log", cores=2)
            try:
                rule = come_to(going, left, seconds, draw)
                if rule is not None:
                    left[rule if left[rule] else ANY] -= 1
                    by_rule[next(iter(going.at_work()), START) if rule not in going.at_work() else rule] += 1
                    jobs = going.job_processes()
                    in_work += bool(jobs)
                    by_manner[strike(going, MANNERS[sum(by_rule.values()) % 3], jobs)] += 1
                else:
                    assert going.wait() == 0, going.text
            finally:
                going.end()
            repeated |= done & set(going.started.values())
            assert not repeated, going.text
            done |= going.finished
            jump_clock(study / "out", draw)
            print(f"{sum(by_rule.values())} of {KILLS} kills, {len(done)} jobs finished; now in {rule}", flush=True)
        assert unequal(results(study / "out"), expected) == []
        shutil.rmtree(study)
    figures["kills"], figures["kills while a stage's code ran"] = sum(by_rule.values()), in_work
    figures["kills by rule"], figures["kills by manner"] = dict(sorted(by_rule.items())), dict(by_manner)
    figures["runs"], figures["finished jobs repeated"], figures["files compared"] = runs, len(repeated), len(expected)
    if KILLS >= 10:
        assert set(by_manner) == set(MANNERS)
        assert in_work >= KILLS // 3, "the moments were too early to tell"
