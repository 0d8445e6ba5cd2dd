"""Runs of whole studies, and the scripts that hold them against their truth."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def script(checkout: Path) -> Callable[[str], ModuleType]:
    """Loads a script of ``tests/`` as a module: ``script("benchmarks/bigbrain_truth.py")``."""

    def load(name: str) -> ModuleType:
        path = checkout / "tests" / name
        spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def run_study(checkout: Path) -> Callable[..., None]:
    """Runs the whole workflow on a study as the README says: ``run_study(config, timeout_s=600)``; fails with what it said."""

    def run(config: Path, timeout_s: float) -> None:
        command = [sys.executable, "-m", "snakemake", "--configfile", str(config), "--cores", "2"]
        surroundings = {**os.environ, "PYTHONPATH": str(checkout / "src"), "PYTHONSAFEPATH": "1"}
        log = config.with_name("run.log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=checkout, env=surroundings, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            status = process.wait(timeout_s)
        except BaseException:
            # its jobs are processes of their own, which would go on
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert status == 0, log.read_text()[-6000:]

    return run
