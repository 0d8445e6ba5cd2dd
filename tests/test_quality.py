"""Linter and strict type check, as tests: what `make lint` says must be nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def outcome(checkout: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=checkout, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff(checkout: Path) -> None:
    assert outcome(checkout, "ruff", "check", "--no-cache", ".") == ""


def test_format(checkout: Path) -> None:
    assert outcome(checkout, "ruff", "format", "--check", "--no-cache", ".") == ""


def test_strict_types(checkout: Path) -> None:
    assert outcome(checkout, "mypy") == ""
