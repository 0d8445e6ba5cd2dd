"""DICOM whole-slide series: several files that are one slide."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest

from histomri.core import InputError, Section
from histomri.io import omezarr
from histomri.io.slides import open_slide, probe
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.testing.dicom_slide import DicomSlide, coded_frames, write_dicom_slide

SHAPE = (300, 380)
SLIDE = DicomSlide(pixel_size_mm=(0.0005, 0.0004), factor=2, levels=3)
SETTINGS = IngestSettings(chunk_px=64, shard_px=128, smallest_level_px=64)


def tissue() -> Any:
    """A blot of H&E-like texture on glass that JPEG can bear, (300, 380, 3)."""
    rng = np.random.default_rng(4)
    coarse = rng.normal((170, 100, 160), 20, (20, 26, 3)).repeat(10, 0).repeat(10, 1)
    out = np.full((*SHAPE, 3), 240.0)
    out[50:250, 60:320] = coarse
    return np.clip(out, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a series, finest level first, then label and overview."""
    return write_dicom_slide(tmp_path_factory.mktemp("series"), tissue(), SLIDE)


def as_decoded(pixels: Any, tile_px: int) -> Any:
    """An image whose tiles went through the coder and imagecodecs' decoder, of which openslide knows nothing."""
    down, across = (-(-n // tile_px) for n in pixels.shape[:2])
    tiles = [imagecodecs.jpeg8_decode(frame) for frame in coded_frames(pixels, tile_px)]
    rows = [np.concatenate(tiles[r * across : (r + 1) * across], axis=1) for r in range(down)]
    return np.concatenate(rows)[: pixels.shape[0], : pixels.shape[1]]


def test_openslide_itself_takes_what_the_tests_write_for_dicom(series: list[Path]) -> None:
    for file in series:
        with openslide.OpenSlide(str(file)) as slide:
            assert slide.properties["openslide.vendor"] == "dicom" and slide.level_count == 3


@pytest.mark.parametrize("number", range(5))
def test_any_file_of_the_series_stands_for_the_slide(series: list[Path], number: int) -> None:
    info = probe(series[number])
    assert (info.shape, info.levels) == (SHAPE, (SHAPE, (150, 190), (75, 95)))
    assert info.pixel_size_mm == pytest.approx((0.0005, 0.0004)) and info.reader == "openslide (dicom)"
    assert info.dropped == ("label", "macro") and info.dtype == "uint8"
    with open_slide(series[number]) as slide:
        assert slide.files() == tuple(sorted(series))
        assert slide.read_region(130, 190, 64, 70).std() > 5


def test_pixels_of_every_level_are_those_of_its_frames(series: list[Path]) -> None:
    rng = np.random.default_rng(1)
    truth = as_decoded(tissue(), 64)
    with open_slide(series[0]) as slide, openslide.OpenSlide(str(series[0])) as vendors:
        for level, (height, width) in enumerate(slide.info.levels):
            for _ in range(4):
                y, x = int(rng.integers(0, height - 30)), int(rng.integers(0, width - 40))
                found = slide.read_region(y, x, 30, 40, level)
                theirs = np.asarray(vendors.read_region((x << level, y << level), level, (40, 30)).convert("RGB"))
                assert np.array_equal(found, theirs)
                if level == 0:
                    assert np.abs(found.astype(int) - truth[y : y + 30, x : x + 40]).max() <= 1
        ragged = slide.read_region(SHAPE[0] - 20, SHAPE[1] - 30, 20, 30)
        assert np.abs(ragged.astype(int) - truth[-20:, -30:]).max() <= 1


def ingest(folder: Path, file: Path) -> Any:
    return ingest_section(Section("a", file, 0.0, stain="H&E"), folder / "a.ome.zarr", folder / "m" / "manifest.json", SETTINGS)


def test_the_section_is_the_same_whichever_file_the_sheet_names(tmp_path: Path, series: list[Path]) -> None:
    found = [ingest(tmp_path / str(n), series[n]) for n in (0, 3)]
    assert {r.status for r in found} == {"ok"} and len({r.content_sha256 for r in found}) == 1
    assert found[0].shape == SHAPE and found[0].pixel_size_mm == pytest.approx((0.0005, 0.0004))


def test_another_series_in_the_same_folder_is_another_slide(tmp_path: Path, series: list[Path]) -> None:
    other = write_dicom_slide(tmp_path, tissue()[:200, :256], DicomSlide(series=11))
    mine = [Path(shutil.copy(file, tmp_path)) for file in series]
    assert probe(other[1]).shape == (200, 256) and probe(mine[1]).shape == SHAPE
    with open_slide(mine[2]) as slide:
        assert slide.files() == tuple(sorted(mine))
    other[0].write_bytes(other[0].read_bytes()[:700])
    assert probe(mine[0]).shape == SHAPE, "a broken file of another series is no matter"


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kept", [0, 100, 400, 900, 1300])
def test_a_level_cut_off_in_its_header_fails_in_words(tmp_path: Path, series: list[Path], number: int, kept: int) -> None:
    """openslide would pass over the finest level and call the next one level 0."""
    files = [Path(shutil.copy(file, tmp_path)) for file in series]
    files[number].write_bytes(files[number].read_bytes()[:kept])
    with pytest.raises(InputError, match=r"empty|DICOM file, but not|truncated"):
        probe(files[number])
    found = ingest(tmp_path / "out", files[number])
    assert found.status == "unreadable" and found.flags


def test_the_finest_level_cut_off_is_noticed_from_another_file_of_the_series(tmp_path: Path, series: list[Path]) -> None:
    files = [Path(shutil.copy(file, tmp_path)) for file in series]
    files[0].write_bytes(files[0].read_bytes()[:1300])
    with openslide.OpenSlide(str(files[1])) as slide:
        assert slide.level_dimensions[0] == (190, 150), "what has to be noticed"
    with pytest.raises(InputError, match=r"1-1\.dcm.*truncated.*1-0\.dcm.*copy it again"):
        probe(files[1])


@pytest.mark.parametrize(("share", "status"), [(0.9, "ok"), (0.0, "unreadable")])
def test_frames_that_are_cut_off_are_filled_and_counted(tmp_path: Path, series: list[Path], share: float, status: str) -> None:
    files = [Path(shutil.copy(file, tmp_path)) for file in series]
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) * 3 // 4])
    settings = IngestSettings(chunk_px=64, shard_px=128, smallest_level_px=64, max_bad_tiles=share)
    folder = tmp_path / "out"
    found = ingest_section(Section("a", files[0], 0.0), folder / "a.ome.zarr", folder / "m" / "manifest.json", settings)
    assert found.status == status and any("tiles could not be decoded" in flag for flag in found.flags)
    if status == "ok":
        top = omezarr.read_pixels(found.store, "0")[:, :128]
        assert np.abs(np.moveaxis(top, 0, -1).astype(int) - as_decoded(tissue(), 64)[:128]).max() <= 1, "sound frames are kept"


def test_a_coarser_level_that_is_damaged_is_an_error_in_words_and_costs_no_other(tmp_path: Path) -> None:
    files = write_dicom_slide(tmp_path, tissue(), SLIDE)
    data = files[1].read_bytes()
    # the frames' own marks behind the table of where they begin
    at = data.index(b"\xff\xd8\xff")
    files[1].write_bytes(data[: at - 8] + bytes(8) + data[at:])
    with open_slide(files[0]) as slide:
        with pytest.raises(InputError, match="its level 1 cannot be read"):
            slide.read_region(0, 0, 64, 64, 1)
        assert slide.read_region(0, 0, 64, 64).shape == (64, 64, 3) and slide.bad_tiles == 0


def test_the_names_of_associated_images_decode_none(series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openslide.lowlevel, "read_associated_image", lambda *_: pytest.fail("decoded"))
    with open_slide(series[0]) as slide:
        with pytest.raises(KeyError):
            slide.read_associated("nothing")
        with pytest.raises(InputError, match="'label' would take"):
            slide.read_associated("label", 48 * 48 - 1)
