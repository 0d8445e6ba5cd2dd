"""An edit of the logic shows, an edit of the words does not; a replaced file shows, whatever its times."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from histomri.io import fingerprint
from histomri.io.fingerprint import COMPUTING, NO_FILE, NOT_COMPUTING, SAMPLE_BYTES, WHOLE_BYTES, file_fingerprint

PACKAGE = Path(fingerprint.__file__).parents[1]
IMPORT = re.compile(r"^ *(?:from (\w+)[\w.]* import .*|import (\w+)[\w.]*(?: as \w+)?(?: *#.*)?)$", re.MULTILINE)
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


def code_of(package: Path, function: str = "code_fingerprint") -> str:
    program = f"import sys, pathlib; from histomri.io.fingerprint import {function} as f; print(f(pathlib.Path(sys.argv[1])))"
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


def install(package: Path, distribution: str, number: str) -> None:
    """A distribution of that version, found before the real one."""
    for old in package.parent.glob(f"{distribution}-*.dist-info"):
        shutil.rmtree(old)
    (package.parent / f"{distribution}-{number}.dist-info").mkdir()
    (package.parent / f"{distribution}-{number}.dist-info/METADATA").write_text(f"Name: {distribution}\nVersion: {number}\n")


def test_another_version_of_a_package_that_the_code_computes_with_shows_and_of_another_does_not(package: Path):
    imports = {"deep": "def f():\n    from numba import njit\n", "alone": "import scipy\n", "used": "import yaml\n"}
    for name, text in imports.items():
        (package / "demo" / f"{name}.py").write_text(f"inner = 1\n{text}")
    for distribution in ("numba", "llvmlite", "scipy", "pyyaml"):
        install(package, distribution, "1.0")
    before = code_of(package, "code_and_packages")
    assert before.strip().endswith(" llvmlite 1.0, numba 1.0")
    assert before.startswith(code_of(package).strip())
    install(package, "scipy", "2.0")
    install(package, "pyyaml", "2.0")
    assert code_of(package, "code_and_packages") == before
    install(package, "llvmlite", "2.0")
    assert code_of(package, "code_and_packages") == before.replace("llvmlite 1.0", "llvmlite 2.0")


def test_every_package_that_our_code_imports_is_known_to_compute_or_not_to():
    files = [f for f in PACKAGE.rglob("*.py") if not {"testing", "cli"} & set(f.relative_to(PACKAGE).parts)]
    named = {"".join(found) for file in files for found in IMPORT.findall(file.read_text())}
    foreign = named - {PACKAGE.name, *sys.stdlib_module_names}
    assert foreign == {*COMPUTING, *NOT_COMPUTING}


def test_the_distributions_behind_a_name_are_those_that_provide_it():
    provided = {module: {name.lower() for name in names} for module, names in packages_distributions().items()}
    assert [m for m, names in COMPUTING.items() if not provided.get(m, set()) & {n.lower() for n in names}] == []


def rewrite(file: Path, start: int, stop: int) -> None:
    """Change bytes in place and give the file its times back."""
    times = file.stat()
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(b"\1" * (stop - start))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def hollow(file: Path, size: int) -> Path:
    """A file of zeros that take no room."""
    file.touch()
    os.truncate(file, size)
    return file


@pytest.mark.parametrize("size", [10, 3 * SAMPLE_BYTES, WHOLE_BYTES])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.999999])
def test_a_byte_that_changes_anywhere_in_a_file_shows_whatever_its_times(tmp_path: Path, size: int, where: float):
    file = hollow(tmp_path / "slide.tif", size)
    before = file_fingerprint(file)
    rewrite(file, int(where * size), int(where * size) + 1)
    assert file_fingerprint(file) != before


@pytest.mark.parametrize("where", [0.0, 0.26, 0.51, 1.0])
def test_a_change_of_a_32nd_of_a_large_file_shows_wherever_it_lies(tmp_path: Path, where: float):
    size = 200_000_007
    file = hollow(tmp_path / "slide.tif", size)
    before = file_fingerprint(file)
    start = int(where * (size - size // 32))
    rewrite(file, start, start + size // 32)
    assert file_fingerprint(file) != before


def test_the_ends_of_a_large_file_show_to_the_byte(tmp_path: Path):
    file = hollow(tmp_path / "slide.tif", 3 * WHOLE_BYTES)
    seen = {file_fingerprint(file)}
    for where in (0, 3 * WHOLE_BYTES - 1):
        rewrite(file, where, where + 1)
        seen.add(file_fingerprint(file))
    assert len(seen) == 3


def store(folder: Path, chunks: int, size: int) -> Path:
    """A store of uncompressed chunks, all zeros."""
    (folder / "0" / "c").mkdir(parents=True)
    (folder / "0" / "zarr.json").write_text('{"zarr_format": 3}')
    for i in range(chunks):
        hollow(folder / "0" / "c" / f"{i:03d}", size)
    return folder


def test_a_byte_in_any_chunk_of_a_store_shows_and_so_do_its_metadata(tmp_path: Path):
    folder = store(tmp_path / "a.zarr", 9, 2 * SAMPLE_BYTES)
    seen = {file_fingerprint(folder)}
    for file in (folder / "0").rglob("*"):
        if file.is_file():
            rewrite(file, 17, 18)
            seen.add(file_fingerprint(folder))
    assert len(seen) == 11
    folder.rename(tmp_path / "b.zarr")
    assert file_fingerprint(tmp_path / "b.zarr") in seen
    (tmp_path / "b.zarr/0/c/003").rename(tmp_path / "b.zarr/0/c/00x")
    assert file_fingerprint(tmp_path / "b.zarr") not in seen


def test_the_end_of_any_chunk_of_a_large_store_shows(tmp_path: Path):
    folder = store(tmp_path / "a.zarr", 9, WHOLE_BYTES)
    seen = {file_fingerprint(folder)}
    for file in (folder / "0" / "c").iterdir():
        rewrite(file, WHOLE_BYTES - 1, WHOLE_BYTES)
        seen.add(file_fingerprint(folder))
    rewrite(folder / "0" / "zarr.json", 3, 4)
    assert len({*seen, file_fingerprint(folder)}) == 11


def test_a_store_of_many_chunks_is_read_in_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, places = store(tmp_path / "a.zarr", 1000, SAMPLE_BYTES), []
    block = fingerprint._block
    monkeypatch.setattr(fingerprint, "_block", lambda stream, start: places.append(start) or block(stream, start))
    before = file_fingerprint(folder)
    assert 200 <= len(places) <= 2 * fingerprint.SAMPLED_FILES
    for file in (folder / "0" / "c").iterdir():
        rewrite(file, 0, SAMPLE_BYTES)
    assert file_fingerprint(folder) != before


def test_a_moved_or_touched_file_is_the_same_and_a_missing_one_has_a_name(tmp_path: Path):
    file = tmp_path / "slide.tif"
    file.write_bytes(b"pixels")
    before = file_fingerprint(file)
    moved = file.rename(tmp_path / "moved.tif")
    moved.touch()
    assert file_fingerprint(moved) == before
    assert file_fingerprint(file) == NO_FILE
