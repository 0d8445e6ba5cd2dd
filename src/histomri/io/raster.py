"""Large images out, grey or in colour: PNG and tiled TIFF, written strip by strip."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from histomri.io.atomic import replacing

Strips = Iterable[NDArray[Any]]

TIFF_TILE = 512
PNG_LEVEL = 6
BIG_BYTES = 2**31


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(path: Path, strips: Strips, shape: tuple[int, ...], dtype: Any) -> None:
    """Write a PNG of uint8 or uint16, grey (y, x) or RGB (y, x, 3), from strips of whole rows, atomically, none held."""
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise ValueError(f"A PNG holds uint8 or uint16, found {kind}.")
    packer = zlib.compressobj(PNG_LEVEL)
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.write(
            _chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8 * kind.itemsize, 0 if len(shape) == 2 else 2, 0, 0, 0))
        )
        for strip in strips:
            rows = np.ascontiguousarray(strip, kind.newbyteorder(">")).view(np.uint8).reshape(len(strip), -1)
            # each row begins with its filter type, 0
            if packed := packer.compress(np.insert(rows, 0, 0, axis=1).tobytes()):
                file.write(_chunk(b"IDAT", packed))
        file.write(_chunk(b"IDAT", packer.flush()))
        file.write(_chunk(b"IEND", b""))


def _tiles(strips: Strips) -> Iterator[NDArray[Any]]:
    for strip in strips:
        for y in range(0, strip.shape[0], TIFF_TILE):
            for x in range(0, strip.shape[1], TIFF_TILE):
                yield np.ascontiguousarray(strip[y : y + TIFF_TILE, x : x + TIFF_TILE])


def write_tiff(path: Path, strips: Strips, shape: tuple[int, ...], dtype: Any, pixel_size_mm: Iterable[float] | None) -> None:
    """Write a tiled TIFF, (y, x[, c]), from strips of whole rows (their heights multiples of 512 but the last), atomically.

    BigTIFF above 2 GB; lossless; the resolution is that of ``pixel_size_mm`` (y, x), none for None. Three channels are RGB.
    """
    kind = np.dtype(dtype)
    big = int(np.prod(shape, dtype=np.int64)) * kind.itemsize > BIG_BYTES
    resolution: dict[str, Any] = {}
    if pixel_size_mm is not None:
        per_y, per_x = (10.0 / s for s in pixel_size_mm)
        resolution = {"resolution": (per_x, per_y), "resolutionunit": "CENTIMETER"}
    is_rgb = len(shape) == 3 and shape[2] == 3 and kind.kind == "u"
    with replacing(Path(path)) as temporary, tifffile.TiffWriter(temporary, bigtiff=big) as writer:
        writer.write(
            _tiles(strips),
            shape=shape,
            dtype=kind,
            tile=(TIFF_TILE, TIFF_TILE),
            compression="zlib",
            photometric="rgb" if is_rgb else "minisblack",
            planarconfig="contig" if len(shape) == 3 else None,
            **resolution,
            metadata=None,
            software="histomri",
        )
