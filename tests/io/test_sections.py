"""The image that registration sees: right polarity, right place, right mask."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from histomri.core import InputError, Section
from histomri.io.sections import open_level, read_manifest, registration_image
from histomri.stages.ingest import IngestSettings, ingest_section

CENTRE = (140.25, 201.5)
SETTINGS = IngestSettings(chunk_px=64, shard_px=128, smallest_level_px=64, mask_px=256)


def study(folder: Path, inverted: bool = False, name: str = "a") -> Path:
    """Ingest a round blob of tissue, soft at its rim, on 281 x 407 pixels of 0.02 mm; returns the manifest."""
    import tifffile

    y, x = np.mgrid[:281, :407]
    tissue = np.exp(-((((y - CENTRE[0]) ** 2 + (x - CENTRE[1]) ** 2) / (2 * 40.0**2)) ** 2))
    grey = 20 + 150 * tissue if inverted else 240 - 150 * tissue
    pixels = np.rint(np.stack([grey, grey, grey], axis=-1)).astype(np.uint8)
    tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="rgb", tile=(64, 64))
    section = Section(name, folder / f"{name}.tif", 0.0, pixel_size_mm=0.02)
    manifest = folder / "out" / "ingest" / name / "manifest.json"
    ingest_section(section, folder / "out" / "sections" / f"{name}.ome.zarr", manifest, SETTINGS)
    return manifest


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("spacing_mm", [0.01, 0.02, 0.04, 0.05, 0.13, 0.3])
def test_tissue_is_bright_and_stays_in_place_at_every_spacing(tmp_path: Path, spacing_mm: float, inverted: bool) -> None:
    manifest = read_manifest(study(tmp_path, inverted))
    image, mask = registration_image(manifest, spacing_mm)
    assert manifest.inverted is inverted
    assert image.data.dtype == np.float32 and mask.data.dtype == bool and image.grid == mask.grid
    assert np.abs(image.grid.spacing_mm / max(spacing_mm, 0.02) - 1).max() < 0.05
    assert image.data[0, 0] < 0.01 < 0.1 < image.data.max()
    points = image.grid.points()
    inside = np.linalg.norm(points - manifest.grid.to_world(CENTRE), axis=-1) < 1.2
    image_centre, mask_centre = (
        (points * (w * inside)[..., None]).sum((0, 1)) / (w * inside).sum() for w in (image.data.astype(float), mask.data)
    )
    # half a grey level of rounding moves the centre of mass a little at coarse levels
    assert np.abs(image_centre - manifest.grid.to_world(CENTRE)).max() < 0.05 * max(spacing_mm, 0.02)
    assert np.abs(mask_centre - manifest.grid.to_world(CENTRE)).max() < 0.35 * max(spacing_mm, 0.04)


def test_a_moved_output_folder_still_finds_its_stores(tmp_path: Path) -> None:
    study(tmp_path)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    manifest = read_manifest(tmp_path / "elsewhere" / "ingest" / "a" / "manifest.json")
    assert open_level(manifest, 0).data[140, 201].tolist() == [90, 90, 90]
    with pytest.raises(IndexError, match="levels 0 to"):
        open_level(manifest, manifest.levels)


def test_a_file_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json.*ingest stage"):
        read_manifest(tmp_path / "none.json")
    (tmp_path / "list.json").write_text('{"section": "a"}')
    with pytest.raises(InputError, match=r"list\.json"):
        read_manifest(tmp_path / "list.json")
