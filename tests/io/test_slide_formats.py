"""Formats, levels, focal planes and readers of other packages behind the interface of ``io.slides``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from histomri.core import Grid, InputError
from histomri.io import omezarr, slides
from histomri.io.pyramid import Reading
from histomri.io.slides import open_slide, probe
from histomri.testing.big_slide import BigSlide, write_big_slide

SMALL = BigSlide((700, 900), tile_px=128, textures=12)


def smooth(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> Any:
    """Random pixels that a codec can bear."""
    coarse = np.random.default_rng(seed).random((-(-shape[0] // 8), -(-shape[1] // 8), *shape[2:]))
    return (coarse.repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]] * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scanned") / "a.svs"
    write_big_slide(path, SMALL)
    return path


@pytest.mark.parametrize(
    ("compression", "dtype", "exact"),
    [
        ("jpeg2000", "uint8", True),
        ("jpeg2000", "uint16", True),
        ("jpegxr", "uint8", True),
        ("jpegxr", "uint16", True),
        ("jpegxl", "uint8", True),
        ("webp", "uint8", True),
        ("lzw", "uint8", True),
        ("zstd", "uint16", True),
        ("jpeg", "uint8", False),
    ],
)
def test_tiles_of_every_compression_come_back(tmp_path: Path, compression: str, dtype: str, exact: bool) -> None:
    pixels = smooth((200, 260, 3), dtype)
    lossless: dict[str, dict[str, Any]] = {"jpegxr": {"level": 1.0}, "webp": {"lossless": True}, "jpegxl": {"lossless": True}}
    options = {"compressionargs": lossless[compression]} if compression in lossless else {}
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), photometric="rgb", compression=compression, **options)
    with open_slide(tmp_path / "a.tif") as slide:
        found = slide.read_region(30, 50, 150, 201)
        planes = np.zeros((3, 150, 201), dtype)
        slide.read_planes(30, 50, 150, 201, planes)
        assert slide.bad_tiles == 0 and slide.info.dtype == dtype
    # what tifffile decodes is the reference where the codec loses something
    expected = pixels if exact else tifffile.imread(tmp_path / "a.tif")
    assert np.array_equal(found, expected[30:180, 50:251])
    assert np.array_equal(np.moveaxis(planes, 0, -1), found)


def test_every_level_equals_the_vendors(scanned: Path) -> None:
    import openslide

    with open_slide(scanned) as slide, openslide.OpenSlide(scanned) as vendor:
        assert slide.info.levels == tuple((h, w) for w, h in vendor.level_dimensions) and len(slide.info.levels) > 1
        for level, (height, width) in enumerate(slide.info.levels):
            step = 4**level
            y, x = height // 3, width // 3
            expected = np.asarray(vendor.read_region((x * step, y * step), level, (width - x, height - y)))[..., :3]
            assert np.array_equal(slide.read_region(y, x, height - y, width - x, level), expected)


def test_levels_and_label_of_real_slides_equal_the_vendors(shared_data: Path) -> None:
    import openslide

    for name in ("CMU-1-Small-Region.svs", "test3-DAPI-2-(387).ndpi"):
        path = shared_data / "wsi" / name
        with open_slide(path) as slide, openslide.OpenSlide(path) as vendor:
            assert slide.info.levels == tuple((h, w) for w, h in vendor.level_dimensions)
            for level, (height, width) in enumerate(slide.info.levels):
                expected = np.asarray(vendor.read_region((0, 0), level, (width, height)))[..., :3]
                assert np.array_equal(slide.read_region(0, 0, height, width, level), expected)
            macro = slide.read_associated("macro")
            expected = np.asarray(vendor.associated_images["macro"].convert("RGB"))
            # tifffile and openslide smooth the colours of a striped JPEG differently at its strips' edges
            assert macro.shape == expected.shape and np.abs(macro.astype(int) - expected).mean() < 1
            with pytest.raises(KeyError):
                slide.read_associated("nothing of that name")


def test_reduced_pages_are_levels_not_other_images(tmp_path: Path) -> None:
    pixels = smooth((512, 640, 3))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for i, step in enumerate((1, 2, 4)):
            kind: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "subfiletype": 1 if i else 0, "metadata": None}
            writer.write(pixels[::step, ::step], **kind)
        writer.write(smooth((50, 60, 3)), photometric="rgb", metadata=None)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.info.levels == ((512, 640), (256, 320), (128, 160)) and len(slide.info.dropped) == 1
        assert np.array_equal(slide.read_region(3, 5, 100, 120, 2), pixels[::4, ::4][3:103, 5:125])


def write_two_files(folder: Path, data: Any) -> Path:
    """An OME-TIFF of two channels in two files."""
    name, uuids = ("a", "b"), [f"urn:uuid:0000000{i}-0000-0000-0000-000000000000" for i in (1, 2)]
    blocks = "".join(
        f'<TiffData FirstC="{i}" FirstZ="0" FirstT="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name[i]}.ome.tif">{uuids[i]}</UUID></TiffData>'
        for i in (0, 1)
    )
    size = f'SizeX="{data.shape[2]}" SizeY="{data.shape[1]}" SizeZ="1" SizeC="2" SizeT="1"'
    for i in (0, 1):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuids[i]}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0"'
            f' DimensionOrder="XYCZT" Type="uint16" PhysicalSizeX="0.5" PhysicalSizeY="0.5" {size}>'
            f'<Channel ID="Channel:0:0" Name="DAPI"/><Channel ID="Channel:0:1" Name="GFAP"/>{blocks}</Pixels></Image></OME>'
        )
        kind: dict[str, Any] = {"photometric": "minisblack", "tile": (64, 64), "metadata": None}
        tifffile.imwrite(folder / f"{name[i]}.ome.tif", data[i], description=xml, **kind)
    return folder / "a.ome.tif"


def test_ome_tiff_of_several_files_and_one_of_them_missing(tmp_path: Path) -> None:
    data = np.stack([smooth((150, 170), "uint16", seed) for seed in (1, 2)])
    path = write_two_files(tmp_path, data)
    with open_slide(path) as slide:
        assert slide.info.channels == ("DAPI", "GFAP") and slide.info.pixel_size_mm == pytest.approx((0.0005, 0.0005))
        assert [f.name for f in slide.files()] == ["a.ome.tif", "b.ome.tif"]
        assert np.array_equal(slide.read_region(20, 30, 100, 120), np.moveaxis(data, 0, -1)[20:120, 30:150])
    (tmp_path / "b.ome.tif").unlink()
    with open_slide(path) as slide:
        assert slide.info.notes == ("1 of 2 pages are missing and are filled",)
        assert np.array_equal(slide.read_region(0, 0, 150, 170)[..., 0], data[0])
        assert not slide.read_region(0, 0, 150, 170)[..., 1].any()


def test_imagej_hyperstack(tmp_path: Path) -> None:
    data = np.arange(3 * 2 * 80 * 70, dtype=np.uint16).reshape(3, 2, 80, 70)
    options: dict[str, Any] = {"imagej": True, "resolution": (2.0, 2.0), "metadata": {"axes": "ZCYX", "unit": "um"}}
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    with open_slide(tmp_path / "a.tif", focal_plane="middle") as slide:
        assert slide.info.planes == 3 and slide.info.pixel_size_mm == pytest.approx((0.0005, 0.0005))
        assert np.array_equal(slide.read_region(0, 0, 80, 70), np.moveaxis(data[1], 0, -1))


@pytest.mark.parametrize(("setting", "expected"), [("first", 0), ("middle", 2), ("sharpest", 3), ("4", 4)])
def test_focal_plane_is_the_one_asked_for(tmp_path: Path, setting: str, expected: int) -> None:
    import cv2

    sharp = np.random.default_rng(0).integers(0, 255, (300, 400), dtype=np.uint8)
    planes = [cv2.GaussianBlur(sharp, (0, 0), 0.3 + 1.2 * abs(k - 3)) for k in range(5)]
    tifffile.imwrite(tmp_path / "a.ome.tif", np.stack(planes), metadata={"axes": "ZYX"}, tile=(64, 64))
    with open_slide(tmp_path / "a.ome.tif", focal_plane=setting) as slide:
        assert np.array_equal(slide.read_region(0, 0, 300, 400)[..., 0], planes[expected])
        assert slide.info.notes == (f"5 focal planes, number {expected} is used",)


def test_focal_plane_that_is_not_there(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((5, 30, 40), np.uint8), metadata={"axes": "ZYX"})
    with pytest.raises(InputError, match="no focal plane 7; it has 5"):
        open_slide(tmp_path / "a.ome.tif", focal_plane="7")
    with pytest.raises(ValueError, match="sharpest, middle, first"):
        open_slide(tmp_path / "a.ome.tif", focal_plane="best")


def write_old_store(folder: Path, data: Any) -> None:
    """OME-Zarr 0.4: Zarr 2, axes t c z y x, micrometres."""
    group = zarr.open_group(str(folder), mode="w", zarr_format=2)
    for level, step in enumerate((1, 2)):
        part = data[..., ::step, ::step]
        group.create_array(str(level), data=part, chunks=(1, 1, 1, 32, 32))
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 2.0, 0.5 * 2**k, 0.25 * 2**k]}]}
        for k in (0, 1)
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs["omero"] = {"channels": [{"label": "DAPI"}, {"label": "GFAP"}]}


def test_ome_zarr_0_4_as_a_slide(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 60000, (1, 2, 3, 90, 70), dtype=np.uint16)
    write_old_store(tmp_path / "a.zarr", data)
    info = probe(tmp_path / "a.zarr")
    assert (info.shape, info.channels, info.planes, info.reader) == ((90, 70), ("DAPI", "GFAP"), 3, "OME-Zarr 0.4")
    assert info.pixel_size_mm == pytest.approx((0.0005, 0.00025)) and info.levels == ((90, 70), (45, 35))
    with open_slide(tmp_path / "a.zarr", channel="GFAP", focal_plane="2") as slide:
        assert np.array_equal(slide.read_region(11, 13, 60, 50)[..., 0], data[0, 1, 2, 11:71, 13:63])
        assert np.array_equal(slide.read_region(3, 5, 20, 20, 1)[..., 0], data[0, 1, 2, ::2, ::2][3:23, 5:25])


def test_our_own_store_as_a_slide_and_a_chunk_of_it_broken(tmp_path: Path) -> None:
    pixels = smooth((200, 300, 3))
    spec = omezarr.PyramidSpec("a", Grid((200, 300), np.array([0.01, 0.02])), slides.base.RGB, "uint8", 2)
    storage = omezarr.Storage(32, 64)
    omezarr.write_pyramid(tmp_path / "a", spec, Reading(lambda y, x, h, w: pixels[y : y + h, x : x + w]), storage)
    with open_slide(tmp_path / "a") as slide:
        assert slide.info.reader == "OME-Zarr 0.5" and slide.info.channels == slides.base.RGB and slide.block_px == 64
        assert slide.info.pixel_size_mm == pytest.approx((0.01, 0.02))
        assert np.array_equal(slide.read_region(70, 80, 100, 120), pixels[70:170, 80:200])
    shard = tmp_path / "a" / "0" / "c" / "0" / "1" / "1"
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with open_slide(tmp_path / "a") as slide:
        assert not slide.read_region(64, 64, 64, 64).any() and slide.bad_tiles == 1
        assert np.array_equal(slide.read_region(0, 0, 64, 64), pixels[:64, :64])


@pytest.mark.parametrize("content", ["{}", '{"zarr_format": 3, "node_type": "group", "attributes": {}}', "not json"])
def test_a_store_that_is_no_image_fails_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.zarr.*Zarr group.*OME-Zarr image"):
        probe(tmp_path / "a.zarr")


class Entry:
    """An entry point of another package."""

    name = "theirs"

    def __init__(self, reader: Any):
        self._reader = reader

    def load(self) -> Any:
        return self._reader


class Theirs(slides.Slide):
    """A slide of another package's format."""

    def __init__(self, path: Path):
        super().__init__()
        self.info = slides.SlideInfo(path, (30, 40), (0.001, 0.001), ("intensity",), "uint8", "theirs")

    def read_region(self, y: int, x: int, height: int, width: int, level: int = 0) -> Any:
        return np.full((height, width, 1), 7, np.uint8)


@pytest.fixture
def new_packages() -> Iterator[None]:
    """Which packages bring readers is asked once in a process."""
    slides.foreign_readers.cache_clear()
    yield
    slides.foreign_readers.cache_clear()


@pytest.mark.usefixtures("new_packages")
def test_a_reader_of_another_package_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.czi").write_bytes(b"their format")
    tifffile.imwrite(tmp_path / "b.tif", np.full((20, 20), 9, np.uint8))
    groups = []

    def entries(group: str) -> list[Entry]:
        groups.append(group)
        return [Entry(lambda path, channel: Theirs(path) if path.suffix == ".czi" else None)]

    monkeypatch.setattr(slides, "entry_points", entries)
    assert probe(tmp_path / "a.czi").reader == "theirs"
    with open_slide(tmp_path / "a.czi") as slide:
        assert (slide.read_region(0, 0, 5, 6) == 7).all()
        planes = np.zeros((1, 8, 8), np.uint8)
        slide.read_planes(0, 0, 5, 6, planes)
        assert planes.sum() == 7 * 30
    with open_slide(tmp_path / "b.tif") as slide:
        assert (slide.read_region(0, 0, 5, 6) == 9).all()
    # asked once, however many slides: it takes longer than to open one
    assert groups == ["histomri.slide_readers"]


@pytest.mark.usefixtures("new_packages")
def test_a_reader_of_another_package_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.czi").write_bytes(b"their format")

    def broken(path: Path, channel: str | None) -> None:
        raise RuntimeError("no licence")

    monkeypatch.setattr(slides, "entry_points", lambda group: [Entry(broken)])
    with pytest.raises(InputError, match=r"reader 'theirs' failed \(RuntimeError: no licence\)"):
        open_slide(tmp_path / "a.czi")


def test_a_jpeg_tile_that_lost_its_end_is_not_taken_for_grey_tissue(tmp_path: Path, scanned: Path) -> None:
    """libjpeg fills up such a tile without an error."""
    path = tmp_path / "a.svs"
    path.write_bytes(scanned.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        offset, count = page.dataoffsets[17], page.databytecounts[17]
    with path.open("r+b") as stream:
        stream.seek(offset + count // 2)
        stream.write(bytes(count - count // 2))
    with open_slide(path) as slide, open_slide(scanned) as whole:
        found, expected = (s.read_region(0, 0, 700, 900) for s in (slide, whole))
        assert slide.bad_tiles == 1 and whole.bad_tiles == 0
    row, column = divmod(17, -(-SMALL.shape[1] // SMALL.tile_px))
    box = np.s_[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
    assert (found[box] == 255).all()
    found[box] = expected[box]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("broken", ["none", "no end", "no bytes", "noise"])
def test_the_short_way_of_large_slides_gives_what_the_general_way_gives(
    tmp_path: Path, scanned: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    copy = tmp_path / "a.svs"
    data = bytearray(scanned.read_bytes())
    with tifffile.TiffFile(scanned) as tiff:
        page: Any = tiff.pages[0]
        start, count = page.dataoffsets[9], page.databytecounts[9]
    spoilt = {
        "no end": (count // 2, b"\0" * (count - count // 2)),
        "no bytes": (0, b"\0" * count),
        "noise": (0, b"\x77" * (count - 2)),
    }
    at, content = spoilt.get(broken, (0, b""))
    data[start + at : start + at + len(content)] = content
    copy.write_bytes(data)
    found, bad = [], []
    for is_short in (True, False):
        monkeypatch.setattr(slides.tiff, "worth_compiling", lambda pixels, is_short=is_short: is_short)
        with open_slide(copy) as slide:
            assert (slide._quick is not None) == is_short  # type: ignore[attr-defined]
            boxes = [(y, x, min(256, 700 - y), min(256, 900 - x)) for y in range(0, 700, 256) for x in range(0, 900, 256)]
            for y, x, height, width in [*boxes, (64, 128, 100, 256)]:
                planes = np.full((3, 256, 256), 7, np.uint8)
                slide.read_planes(y, x, height, width, planes)
                found.append(planes)
                assert broken != "none" or np.array_equal(
                    np.moveaxis(slide.read_region(y, x, height, width), -1, 0), planes[:, :height, :width]
                )
            bad.append(slide.bad_tiles)
    half = len(found) // 2
    assert all(np.array_equal(a, b) for a, b in zip(found[:half], found[half:], strict=True))
    assert bad == [broken != "none"] * 2


def test_synthetic_slides_of_one_seed_are_equal_and_of_another_are_not(tmp_path: Path, scanned: Path) -> None:
    write_big_slide(tmp_path / "a.svs", SMALL)
    write_big_slide(tmp_path / "b.svs", replace(SMALL, seed=2))
    assert (tmp_path / "a.svs").read_bytes() == scanned.read_bytes() != (tmp_path / "b.svs").read_bytes()
