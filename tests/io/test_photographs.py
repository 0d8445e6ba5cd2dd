"""Photographs of the block: read to the bit, and refused where they claim too much or are something else."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from histomri.core import InputError
from histomri.io.photographs import read_photograph

MOST_PX = 1 << 20
RNG = np.random.default_rng(3)


def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding is a failure from here on."""
    monkeypatch.setattr(cv2, "imread", lambda *_: pytest.fail("decoded"))


def claiming_png(path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""))


def claiming_jpeg(path: Path, width: int, height: int) -> None:
    data = bytearray(imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    path.write_bytes(data)


def claiming_tiff(path: Path, width: int, height: int) -> None:
    tifffile.imwrite(path, np.zeros((16, 16, 3), np.uint8), photometric="rgb", rowsperstrip=16)
    with tifffile.TiffFile(path) as file:
        tags: Any = file.pages[0].tags  # type: ignore[union-attr]
        places = [(tags[code].valueoffset, value) for code, value in ((256, width), (257, height))]
    with path.open("r+b") as stream:
        for at, value in places:
            stream.seek(at)
            stream.write(struct.pack("<H", value))


@pytest.mark.parametrize("write", [claiming_png, claiming_jpeg, claiming_tiff])
def test_a_photograph_that_claims_gigapixels_is_refused_before_it_is_decoded(
    tmp_path: Path, write: Callable[[Path, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pixels(monkeypatch)
    write(tmp_path / "a", 60000, 50000)
    with pytest.raises(InputError, match=r"60000 x 50000 pixels; .* limit is 1048576 pixels.*max_photograph_px"):
        read_photograph(tmp_path / "a", MOST_PX)


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".jp2", ".ppm", ".hdr", ".gif"])
def test_a_format_that_no_camera_writes_reaches_no_decoder(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = np.float32 if suffix == ".hdr" else np.uint8
    assert cv2.imwrite(str(tmp_path / f"a{suffix}"), np.zeros((64, 64, 3), kind))
    (tmp_path / f"a{suffix}").rename(tmp_path / "a.png")
    no_pixels(monkeypatch)
    with pytest.raises(InputError, match="cannot be read as a photograph -> give a PNG, JPEG or TIFF"):
        read_photograph(tmp_path / "a.png", MOST_PX)


def test_what_opencv_throws_is_an_error_in_words(tmp_path: Path) -> None:
    claiming_png(tmp_path / "a.png", 100_000, 100_000)
    with pytest.raises(InputError, match="cannot be read as a photograph"):
        read_photograph(tmp_path / "a.png", 1 << 40)
    with pytest.raises(InputError, match="No such file"):
        read_photograph(tmp_path / "b.png", MOST_PX)


def test_memory_that_is_short_is_no_fault_of_the_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claiming_png(tmp_path / "a.png", 9, 9)
    error = cv2.error("Insufficient memory")
    error.code = cv2.Error.StsNoMem

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cv2, "imread", fail)
    with pytest.raises(MemoryError):
        read_photograph(tmp_path / "a.png", MOST_PX)


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_photograph_is_read_to_the_bit(tmp_path: Path, dtype: str, top: int, suffix: str) -> None:
    pixels = RNG.integers(0, top, (30, 41, 3), endpoint=True).astype(dtype)
    encoded = imagecodecs.png_encode(pixels) if suffix == ".png" else None
    if encoded is None:
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    else:
        (tmp_path / "a.png").write_bytes(encoded)
    found = read_photograph(tmp_path / f"a{suffix}", pixels.size)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels.astype(np.float32) / np.float32(top))
