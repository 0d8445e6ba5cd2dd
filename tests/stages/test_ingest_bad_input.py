"""What is wrong with a slide, or happens while it is read: clear words, nothing half done, and the others go on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from histomri.core import Section
from histomri.io import omezarr, slides
from histomri.io.publish import content_sha256
from histomri.io.sections import SectionManifest, open_level, read_manifest
from histomri.stages import ingest as stage
from histomri.stages.ingest import IngestSettings, NoSpaceError, ProgressLog, SlideChangedError, ingest_section
from histomri.testing.big_slide import BigSlide, write_big_slide

SETTINGS = IngestSettings(chunk_px=64, shard_px=128, smallest_level_px=64)
NOISE = np.random.default_rng(0).integers(120, 200, (300, 400, 3), dtype=np.uint8)


def write_tiff(path: Path, pixels: Any = NOISE, **options: Any) -> Path:
    kind: dict[str, Any] = {"resolution": (10000, 10000), "resolutionunit": "CENTIMETER", "tile": (64, 64), "photometric": "rgb"}
    tifffile.imwrite(path, pixels, **(kind | options))
    return path


def ingest(folder: Path, file: Path, name: str = "a", **options: Any) -> SectionManifest:
    manifest = folder / "ingest" / name / "manifest.json"
    settings = options.pop("settings", SETTINGS)
    ingest_section(Section(name, file, 0.0), folder / "sections" / f"{name}.ome.zarr", manifest, settings, **options)
    return read_manifest(manifest)


def published(folder: Path) -> list[str]:
    """What a study would find, of stores and manifests."""
    return sorted(p.relative_to(folder).as_posix() for p in (*folder.glob("sections/*"), *folder.glob("ingest/*/*")))


@pytest.mark.parametrize("tile", range(0, 35, 3))
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncated_at_any_tile_never_looks_whole(tmp_path: Path, tile: int, compression: str | None) -> None:
    file = write_tiff(tmp_path / "a.tif", compression=compression)
    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[0]
        cut = page.dataoffsets[tile] + page.databytecounts[tile] // 2
    with file.open("r+b") as stream:
        stream.truncate(cut)
    found = ingest(tmp_path, file)
    lost = 35 - tile
    assert f"{lost} of 35 tiles could not be decoded" in found.flags[0]
    assert found.status == ("unreadable" if lost > 3.5 else "ok")
    if found.status == "ok":
        assert np.array_equal(open_level(found).data[:256, :384], NOISE[:256, :384])


@pytest.mark.parametrize(("share", "status"), [(0.02, "unreadable"), (0.03, "ok"), (1.0, "ok")])
def test_the_share_of_bad_tiles_that_is_borne_comes_from_the_config(tmp_path: Path, share: float, status: str) -> None:
    file = write_tiff(tmp_path / "a.tif", compression="zlib")
    with tifffile.TiffFile(file) as tiff:
        offset = tiff.pages[0].dataoffsets[8]  # type: ignore[union-attr]
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 9)
    settings = IngestSettings(chunk_px=64, shard_px=128, smallest_level_px=64, max_bad_tiles=share)
    assert ingest(tmp_path, file, settings=settings).status == status


@pytest.mark.parametrize(
    ("kind", "name"), [("tif", "a.png"), ("png", "a.svs"), ("jpg", "a.tif"), ("tif", "a"), ("svs", "a.ndpi")]
)
def test_the_content_counts_not_the_extension(tmp_path: Path, kind: str, name: str) -> None:
    file = tmp_path / "right" / f"right.{kind}"
    file.parent.mkdir()
    if kind == "tif":
        write_tiff(file)
    elif kind == "svs":
        write_big_slide(file, BigSlide((300, 400), tile_px=64, textures=3))
    else:
        Pillow.fromarray(NOISE).save(file, dpi=(25400, 25400))
    with slides.open_slide(file) as slide:
        expected = slide.read_region(0, 0, 300, 400)
    file.rename(tmp_path / name)
    found = ingest(tmp_path, tmp_path / name)
    assert found.status == "ok" and np.array_equal(open_level(found).data[...], expected)


def test_zero_bytes_a_folder_a_text_and_no_file_are_flagged_and_the_next_goes_in(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "text.svs").write_text("not a slide at all\n" * 20)
    words = {
        "empty.svs": "empty (0 bytes)",
        "folder.svs": "is a folder",
        "text.svs": "truncated or corrupt",
        "none.svs": "no such",
    }
    for name, text in words.items():
        found = ingest(tmp_path, tmp_path / name, Path(name).stem)
        assert found.status == "unreadable" and text in found.flags[0]
    assert ingest(tmp_path, write_tiff(tmp_path / "good.tif"), "good").status == "ok"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_is_told(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif")
    file.chmod(0)
    found = ingest(tmp_path, file)
    assert found.status == "unreadable" and "cannot be read (Permission denied)" in found.flags[0]


def test_an_error_of_the_disk_while_opening_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tiff(tmp_path / "a.tif")

    def refused(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(slides.tiff.TiffSlide, "__init__", refused)
    found = ingest(tmp_path, file)
    assert found.status == "unreadable" and "Permission denied" in found.flags[0]


def test_pixels_that_are_not_square_keep_both_sizes_at_every_level(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", resolution=(10000, 20000))
    found = ingest(tmp_path, file)
    assert found.pixel_size_mm == pytest.approx((0.0005, 0.001))
    for level in range(found.levels):
        assert open_level(found, level).grid.spacing_mm == pytest.approx(np.array([0.0005, 0.001]) * 2**level)


class Growing(slides.tiff.TiffSlide):
    """A slide that someone is still copying."""

    def read_planes(self, y: int, x: int, height: int, width: int, planes: Any) -> None:
        super().read_planes(y, x, height, width, planes)
        with self.info.path.open("ab") as stream:
            stream.write(b"more")


def test_a_file_that_changes_while_it_is_read_publishes_nothing_and_the_next_goes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_tiff(tmp_path / "a.tif")
    with monkeypatch.context() as patch:
        patch.setattr(slides.tiff, "TiffSlide", Growing)
        with pytest.raises(SlideChangedError, match=r"a\.tif changed while it was read: wait"):
            ingest(tmp_path, file)
    assert published(tmp_path) == []
    assert ingest(tmp_path, write_tiff(tmp_path / "b.tif"), "b").status == "ok"


def test_a_slide_bigger_than_the_disk_is_told_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tiff(tmp_path / "a.tif")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 100_000))
    monkeypatch.setattr(omezarr, "write_pyramid", None)
    with pytest.raises(NoSpaceError, match=r"needs about 0\.000\d+ GB, and 0\.0001 GB are free: free space there"):
        ingest(tmp_path, file)
    assert published(tmp_path) == []


def test_a_slide_that_compresses_well_is_not_refused_for_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tiff(tmp_path / "a.tif", np.full((300, 400, 3), 240, np.uint8))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 100_000))
    assert ingest(tmp_path, file).status == "empty"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    file, write = write_tiff(tmp_path / "a.tif"), Path.write_bytes

    def full(self: Path, data: Any) -> int:
        if self.name == "1":
            raise OSError(code, os.strerror(code))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NoSpaceError, match="could not be written"):
        ingest(tmp_path, file, threads=2)
    assert published(tmp_path) == []


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from histomri.core import Section
    from histomri.io.slides.tiff import TiffSlide
    from histomri.stages.ingest import IngestSettings, ingest_section
    folder, limit = Path(sys.argv[1]), int(sys.argv[2])
    read, count = TiffSlide.read_planes, []

    def slow(self, *box):
        count.append(box)
        if len(count) > limit:
            os.kill(os.getpid(), signal.SIGKILL)
        read(self, *box)

    TiffSlide.read_planes = slow
    settings = IngestSettings(chunk_px=64, shard_px=128, smallest_level_px=64)
    store, manifest = folder / "sections" / "a.ome.zarr", folder / "ingest" / "a" / "manifest.json"
    ingest_section(Section("a", Path(sys.argv[3]), 0.0), store, manifest, settings, threads=2)
"""


def test_a_killed_run_leaves_nothing_that_looks_finished_and_the_next_is_as_if_there_had_been_none(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif")
    expected = ingest(tmp_path / "never killed", file).content_sha256
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "killed"), "20", str(file)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left_over,) = (tmp_path / "killed" / "sections").glob("*.partial")
    assert left_over.name.startswith("a.ome.zarr.") and not (tmp_path / "killed" / "ingest" / "a" / "manifest.json").exists()
    assert list((tmp_path / "killed").rglob("0/c/0/0/0"))
    found = ingest(tmp_path / "killed", file)
    assert found.content_sha256 == expected == content_sha256(found.store)
    assert published(tmp_path / "killed") == ["ingest/a/manifest.json", "sections/a.ome.zarr"]


def test_progress_is_said_in_bytes_and_seconds_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    spec = omezarr.PyramidSpec("a", stage.Grid((20000, 10000), np.ones(2)), slides.base.RGB, "uint8", 1)
    say = ProgressLog(spec)
    for _ in range(20):
        clock[0] += 1.5
        say(10_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0.21 of 0.60 GB of pixels, 20 MB/s, 20 s to go" and len(lines) == 2


def test_threads_are_fewer_where_memory_is_short_but_never_none() -> None:
    spec = omezarr.PyramidSpec("a", stage.Grid((80000, 100000), np.ones(2)), slides.base.RGB, "uint8", 10)
    settings = [IngestSettings(max_memory_mb=mb) for mb in (400, 700, 100_000)]
    granted = [stage.threads_within_memory(s, spec, 8) for s in settings]
    assert granted[0] == 1 and 2 <= granted[1] < 8 and granted[2] == 8
