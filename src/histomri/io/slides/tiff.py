"""TIFF, OME-TIFF, QPTIFF, SVS: tiles and strips decoded directly (tifffile for the structure, imagecodecs for the pixels).

Level 0 of the first series is read; where it has several focal planes or times, the first. 8 and 16 bit, integer and
float, interleaved and planar samples. Reading is by ``os.pread``, so threads share the file without a lock.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from histomri.io.slides.base import (
    RGB,
    Pixels,
    Slide,
    SlideInfo,
    TileCache,
    channel_indices,
    pixel_size_from_density,
    problem,
)

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CACHE_BYTES = 48 << 20
MAX_SEGMENT_PX = 1 << 28
PER_MM = {2: 1 / 25.4, 3: 0.1, 4: 1.0, 5: 1000.0}
UNIT_MM = {"nm": 1e-6, "µm": 1e-3, "μm": 1e-3, "um": 1e-3, "micron": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4}
QPI_NAME = re.compile(r"<Name>([^<]+)</Name>")
APERIO_MPP = re.compile(r"MPP\s*=\s*([0-9.]+)")


def is_tiff(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a TIFF or BigTIFF."""
    return head[:4] in MAGIC


def local_name(element: Any) -> str:
    """Tag of an XML element without its namespace."""
    return str(element.tag).rsplit("}", 1)[-1]


def ome_pixels(tiff: Any) -> Any:
    """The first ``Pixels`` element of OME metadata, None where there is none that can be read."""
    if not tiff.is_ome or not tiff.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(tiff.ome_metadata)
    except ElementTree.ParseError:
        return None
    return next((e for e in root.iter() if local_name(e) == "Pixels"), None)


def ome_pixel_size(pixels: Any) -> tuple[float, float] | None:
    """(y, x) in mm of ``PhysicalSizeX/Y`` with their units (micrometres where none is stated)."""
    sizes = []
    for axis in "YX":
        value, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if value is None or unit not in UNIT_MM or not float(value) > 0:
            return None
        sizes.append(float(value) * UNIT_MM[unit])
    return sizes[0], sizes[1]


def tag_density(page: Any) -> tuple[float, float] | None:
    """The resolution tags (x, y) of a page as stated, None where they are missing or zero."""
    tags = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    if any(tag is None for tag in tags):
        return None
    values = [tag.value[0] / tag.value[1] if tag.value[1] else 0.0 for tag in tags]
    return (values[0], values[1]) if min(values) > 0 else None


def pixel_size_of(tiff: Any, page: Any) -> tuple[float, float] | None:
    """(y, x) in mm from OME metadata, Aperio's MPP, ImageJ's unit or the resolution tags, in this order; None without any."""
    pixels = ome_pixels(tiff)
    if pixels is not None and (size := ome_pixel_size(pixels)):
        return size
    if tiff.is_svs and (found := APERIO_MPP.search(page.description)):
        return (float(found[1]) / 1000,) * 2
    density = tag_density(page)
    if density is None:
        return None
    unit = str((tiff.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ") if tiff.is_imagej else ""
    if unit in UNIT_MM:
        return pixel_size_from_density(density[0] / UNIT_MM[unit], density[1] / UNIT_MM[unit])
    tag = page.tags.get("ResolutionUnit")
    factor = PER_MM.get(int(tag.value) if tag is not None else 2)
    return pixel_size_from_density(density[0] * factor, density[1] * factor) if factor else None


def channel_names(tiff: Any, pages: list[Any], count: int, is_rgb: bool) -> tuple[str, ...]:
    """Names of the channels from OME or QPTIFF metadata, else by their number; unique."""
    if is_rgb:
        return RGB
    names: list[str | None] = [None] * count
    if (pixels := ome_pixels(tiff)) is not None:
        found = [e.get("Name") for e in pixels if local_name(e) == "Channel"]
        names = found if len(found) == count else names
    elif tiff.is_qpi and len(pages) == count:
        matches = [QPI_NAME.search(page.description) for page in pages]
        names = [match[1] if match else None for match in matches]
    plain = ["intensity"] if count == 1 else [f"channel_{i}" for i in range(count)]
    named = [name or default for name, default in zip(names, plain, strict=True)]
    return tuple(named) if len(set(named)) == count else tuple(plain)


def first_pages(series: Any) -> list[Any]:
    """The pages of level 0, one per value of the channel axis, at the first focal plane and time."""
    axes, shape = series.axes, series.shape
    outer = [(axis, n) for axis, n in zip(axes, shape, strict=True) if axis not in "YXS"]
    numbers = np.arange(int(np.prod([n for _, n in outer], dtype=int))).reshape([n for _, n in outer] or [1])
    # an axis of unknown meaning (Q, I) counts as channels where there is no channel axis
    known = "C" if "C" in axes else "QI"
    index = tuple(slice(None) if axis in known else 0 for axis, _ in outer) if outer else (slice(None),)
    pages = list(series.pages)
    if len(pages) == 1:
        return pages
    return [pages[i] for i in np.atleast_1d(numbers[index]).ravel()]


class TiffSlide(Slide):
    """A TIFF read tile by tile. Raises ``InputError`` for what cannot be read, ``tifffile.TiffFileError`` for no TIFF."""

    def __init__(self, path: Path, channel: str | None = None):
        import tifffile

        super().__init__()
        self._tiff = tifffile.TiffFile(path)
        self._files: dict[str, int] = {}
        self._cache = TileCache(CACHE_BYTES)
        try:
            self._describe(path, channel)
        except BaseException:
            self.close()
            raise

    def _describe(self, path: Path, channel: str | None) -> None:
        if not self._tiff.series:
            raise problem(path, "is a TIFF without any image", "export or copy it again")
        series = self._tiff.series[0]
        self._pages = first_pages(series)
        page = self._page = next((p for p in self._pages if p is not None), None)
        if page is None:
            raise problem(path, "is a TIFF whose pages are missing", "copy all files of the image")
        self._keyframe = page.keyframe
        self._check(path)
        names = self._channels()
        chosen = channel_indices(path, names, channel)
        self._chosen = chosen
        dropped = tuple(sorted((s.name or f"series {i}").lower() for i, s in enumerate(self._tiff.series) if i))
        planes = {"Z": "focal planes", "T": "times"}
        sizes = dict(zip(series.axes, series.shape, strict=True))
        notes = tuple(f"{sizes[a]} {what}, the first is used" for a, what in planes.items() if sizes.get(a, 1) > 1)
        shape = (int(self._keyframe.imagelength), int(self._keyframe.imagewidth))
        size = pixel_size_of(self._tiff, self._keyframe)
        reader = f"tifffile ({series.kind})"
        self._dtype = np.dtype(series.dtype).newbyteorder("=")
        self._fill = 255 if self._is_rgb and self._dtype == np.uint8 else 0
        self.info = SlideInfo(path, shape, size, tuple(names[i] for i in chosen), str(self._dtype), reader, dropped, notes)
        self.tiles = sum(len(p.dataoffsets) for p in self._pages if p is not None)

    @property
    def _is_rgb(self) -> bool:
        return int(self._keyframe.photometric) in (2, 6) and self._keyframe.samplesperpixel >= 3

    def _channels(self) -> tuple[str, ...]:
        samples = int(self._keyframe.samplesperpixel)
        if self._is_rgb and len(self._pages) == 1:
            return RGB
        # samples beside RGB (alpha) are dropped; other samples are channels of their own
        self._samples = 1 if len(self._pages) > 1 else samples
        return channel_names(self._tiff, self._pages, len(self._pages) * self._samples, False)

    def _check(self, path: Path) -> None:
        page = self._keyframe
        kind = np.dtype(page.dtype) if page.dtype is not None else None
        if kind is None or kind.kind not in "uif" or page.bitspersample < 8:
            raise problem(path, f"has pixels of {page.bitspersample} bits", "export it with 8 or 16 bits per channel")
        if int(page.photometric) == 3:
            raise problem(path, "has palette colours", "export it as RGB")
        if page.imagedepth > 1:
            raise problem(path, "is a volume, not a slide", "export one plane")
        rows, columns = self._tile_shape()
        if rows * columns > MAX_SEGMENT_PX:
            what = f"is stored as strips of {columns} x {rows} pixels, too much to decode at once"
            raise problem(path, what, "convert it to a tiled TIFF")

    def close(self) -> None:
        """Close the files."""
        self._tiff.close()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def missing_bytes(self) -> int:
        """How many tiles of level 0 lie beyond the end of the file: more than none means that it was cut off."""
        missing = 0
        for page in (p for p in self._pages if p is not None):
            size = page.parent.filehandle.size
            ends = np.asarray(page.dataoffsets, np.int64) + np.asarray(page.databytecounts, np.int64)
            missing += int((ends > size).sum())
        return missing

    def read_region(self, y: int, x: int, height: int, width: int) -> Pixels:
        """Level-0 pixels (height, width, c) of a box inside the slide."""
        out = np.full((height, width, len(self._chosen)), self._fill, self._dtype)
        if len(self._pages) == 1 and self._keyframe.planarconfig == 1:
            self._copy(out, (y, x), 0, 0, self._chosen)
            return out
        for at, number in enumerate(self._chosen):
            # a channel is a page of its own, or a plane of the only page
            page_number, plane = (number, 0) if len(self._pages) > 1 else (0, number)
            if self._pages[page_number] is not None:
                self._copy(out[..., at : at + 1], (y, x), page_number, plane, [0])
        return out

    def _copy(self, out: Pixels, corner: tuple[int, int], page_number: int, plane: int, columns: list[int]) -> None:
        """Copy the tiles of one plane of a page that meet the box at ``corner`` into ``out``."""
        (y, x), (height, width) = corner, out.shape[:2]
        rows, cols = self._tile_shape()
        across = -(-self.info.shape[1] // cols)
        per_plane = across * -(-self.info.shape[0] // rows)
        for r in range(y // rows, -(-(y + height) // rows)):
            for c in range(x // cols, -(-(x + width) // cols)):
                tile = self._tile(page_number, plane * per_plane + r * across + c)
                if tile is None:
                    continue
                top, left = max(y, r * rows), max(x, c * cols)
                bottom, right = min(y + height, r * rows + tile.shape[0]), min(x + width, c * cols + tile.shape[1])
                part = tile[top - r * rows : bottom - r * rows, left - c * cols : right - c * cols]
                out[top - y : bottom - y, left - x : right - x] = part[..., columns]

    def _tile_shape(self) -> tuple[int, int]:
        page = self._keyframe
        if page.is_tiled:
            return int(page.tilelength), int(page.tilewidth)
        return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)

    def _tile(self, page_number: int, index: int) -> Pixels | None:
        """One decoded tile (y, x, samples); None where the file has none there or it does not decode (then it is counted)."""
        key = (page_number, index)
        if key in self._bad:
            return None
        page = self._pages[page_number]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0:
            return None
        try:
            return self._cache.get(key, lambda: self._decode(page, index, offset, count))
        except Exception:  # decoders raise whatever they like on bad bytes
            self._bad.add(key)
            return None

    def _decode(self, page: Any, index: int, offset: int, count: int) -> Pixels:
        data = os.pread(self._descriptor(page.parent.filehandle), count, offset)
        if len(data) < count:
            raise EOFError("the file ends inside a tile")
        keyframe = page.keyframe
        decoded, _, shape = keyframe.decode(data, index, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader)
        if decoded is None:
            raise ValueError("an empty tile")
        tile: Pixels = decoded[0, : shape[1], : shape[2]].astype(self._dtype, copy=False)
        return np.iinfo(self._dtype).max - tile if int(keyframe.photometric) == 0 and self._dtype.kind == "u" else tile

    def _descriptor(self, handle: Any) -> int:
        """A descriptor of the file that a page lies in (an OME-TIFF may have several files)."""
        if handle.path not in self._files:
            # another thread may open it too: the first one stays, the spare is closed
            mine = os.open(handle.path, os.O_RDONLY)
            if self._files.setdefault(handle.path, mine) != mine:
                os.close(mine)
        return self._files[handle.path]
