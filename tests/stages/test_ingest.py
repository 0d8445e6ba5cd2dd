"""Ingestion from slide file to store and manifest, and what happens to slides that are not as they should be."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import yaml

from histomri.core import InputError, Section
from histomri.core.section import READING_ORDERS
from histomri.io import omezarr
from histomri.io.checksums import checksums
from histomri.io.publish import content_sha256
from histomri.io.sections import SectionManifest, open_level, open_tissue, read_manifest, registration_image
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.testing.many import draw_sections

SETTINGS = IngestSettings(chunk_px=64, shard_px=128, smallest_level_px=64)


def slide_pixels(shape: tuple[int, int] = (391, 517), seed: int = 0) -> Any:
    """H&E-like tissue on glass, (y, x, 3) uint8."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(240, 2, (*shape, 3))
    where = cv2.ellipse(
        np.zeros(shape, np.uint8), (shape[1] // 2, shape[0] // 2), (shape[1] // 3, shape[0] // 3), 0, 0, 360, 1, -1
    )
    pixels[where > 0] = rng.normal((190, 120, 170), 15, (int(where.sum()), 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_slide(path: Path, pixels: Any, **options: Any) -> Path:
    """A tiled TIFF of 1 um pixels."""
    kind: dict[str, Any] = {"resolution": (10000, 10000), "resolutionunit": "CENTIMETER", "tile": (64, 64), "photometric": "rgb"}
    tifffile.imwrite(path, pixels, **(kind | options))
    return path


def ingest(folder: Path, section: Section, settings: IngestSettings = SETTINGS, **options: Any) -> SectionManifest:
    """Ingest into a study's output folder; the manifest as read back."""
    manifest = folder / "ingest" / section.id / "manifest.json"
    ingest_section(section, folder / "sections" / f"{section.id}.ome.zarr", manifest, settings, **options)
    return read_manifest(manifest)


def test_level_0_equals_the_slide_and_the_manifest_says_what_it_is(tmp_path: Path) -> None:
    pixels = slide_pixels()
    section = Section("a", write_slide(tmp_path / "a.tif", pixels), 0.0)
    found = ingest(tmp_path, section)
    assert np.array_equal(open_level(found).data[...], pixels)
    assert (found.status, found.flags, found.shape, found.levels) == ("ok", (), (391, 517), 5)
    assert found.pixel_size_mm == pytest.approx((0.001, 0.001))
    assert found.channels == ("red", "green", "blue") and not found.inverted
    assert np.allclose(found.background, 240, atol=2)
    true_area = np.pi * (391 // 3) * (517 // 3) * 1e-6
    assert found.tissue_area_mm2 == pytest.approx(true_area, rel=0.03)
    assert found.content_sha256 == content_sha256(found.store)
    assert not list(tmp_path.rglob("*.partial"))


def test_result_does_not_depend_on_threads_or_on_a_second_run(tmp_path: Path) -> None:
    section = Section("a", write_slide(tmp_path / "a.tif", slide_pixels()), 0.0)
    first = ingest(tmp_path / "1", section, threads=1)
    assert ingest(tmp_path / "2", section, threads=4).content_sha256 == first.content_sha256
    assert ingest(tmp_path / "1", section).content_sha256 == first.content_sha256


def test_chunks_shards_codec_and_memory_change_no_decoded_value(tmp_path: Path) -> None:
    section = Section("a", write_slide(tmp_path / "a.tif", slide_pixels()), 0.0)
    first = ingest(tmp_path / "1", section, SETTINGS)
    for number, other in enumerate(({"chunk_px": 32, "shard_px": 256}, {"codec": "jpegxl"}, {"max_memory_mb": 500}), 2):
        found = ingest(tmp_path / str(number), section, replace(SETTINGS, **other))
        assert checksums(found.store) == checksums(first.store), other


def test_region_is_cut_out_and_starts_at_its_own_origin(tmp_path: Path) -> None:
    pixels = slide_pixels()
    section = Section("a", write_slide(tmp_path / "a.tif", pixels), 0.0, region=(101, 53, 271, 199))
    found = ingest(tmp_path, section)
    assert np.array_equal(open_level(found).data[...], pixels[53:252, 101:372])
    assert found.region == (101, 53, 271, 199) and found.shape == (199, 271)
    assert np.array_equal(found.grid.origin_mm, [0, 0])


@pytest.mark.parametrize("region", [(0, 0, 518, 10), (-1, 0, 10, 10), (0, 390, 5, 2), (0, 0, 0, 5)])
def test_region_outside_the_slide_is_flagged(tmp_path: Path, region: tuple[int, int, int, int]) -> None:
    section = Section("a", write_slide(tmp_path / "a.tif", slide_pixels()), 0.0, region=region)
    found = ingest(tmp_path, section)
    assert found.status == "unreadable" and "leaves the slide of 517 x 391 pixels" in found.flags[0]


@pytest.mark.parametrize(
    ("sheet", "in_file", "config", "expected"),
    [(0.005, True, 0.1, 0.005), (None, True, 0.1, 0.001), (None, False, 0.1, 0.1), (0.005, False, None, 0.005)],
)
def test_pixel_size_is_the_sheets_then_the_files_then_the_configs(
    tmp_path: Path, sheet: float | None, in_file: bool, config: float | None, expected: float
) -> None:
    options = {} if in_file else {"resolution": (1, 1), "resolutionunit": "NONE"}
    section = Section("a", write_slide(tmp_path / "a.tif", slide_pixels(), **options), 0.0, pixel_size_mm=sheet)
    assert ingest(tmp_path, section, pixel_size_mm=config).pixel_size_mm == pytest.approx((expected, expected))


def test_no_pixel_size_anywhere_stops_with_the_remedy(tmp_path: Path) -> None:
    file = write_slide(tmp_path / "a.tif", slide_pixels(), resolution=(1, 1), resolutionunit="NONE")
    with pytest.raises(InputError, match=r"section a.*pixel_size_mm in the config"):
        ingest(tmp_path, Section("a", file, 0.0))
    assert not list((tmp_path / "sections").iterdir()) and not (tmp_path / "ingest").exists()


def test_16_bit_fluorescence_keeps_its_channels_and_one_can_be_chosen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tissue = np.zeros((200, 300), bool)
    tissue[50:150, 60:240] = True
    data = rng.normal(100, 5, (2, 200, 300)) + 2000 * tissue
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.65, "PhysicalSizeY": 0.65, "Channel": {"Name": ["DAPI", "GFAP"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", data.astype(np.uint16), metadata=metadata, photometric="minisblack")
    found = ingest(tmp_path, Section("a", tmp_path / "a.ome.tif", 0.0))
    assert found.inverted and found.dtype == "uint16" and found.channels == ("DAPI", "GFAP")
    assert np.array_equal(open_level(found).data[...], np.moveaxis(data.astype(np.uint16), 0, -1))
    image, mask = registration_image(found, 0.00065)
    assert image.data[tissue].mean() > 20 * image.data[~tissue].mean()
    assert (mask.data == tissue).mean() > 0.95
    chosen = ingest(tmp_path, Section("b", tmp_path / "a.ome.tif", 0.0, channel="GFAP"))
    assert chosen.channels == ("GFAP",)
    assert np.array_equal(open_level(chosen).data[...], data[1].astype(np.uint16))


@pytest.mark.parametrize(("name", "words"), [("broken.svs", "truncated or corrupt"), ("small_dicom.dcm", "DICOM")])
def test_unreadable_slides_are_flagged_and_the_study_goes_on(shared_data: Path, tmp_path: Path, name: str, words: str) -> None:
    found = ingest(tmp_path, Section("a", shared_data / "wsi" / name, 0.0))
    assert found.status == "unreadable" and found.shape == (1, 1) and words in found.flags[0]
    image, mask = registration_image(found, 0.1)
    assert image.data.shape == (1, 1) and not mask.data.any()


def test_no_label_or_macro_image_is_carried(shared_data: Path, tmp_path: Path) -> None:
    found = ingest(tmp_path, Section("a", shared_data / "wsi" / "CMU-1-Small-Region.svs", 0.0), IngestSettings(), threads=2)
    assert found.dropped == ("label", "macro", "thumbnail")
    names = {p.relative_to(found.store).parts[0] for p in found.store.rglob("*")}
    assert names == {"zarr.json", "labels", *(str(k) for k in range(found.levels))}
    metadata = "".join(p.read_text() for p in found.store.rglob("zarr.json"))
    assert "b414003d" not in metadata and "ScanScope" not in metadata


def test_a_nearly_empty_slide_is_told(shared_data: Path, tmp_path: Path) -> None:
    found = ingest(tmp_path, Section("a", shared_data / "wsi" / "kidney-48-5.tif", 0.0, pixel_size_mm=0.01))
    assert 0.002 < found.tissue_fraction < 0.01 and found.status == "ok"
    assert any(flag.startswith("little tissue") for flag in found.flags)


def test_a_slide_without_tissue_is_empty(tmp_path: Path) -> None:
    blank = np.clip(np.random.default_rng(0).normal(240, 2, (300, 300, 3)), 0, 255).astype(np.uint8)
    found = ingest(tmp_path, Section("a", write_slide(tmp_path / "a.tif", blank), 0.0))
    assert (found.status, found.flags, found.tissue_area_mm2) == ("empty", ("no tissue was found",), 0.0)
    assert not open_tissue(found).data.any()


def spoil(path: Path, tiles: list[int]) -> None:
    """Overwrite the start of some tiles of a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        offsets = [tiff.pages[0].dataoffsets[i] for i in tiles]  # type: ignore[union-attr]
    with path.open("r+b") as stream:
        for offset in offsets:
            stream.seek(offset)
            stream.write(b"\xff" * 8)


def test_a_corrupt_tile_is_flagged_and_too_many_fail_the_section(tmp_path: Path) -> None:
    pixels = slide_pixels()
    file = write_slide(tmp_path / "a.tif", pixels, compression="zlib")
    spoil(file, [30])
    found = ingest(tmp_path, Section("a", file, 0.0))
    assert found.status == "ok" and found.flags == ("1 of 63 tiles could not be decoded",)
    row, column = divmod(30, 9)
    level = open_level(found).data[...]
    assert (level[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64] == 255).all()
    spoil(file, list(range(20, 40)))
    found = ingest(tmp_path, Section("a", file, 0.0))
    assert found.status == "unreadable" and "20 of 63 tiles" in found.flags[0] and found.shape == (1, 1)


def test_a_truncated_slide_never_looks_whole(tmp_path: Path) -> None:
    file = write_slide(tmp_path / "a.tif", slide_pixels())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    found = ingest(tmp_path, Section("a", file, 0.0))
    assert found.status == "unreadable" and "could not be decoded" in found.flags[0]


def test_an_interrupted_run_leaves_neither_store_nor_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = Section("a", write_slide(tmp_path / "a.tif", slide_pixels()), 0.0)
    ingest(tmp_path, section)

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(omezarr, "write_label", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ingest(tmp_path, section)
    assert not (tmp_path / "ingest" / "a" / "manifest.json").exists()
    assert [p.name for p in (tmp_path / "sections").iterdir()] == ["a.ome.zarr"]


def test_tissue_label_lies_where_the_tissue_lies(tmp_path: Path) -> None:
    pixels = np.full((700, 900, 3), 240, np.uint8)
    pixels[203:401, 307:611] = (190, 120, 170)
    found = ingest(tmp_path, Section("a", write_slide(tmp_path / "a.tif", pixels), 0.0))
    assert found.tissue_level == 1 and found.tissue_levels == found.levels
    for level in range(3):
        mask = open_tissue(found, level)
        points = mask.grid.points()[mask.data]
        spacing = mask.grid.spacing_mm[0]
        assert np.abs((points.min(0) + points.max(0)) / 2 - [0.3015, 0.4585]).max() < 0.6 * spacing
        # a hard edge, blurred and cut at a small contrast, grows by at most two working pixels
        size = points.max(0) - points.min(0) + spacing
        assert (np.abs(size - [0.198, 0.304]) <= 4 * 0.002 + spacing).all()


def test_memory_does_not_grow_with_the_slide(tmp_path: Path) -> None:
    """A slide of 192 MB of pixels peaks less than half of that above one of 12 MB."""
    script = """
        import sys
        from pathlib import Path
        from histomri.core import Section
        from histomri.stages.ingest import IngestSettings, ingest_section
        folder, file = Path(sys.argv[1]), Path(sys.argv[2])
        settings = IngestSettings(chunk_px=512, shard_px=512, codec="none")
        ingest_section(Section("a", file, 0.0), folder / "a.ome.zarr", folder / "a" / "b" / "manifest.json", settings)
        status = Path("/proc/self/status").read_text()
        print(status.split("VmHWM:")[1].split()[0])
    """
    tile, peaks = slide_pixels((250, 250)), []
    for side in (2000, 8000):
        pixels = np.tile(tile, (side // 250, side // 250, 1))
        file = write_slide(tmp_path / f"{side}.tif", pixels, tile=(512, 512))
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / str(side)), str(file)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024)
    assert peaks[1] - peaks[0] < 96, peaks


def test_importing_the_stage_is_light() -> None:
    code = "import sys, histomri.stages.ingest; print(*sorted({'zarr', 'cv2', 'pandas', 'skimage', 'scipy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert found == ""


def test_two_slides_with_six_sections_each_come_out_as_twelve_in_order(tmp_path: Path) -> None:
    for slide, split in ((1, 2), (2, 0)):
        drawn = draw_sections(cell_px=130, seed=slide, split=split, jitter=0.05)
        write_slide(tmp_path / f"slide{slide}.tif", drawn.pixels)
        for k in range(1, 7):
            section = Section(f"s{slide}_{k}", tmp_path / f"slide{slide}.tif", 6.0 * slide + k, auto_region=(k, 6))
            found = ingest(tmp_path, section)
            x, y, width, height = found.region or (0, 0, 0, 0)
            inside = drawn.labels[y : y + height, x : x + width]
            assert found.status == "ok" and found.shape == (height, width)
            assert (inside == k).sum() == (drawn.labels == k).sum(), "the whole section lies in its region"
            mask = open_tissue(found)
            assert mask.grid.shape == inside.shape
            assert 2 * (mask.data & (inside == k)).sum() / (mask.data.sum() + (inside == k).sum()) > 0.9


def test_a_neighbour_in_the_region_is_not_its_tissue(tmp_path: Path) -> None:
    pixels = np.full((300, 400, 3), 243, np.uint8)
    upper, lower = ([[20, 20], [380, 20], [20, 180]], [[390, 60], [390, 280], [80, 280]])
    truth = []
    for corners in (upper, lower):
        shape = cv2.fillPoly(np.zeros((300, 400), np.uint8), [np.array(corners)], 1) > 0
        pixels[shape] = (190, 120, 170)
        truth.append(shape)
    file = write_slide(tmp_path / "a.tif", pixels)
    for k in (1, 2):
        found = ingest(tmp_path, Section(f"s{k}", file, float(k), auto_region=(k, 2)))
        x, y, width, height = found.region or (0, 0, 0, 0)
        own, other = (t[y : y + height, x : x + width] for t in (truth[k - 1], truth[2 - k]))
        mask = open_tissue(found).data
        assert other.sum() > 1000 and mask[other].mean() < 0.02 and mask[own].mean() > 0.97


def test_more_sections_than_the_slide_holds_fail_in_words(tmp_path: Path) -> None:
    file = write_slide(tmp_path / "a.tif", slide_pixels())
    found = ingest(tmp_path, Section("a", file, 0.0, auto_region=(1, 3)))
    assert found.status == "unreadable" and "3 sections were expected on the slide, 1 were found" in found.flags[0]


def test_a_blurred_slide_is_less_sharp_and_stain_does_not_matter(tmp_path: Path) -> None:
    grain = cv2.GaussianBlur(np.random.default_rng(5).normal(0, 60, (512, 640)), (0, 0), 1.2)[..., None]
    where = cv2.ellipse(np.zeros((512, 640), np.uint8), (320, 256), (280, 220), 0, 0, 360, 1, -1)[..., None] > 0
    sharp = {}
    for name, gain, sigma in (("a", 1.0, 0.0), ("pale", 0.5, 0.0), ("soft", 1.0, 2.0)):
        stain = 243.0 * 10 ** (-gain * np.maximum(0, np.array((0.1, 0.3, 0.15)) * (1 + grain / 60)))
        pixels = np.where(where, stain, 243.0)
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma) if sigma else pixels
        noisy = pixels + np.random.default_rng(len(name)).normal(0, 1.0, pixels.shape)
        file = write_slide(tmp_path / f"{name}.tif", np.clip(noisy, 0, 255).astype(np.uint8))
        sharp[name] = ingest(tmp_path, Section(name, file, 0.0))
    assert all(found.sharpness for found in sharp.values())
    assert sharp["pale"].sharpness == pytest.approx(sharp["a"].sharpness, rel=0.1)
    assert sharp["soft"].sharpness < 0.6 * sharp["a"].sharpness  # type: ignore[operator]
    assert sharp["pale"].mean_density == pytest.approx(0.5 * sharp["a"].mean_density, rel=0.1)  # type: ignore[operator]
    assert sharp["a"].white_balance == pytest.approx((1, 1, 1), abs=0.01)


def test_manifests_from_before_the_measures_are_read(tmp_path: Path) -> None:
    ingest(tmp_path, Section("a", write_slide(tmp_path / "a.tif", slide_pixels()), 0.0))
    path = tmp_path / "ingest" / "a" / "manifest.json"
    record = json.loads(path.read_text())
    for name in ("sharpness", "soft_share", "mean_density", "saturation", "dynamic_range", "white_balance", "background_drift"):
        del record[name]
    path.write_text(json.dumps(record))
    assert read_manifest(path).sharpness is None


def test_settings_equal_their_schema(checkout: Path) -> None:
    schema = yaml.safe_load((checkout / "config" / "schema" / "ingest.yaml").read_text())
    defaults = {name: entry["default"] for name, entry in schema["properties"].items()}
    assert defaults == asdict(IngestSettings())
    assert schema["additionalProperties"] is False
    assert all(entry["description"] for entry in schema["properties"].values())
    assert schema["properties"]["reading_order"]["enum"] == list(READING_ORDERS)
    assert schema["properties"]["codec"]["enum"] == list(omezarr.CODECS)
