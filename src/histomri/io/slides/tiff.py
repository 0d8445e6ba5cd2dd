"""TIFF, OME-TIFF, QPTIFF, SVS: tiles and strips decoded directly (tifffile for the structure, imagecodecs for the pixels).

The levels of the first series are read, at one focal plane and the first time. 8 and 16 bit, integer and
float, interleaved and planar samples. Reading is by ``os.pread``, so threads share the file without a lock.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from histomri.io.slides.base import (
    JPEG_END,
    MOST_ASSOCIATED_PX,
    RGB,
    Pixels,
    Slide,
    SlideInfo,
    TileCache,
    channel_indices,
    check_associated,
    checked_plane,
    pixel_size_from_density,
    problem,
    read_image,
)
from histomri.io.slides.coded_size import coded_size
from histomri.kernels.planes import split_planes
from histomri.kernels.pyramid import worth_compiling

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CACHE_BYTES = 48 << 20
MAX_SEGMENT_PX = 1 << 28
MAX_SEGMENT_BYTES = 1 << 30
SMALL_TILE_PX = 512
PER_MM = {2: 1 / 25.4, 3: 0.1, 4: 1.0, 5: 1000.0}
UNIT_MM = {"nm": 1e-6, "µm": 1e-3, "μm": 1e-3, "um": 1e-3, "micron": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4}
QPI_NAME = re.compile(r"<Name>([^<]+)</Name>")
APERIO_MPP = re.compile(r"MPP\s*=\s*([0-9]*\.?[0-9]+)")


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
    if tiff.is_svs and (found := APERIO_MPP.search(page.description)) and float(found[1]) > 0:
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


def pages_at(series: Any, plane: int) -> list[Any]:
    """The pages of one level, one per value of the channel axis, at one focal plane and the first time."""
    axes, shape = series.axes, series.shape
    outer = [(axis, n) for axis, n in zip(axes, shape, strict=True) if axis not in "YXS"]
    numbers = np.arange(int(np.prod([n for _, n in outer], dtype=int))).reshape([n for _, n in outer] or [1])
    # an axis of unknown meaning (Q, I) counts as channels where there is no channel axis
    known = "C" if "C" in axes else "QI"
    wanted = {"Z": plane}
    index = tuple(slice(None) if axis in known else wanted.get(axis, 0) for axis, _ in outer) if outer else (slice(None),)
    pages = list(series.pages)
    if len(pages) == 1:
        return pages
    return [pages[i] for i in np.atleast_1d(numbers[index]).ravel()]


@dataclass(frozen=True)
class Level:
    """The pages of a level, one per channel (or one for all); None where a file of several is missing."""

    pages: tuple[Any, ...]

    @cached_property
    def keyframe(self) -> Any:
        """The page that says how all of them are stored."""
        return next(p for p in self.pages if p is not None).keyframe

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Pixels (y, x)."""
        return int(self.keyframe.imagelength), int(self.keyframe.imagewidth)

    @cached_property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile, or of a strip."""
        page = self.keyframe
        if page.is_tiled:
            return int(page.tilelength), int(page.tilewidth)
        return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)

    @cached_property
    def tiles(self) -> tuple[int, int]:
        """Tiles down and across."""
        (height, width), (rows, columns) = self.shape, self.tile
        return -(-height // rows), -(-width // columns)

    @property
    def segment_bytes(self) -> int:
        """Bytes of a decoded tile."""
        page = self.keyframe
        samples = int(page.samplesperpixel) if page.planarconfig == 1 else 1
        return self.tile[0] * self.tile[1] * samples * (int(page.bitspersample) + 7) // 8

    def lacks(self) -> str | None:
        """What keeps its pixels from being read, in words: no size, fewer tiles than it needs; None where nothing does."""
        page = self.keyframe
        sizes = (*self.shape, *self.tile, int(page.samplesperpixel))
        if min(sizes) < 1:
            return f"{sizes[1]} x {sizes[0]} pixels in tiles of {sizes[3]} x {sizes[2]} with {sizes[4]} samples cannot be"
        planes = 1 if page.planarconfig == 1 else sizes[4]
        needed = self.tiles[0] * self.tiles[1] * planes
        for held in (p for p in self.pages if p is not None):
            listed = min(len(held.dataoffsets), len(held.databytecounts))
            if listed < needed:
                return f"{sizes[1]} x {sizes[0]} pixels need {needed} tiles or strips, it lists {listed}"
        return None


def levels_of(tiff: Any, plane: int) -> list[Level]:
    """The levels of the first image, finest first; also where they are series of their own, marked as reduced."""
    found = [Level(tuple(pages_at(level, plane))) for level in tiff.series[0].levels]
    found = [level for level in found if any(p is not None for p in level.pages)]
    if len(found) == 1 and not tiff.is_ome:
        found += [Level(tuple(s.pages)) for s in tiff.series[1:] if _is_reduced(found[0], s)]
    return found


def _is_reduced(first: Level, series: Any) -> bool:
    """Whether a series is a smaller version of a level: so marked, tiled like it, and of its shape but for a pixel."""
    page = series.keyframe
    if not (page.is_reduced and page.is_tiled and len(series.pages) == len(first.pages) == 1):
        return False
    ratio = first.shape[0] / page.imagelength
    close = abs(first.shape[1] / ratio - page.imagewidth) <= 1.0
    return bool(ratio > 1 and close and page.samplesperpixel == first.keyframe.samplesperpixel)


def refuse_more_than(tile: tuple[int, int], data: bytes, keyframe: Any) -> None:
    """Raise ``ValueError`` where a tile's own header claims a larger picture than the tile: its decoder would unfold it."""
    claimed = coded_size(data) if int(keyframe.compression) != 1 else None
    if claimed is not None and (claimed[0] > tile[0] or claimed[1] > tile[1]):
        raise ValueError(f"the tile holds a picture of {claimed[1]} x {claimed[0]} pixels")


def associated_pixels(path: Path, name: str, series: Any, most_px: int) -> Pixels:
    """All pixels of a series of a TIFF, (y, x[, c]) for an image.

    Raises ``InputError`` where they do not decode, or would take more than ``most_px`` pixels do.
    """
    check_associated(path, name, int(np.prod(series.shape, dtype=object)) * int(series.dtype.itemsize), most_px)
    return read_image(path, name, lambda: _whole_series(series))


def _whole_series(series: Any) -> Any:
    """A series as an array, after a look at what each of its tiles claims to be."""
    for page in (p for p in series.pages if p is not None):
        tile = Level((page,)).tile
        for at, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            page.parent.filehandle.seek(at)
            data = page.parent.filehandle.read(min(count, page.parent.filehandle.size))
            if len(data) < count:
                raise EOFError("the file ends inside it")
            refuse_more_than(tile, data, page.keyframe)
    return series.asarray()


def decoder_colours(page: Any) -> tuple[Any, Any] | None:
    """Colour spaces for decoding a page's JPEG tiles without tifffile's detours; None where it is not so simple."""
    import tifffile

    simple = page.is_tiled and page.compression == 7 and page.planarconfig == 1 and page.jpegheader is None
    if not (simple and page.dtype == np.uint8 and page.samplesperpixel in (1, 3)):
        return None
    colours: tuple[Any, Any] = tifffile.tifffile.jpeg_decode_colorspace(
        page.photometric, page.planarconfig, page.extrasamples, page.is_jfif
    )
    return colours


class TiffSlide(Slide):
    """A TIFF read tile by tile. Raises ``InputError`` for what cannot be read, ``tifffile.TiffFileError`` for no TIFF.

    ``plane`` is the focal plane, counted from 0.
    """

    def __init__(self, path: Path, channel: str | None = None, plane: int = 0):
        import tifffile

        super().__init__()
        self._tiff = tifffile.TiffFile(path)
        self._files: dict[Any, int] = {}
        self._cache = TileCache(CACHE_BYTES)
        self._scratch = threading.local()
        try:
            self._describe(path, channel, plane)
        except BaseException:
            self.close()
            raise

    def _describe(self, path: Path, channel: str | None, plane: int) -> None:
        if not self._tiff.series:
            raise problem(path, "is a TIFF without any image", "export or copy it again")
        series = self._tiff.series[0]
        sizes = dict(zip(series.axes, series.shape, strict=True))
        self._levels = levels_of(self._tiff, checked_plane(path, plane, sizes.get("Z", 1)))
        if not self._levels:
            raise problem(path, "is a TIFF whose pages are missing", "copy all files of the image")
        page = self._levels[0].keyframe
        self._check(path)
        # a level that is damaged is not needed where a finer one is whole
        self._levels = [self._levels[0], *(level for level in self._levels[1:] if level.lacks() is None)]
        names = self._channels()
        self._chosen = channel_indices(path, names, channel)
        self._dtype = np.dtype(series.dtype).newbyteorder("=")
        self._fill = 255 if self._is_rgb and self._dtype == np.uint8 else 0
        self._colours = [decoder_colours(level.keyframe) for level in self._levels]
        self.block_px = max(self._levels[0].tile) if page.is_tiled else self.block_px
        self.block_px = 0 if self.block_px <= SMALL_TILE_PX else self.block_px
        self.tiles = sum(len(p.dataoffsets) for p in self._levels[0].pages if p is not None)
        coded = zip(self._colours, self._levels, strict=True)
        self._ends = [colours is not None and self._has_ends(level.pages[0]) for colours, level in coded]
        self.info = SlideInfo(
            path,
            self._levels[0].shape,
            pixel_size_of(self._tiff, page),
            tuple(names[i] for i in self._chosen),
            str(self._dtype),
            f"tifffile ({series.kind})",
            tuple(sorted(self._others())),
            self._notes(sizes, plane),
            tuple(level.shape for level in self._levels),
            int(sizes.get("Z", 1)),
        )

    def _notes(self, sizes: dict[str, int], plane: int) -> tuple[str, ...]:
        notes = [f"{sizes['Z']} focal planes, number {plane} is used"] if sizes.get("Z", 1) > 1 else []
        notes += [f"{sizes['T']} times, the first is used"] if sizes.get("T", 1) > 1 else []
        missing = sum(p is None for p in self._levels[0].pages)
        notes += [f"{missing} of {len(self._levels[0].pages)} pages are missing and are filled"] if missing else []
        return tuple(notes)

    def _others(self) -> dict[str, Any]:
        """The images of the file that are no level of the first one, by name."""
        ours = {id(p.keyframe) for level in self._levels for p in level.pages if p is not None}
        series = [(i, s) for i, s in enumerate(self._tiff.series) if i and id(s.keyframe) not in ours]
        return {(s.name or f"series {i}").lower(): s for i, s in series}

    @property
    def _is_rgb(self) -> bool:
        page = self._levels[0].keyframe
        return int(page.photometric) in (2, 6) and page.samplesperpixel >= 3

    def _channels(self) -> tuple[str, ...]:
        pages = self._levels[0].pages
        if self._is_rgb and len(pages) == 1:
            return RGB
        # samples beside RGB (alpha) are dropped; other samples are channels of their own
        samples = 1 if len(pages) > 1 else int(self._levels[0].keyframe.samplesperpixel)
        return channel_names(self._tiff, list(pages), len(pages) * samples, False)

    def _check(self, path: Path) -> None:
        page = self._levels[0].keyframe
        kind = np.dtype(page.dtype) if page.dtype is not None else None
        if kind is None or kind.kind not in "uif" or page.bitspersample < 8:
            raise problem(path, f"has pixels of {page.bitspersample} bits", "export it with 8 or 16 bits per channel")
        if int(page.photometric) == 3:
            raise problem(path, "has palette colours", "export it as RGB")
        if page.imagedepth > 1:
            raise problem(path, "is a volume, not a slide", "export one plane")
        if (lacks := self._levels[0].lacks()) is not None:
            raise problem(path, f"is truncated or corrupt: {lacks}", "copy it again from the scanner")
        rows, columns = self._levels[0].tile
        if rows * columns > MAX_SEGMENT_PX or self._levels[0].segment_bytes > MAX_SEGMENT_BYTES:
            what = f"is stored as strips of {columns} x {rows} pixels, too much to decode at once"
            raise problem(path, what, "convert it to a tiled TIFF")

    def close(self) -> None:
        """Close the files."""
        self._tiff.close()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def files(self) -> tuple[Path, ...]:
        """The file, and the others of an OME-TIFF of several."""
        pages = [p for p in self._levels[0].pages if p is not None]
        return tuple(sorted({self.info.path, *(Path(p.parent.filehandle.path) for p in pages)}))

    def missing_bytes(self) -> int:
        """How many tiles of level 0 lie beyond the end of the file: more than none means that it was cut off."""
        missing = 0
        for page in (p for p in self._levels[0].pages if p is not None):
            size = page.parent.filehandle.size
            # damaged numbers exceed 64 bits
            missing += sum(at + length > size for at, length in zip(page.dataoffsets, page.databytecounts, strict=False))
        return missing

    def read_associated(self, name: str, most_px: int = MOST_ASSOCIATED_PX) -> Pixels:
        """Pixels (y, x[, c]) of one of the images named in ``info.dropped``. Raises ``KeyError`` for another name."""
        return associated_pixels(self.info.path, name, self._others()[name], most_px)

    def read_region(self, y: int, x: int, height: int, width: int, level: int = 0) -> Pixels:
        """Pixels (height, width, c) of a box inside a level."""
        out = np.empty((height, width, len(self._chosen)), self._dtype)
        pages, keyframe = self._levels[level].pages, self._levels[level].keyframe
        if len(pages) == 1 and keyframe.planarconfig == 1:
            self._copy(out, (y, x), level, (0, 0), self._columns)
            return out
        for at, number in enumerate(self._chosen):
            # a channel is a page of its own, or a plane of the only page
            place = (number, 0) if len(pages) > 1 else (0, number)
            self._copy(out[..., at : at + 1], (y, x), level, place, slice(0, 1))
        return out

    def read_planes(self, y: int, x: int, height: int, width: int, planes: Pixels) -> None:
        """Fill the corner of contiguous ``planes`` (c, y, x) with the level-0 pixels of a box; tiles are split while hot."""
        first = self._levels[0]
        if len(first.pages) > 1 or first.keyframe.planarconfig != 1:
            super().read_planes(y, x, height, width, planes)
            return
        if self._quick is not None and self._quick.fill((y, x), (height, width), self._own_tile(0), planes):
            return
        compiled = worth_compiling(first.shape[0] * first.shape[1])
        columns = self._columns
        for (top, left), box, tile in self._pieces((y, x), (height, width), 0, (0, 0)):
            if tile is None:
                planes[:, top : top + box[2], left : left + box[3]] = self._fill
            else:
                split_planes(tile if columns == slice(None) else tile[..., columns], box, planes, (top, left), compiled)

    @cached_property
    def _jpeg(self) -> Any:
        import imagecodecs

        return imagecodecs.jpeg8_decode

    @cached_property
    def _quick(self) -> Any:
        """The short way for level 0, where its tiles are what most slides have, and the slide is worth compiled kernels."""
        first, colours = self._levels[0], self._colours[0]
        is_worth = worth_compiling(first.shape[0] * first.shape[1])
        if not (is_worth and self._ends[0] and colours and self._columns == slice(None) and len(self._chosen) == 3):
            return None
        from histomri.io.slides.jpeg_tiles import JpegTiles

        page = first.pages[0]
        return JpegTiles(page, colours, first.tile, first.tiles[1], self._descriptor(page.parent.filehandle))

    @cached_property
    def _columns(self) -> Any:
        """The samples wanted of an interleaved tile: an index that copies nothing where all are."""
        every = self._chosen == list(range(self._levels[0].keyframe.samplesperpixel))
        return slice(None) if every else self._chosen

    def _copy(self, out: Pixels, corner: tuple[int, int], level: int, place: tuple[int, int], columns: Any) -> None:
        """Copy the tiles of one plane of a page (``place``) that meet the box at ``corner`` into ``out``."""
        for (top, left), (r, c, h, w), tile in self._pieces(corner, out.shape[:2], level, place):
            to = out[top : top + h, left : left + w]
            to[...] = self._fill if tile is None else tile[r : r + h, c : c + w, columns]

    def _pieces(
        self, corner: tuple[int, int], size: tuple[int, ...], level: int, place: tuple[int, int]
    ) -> Iterator[tuple[tuple[int, int], tuple[int, int, int, int], Pixels | None]]:
        """The tiles that meet a box: where in the box, which part of the tile (y, x, height, width), its pixels or None."""
        (y, x), (height, width), (page_number, plane) = corner, size, place
        (rows, cols), (down, across) = self._levels[level].tile, self._levels[level].tiles
        for r in range(y // rows, -(-(y + height) // rows)):
            for c in range(x // cols, -(-(x + width) // cols)):
                top, left = max(y, r * rows), max(x, c * cols)
                h, w = min(y + height, (r + 1) * rows) - top, min(x + width, (c + 1) * cols) - left
                tile = self._tile((level, page_number, (plane * down + r) * across + c), (h, w) == (rows, cols))
                yield (top - y, left - x), (top - r * rows, left - c * cols, h, w), tile

    def _tile(self, key: tuple[int, int, int], is_whole: bool) -> Pixels | None:
        """One decoded tile (y, x, samples); None where the file has none there or it does not decode (then it is counted).

        A tile of which all is wanted will not be asked for again: it is not kept, and is good until the thread decodes another.
        """
        level, page_number, index = key
        page = self._levels[level].pages[page_number]
        if page is None or page.databytecounts[index] == 0 or key in self._bad:
            return None
        try:
            if is_whole:
                return self._decode(page, key, self._own_tile(level))
            return self._cache.get(key, lambda: self._decode(page, key, None))
        except MemoryError:
            raise
        except Exception:  # decoders raise whatever they like on bad bytes
            self._bad.add(key)
            return None

    def _own_tile(self, level: int) -> Pixels | None:
        """This thread's place for one decoded tile of a level; memory that is used again is twice as fast as new."""
        if self._colours[level] is None:
            return None
        own: dict[Any, Pixels] = self._scratch.__dict__
        if level not in own:
            own[level] = np.empty((*self._levels[level].tile, int(self._levels[level].keyframe.samplesperpixel)), np.uint8)
        return own[level]

    def _decode(self, page: Any, key: tuple[int, int, int], out: Pixels | None) -> Pixels:
        level, _, index = key
        data = self._read(page, index)
        if len(data) < page.databytecounts[index]:
            raise EOFError("the file ends inside a tile")
        if self._ends[level] and not data.endswith(JPEG_END) and not data.rstrip(b"\0").endswith(JPEG_END):
            raise EOFError("the tile lacks its end")
        keyframe, colours = page.keyframe, self._colours[level]
        if colours is not None and out is not None:
            decoded: Pixels = self._jpeg(data, tables=page.jpegtables, colorspace=colours[0], outcolorspace=colours[1], out=out)
            return decoded
        refuse_more_than(self._levels[level].tile, data, keyframe)
        found, _, shape = keyframe.decode(data, index, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader)
        if found is None:
            raise ValueError("an empty tile")
        tile: Pixels = found[0, : shape[1], : shape[2]].astype(self._dtype, copy=False)
        return np.iinfo(self._dtype).max - tile if int(keyframe.photometric) == 0 and self._dtype.kind == "u" else tile

    def _has_ends(self, page: Any) -> bool:
        """Whether the file's JPEG tiles end with the marker that they should end with, by nine of them.

        Where they do, a tile without it was cut off, or zeroed by a copy that failed. libjpeg fills the rest of such a tile
        with grey, and says nothing that reaches us.
        """
        numbers = np.unique(np.linspace(0, len(page.dataoffsets) - 1, 9).round().astype(int)).tolist()
        whole = [i for i in numbers if page.databytecounts[i] > 2]
        found = [self._read(page, i)[-64:].rstrip(b"\0").endswith(JPEG_END) for i in whole]
        return sum(found) > len(found) / 2

    def _read(self, page: Any, index: int) -> bytes:
        """The bytes of a tile, as many as the file has of them."""
        # room is made for as many as are asked for, and a damaged number asks for any
        count = min(page.databytecounts[index], page.parent.filehandle.size)
        return os.pread(self._descriptor(page.parent.filehandle), count, page.dataoffsets[index])

    def _descriptor(self, handle: Any) -> int:
        """A descriptor of the file that a page lies in (an OME-TIFF may have several files)."""
        found = self._files.get(handle)
        if found is not None:
            return found
        # another thread may open it too: the first one stays, the spare is closed
        mine = os.open(handle.path, os.O_RDONLY)
        first = self._files.setdefault(handle, mine)
        if first != mine:
            os.close(mine)
        return first
