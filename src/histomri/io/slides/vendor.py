"""Everything that openslide reads: NDPI, MRXS, SCN, BIF and the rest; SVS and tiled TIFF where tiles cannot be had directly."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from histomri.io.slides import dicom
from histomri.io.slides.base import (
    MOST_ASSOCIATED_PX,
    RGB,
    Pixels,
    Slide,
    SlideInfo,
    channel_indices,
    check_associated,
    problem,
    read_image,
)

RETRY_TILE_PX = 256


def detect_vendor(path: Path) -> str | None:
    """The openslide vendor of a file, None where openslide does not know it."""
    import openslide

    vendor = openslide.OpenSlide.detect_format(str(path))
    return None if vendor is None else str(vendor)


def info_of(slide: Any, path: Path) -> SlideInfo:
    """Metadata of an open openslide handle."""
    properties = slide.properties
    sizes = [properties.get(f"openslide.mpp-{axis}") for axis in "yx"]
    known = all(size is not None and float(size) > 0 for size in sizes)
    pixel_size = (float(sizes[0]) / 1000, float(sizes[1]) / 1000) if known else None
    width, height = slide.dimensions
    reader = f"openslide ({properties.get('openslide.vendor')})"
    levels = tuple((h, w) for w, h in slide.level_dimensions)
    dropped = tuple(sorted(slide.associated_images))
    return SlideInfo(path, (height, width), pixel_size, RGB, "uint8", reader, dropped, levels=levels)


def associated_pixels(slide: Any, path: Path, name: str, most_px: int) -> Pixels:
    """Pixels (y, x, 3) of an associated image of an open openslide handle. Raises ``KeyError`` for another name.

    Raises ``InputError`` where it does not decode, or would take more than ``most_px`` pixels do.
    """
    # by the names: to ask the mapping itself whether it holds one would decode it
    if name not in tuple(slide.associated_images):
        raise KeyError(name)
    sides = [int(slide.properties[f"openslide.associated.{name}.{side}"]) for side in ("width", "height")]
    check_associated(path, name, 4 * sides[0] * sides[1], most_px)
    return read_image(path, name, lambda: np.asarray(slide.associated_images[name].convert("RGB")))


def on_white(rgba: Pixels, background: Pixels) -> Pixels:
    """(y, x, 3) of (y, x, 4) pixels laid over the background colour (MRXS leaves unscanned areas transparent)."""
    alpha = rgba[..., 3:]
    if (alpha == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    share = alpha.astype(np.float32) / 255
    return np.rint(rgba[..., :3] * share + background * (1 - share)).astype(np.uint8)


class VendorSlide(Slide):
    """A slide read through openslide. Raises the openslide error when it cannot be opened.

    Raises ``InputError`` where a file of a DICOM series is cut off before its pixels.
    """

    def __init__(self, path: Path, channel: str | None = None):
        super().__init__()
        self._path, self._lock = path, threading.Lock()
        self._slide = self._open()
        self._series = self._whole_series()
        info = info_of(self._slide, path)
        self._chosen = channel_indices(path, info.channels, channel)
        self.info = replace(info, channels=tuple(info.channels[i] for i in self._chosen))
        self._step = self._tile_px()
        self.tiles = int(np.prod([-(-n // self._step) for n in info.shape]))
        colour = self._slide.properties.get("openslide.background-color", "ffffff")
        self._background = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)], np.float32)

    def _open(self) -> Any:
        import openslide

        return openslide.OpenSlide(str(self._path))

    def _tile_px(self) -> int:
        """Side of the boxes that damage is counted in: of the file's tiles where they are small, so that no sound one is lost."""
        sides = {int(self._slide.properties.get(f"openslide.level[0].tile-{side}", 0)) for side in ("width", "height")}
        return min(sides) if len(sides) == 1 and 0 < min(sides) < RETRY_TILE_PX else RETRY_TILE_PX

    def _whole_series(self) -> tuple[Path, ...]:
        """The files of a DICOM series, none for other formats."""
        uid = self._slide.properties.get("dicom.SeriesInstanceUID")
        found = dicom.series_files(self._path, uid) if uid else ()
        cut = [file.name for file in found if dicom.has_lost_its_pixels(file)]
        if cut:
            self._slide.close()
            raise problem(self._path, f"is truncated: {', '.join(cut)} of the same series ends in its header", "copy it again")
        return found

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def files(self) -> tuple[Path, ...]:
        """The file, and those where the pixels are: of the folder beside it (MRXS), of the series (DICOM)."""
        if self._series:
            return self._series
        beside = self._path.with_suffix("")
        return (self._path, *(sorted(f for f in beside.iterdir() if f.is_file()) if beside.is_dir() else ()))

    def read_associated(self, name: str, most_px: int = MOST_ASSOCIATED_PX) -> Pixels:
        """Pixels (y, x, 3) of one of the images named in ``info.dropped``. Raises ``KeyError`` for another name."""
        # after an error a handle answers nothing more
        with self._open() as slide:
            return associated_pixels(slide, self._path, name, most_px)

    def read_region(self, y: int, x: int, height: int, width: int, level: int = 0) -> Pixels:
        """Pixels (height, width, c) of a box inside a level; at level 0, what cannot be read is tried again in small tiles.

        Bad tiles are filled. Raises ``InputError`` where another level cannot be read.
        """
        import openslide

        try:
            pixels = self._read((y, x), (height, width), level)
        except openslide.OpenSlideError as error:
            if level:
                with self._lock:
                    self._slide = self._open()
                raise problem(self._path, f"its level {level} cannot be read ({error})", "copy it again") from error
            pixels = self._rescue(y, x, height, width)
        return pixels[..., self._chosen]

    def _read(self, corner: tuple[int, int], size: tuple[int, int], level: int) -> Pixels:
        # openslide counts places in level-0 pixels
        y, x = (round(n * self._slide.level_downsamples[level]) for n in corner)
        region = self._slide.read_region((x, y), level, size[::-1])
        return on_white(np.asarray(region), self._background)

    def _rescue(self, y: int, x: int, height: int, width: int) -> Pixels:
        """Tile by tile; after an error an openslide handle answers nothing more, so it is opened anew."""
        import openslide

        pixels = np.empty((height, width, 3), np.uint8)
        pixels[:] = self._background
        step = self._step
        boxes = [(r, c) for r in range(y // step * step, y + height, step) for c in range(x // step * step, x + width, step)]
        with self._lock:
            for r, c in boxes:
                top, left = max(r, y), max(c, x)
                bottom, right = min(r + step, y + height), min(c + step, x + width)
                try:
                    with self._open() as slide:
                        region = np.asarray(slide.read_region((left, top), 0, (right - left, bottom - top)))
                except openslide.OpenSlideError:
                    self._bad.add((r, c))
                    continue
                pixels[top - y : bottom - y, left - x : right - x] = on_white(region, self._background)
            self._slide = self._open()
        return pixels
