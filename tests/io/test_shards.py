"""Shard files that we write ourselves: what other implementations of Zarr 3 read, and what zarr would have written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import GzipCodec, TransposeCodec, ZstdCodec
from zarr.registry import get_codec_class

from histomri.core import Grid
from histomri.io import omezarr
from histomri.io.picture_codecs import OPTIONS, PictureCodec
from histomri.io.publish import BLOCK_BYTES, content_sha256, digest_of
from histomri.io.pyramid import Reading, depth_first
from histomri.io.shards import StoredLevel, write_pixels
from histomri.io.zarr_layout import ArrayLayout, group_attributes, read_layout, write_group
from histomri.kernels.pyramid import add_quads, sum_type, to_pixels

STORAGE = {codec: omezarr.Storage(32, 96, codec) for codec in omezarr.CODECS}
LOSSLESS = omezarr.LOSSLESS


def picture(dtype: str, shape: tuple[int, ...] = (217, 331, 3)) -> Any:
    """Pixels with a corner of zeros larger than a shard, as fluorescence has."""
    pixels = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    pixels[96:, 96:] = 0
    return pixels


def zarrs(folder: Path, layout: ArrayLayout) -> Any:
    """The array that zarr itself makes of a layout, as ``folder``."""
    codecs = {"compressors": omezarr.compressors(layout.codec)} if layout.codec in LOSSLESS else pictures(layout.codec)
    lead = layout.shape[:-2]
    return zarr.create_array(
        folder,
        shape=layout.shape,
        dtype=layout.dtype,
        chunks=(*lead, layout.chunk_px, layout.chunk_px),
        shards=(*lead, layout.unit_px, layout.unit_px) if layout.is_sharded else None,
        **codecs,
        fill_value=0,
        dimension_names=("c", "y", "x")[-len(layout.shape) :],
    )


def pictures(codec: str) -> dict[str, Any]:
    name = f"imagecodecs_{codec}"
    serializer = get_codec_class(name).from_dict({"name": name, "configuration": OPTIONS[codec]})
    return {"filters": [TransposeCodec(order=(1, 2, 0))], "serializer": serializer, "compressors": []}


def write(folder: Path, pixels: Any, storage: omezarr.Storage) -> dict[str, str]:
    names = tuple(f"channel_{i}" for i in range(pixels.shape[2]))
    spec = omezarr.PyramidSpec("a", Grid(pixels.shape[:2], np.ones(2)), names, str(pixels.dtype), 3)
    return omezarr.write_pyramid(folder, spec, Reading(lambda y, x, h, w: pixels[y : y + h, x : x + w]), storage)


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tensorstore_reads_what_we_write(tmp_path: Path, codec: str, dtype: str) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    pixels = picture(dtype)
    write(tmp_path / "a", pixels, STORAGE[codec])
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a" / "0")}}
    opened = tensorstore.open(spec, read=True).result()
    assert opened.domain.labels == ("c", "y", "x")
    assert np.array_equal(opened.read().result(), np.moveaxis(pixels, -1, 0))
    assert np.array_equal(opened[1, 90:120, 5:101].read().result(), pixels[90:120, 5:101, 1])


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_chunks_are_byte_for_byte_what_zarr_codes(tmp_path: Path, codec: str, dtype: str) -> None:
    pixels = picture(dtype, (96, 96, 2))
    storage = STORAGE[codec]
    write(tmp_path / "ours", pixels, storage)
    zarrs(tmp_path / "zarrs" / "0", ArrayLayout((2, 96, 96), dtype, 32, 96, codec))[...] = np.moveaxis(pixels, -1, 0)
    files = [tmp_path / name / "0" / "c" / "0" / "0" / "0" for name in ("ours", "zarrs")]
    chunks = []
    for file in files:
        data = file.read_bytes()
        index = np.frombuffer(data[-(9 * 16 + 4) : -4], "<u8").reshape(9, 2)
        # zarr lays chunks out in another order; what counts is what the index points at
        chunks.append([data[int(at) : int(at + n)] for at, n in index])
    assert chunks[0] == chunks[1]


def smooth(shape: tuple[int, ...], dtype: str = "uint8") -> Any:
    """A picture without detail, which JPEG keeps to a few grey levels; bright at its ragged right and lower edges."""
    y, x, c = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (200 + 40 * np.sin(y / 60 + c / 9) * np.cos(x / 80)).astype(dtype)


@pytest.mark.parametrize(("channels", "dtype"), [(3, "uint8"), (1, "uint8"), (3, "uint16"), (1, "uint16")])
def test_jpegxl_keeps_every_pixel_of_every_level(tmp_path: Path, channels: int, dtype: str) -> None:
    pixels = picture(dtype, (217, 331, channels))
    for codec in ("jpegxl", "zstd"):
        write(tmp_path / codec, pixels, STORAGE[codec])
    for level in range(3):
        found, wanted = (omezarr.open_array(tmp_path / codec, str(level))[...] for codec in ("jpegxl", "zstd"))
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_stays_near_the_pixels_up_to_the_ragged_edge(tmp_path: Path, channels: int) -> None:
    pixels = smooth((217, 331, channels))
    for codec in ("jpeg", "zstd"):
        write(tmp_path / codec, pixels, STORAGE[codec])
    for level in range(3):
        found, wanted = (omezarr.open_array(tmp_path / codec, str(level))[...].astype(int) for codec in ("jpeg", "zstd"))
        assert 0 < np.abs(found - wanted).max() <= 6


@pytest.mark.parametrize("codec", ["jpegxl", "jpeg", "zstd", "blosc-zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_noise_that_no_codec_makes_smaller_is_stored(tmp_path: Path, codec: str, dtype: str) -> None:
    if (codec, dtype) == ("jpeg", "uint16"):
        pytest.skip("JPEG holds 8 bits")
    shape, storage = (700, 600, 3), omezarr.Storage(512, 1024, codec)
    noise = np.random.default_rng(3).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    write(tmp_path / codec, noise, storage)
    found = omezarr.open_array(tmp_path / codec, "0")[...]
    assert found.shape[-2:] == shape[:2]
    if codec != "jpeg":
        np.testing.assert_array_equal(found, np.moveaxis(noise, -1, 0))


def test_metadata_of_pictures_are_those_of_imagecodecs_zarr(tmp_path: Path) -> None:
    """The names and options that ``imagecodecs.zarr`` 2026.10.10 reads, and the axes in the order of a picture."""
    for codec in ("jpeg", "jpegxl"):
        write(tmp_path / codec, smooth((217, 331, 3)), STORAGE[codec])
        (sharding,) = json.loads((tmp_path / codec / "0" / "zarr.json").read_text())["codecs"]
        transpose, picture_codec = sharding["configuration"]["codecs"]
        assert transpose == {"name": "transpose", "configuration": {"order": [1, 2, 0]}}
        assert picture_codec["name"] == f"imagecodecs_{codec}"
        known = {"level", "subsampling"} if codec == "jpeg" else {"effort", "lossless"}
        assert set(picture_codec["configuration"]) == known


def test_a_picture_codec_with_options_of_others_says_what_reads_it() -> None:
    with pytest.raises(ValueError, match="tables: install imagecodecs-zarr"):
        PictureCodec.from_dict({"name": "imagecodecs_jpeg", "configuration": {"tables": "AA=="}})


@pytest.mark.parametrize("codec", omezarr.CODECS)
@pytest.mark.parametrize("shape", [(217, 331, 3), (20, 30, 3), (96, 97, 1)])
def test_small_boxes_are_what_zarr_reads(tmp_path: Path, codec: str, shape: tuple[int, int, int]) -> None:
    write(tmp_path / "a", picture("uint8", shape), STORAGE[codec])
    array, layout = omezarr.open_array(tmp_path / "a", "0"), read_layout(tmp_path / "a" / "0")
    whole, side = array[...], 17
    assert layout is not None and layout.codec == codec
    level = StoredLevel(tmp_path / "a" / "0", layout)
    assert np.array_equal(level.whole(), whole) and np.array_equal(level.box((5, 2), (13, 28)), whole[:, 5:18, 2:30])
    corners = [(y, x) for y in range(0, shape[0] - side + 1, 23) for x in range(0, shape[1] - side + 1, 19)]
    for threads in (1, 3):
        found = list(level.boxes(corners, side, threads))
        ordered = sorted(corners, key=lambda at: (at[0] // array.chunks[1], at[1] // array.chunks[2], at))
        assert len(found) == len(corners) > 0
        assert all(np.array_equal(box, whole[:, y : y + side, x : x + side]) for box, (y, x) in zip(found, ordered, strict=True))


SHAPES = [((3, 217, 331), 96), ((1, 20, 30), 32), ((217, 331), 96), ((20, 30), 32)]
KINDS = list(itertools.product(LOSSLESS, ["uint8", "uint16", "int16", "uint32", "float32"], SHAPES))
KINDS += [(codec, "uint8", shape) for codec in ("jpeg", "jpegxl") for shape in SHAPES[:2]]


@pytest.mark.parametrize(("codec", "dtype", "shape", "unit"), [(codec, dtype, *shape) for codec, dtype, shape in KINDS])
def test_metadata_are_byte_for_byte_those_of_zarr(
    tmp_path: Path, codec: str, dtype: str, shape: tuple[int, ...], unit: int
) -> None:
    layout = omezarr.create_level(tmp_path / "ours", shape, dtype, STORAGE[codec])
    assert layout == ArrayLayout(shape, dtype, 32, unit, codec) == read_layout(tmp_path / "ours")
    zarrs(tmp_path / "zarrs", layout)
    assert (tmp_path / "ours" / "zarr.json").read_bytes() == (tmp_path / "zarrs" / "zarr.json").read_bytes()


def test_metadata_of_groups_are_byte_for_byte_those_of_zarr(tmp_path: Path) -> None:
    attributes = {"ome": {"version": "0.5", "name": "Schädel", "scale": [0.1, 1e-7, 1.0], "active": True, "none": None}}
    write_group(tmp_path / "ours", attributes)
    zarr.open_group(str(tmp_path / "zarrs"), mode="w", zarr_format=3, attributes=attributes)
    assert (tmp_path / "ours" / "zarr.json").read_bytes() == (tmp_path / "zarrs" / "zarr.json").read_bytes()
    assert group_attributes(tmp_path / "ours") == attributes and group_attributes(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("shape", [(217, 331), (2, 217, 331), (20, 30)])
def test_arrays_written_at_once_are_those_that_zarr_reads(tmp_path: Path, codec: str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 2, shape).astype(np.uint8)
    write_pixels(tmp_path / "a", omezarr.create_level(tmp_path / "a", shape, "uint8", STORAGE[codec]), pixels)
    assert np.array_equal(omezarr.open_array(tmp_path, "a")[...], pixels)
    assert np.array_equal(omezarr.read_pixels(tmp_path, "a"), pixels)


@pytest.mark.parametrize(
    "other",
    [
        {"chunks": (1, 32, 32)},
        {"fill_value": 7},
        {"compressors": ZstdCodec(level=3)},
        {"compressors": ZstdCodec(level=1, checksum=True)},
        {"filters": TransposeCodec(order=(2, 1, 0))},
        {"compressors": GzipCodec()},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"chunks": (3, 32, 16)},
    ],
)
def test_arrays_of_others_are_left_to_zarr(tmp_path: Path, other: dict[str, Any]) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (3, 70, 90)).astype(np.uint8)
    zarr.create_array(tmp_path / "a", **{"shape": pixels.shape, "dtype": "uint8", "chunks": (3, 32, 32), **other})[...] = pixels
    assert read_layout(tmp_path / "a") is None
    assert np.array_equal(omezarr.read_pixels(tmp_path, "a"), pixels)
    with pytest.raises(ValueError, match="read it through zarr"):
        omezarr.stored_level(tmp_path, "a")


def test_zeros_are_not_stored_and_read_as_zeros(tmp_path: Path) -> None:
    pixels = picture("uint16")
    write(tmp_path / "a", pixels, STORAGE["zstd"])
    assert not (tmp_path / "a" / "0" / "c" / "0" / "1" / "1").exists()
    assert np.array_equal(omezarr.ChannelsLast(omezarr.open_array(tmp_path / "a", "0"))[...], pixels)


def test_a_flipped_bit_in_the_index_is_an_error_not_pixels(tmp_path: Path) -> None:
    write(tmp_path / "a", picture("uint8"), STORAGE["zstd"])
    file = tmp_path / "a" / "0" / "c" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        omezarr.open_array(tmp_path / "a", "0")[...]


def test_digests_taken_while_writing_are_those_of_the_files(tmp_path: Path) -> None:
    digests = write(tmp_path / "a", picture("float32"), STORAGE["none"])
    files = {p.relative_to(tmp_path / "a").as_posix(): p for p in (tmp_path / "a").rglob("*") if "/c/" in p.as_posix()}
    assert digests == {name: digest_of(file.read_bytes()) for name, file in files.items() if file.is_file()}
    assert max(file.stat().st_size for file in files.values()) > BLOCK_BYTES
    assert content_sha256(tmp_path / "a", digests) == content_sha256(tmp_path / "a")


@pytest.mark.parametrize("at", [0, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 17])
def test_digest_sees_a_flipped_bit_anywhere(at: int) -> None:
    data = bytearray(np.random.default_rng(0).bytes(3 * BLOCK_BYTES + 18))
    before = digest_of(bytes(data))
    data[at] ^= 16
    assert (
        digest_of(bytes(data))
        != before
        == digest_of(memoryview(bytes(data[:at]) + bytes([data[at] ^ 16]) + bytes(data[at + 1 :])))
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("level", [1, 4, 5, 9])
def test_sums_of_extreme_pixels_stay_exact_at_every_level(dtype: str, level: int) -> None:
    """A level's type must hold 4**level times the brightest pixel; means round half to even, also below zero."""
    kind = np.dtype(dtype)
    is_float = kind.kind == "f"
    extremes = [-1e30, 1e30] if is_float else [np.iinfo(kind).min, np.iinfo(kind).max]
    sums = np.empty((1, 3, 5), sum_type(kind, level))
    below = np.empty((1, 6, 10), sum_type(kind, level - 1))
    for extreme in extremes:
        below[...] = extreme * 4.0 ** (level - 1)
        add_quads(below, (0, 0, 6, 10), sums, (0, 0))
        pixels = np.zeros((1, 3, 5), kind)
        to_pixels(sums, (0, 0, 3, 5), level, pixels)
        assert (pixels == kind.type(extreme)).all()
    if not is_float:
        values = np.arange(-7 if kind.kind == "i" else 0, 8)
        sums = (values * 4**level // 2)[None, None].astype(sum_type(kind, level))
        pixels = np.zeros(sums.shape, kind)
        to_pixels(sums, (0, 0, 1, len(values)), level, pixels)
        assert pixels[0, 0].tolist() == np.rint(values / 2).tolist()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (8, 8), (1, 7)])
def test_the_walk_completes_fours_one_after_the_other(rows: int, columns: int) -> None:
    order = depth_first(rows, columns)
    assert sorted(order) == [(r, c) for r in range(rows) for c in range(columns)]
    for factor in (2, 4, 8):
        parents = [(r // factor, c // factor) for r, c in order]
        changes = 1 + sum(a != b for a, b in itertools.pairwise(parents))
        assert changes == len(set(parents))
