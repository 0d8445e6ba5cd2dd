"""The peak memory of a real ingestion stays below what the pixels alone would take."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histomri.io import omezarr, slides
from histomri.testing.big_slide import BigSlide, write_big_slide

SCRIPT = """
    import json, sys
    from pathlib import Path
    from histomri.core import Section
    from histomri.io.memory import peak_memory_mb
    from histomri.stages.ingest import IngestSettings, ingest_section
    file, store, codec = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    section, settings = Section("a", file, 0.0), IngestSettings(codec=codec)
    record = ingest_section(section, store, store.with_name("manifest.json"), settings, threads=2)
    print(json.dumps({"status": record.status, "levels": record.levels, "peak_mb": peak_memory_mb()}))
"""


def measured(file: Path, store: Path, codec: str = "zstd") -> dict[str, Any]:
    """Ingest in a process of its own; status, levels and peak memory in MB."""
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(file), str(store), codec]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def equal_at_random(file: Path, store: Path, places: int = 12) -> None:
    """Level 0 of the store equals what openslide returns, pixel for pixel."""
    import openslide

    array, rng = omezarr.open_array(store, "0"), np.random.default_rng(0)
    with openslide.OpenSlide(file) as vendor:
        width, height = vendor.dimensions
        for y, x in zip(
            rng.integers(0, height - 300, places).tolist(), rng.integers(0, width - 300, places).tolist(), strict=True
        ):
            expected = np.asarray(vendor.read_region((x, y), 0, (300, 300)))[..., :3]
            assert np.array_equal(array[:, y : y + 300, x : x + 300], np.moveaxis(expected, -1, 0))


def test_a_slide_of_588_mb_of_pixels_needs_less_memory_than_they_do(tmp_path: Path) -> None:
    write_big_slide(tmp_path / "a.svs", BigSlide((14000, 14000), textures=24))
    found = measured(tmp_path / "a.svs", tmp_path / "a.ome.zarr")
    assert found["status"] == "ok" and found["levels"] == 7
    assert found["peak_mb"] < 500
    equal_at_random(tmp_path / "a.svs", tmp_path / "a.ome.zarr")


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "test3-DAPI-2-(387).ndpi"])
def test_level_0_of_real_slides_equals_the_vendors_library(shared_data: Path, tmp_path: Path, name: str) -> None:
    assert measured(shared_data / "wsi" / name, tmp_path / "a.ome.zarr")["status"] in ("ok", "empty")
    equal_at_random(shared_data / "wsi" / name, tmp_path / "a.ome.zarr")


@pytest.mark.parametrize("name", ["kidney-48-5.tif", "smalltif.tif", "small_vectra.qptiff", "multi-channel-z-series.ome.tif"])
def test_level_0_of_plain_files_equals_tifffile(shared_data: Path, tmp_path: Path, name: str) -> None:
    import tifffile

    from histomri.core import Section
    from histomri.stages.ingest import IngestSettings, ingest_section

    section = Section("a", shared_data / "wsi" / name, 0.0, pixel_size_mm=0.001)
    ingest_section(
        section, tmp_path / "a", tmp_path / "manifest.json", IngestSettings(focal_plane="3" if "-z-" in name else "first")
    )
    with tifffile.TiffFile(section.file) as tiff:
        pixels = tiff.series[0].asarray()
    axes = {"kidney-48-5.tif": lambda p: np.moveaxis(p, -1, 0), "multi-channel-z-series.ome.tif": lambda p: p[:, 3]}
    expected = axes.get(name, lambda p: p)(pixels)
    found = omezarr.open_array(tmp_path / "a", "0")[...]
    assert np.array_equal(found, expected.reshape(found.shape))
    assert slides.probe(section.file).dtype == str(found.dtype)
