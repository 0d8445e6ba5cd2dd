"""Thousands of spoiled files through every reader: each is refused in words of ours or read to a sound result."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from histomri.testing.fuzz import cases_of, run_cases
from histomri.testing.fuzz_seeds import make_seeds

CASES = int(os.environ.get("HISTOMRI_FUZZ", "10000"))


@pytest.mark.faults
def test_no_spoiled_file_crashes_hangs_or_takes_all_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_seeds(tmp_path / "seeds")
    counts = cases_of(CASES)
    # two workers at once, the readers dealt out so that they end at about the same time
    names = sorted(counts, key=lambda name: counts[name])
    parts = [{name: counts[name] for name in names[i::2]} for i in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda i: run_cases(parts[i], tmp_path / "seeds", tmp_path / f"work{i}"), (0, 1)))
    tallies = [tally for half in halves for tally in half.values()]
    with capsys.disabled():
        print()
        for tally in sorted(tallies, key=lambda t: t.reader):
            print(
                f"  {tally.reader:10s} {sum(tally.counts.values()):5d} cases:",
                *(f"{n} {k}" for k, n in sorted(tally.counts.items())),
            )
        print(f"  {sum(sum(t.counts.values()) for t in tallies)} cases in all")
    assert [f"{t.reader} {case}: {said}" for t in tallies for case, said in t.failures.items()] == []
    assert sum(sum(t.counts.values()) for t in tallies) == sum(counts.values()) >= CASES
    # a fuzzer that only ever breaks the first byte would see nothing
    assert all(t.counts["sound"] and t.counts["refused"] for t in tallies if sum(t.counts.values()) >= 100)
