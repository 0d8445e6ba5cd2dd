"""Whole JPEG tiles of a TIFF straight into planes, in as few steps of Python as can be.

Between two tiles the decoder and the codec fill the processor's cache, so that each step of Python costs several times what it
costs alone. Whatever is out of the ordinary (a tile that is cut off, missing or does not decode, a box that cuts through tiles)
is left to the general way (``tiff.TiffSlide``), which knows what to do.
"""

from __future__ import annotations

import os
from typing import Any

import imagecodecs

from histomri.io.slides.base import JPEG_END, Pixels
from histomri.kernels.pyramid_compiled import address, rgb_splitter


class JpegTiles:
    """Tiles of three samples of 8 bits of a TIFF ``page``, ``across`` of them side by side, which all end with JPEG's end marker.

    ``colours`` are the colour spaces in the file and wanted, ``tile`` a tile's (rows, columns), ``descriptor`` the open file.
    """

    def __init__(self, page: Any, colours: tuple[Any, Any], tile: tuple[int, int], across: int, descriptor: int):
        self._counts, self._offsets, self._tables = page.databytecounts, page.dataoffsets, page.jpegtables
        self._colours, self._tile, self._across, self._descriptor = colours, tile, across, descriptor
        self._split: Any = rgb_splitter()
        self._most = page.parent.filehandle.size

    def fill(self, corner: tuple[int, int], size: tuple[int, int], place: Pixels, planes: Pixels) -> bool:
        """Fill the corner of contiguous ``planes`` (3, y, x) of bytes with a box of the page; whether that was done.

        ``place`` is the caller's memory for one tile (y, x, 3). Where it was not done, ``planes`` hold anything.
        """
        (rows, columns), (height, width) = self._tile, size
        if planes.shape[0] != 3 or height > planes.shape[1] or width > planes.shape[2] or place.shape != (rows, columns, 3):
            return False
        if corner[0] % rows or corner[1] % columns or height % rows or width % columns:
            return False
        first, at, into = corner[0] // rows * self._across + corner[1] // columns, address(place), address(planes)
        for r in range(height // rows):
            for c in range(width // columns):
                if not self._decode(first + r * self._across + c, place):
                    return False
                step, row, _ = planes.strides
                to = into + r * rows * row + c * columns
                self._split(at, 3 * columns, rows, columns, to, to + step, to + 2 * step, row)
        return True

    def _decode(self, index: int, place: Pixels) -> bool:
        count = self._counts[index]
        # room is made for as many as are asked for, and a damaged number asks for any
        if count > self._most:
            return False
        data = os.pread(self._descriptor, count, self._offsets[index])
        if len(data) < count or not data.endswith(JPEG_END):
            return False
        try:
            imagecodecs.jpeg8_decode(
                data, tables=self._tables, colorspace=self._colours[0], outcolorspace=self._colours[1], out=place
            )
        except MemoryError:
            raise
        except Exception:  # decoders raise whatever they like on bad bytes
            return False
        return True
