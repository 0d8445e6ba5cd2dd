"""What every slide reader offers, and the rules that they share."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import InputError
from histomri.core.errors import Problem
from histomri.kernels.planes import split_planes

Pixels = NDArray[Any]

RGB = ("red", "green", "blue")
JPEG_END = b"\xff\xd9"
# resolutions that programs write when they know none; a slide scanned at exactly one of these needs its size in the sheet
PRINT_DPI = (72.0, 90.0, 96.0, 100.0, 120.0, 150.0, 200.0, 300.0)
PLAUSIBLE_MM = (1e-5, 1.0)
# label, macro and thumbnail are decoded whole; scanners write a few million pixels
MOST_ASSOCIATED_PX = 1 << 26
READABLE = "SVS, NDPI, MRXS, SCN, tiled TIFF, TIFF, OME-TIFF, QPTIFF, OME-Zarr, PNG or JPEG"


@dataclass(frozen=True)
class SlideInfo:
    """What a slide file says about itself, without its pixels.

    ``shape`` (y, x) and ``pixel_size_mm`` (y, x; None where the file states none) are those of level 0; ``dropped`` names
    the associated images (label, macro, thumbnail), which are never read unless one asks for them by name; ``notes`` are
    remarks for the user. ``levels`` are the shapes (y, x) of the file's levels, finest first (empty: only level 0), ``planes``
    the number of its focal planes.
    """

    path: Path
    shape: tuple[int, int]
    pixel_size_mm: tuple[float, float] | None
    channels: tuple[str, ...]
    dtype: str
    reader: str
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    levels: tuple[tuple[int, int], ...] = ()
    planes: int = 1


class Slide(ABC):
    """An open slide: pixels by region of any of its levels, from any thread. Use it as a context manager.

    A part that cannot be decoded is filled with the background and counted: ``bad_tiles`` of ``tiles``.
    """

    info: SlideInfo
    tiles: int = 1
    # side in pixels of a region that is best read at once; 0: any, as the file has small tiles
    block_px: int = 2048

    def __init__(self) -> None:
        self._bad: set[Hashable] = set()

    @abstractmethod
    def read_region(self, y: int, x: int, height: int, width: int, level: int = 0) -> Pixels:
        """Pixels (height, width, c) of a box inside a level; y and x count that level's pixels."""

    def read_planes(self, y: int, x: int, height: int, width: int, planes: Pixels) -> None:
        """Fill the corner of contiguous ``planes`` (c, y, x) with the level-0 pixels of a box."""
        split_planes(self.read_region(y, x, height, width), (0, 0, height, width), planes, (0, 0))

    def read_associated(self, name: str, most_px: int = MOST_ASSOCIATED_PX) -> Pixels:
        """Pixels (y, x[, c]) of one of the images named in ``info.dropped``.

        Raises ``KeyError`` for another name, ``InputError`` where it does not decode, or takes more than ``most_px`` pixels do.
        """
        raise KeyError(name)

    def files(self) -> tuple[Path, ...]:
        """The files that the pixels come from, as far as they are known."""
        return (self.info.path,)

    def close(self) -> None:
        """Close the file."""
        return

    @property
    def bad_tiles(self) -> int:
        """How many of the file's tiles could not be decoded so far."""
        return len(self._bad)

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class TileCache:
    """The decoded tiles used last, at most ``max_bytes`` of them; a tile may be decoded twice, never wrongly shared."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self._held, self._lock = max_bytes, 0, threading.Lock()
        self._tiles: OrderedDict[Hashable, Pixels] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], Pixels]) -> Pixels:
        """The tile of that key, decoded when it is not held."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        tile = decode()
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = tile
                self._held += tile.nbytes
            while self._held > self.max_bytes and len(self._tiles) > 1:
                self._held -= self._tiles.popitem(last=False)[1].nbytes
        return tile


def problem(path: Path, what: str, remedy: str) -> InputError:
    """An input error about a slide file."""
    return InputError(Problem(str(path), what, remedy))


def check_associated(path: Path, name: str, size_bytes: int, most_px: int) -> None:
    """Raise ``InputError`` where an image beside the slide's own unfolds into more bytes than RGBA of ``most_px`` pixels."""
    if size_bytes > (most := 4 * most_px):
        what = (
            f"its image {name!r} would take {size_bytes / 1e6:.0f} MB; such images are decoded whole, up to {most / 1e6:.0f} MB"
        )
        raise problem(path, what, "leave it out of ingest.keep, or raise ingest.max_plain_px where that is less than the default")


def read_image(path: Path, name: str, read: Callable[[], Any]) -> Pixels:
    """What ``read`` gives of one of a file's images. Raises ``InputError`` where it does not decode.

    Memory that is short is no damage, here and in all readers: the job fails, and on a cluster is tried again with more.
    """
    try:
        return np.asarray(read())
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like on bad bytes
        what = f"its image {name!r} cannot be read ({type(error).__name__}: {error})"
        raise problem(path, what, "copy it again from the scanner") from error


def pixel_size_from_density(per_mm_x: float, per_mm_y: float) -> tuple[float, float] | None:
    """Pixel size (y, x) in mm of a resolution in pixels per mm; None where it is a print default or implausible.

    72, 96, 300 dpi and the like are what programs write when they know nothing; believed, they would make a slide
    metres wide.
    """
    if not (np.isfinite([per_mm_x, per_mm_y]).all() and min(per_mm_x, per_mm_y) > 0):
        return None
    if any(abs(per_mm_x * 25.4 - dpi) < 1 for dpi in PRINT_DPI):
        return None
    size = (1 / per_mm_y, 1 / per_mm_x)
    return size if PLAUSIBLE_MM[0] <= min(size) and max(size) <= PLAUSIBLE_MM[1] else None


def checked_plane(path: Path, plane: int, count: int) -> int:
    """A focal plane's number, from 0. Raises ``InputError`` where there are not so many."""
    if not 0 <= plane < count:
        remedy = f"give a number from 0 to {count - 1}, or 'sharpest' or 'middle', as ingest.focal_plane"
        raise problem(path, f"has no focal plane {plane}; it has {count}", remedy)
    return plane


def channel_indices(path: Path, channels: Sequence[str], wanted: str | None) -> list[int]:
    """Positions of the wanted channel (its name in any case, or its number from 0), of all channels for None.

    Raises ``InputError`` naming the channels that there are.
    """
    if wanted is None or wanted == "":
        return list(range(len(channels)))
    names = [name.lower() for name in channels]
    if wanted.lower() in names:
        return [names.index(wanted.lower())]
    if wanted.isdigit() and int(wanted) < len(channels):
        return [int(wanted)]
    what = f"has no channel {wanted!r}; its channels are {', '.join(channels)}"
    raise problem(path, what, f"name one of them, or its number from 0 to {len(channels) - 1}, in the column 'channel'")
