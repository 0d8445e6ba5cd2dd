"""A thousand sections of gigapixels are checked and planned in seconds: the effort grows with them, not with their square."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from histomri.io import slides
from histomri.io.check import check_study

ROOT = Path(__file__).parents[2]
PLAN = Path(__file__).parent / "plan.py"
SHAPE, TILE = (80_000, 100_000), 512
DESCRIPTION = b"Aperio Image Library v11\n100000x80000 (512x512)|AppMag = 20|MPP = 0.5\0"


def write_virtual_slide(path: Path) -> None:
    """A BigTIFF of 100,000 x 80,000 px whose tiles are all empty: a header, and two lists of zeros that take no room."""
    tiles = -(-SHAPE[0] // TILE) * -(-SHAPE[1] // TILE)
    values = {256: SHAPE[1], 257: SHAPE[0], 259: 1, 262: 2, 277: 3, 284: 1, 322: TILE, 323: TILE}
    count = len(values) + 4
    extra = 16 + 8 + 20 * count + 8
    offsets = extra + len(DESCRIPTION)
    rows = {code: struct.pack("<HHQQ", code, 4, 1, value) for code, value in values.items()}
    rows[258] = struct.pack("<HHQHHHH", 258, 3, 3, 8, 8, 8, 0)
    rows[270] = struct.pack("<HHQQ", 270, 2, len(DESCRIPTION), extra)
    rows[324] = struct.pack("<HHQQ", 324, 16, tiles, offsets)
    rows[325] = struct.pack("<HHQQ", 325, 4, tiles, offsets + 8 * tiles)
    with path.open("wb") as file:
        file.write(b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, count))
        file.write(b"".join(rows[code] for code in sorted(rows)) + struct.pack("<Q", 0) + DESCRIPTION)
        file.truncate(offsets + 12 * tiles)


def write_study(folder: Path, sections: int) -> Path:
    """A study of virtual slides; the output is planned, never made."""
    folder.mkdir()
    rows = ["section\tfile\tposition_mm"]
    write_virtual_slide(folder / "s0.tif")
    for i in range(sections):
        if i:
            (folder / f"s{i}.tif").hardlink_to(folder / "s0.tif")
        rows.append(f"s{i}\ts{i}.tif\t{i * 0.05:g}")
    (folder / "sections.tsv").write_text("\n".join(rows) + "\n")
    (folder / "config.yaml").write_text("study: big\nsections: sections.tsv\noutput: out\n")
    return folder / "config.yaml"


def test_a_virtual_slide_is_what_it_says(tmp_path: Path) -> None:
    write_virtual_slide(tmp_path / "a.tif")
    found = slides.probe(tmp_path / "a.tif")
    assert found.shape == SHAPE and found.pixel_size_mm == (0.0005, 0.0005)
    with slides.open_slide(tmp_path / "a.tif") as slide:
        assert (slide.read_region(70_000, 90_000, 8, 8) == 255).all() and slide.bad_tiles == 0


def test_a_thousand_sections_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slide is opened a few times, and nothing that is the same for all of them is looked for again."""
    asked = []
    slides.foreign_readers.cache_clear()
    monkeypatch.setattr(slides, "entry_points", lambda group: asked.append(group) or ())
    problems = check_study(write_study(tmp_path / "study", 1000))
    slides.foreign_readers.cache_clear()
    assert [p.what for p in problems if "GB are needed" not in p.what] == []
    assert asked == ["histomri.slide_readers"]


def test_planning_grows_with_the_sections_and_reads_each_slide_once(tmp_path: Path) -> None:
    configs = [write_study(tmp_path / name, n) for name, n in (("first", 4), ("some", 60), ("twice", 120))]
    line = [sys.executable, str(PLAN), "--effort", str(ROOT / "Snakefile"), *map(str, configs)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(line, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    _, some, twice = json.loads(done.stdout)
    assert some["slides"] == 60 and twice["slides"] == 120
    assert some["reads"] == 60 and twice["reads"] == 120, "each slide is fingerprinted once, and not opened for anything else"
    assert twice["jobs"] < 2.1 * some["jobs"]
    # 1.95 times; with one list of all rows for each section of each batch, as it was, 2.5 times
    assert twice["calls"] < 2.2 * some["calls"], (some, twice)
