"""OME-Zarr of others: a chunk unfolds into no more than its declared shape, and none runs code."""

from __future__ import annotations

import bz2
import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from histomri.core import InputError
from histomri.io.bounded_zarr import bounded
from histomri.io.images import open_image
from histomri.io.slides import open_slide
from histomri.testing import fuzz

SHAPE = (2, 70, 90)
MIB = 1 << 20


def picture(dtype: str = "uint16") -> Any:
    return np.random.default_rng(1).integers(0, 60000, SHAPE).astype(dtype)


def store(folder: Path, pixels: Any, zarr_format: Any = 3, **options: Any) -> Path:
    """An OME-Zarr image (c, y, x) of one level, as other programs write it."""
    group = zarr.open_group(str(folder), mode="w", zarr_format=zarr_format)
    group.create_array("0", data=pixels, **{"chunks": (1, 32, 32), **options})
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    return folder


def first_chunk(folder: Path) -> Path:
    return next(p for p in (folder / "0" / "c" / "0" / "0" / "0", folder / "0" / "0.0.0") if p.is_file())


# ---------------------------------------------------------------- what is sound is read as before

CODED: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "zstd": {"compressors": ZstdCodec(checksum=True)},
    "gzip": {"compressors": GzipCodec()},
    "blosc": {"compressors": BloscCodec(cname="zlib")},
    "several": {"compressors": [GzipCodec(), ZstdCodec(), Crc32cCodec()]},
    "transposed": {"filters": [TransposeCodec(order=(2, 0, 1))], "compressors": ZstdCodec()},
    "sharded": {"shards": (2, 64, 64), "compressors": GzipCodec()},
    "numcodecs": {},
}
OLD: dict[str, Any] = {
    "plain": None,
    "zlib": numcodecs.Zlib(),
    "gzip": numcodecs.GZip(),
    "blosc": numcodecs.Blosc(shuffle=numcodecs.Blosc.BITSHUFFLE),
    "zstd": numcodecs.Zstd(),
    "lz4": numcodecs.LZ4(),
    "bz2": numcodecs.BZ2(),
}


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_sound_arrays_are_read_as_zarr_reads_them(tmp_path: Path, kind: str) -> None:
    pixels = picture()
    # it warns when it is made
    coded = CODED[kind] or {"compressors": zarr.codecs.numcodecs.LZ4()}
    slide = open_slide(store(tmp_path / "a.zarr", pixels, **coded))
    assert (slide.read_region(0, 0, *SHAPE[1:]) == np.moveaxis(pixels, 0, -1)).all() and slide.bad_tiles == 0
    assert (np.asarray(open_image(tmp_path / "a.zarr").image.data[...]) == np.moveaxis(pixels, 0, -1)).all()


@pytest.mark.parametrize("kind", OLD)
@pytest.mark.parametrize("dtype", [">u2", "<f4", "|u1"])
def test_sound_arrays_of_the_older_format_are_read_as_zarr_reads_them(tmp_path: Path, kind: str, dtype: str) -> None:
    pixels = picture(dtype)
    slide = open_slide(store(tmp_path / "a.zarr", pixels, 2, compressors=OLD[kind], filters=[numcodecs.Shuffle(2)], order="F"))
    assert (slide.read_region(0, 0, *SHAPE[1:]) == np.moveaxis(pixels, 0, -1)).all() and slide.bad_tiles == 0


def test_streams_that_follow_each_other_and_frames_that_hide_their_size_are_read(tmp_path: Path) -> None:
    """As parallel and streaming compressors write them."""
    pixels = picture()
    raw = np.ascontiguousarray(pixels[:1, :32, :32]).tobytes()
    unsized = zarr_frame_without_size(raw)
    for codec, coded in (
        (GzipCodec(), gzip.compress(raw[:999]) + gzip.compress(raw[999:]) + bytes(9)),
        (ZstdCodec(), imagecodecs.zstd_encode(raw[:999]) + imagecodecs.zstd_encode(raw[999:])),
        (ZstdCodec(), unsized),
    ):
        folder = store(tmp_path / "a.zarr", pixels, compressors=codec)
        first_chunk(folder).write_bytes(coded)
        slide = open_slide(folder)
        assert (slide.read_region(0, 0, 32, 32)[..., 0] == pixels[0, :32, :32]).all() and slide.bad_tiles == 0


def zarr_frame_without_size(raw: bytes) -> bytes:
    """A zstd frame of raw blocks whose header gives a window and no size of its content (RFC 8878, 3.1.1)."""
    return b"\x28\xb5\x2f\xfd" + bytes([0, 0x50]) + struct.pack("<I", len(raw) << 3 | 1)[:3] + raw


# ---------------------------------------------------------------- bombs


def gzip_bomb() -> bytes:
    """A GiB of zeros."""
    coder = zlib.compressobj(9, wbits=-15)
    block = coder.compress(bytes(MIB)) + coder.flush(zlib.Z_FULL_FLUSH)
    tail = coder.flush()
    return gzip.compress(b"")[:10] + block * 1024 + tail + struct.pack("<II", 0, 1 << 30)


def zstd_bomb() -> bytes:
    """A GiB of zeros, in frames of 64 MiB each."""
    return bytes(imagecodecs.zstd_encode(bytes(64 * MIB))) * 16


def lying_blosc() -> bytes:
    """A head that claims a GiB in blocks of little."""
    coded = bytearray(numcodecs.Blosc().encode(bytes(2048)))
    coded[4:8] = struct.pack("<I", 1 << 30)
    return bytes(coded)


def wide_blosc() -> bytes:
    """A head that claims the right size, in blocks of a GiB."""
    coded = bytearray(numcodecs.Blosc().encode(bytes(2048)))
    coded[8:12] = struct.pack("<I", 1 << 30)
    return bytes(coded)


BOMBS: dict[str, tuple[Any, Callable[[], bytes]]] = {
    "gzip": (GzipCodec(), gzip_bomb),
    "zstd": (ZstdCodec(), zstd_bomb),
    "blosc": (BloscCodec(), lambda: bytes(numcodecs.Blosc("lz4").encode(bytes(96 * MIB)))),
    "blosc that lies": (BloscCodec(), lying_blosc),
    "blosc of wide blocks": (BloscCodec(), wide_blosc),
    "two codecs": ([GzipCodec(), ZstdCodec()], lambda: bytes(imagecodecs.zstd_encode(gzip_bomb()))),
}
OLD_BOMBS: dict[str, tuple[Any, Callable[[], bytes]]] = {
    "zlib": (numcodecs.Zlib(), lambda: zlib.compress(bytes(96 * MIB), 1)),
    "zstd": (numcodecs.Zstd(), zstd_bomb),
    "lz4": (numcodecs.LZ4(), lambda: bytes(numcodecs.LZ4().encode(bytes(96 * MIB)))),
    "bz2": (numcodecs.BZ2(), lambda: bz2.compress(bytes(12 * MIB), 9) * 16),
    "blosc": (numcodecs.Blosc(), lambda: bytes(numcodecs.Blosc("lz4").encode(bytes(96 * MIB)))),
}


def memory_of(folder: Path, monkeypatch: pytest.MonkeyPatch, most_mb: int = 60) -> str:
    """How the fuzzer ends that reads it, where a case may take so much."""
    import histomri.io.bounded_zarr
    import histomri.io.check
    import histomri.io.private  # noqa: F401  (the libraries' own memory comes before)

    monkeypatch.setattr(fuzz, "CASE_MB", most_mb)
    monkeypatch.setattr("signal.setitimer", lambda *_: None)
    return fuzz.outcome_of("zarr", folder)


@pytest.mark.parametrize("kind", [*BOMBS, *(f"old {kind}" for kind in OLD_BOMBS)])
def test_a_chunk_that_unfolds_into_gigabytes_is_a_bad_chunk(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_old = kind.startswith("old ")
    codec, make = OLD_BOMBS[kind.removeprefix("old ")] if is_old else BOMBS[kind]
    pixels = picture()
    folder = store(tmp_path / "a.zarr", pixels, 2 if is_old else 3, compressors=codec)
    assert memory_of(folder, monkeypatch) == "refused"  # it has no labels
    first_chunk(folder).write_bytes(make())
    assert "FAILED" not in memory_of(folder, monkeypatch)
    slide = open_slide(folder)
    assert not slide.read_region(0, 0, 32, 32).any() and slide.bad_tiles == 1
    # what is not in it is read
    assert (slide.read_region(32, 0, 30, 30) == np.moveaxis(pixels[:, 32:62, :30], 0, -1)).all()


@pytest.mark.parametrize("codec", ["jpeg", "jpegxl"])
def test_a_chunk_whose_picture_is_larger_than_the_chunk_is_a_bad_chunk(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histomri.core import Grid
    from histomri.io.omezarr import PyramidSpec, Storage, write_pyramid
    from histomri.io.picture_codecs import OPTIONS, encode_picture
    from histomri.io.pyramid import Reading

    pixels = np.full((40, 40, 3), 9, np.uint8)
    spec = PyramidSpec("a", Grid((40, 40), np.array([0.001, 0.001])), ("red", "green", "blue"), "uint8", 1)
    write_pyramid(tmp_path / "a.zarr", spec, Reading(lambda y, x, h, w: pixels[y : y + h, x : x + w]), Storage(32, 32, codec))
    assert np.ptp(open_slide(tmp_path / "a.zarr").read_region(0, 0, 9, 9).astype(int) - 9) < 3
    for file in (p for p in (tmp_path / "a.zarr" / "0" / "c").rglob("*") if p.is_file()):
        file.write_bytes(encode_picture(codec, np.zeros((3600, 3600, 3), np.uint8), OPTIONS[codec]))
    assert "FAILED" not in memory_of(tmp_path / "a.zarr", monkeypatch, 25)
    slide = open_slide(tmp_path / "a.zarr")
    assert not slide.read_region(0, 0, 9, 9).any() and slide.bad_tiles == 1


def test_an_inner_chunk_of_a_shard_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store(tmp_path / "a.zarr", picture(), shards=(2, 96, 96), compressors=ZstdCodec())
    shard = folder / "0" / "c" / "0" / "0" / "0"
    count = 2 * 3 * 3
    index = np.full((count, 2), 2**64 - 1, "<u8")
    bomb = zstd_bomb()
    index[0] = 0, len(bomb)
    shard.write_bytes(bomb + index.tobytes() + struct.pack("<I", _crc(index)))
    assert "FAILED" not in memory_of(folder, monkeypatch)
    slide = open_slide(folder)
    assert not slide.read_region(0, 0, 9, 9).any() and slide.bad_tiles == 1


def _crc(index: Any) -> int:
    import google_crc32c

    return int(google_crc32c.value(index.tobytes()))


# ---------------------------------------------------------------- refused before a chunk is read


def edit(folder: Path, change: Callable[[dict[str, Any]], None], name: str) -> None:
    file = folder / "0" / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refused(folder: Path, words: str) -> None:
    for read in (open_slide, open_image):
        with pytest.raises(InputError, match=words):
            read(folder)


def test_chunks_that_are_declared_gigabytes_large_are_refused(tmp_path: Path) -> None:
    folder = store(tmp_path / "a.zarr", picture())

    def grow(array: dict[str, Any]) -> None:
        array["chunk_grid"]["configuration"]["chunk_shape"] = [1, 40000, 40000]

    edit(folder, grow, "zarr.json")
    refused(folder, r"its chunks hold 3051 MiB each and are decoded whole, 1024 MiB at most were expected")


@pytest.mark.parametrize("name", ["compressor", "filters"])
def test_a_codec_that_runs_the_code_in_a_chunk_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # newer versions of numcodecs refuse it by themselves
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    folder = store(tmp_path / "a.zarr", picture("uint8"), 2, compressors=None)
    first_chunk(folder).write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/pwned'\ntR.".encode())
    text, code = {"id": "vlen-utf8"}, {"id": "pickle"}
    change = {"filters": [text, code]} if name == "filters" else {"filters": [text], "compressor": code}
    edit(folder, lambda array: array.update({"dtype": "|O", "fill_value": "", **change}), ".zarray")
    refused(folder, "vlen-utf8")
    assert not (tmp_path / "pwned").exists()
    edit(folder, lambda array: array.update({"dtype": "|u1", "fill_value": 0, "filters": None, "compressor": code}), ".zarray")
    refused(folder, "pickle")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("codec", [numcodecs.LZMA(), numcodecs.Delta("<u2")])
def test_a_codec_that_cannot_be_bounded_is_named(tmp_path: Path, codec: Any) -> None:
    kind = "filters" if codec.codec_id == "delta" else "compressors"
    folder = store(tmp_path / "a.zarr", picture(), 2, **{"compressors": None, kind: [codec] if kind == "filters" else codec})
    refused(folder, codec.codec_id)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = store(tmp_path / "a.zarr", picture("uint8"), 2, compressors=None)
    edit(folder, lambda array: array.update({"dtype": "|S1", "fill_value": ""}), ".zarray")
    refused(folder, "its values are of type |S1, numbers were expected".replace("|", "."))


def test_a_volume_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    group.create_array("0", shape=(9000, 9000, 9000), chunks=(64, 64, 64), dtype="uint16")
    axes = [{"name": n, "type": "space"} for n in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    with pytest.raises(InputError, match=r"1458\.0 GB of voxels are read whole"):
        open_image(tmp_path / "a.zarr")


def test_the_same_array_opened_elsewhere_keeps_zarrs_own_codecs(tmp_path: Path) -> None:
    folder = store(tmp_path / "a.zarr", picture())
    array = bounded(zarr.open_group(str(folder), mode="r")["0"])
    other = zarr.open_group(str(folder), mode="r")["0"]
    assert (array[...] == other[...]).all() and type(array._async_array.codec_pipeline) is type(other._async_array.codec_pipeline)
    assert not any("Bounded" in type(c).__name__ for c in other._async_array.codec_pipeline)
