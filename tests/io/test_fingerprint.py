"""An edit of the logic shows, an edit of the words does not; a replaced file shows, whatever its times."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from histomri.io import fingerprint
from histomri.io.fingerprint import NO_FILE, SAMPLE_BYTES, file_fingerprint

PACKAGE = Path(fingerprint.__file__).parents[1]
SCRIPT = "from histomri.demo.stage import work\n\nwork()\n"
STAGE = '''"""A stage."""

import importlib

from histomri.demo import used


def work():
    """Work."""
    from .deep import inner

    importlib.import_module("histomri.demo.named")
    open("page.html")
    return used, inner
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package called histomri with the real fingerprint in it, and a script that uses some of it."""
    root = tmp_path / "histomri"
    (root / "io").mkdir(parents=True)
    (root / "demo").mkdir()
    shutil.copy(PACKAGE / "io" / "fingerprint.py", root / "io")
    for name in ("__init__.py", "io/__init__.py", "demo/__init__.py"):
        (root / name).write_text("")
    for name in ("used", "deep", "named", "alone"):
        (root / "demo" / f"{name}.py").write_text('"""Says."""\n\ninner = 1\n')
    (root / "demo" / "stage.py").write_text(STAGE)
    (root / "demo" / "page.html").write_text("<p>")
    (tmp_path / "script.py").write_text(SCRIPT)
    return root


def code_of(package: Path) -> str:
    program = (
        "import sys, pathlib; from histomri.io.fingerprint import code_fingerprint as f; print(f(pathlib.Path(sys.argv[1])))"
    )
    line = [sys.executable, "-c", program, str(package.parent / "script.py")]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["__init__", "demo/__init__", "demo/stage", "demo/used", "demo/deep", "demo/named"])
def test_an_edit_of_a_module_that_is_reached_shows(package: Path, name: str):
    before = code_of(package)
    file = package / f"{name}.py"
    file.write_text(file.read_text() + "\nmore = 1\n")
    assert code_of(package) != before


def test_an_edit_of_a_module_that_is_not_reached_does_not_show(package: Path):
    before = code_of(package)
    (package / "demo" / "alone.py").write_text("inner = 2\n")
    assert code_of(package) == before


def test_comments_docstrings_layout_and_the_version_do_not_show(package: Path):
    before = code_of(package)
    for name in ("used", "deep", "named"):
        (package / "demo" / f"{name}.py").write_text('"""Says something else."""\n# a comment\ninner = (\n    1\n)\n')
    (package / "__init__.py").write_text('"""The package."""\n\n__version__ = "9.9"\n')
    assert code_of(package) == before


def test_a_changed_number_shows(package: Path):
    before = code_of(package)
    (package / "demo" / "deep.py").write_text('"""Says."""\n\ninner = 2\n')
    assert code_of(package) != before


def test_a_template_that_the_module_names_shows(package: Path):
    before = code_of(package)
    (package / "demo" / "page.html").write_text("<b>")
    assert code_of(package) != before


def test_what_was_compiled_does_not_show_where_a_module_names_the_folder(package: Path):
    stage = package / "demo" / "stage.py"
    stage.write_text(STAGE + 'FOLDER = "__pycache__"\n')
    before = code_of(package)
    (package / "demo" / "__pycache__").mkdir(exist_ok=True)
    (package / "demo" / "__pycache__" / "kernel.nbi").write_text("compiled")
    assert code_of(package) == before


def test_an_edit_of_the_script_shows(package: Path):
    before = code_of(package)
    (package.parent / "script.py").write_text(SCRIPT.replace("work()\n", "work()\nwork()\n"))
    assert code_of(package) != before


@pytest.mark.parametrize("size", [10, 3 * SAMPLE_BYTES, 100 * SAMPLE_BYTES])
@pytest.mark.parametrize("where", [0, -1])
def test_a_file_replaced_under_the_same_times_and_size_shows(tmp_path: Path, size: int, where: int):
    file = tmp_path / "slide.tif"
    file.write_bytes(bytes(size))
    times, before = file.stat(), file_fingerprint(file)
    content = bytearray(size)
    content[where] = 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_fingerprint(file) != before


def test_a_moved_or_touched_file_is_the_same_and_a_missing_one_has_a_name(tmp_path: Path):
    file = tmp_path / "slide.tif"
    file.write_bytes(b"pixels")
    before = file_fingerprint(file)
    moved = file.rename(tmp_path / "moved.tif")
    moved.touch()
    assert file_fingerprint(moved) == before
    assert file_fingerprint(file) == NO_FILE
