"""PNG and JPEG: small enough to be decoded whole, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from histomri.io.slides.base import JPEG_END, RGB, Pixels, Slide, SlideInfo, channel_indices, pixel_size_from_density, problem

MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}


def format_of(head: bytes) -> str | None:
    """``PNG`` or ``JPEG`` by the first bytes of a file, else None."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def is_truncated(path: Path, kind: str) -> bool:
    """Whether the file lacks its end marker (cameras append bytes after it, so the last kilobytes are searched)."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 65536))
        return (b"IEND" if kind == "PNG" else JPEG_END) not in stream.read()


def open_image(path: Path) -> Any:
    """The Pillow image, its header read only. Raises ``InputError``."""
    from PIL import Image as Pillow

    # the limit on plain images is checked against the header, in words that name the config key
    Pillow.MAX_IMAGE_PIXELS = None
    try:
        return Pillow.open(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise problem(path, f"is not an image that can be read ({error})", "export or copy it again") from error


def info_of(image: Any, path: Path) -> SlideInfo:
    """Metadata of an opened Pillow image."""
    dpi = image.info.get("dpi", (0, 0))
    size = pixel_size_from_density(float(dpi[0]) / 25.4, float(dpi[1]) / 25.4)
    wide = image.mode.startswith("I")
    is_grey = wide or image.mode in ("L", "LA", "1", "F")
    dtype = "float32" if image.mode == "F" else "uint16" if wide else "uint8"
    channels = ("intensity",) if is_grey else RGB
    shape = (image.height, image.width)
    return SlideInfo(path, shape, size, channels, dtype, "pillow", levels=(shape,))


def pixels_of(image: Any, info: SlideInfo) -> Pixels:
    """All pixels (y, x, c) of an opened Pillow image; what is transparent becomes white."""
    from PIL import Image as Pillow

    if info.dtype != "uint8":
        return np.asarray(image).astype(info.dtype)[..., None]
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer)
    mode = "L" if len(info.channels) == 1 else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if mode == "L" else pixels


class PlainSlide(Slide):
    """A PNG or JPEG, decoded whole at its first use. Raises ``InputError`` above ``max_px`` pixels or when it is broken."""

    def __init__(self, path: Path, channel: str | None, max_px: int):
        super().__init__()
        with open_image(path) as image:
            info = info_of(image, path)
            height, width = info.shape
            if height * width > max_px:
                what = f"has {width} x {height} pixels; PNG and JPEG are decoded whole, and the limit is {max_px} pixels"
                raise problem(path, what, "convert it to a tiled TIFF, or raise ingest.max_plain_px")
            try:
                pixels = pixels_of(image, info)
            except (OSError, SyntaxError, ValueError) as error:
                raise problem(path, f"is truncated or corrupt ({error})", "export or copy it again") from error
        chosen = channel_indices(path, info.channels, channel)
        self._pixels = pixels[..., chosen]
        self.info = replace(info, channels=tuple(info.channels[i] for i in chosen))

    def read_region(self, y: int, x: int, height: int, width: int, level: int = 0) -> Pixels:
        """Pixels (height, width, c) of a box inside the image."""
        return self._pixels[y : y + height, x : x + width]
