"""Whole-slide files of any size in seconds: a few hundred tiles of tissue texture, encoded once and laid out many times.

The file is what an Aperio scanner writes (openslide opens it as ``aperio``): tiled JPEG, a first page whose description
names the size and the pixel size, and reduced pages behind it. Only the coded bytes are repeated; a reader has to decode
every tile of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from histomri.testing.noise import hash3, octaves, speckle
from histomri.testing.threads import over_ranges

Pixels = NDArray[np.uint8]
GLASS = 244.0
NOISE = 10.0
LEVEL_FACTOR = 4


@dataclass(frozen=True)
class BigSlide:
    """Size in pixels (y, x), pixel size, side of a tile, how many different tiles there are, JPEG quality, and a seed."""

    shape: tuple[int, int]
    pixel_size_mm: float = 0.0005
    tile_px: int = 256
    textures: int = 192
    quality: int = 90
    seed: int = 1
    glass: float = 0.3

    def tiles(self, level: int) -> tuple[int, int]:
        """Tiles (down, across) of a level."""
        height, width = self.level_shape(level)
        return -(-height // self.tile_px), -(-width // self.tile_px)

    def level_shape(self, level: int) -> tuple[int, int]:
        """Pixels (y, x) of a level of the file; each is a quarter of the one before on a side, as scanners write them."""
        return self.shape[0] // LEVEL_FACTOR**level, self.shape[1] // LEVEL_FACTOR**level

    @property
    def levels(self) -> int:
        """Levels until one fits into two tiles."""
        count = 1
        while max(self.level_shape(count - 1)) > 2 * self.tile_px:
            count += 1
        return count

    def texture_of(self, level: int, row: int, column: int) -> int:
        """Number of the tile that lies there, -1 for glass: an ellipse of tissue on glass."""
        down, across = self.tiles(level)
        y, x = (2 * (row + 0.5) / down - 1), (2 * (column + 0.5) / across - 1)
        if y * y + x * x > 4 / np.pi * (1 - self.glass):
            return -1
        return hash((row, column, level, self.seed)) % self.textures


@njit(cache=True, nogil=True)
def _stain(number: int, start: int, pixel_mm: float, seed: int, out: Any) -> None:
    """One tile of tissue like H&E from row ``start`` on: eosin in bands and grain, nuclei, and the camera's noise."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            y, x, z = (start + i) * pixel_mm, j * pixel_mm, number * 1.0
            eosin = 0.22 + 0.04 * octaves(z, y, x, 0.06, 0.001, pixel_mm, seed)
            cells = speckle(z, y, x, 0.014, pixel_mm, seed + 1) if eosin > 0.22 else 0.0
            nuclei = 0.7 * cells + 0.1 * speckle(z, y, x, 0.004, pixel_mm, seed + 2)
            h = hash3(number, start + i, j, seed)
            for c in range(3):
                dye = eosin * (0.10, 0.62, 0.30)[c] + nuclei * (0.62, 0.66, 0.28)[c]
                noise = float((h >> np.uint64(16 * c)) & np.uint64(255)) / 255.0 - 0.5
                out[i, j, c] = np.uint8(min(255.0, max(0.0, 244.0 * np.exp(-1.15 * max(0.0, dye)) + NOISE * noise + 0.5)))


def texture(slide: BigSlide, number: int) -> Pixels:
    """The tile (y, x, 3) of that number before it is coded; glass for -1."""
    tile = np.empty((slide.tile_px, slide.tile_px, 3), np.uint8)
    if number < 0:
        # a JPEG keeps what is dusty or uneven, not the camera's noise
        cells = np.random.default_rng(slide.seed).normal(0, 1.2, (-(-slide.tile_px // 8), -(-slide.tile_px // 8), 1))
        noise = GLASS + cells.repeat(8, 0).repeat(8, 1)[: slide.tile_px, : slide.tile_px] + np.zeros(3)
        return np.clip(np.rint(noise), 0, 255).astype(np.uint8)
    over_ranges(lambda a, b: _stain(number, a, slide.pixel_size_mm, slide.seed, tile[a:b]), slide.tile_px, 64)
    return tile


def coded_tiles(slide: BigSlide) -> list[bytes]:
    """All tiles as JPEG (YCbCr 4:2:0); the last is the glass."""
    import imagecodecs

    numbers = [*range(slide.textures), -1]
    return [
        bytes(imagecodecs.jpeg8_encode(texture(slide, n), level=slide.quality, outcolorspace="YCBCR", subsampling=(2, 2)))
        for n in numbers
    ]


def description(slide: BigSlide) -> str:
    """The first line and the properties by which Aperio's files are known."""
    (height, width), tile = slide.shape, slide.tile_px
    size = f"{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}) JPEG/RGB Q={slide.quality}"
    return f"Aperio Image Library v12.0.15\n{size}|AppMag = 20|MPP = {slide.pixel_size_mm * 1000:g}"


def write_big_slide(path: Path, slide: BigSlide) -> None:
    """Write the slide; 8 gigapixels take seconds, as only the coded bytes are copied."""
    import tifffile

    coded = coded_tiles(slide)

    def placed(level: int) -> Iterator[bytes]:
        down, across = slide.tiles(level)
        for row in range(down):
            for column in range(across):
                yield coded[slide.texture_of(level, row, column)]

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(slide.levels):
            per_cm = 10.0 / slide.pixel_size_mm / LEVEL_FACTOR**level
            tiff.write(
                placed(level),
                shape=(*slide.level_shape(level), 3),
                dtype=np.uint8,
                tile=(slide.tile_px, slide.tile_px),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                description=description(slide) if level == 0 else "Aperio Image Library v12.0.15",
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
                software=False,
            )
