"""Numba's files of a package go when any of its sources changed, also those of callers whose own file did not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from histomri.kernels.compiled import forget_stale


def make_package(folder: Path, factor: int) -> Path:
    """A kernel in one file, compiled into its caller in another."""
    package = folder / "made"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(f"from numba import njit\n@njit(cache=True)\ndef inner(x):\n    return {factor} * x\n")
    caller = package / "outer.py"
    if not caller.exists():
        text = """
        from numba import njit
        from made.inner import inner
        @njit(cache=True)
        def outer(x):
            return inner(x) + 1
        """
        caller.write_text(textwrap.dedent(text))
    return package


def answer(folder: Path) -> int:
    """What the caller gives for 10, in a process of its own."""
    code = "from made.outer import outer; print(outer(10))"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_caller_does_not_go_on_with_the_old_kernel_inside_it(tmp_path: Path) -> None:
    package = make_package(tmp_path, 2)
    forget_stale(package)
    assert answer(tmp_path) == 21
    make_package(tmp_path, 3)
    assert forget_stale(package)
    assert answer(tmp_path) == 31


def test_what_was_compiled_from_these_very_sources_stays(tmp_path: Path) -> None:
    package = make_package(tmp_path, 2)
    forget_stale(package)
    kept = package / "__pycache__" / "outer.nbi"
    kept.touch()
    assert not forget_stale(package) and kept.exists()
    (package / "inner.py").write_text("# another size\n")
    assert forget_stale(package) and not kept.exists()
