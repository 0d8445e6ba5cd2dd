"""A slide of 100,000 x 80,000 pixels, made on the spot, goes in with two threads in little memory. Needs 25 GB of disk."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from histomri.testing.big_slide import BigSlide, write_big_slide

pytestmark = pytest.mark.study


def memory_tests() -> Any:
    """The helpers of the small form of this test."""
    path = Path(__file__).resolve().parents[1] / "stages" / "test_ingest_memory.py"
    spec = importlib.util.spec_from_file_location("test_ingest_memory", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("shape", "limit_mb", "disk_gb"), [((20_000, 20_000), 700, 3), ((80_000, 100_000), 1500, 25)])
def test_memory_does_not_grow_with_the_slide(tmp_path: Path, shape: tuple[int, int], limit_mb: int, disk_gb: int) -> None:
    free = shutil.disk_usage(tmp_path).free / 1e9
    if free < disk_gb:
        pytest.skip(f"needs {disk_gb} GB of disk, {free:.0f} GB are free")
    tests = memory_tests()
    try:
        write_big_slide(tmp_path / "a.svs", BigSlide(shape))
        found = tests.measured(tmp_path / "a.svs", tmp_path / "a.ome.zarr")
        assert found["status"] == "ok" and found["peak_mb"] < limit_mb
        tests.equal_at_random(tmp_path / "a.svs", tmp_path / "a.ome.zarr")
    finally:
        for path in (tmp_path / "a.svs", tmp_path / "a.ome.zarr"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
