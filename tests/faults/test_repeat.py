"""The same study again gives the same bits: on other numbers of threads, from another place; and what differs is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from disturbed import ROOT

pytestmark = pytest.mark.faults


def reproduce(provenance: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and what was said."""
    line = [sys.executable, "-P", "-m", "histomri", "reproduce", str(provenance), *arguments]
    surroundings = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(line, env=surroundings, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_four_threads_and_another_place_give_the_same_arrays(undisturbed: Path, tmp_path: Path, figures: dict[str, Any]):
    moved = Path(shutil.copytree(undisturbed, tmp_path / "moved"))
    status, said = reproduce(moved / "out/provenance.json", "--cores", "4", "--output", str(tmp_path / "again"))
    assert status == 0, said
    threads = json.loads((tmp_path / "again/results/provenance.json").read_text())
    arrays = sum(len(o.get("arrays", {})) for o in threads["outputs"].values())
    assert f"results: all {arrays} arrays in" in said and "are equal, bit for bit" in said
    figures["arrays equal on 1 and 4 threads"] = arrays
