"""Slide files open with the right geometry or fail in the right words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from histomri.core import InputError
from histomri.io.slides import open_slide, probe

RGB = ("red", "green", "blue")


def picture(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> Any:
    """Smooth random pixels."""
    coarse = np.random.default_rng(seed).random((-(-shape[0] // 16), -(-shape[1] // 16), *shape[2:]))
    fine = coarse.repeat(16, 0).repeat(16, 1)[: shape[0], : shape[1]]
    return (fine * (1 if dtype == "float32" else np.iinfo(dtype).max)).astype(dtype)


@pytest.mark.parametrize(
    ("name", "shape", "pixel_um", "channels", "dtype", "dropped"),
    [
        ("CMU-1-Small-Region.svs", (2967, 2220), 0.499, RGB, "uint8", ("label", "macro", "thumbnail")),
        ("test3-DAPI-2-(387).ndpi", (4864, 3968), 0.2281751, RGB, "uint8", ("macro",)),
        ("small_vectra.qptiff", (1440, 1920), 0.4965346, ("DAPI", "FITC", "Cy3"), "uint8", ("thumbnail",)),
        ("kidney-48-5.tif", (901, 1493), None, RGB, "uint8", ()),
        ("smalltif.tif", (480, 640), None, ("intensity",), "uint16", ("series 1",)),
        ("multi-channel-z-series.ome.tif", (167, 439), None, ("channel_0", "channel_1", "channel_2"), "int8", ()),
    ],
)
def test_real_slides_open_with_the_right_geometry(
    shared_data: Path,
    name: str,
    shape: tuple[int, int],
    pixel_um: float | None,
    channels: tuple[str, ...],
    dtype: str,
    dropped: tuple[str, ...],
) -> None:
    info = probe(shared_data / "wsi" / name)
    assert (info.shape, info.channels, info.dtype, info.dropped) == (shape, channels, dtype, dropped)
    if pixel_um is None:
        assert info.pixel_size_mm is None
    else:
        assert info.pixel_size_mm == pytest.approx((pixel_um / 1000,) * 2, rel=1e-6)
    with open_slide(shared_data / "wsi" / name) as slide:
        corner = slide.read_region(shape[0] - 7, shape[1] - 9, 7, 9)
        assert corner.shape == (7, 9, len(channels)) and str(corner.dtype) == dtype and slide.bad_tiles == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken.svs", r"broken\.svs.*truncated or corrupt.*copy it again"),
        ("small_dicom.dcm", r"small_dicom\.dcm.*DICOM file, but not a whole-slide.*export"),
        ("NDPI_LICENCE.md", r"not a slide file.*convert it to SVS"),
    ],
)
def test_what_is_no_slide_fails_in_words(shared_data: Path, name: str, words: str) -> None:
    for attempt in (probe, open_slide):
        with pytest.raises(InputError, match=words):
            attempt(shared_data / "wsi" / name)


def test_tiles_decoded_directly_equal_the_vendors_library(shared_data: Path) -> None:
    import openslide

    path = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    rng = np.random.default_rng(0)
    with open_slide(path) as slide, openslide.OpenSlide(path) as vendor:
        assert slide.info.reader.startswith("tifffile")
        for y, x in zip(rng.integers(0, 2600, 5).tolist(), rng.integers(0, 1900, 5).tolist(), strict=True):
            expected = np.asarray(vendor.read_region((x, y), 0, (300, 350)))[..., :3]
            assert np.array_equal(slide.read_region(y, x, 350, 300), expected)


@pytest.mark.parametrize("channel", ["FITC", "fitc", "1"])
def test_a_channel_is_chosen_by_name_or_number(shared_data: Path, channel: str) -> None:
    path = shared_data / "wsi" / "small_vectra.qptiff"
    expected = tifffile.imread(path)[1]
    with open_slide(path, channel=channel) as slide:
        assert slide.info.channels == ("FITC",)
        assert np.array_equal(slide.read_region(0, 0, 1440, 1920)[..., 0], expected)


def test_a_channel_that_is_not_there_is_answered_with_those_that_are(shared_data: Path) -> None:
    with pytest.raises(InputError, match="no channel 'GFP'; its channels are DAPI, FITC, Cy3"):
        open_slide(shared_data / "wsi" / "small_vectra.qptiff", channel="GFP")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "options",
    [{"tile": (64, 48)}, {"rowsperstrip": 7}, {"tile": (64, 48), "compression": "zlib"}, {"tile": (32, 32), "planar": True}],
)
def test_tiled_striped_and_planar_tiff_of_ragged_size(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    pixels = picture((131, 167, 3), dtype)
    planar = options.pop("planar", False) if "planar" in options else False
    data = np.moveaxis(pixels, -1, 0) if planar else pixels
    kind = "separate" if planar else "contig"
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", planarconfig=kind, **options)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.info.shape == (131, 167) and slide.info.channels == RGB and slide.info.dtype == dtype
        assert np.array_equal(slide.read_region(0, 0, 131, 167), pixels)
        assert np.array_equal(slide.read_region(60, 40, 71, 127), pixels[60:, 40:])
    with open_slide(tmp_path / "a.tif", channel="blue") as slide:
        assert np.array_equal(slide.read_region(3, 5, 70, 80)[..., 0], pixels[3:73, 5:85, 2])


def test_ome_tiff_keeps_channel_names_pixel_size_and_first_plane(tmp_path: Path) -> None:
    data = np.arange(2 * 3 * 90 * 70, dtype=np.uint16).reshape(2, 3, 90, 70)
    metadata = {
        "axes": "CZYX",
        "PhysicalSizeX": 325.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.65,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": ["DAPI", "GFAP"]},
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", data, metadata=metadata, tile=(32, 32), photometric="minisblack")
    info = probe(tmp_path / "a.ome.tif")
    assert info.channels == ("DAPI", "GFAP") and info.notes == ("3 focal planes, one is used (ingest.focal_plane)",)
    assert info.pixel_size_mm == pytest.approx((0.00065, 0.000325))
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert np.array_equal(slide.read_region(0, 0, 90, 70), np.moveaxis(data[:, 0], 0, -1))


@pytest.mark.parametrize(
    ("resolution", "unit", "expected_mm"),
    [
        ((20000, 10000), "CENTIMETER", (0.001, 0.0005)),
        ((25400, 25400), "INCH", (0.001, 0.001)),
        ((72, 72), "INCH", None),
        ((300, 300), "INCH", None),
        ((28.35, 28.35), "CENTIMETER", None),
        ((1, 1), "NONE", None),
        ((1, 1), "CENTIMETER", None),
    ],
)
def test_resolution_tags_count_unless_they_are_print_defaults(
    tmp_path: Path, resolution: tuple[float, float], unit: str, expected_mm: tuple[float, float] | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture((50, 60)), resolution=resolution, resolutionunit=unit)
    found = probe(tmp_path / "a.tif").pixel_size_mm
    assert found is None if expected_mm is None else found == pytest.approx(expected_mm, rel=1e-4)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_png_of_every_kind(tmp_path: Path, mode: str) -> None:
    grey = picture((40, 50), "uint16" if mode == "I;16" else "uint8")
    image = Pillow.fromarray(grey) if mode in ("L", "I;16") else Pillow.fromarray(grey).convert("RGB").convert(mode)
    image.save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.info.channels == (("intensity",) if mode in ("L", "I;16") else RGB)
        pixels = slide.read_region(1, 2, 39, 48)
    # a palette dithers: what counts is what the palette says
    expected = np.asarray(image.convert("RGB"))[..., 0] if mode == "P" else grey
    assert pixels.dtype == grey.dtype and np.array_equal(pixels[..., 0], expected[1:, 2:])


def test_transparent_becomes_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 5, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Pillow.fromarray(rgba).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.read_region(0, 0, 1, 2).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_a_plain_image_above_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Pillow.fromarray(picture((40, 50))).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"50 x 40 pixels.*limit is 1999.*max_plain_px"):
        open_slide(tmp_path / "a.png", max_plain_px=1999)
    with open_slide(tmp_path / "a.png", max_plain_px=2000) as slide:
        assert slide.info.shape == (40, 50)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_truncated_file_is_told_by_its_metadata_alone(tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    if suffix == ".tif":
        # the structure first, the tiles after it, as scanners write
        tifffile.imwrite(whole, noise, tile=(64, 64), photometric="rgb")
    else:
        Pillow.fromarray(noise).save(whole)
    assert probe(whole).shape == (300, 400)
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.9)])
    with pytest.raises(InputError, match=r"cut\.\w+.*truncated"):
        probe(cut)


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    for name, words in (("none.svs", "no such file"), ("empty.svs", "0 bytes"), ("", "folder")):
        with pytest.raises(InputError, match=words):
            probe(tmp_path / name)


def test_a_tile_that_does_not_decode_is_filled_and_counted(tmp_path: Path) -> None:
    pixels = picture((256, 256, 3))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[5]  # type: ignore[union-attr]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 8)
    with open_slide(path) as slide:
        found = slide.read_region(0, 0, 256, 256)
        slide.read_region(0, 0, 256, 256)
        assert (slide.bad_tiles, slide.tiles) == (1, 16)
    assert (found[64:128, 64:128] == 255).all()
    found[64:128, 64:128] = pixels[64:128, 64:128]
    assert np.array_equal(found, pixels)


def test_pixels_that_no_slide_has_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "bits.tif", np.zeros((20, 30), bool))
    with pytest.raises(InputError, match="1 bits"):
        probe(tmp_path / "bits.tif")
    tifffile.imwrite(tmp_path / "complex.tif", np.zeros((20, 30), np.complex64))
    with pytest.raises(InputError, match="bits"):
        probe(tmp_path / "complex.tif")
