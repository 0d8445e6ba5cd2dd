"""A full or read-only disk, files that change, results deleted in part: clear words, nothing half, the same bits after."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from disturbed import results, run, start, unequal, wait_until

pytestmark = pytest.mark.faults
NO_SPACE = ("No space left on device", "File too large", "free space", "GB are free")


def half_published(study: Path, expected: dict[str, Any]) -> list[str]:
    """Files under a final name that are not what an undisturbed run makes."""
    found = results(study / "out")
    left_over = (".partial", ".replaced", ".claim")
    names = [n for n in found if not n.endswith(left_over) and not Path(n).name.startswith(".")]
    return [n for n in names if found[n] != expected.get(n)]


@pytest.fixture
def disk(study: Path) -> Iterator[Callable[[str], None]]:
    """The study's output folder as a disk of its own, mounted with the given options; skips where that is not allowed."""
    out = study / "out"
    out.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", out], check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield lambda how: subprocess.run(["mount", "-o", f"remount,{how}", out], check=True)
    finally:
        subprocess.run(["umount", "-l", out], check=True)


def test_a_full_and_a_read_only_disk(
    study: Path, disk: Callable[[str], None], expected: dict[str, Any], tmp_path: Path, figures: dict[str, Any]
):
    filled = 0
    for size in ("700k", "2500k"):
        disk(f"size={size}")
        stopped = run(study, tmp_path / f"{size}.log")
        if stopped.process.returncode == 0:
            break
        filled += 1
        assert any(words in stopped.text for words in NO_SPACE), stopped.text
        assert half_published(study, expected) == []
    assert filled, "the disk was never full"
    disk("size=64m")
    disk("ro")
    refused = run(study, tmp_path / "ro.log")
    assert refused.process.returncode != 0
    assert "cannot be written (Read-only file system)" in refused.text and "Traceback" not in refused.text
    disk("rw")
    assert run(study, tmp_path / "repaired.log").process.returncode == 0
    assert unequal(results(study / "out"), expected) == []
    figures["full disks"], figures["read-only disks"] = filled, 1


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root mounts a small disk instead")
def test_a_limit_on_the_size_of_files(study: Path, expected: dict[str, Any], tmp_path: Path, figures: dict[str, Any]):
    """What a user without root meets: a quota, a limit of the shell."""
    stopped = run(study, tmp_path / "limited.log", "--until", "ingest_section", preexec=limit_files)
    assert stopped.process.returncode != 0
    assert any(words in stopped.text for words in NO_SPACE), stopped.text
    assert half_published(study, expected) == []
    assert run(study, tmp_path / "repaired.log", "--until", "ingest_section").process.returncode == 0
    assert half_published(study, expected) == []
    figures["limits on files"] = 1


@pytest.mark.parametrize("how", ["goes", "changes"])
def test_a_slide_that_goes_or_changes_under_the_run(
    study: Path, expected: dict[str, Any], tmp_path: Path, figures: dict[str, Any], how: str
):
    kept, only = tmp_path / "kept.tif", ("--until", "ingest_section")
    going = start(study, tmp_path / "disturbed.log", *only)
    try:
        # the study is read by then, its slides are not
        assert wait_until(lambda: going.started, going.process)
        begun = {job.partition(":")[2] for job in going.started.values()}
        # Snakemake's order of jobs is its own
        slide = next(s for s in sorted((study / "slides").iterdir()) if s.stem not in begun)
        other = study / "slides" / f"{min(begun)}.tif"
        shutil.copy2(slide, kept)
        if how == "goes":
            slide.unlink()
        else:
            shutil.copyfile(other, slide.with_suffix(".new"))
            slide.with_suffix(".new").replace(slide)
        begun = {job.partition(":")[2] for job in going.started.values()}
        status = going.wait()
    finally:
        going.end()
    assert slide.stem not in begun, "the run was too quick to tell"
    assert status != 0
    changed = f"{slide.name}: this file changed since the run began"
    if how == "changes":
        assert f"{changed}: its content is another" in going.text
        # the others are done all the same
        assert {f"ingest_section:{s.stem}" for s in (study / "slides").iterdir() if s != slide} == going.finished
    else:
        # Snakemake's words where it looks first, ours where the slide goes later
        assert f"{slide.name} (missing locally" in going.text or f"{changed}: it is gone" in going.text
    assert half_published(study, expected) == []
    shutil.copy2(kept, slide)
    assert run(study, tmp_path / "restored.log", *only).process.returncode == 0
    found = results(study / "out")
    ingested = {name for name in expected if name.startswith(("ingest/", "sections/"))}
    assert {name for name in ingested if found.get(name) != expected[name]} == set()
    figures[f"a slide that {how}"] = 1


def test_results_deleted_in_part_and_a_clock_that_jumps(
    undisturbed: Path, expected: dict[str, Any], tmp_path: Path, figures: dict[str, Any]
):
    study = Path(shutil.copytree(undisturbed, tmp_path / "elsewhere" / "study"))
    out, draw = study / "out", random.Random(6)
    moved = jump(out, draw)
    idle = run(study, tmp_path / "clock.log")
    assert idle.process.returncode == 0 and not idle.started, idle.text
    deleted = delete_in_part(out, draw)
    again = run(study, tmp_path / "mended.log")
    assert again.process.returncode == 0, again.text
    assert unequal(results(out), expected) == []
    figures["results deleted in part"], figures["files with times up to two days off"] = len(deleted), moved


def delete_in_part(out: Path, draw: random.Random) -> list[Path]:
    """A store, a folder of transforms, a volume and a few single files."""
    files = sorted(f for at in ("ingest", "stack", "mri", "evaluation") for f in (out / at).rglob("*") if f.is_file())
    deleted = [out / "sections/s002.ome.zarr", out / "transforms/block", out / "volumes", *draw.sample(files, 4)]
    for path in deleted:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return deleted


def jump(out: Path, draw: random.Random) -> int:
    """Times as a clock leaves them that jumped while results were written."""
    kinds = ("ingest", "stack", "blockface", "mri", "transforms", "volumes", "evaluation", "report")
    files = [f for at in kinds for f in (out / at).rglob("*") if f.is_file() and ".zarr" not in str(f)]
    for file in files:
        moved = file.stat().st_mtime + draw.uniform(-2, 2) * 86400
        os.utime(file, (moved, moved))
    return len(files)
