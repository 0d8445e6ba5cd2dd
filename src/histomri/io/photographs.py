"""Photographs of the block: PNG, JPEG or TIFF as cameras write them, decoded whole, so that their size is looked at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import InputError
from histomri.core.errors import Problem
from histomri.io.slides import plain, tiff
from histomri.io.slides.base import problem

REMEDY = "give a PNG, JPEG or TIFF"


def read_photograph(path: Path, most_px: int) -> NDArray[np.float32]:
    """RGB float32 in 0 to 1, (y, x, 3), turned as its camera says.

    Raises ``InputError`` for what cannot be read, and, before any pixel is decoded, above ``most_px`` pixels; ``MemoryError``.
    """
    path = Path(path)
    height, width = claimed_shape(path)
    if not 0 < height * width <= most_px:
        what = f"has {width} x {height} pixels; photographs are decoded whole, and the limit is {most_px} pixels"
        raise problem(path, what, "make it smaller, or raise blockface.max_photograph_px")
    data = _decoded(path)
    top = {"uint8": 255.0, "uint16": 65535.0}.get(str(data.dtype), 1.0)
    # one new array, not two
    share: NDArray[np.float32] = np.divide(data[..., ::-1], np.float32(top), dtype=np.float32, casting="unsafe")
    return share


def claimed_shape(path: Path) -> tuple[int, int]:
    """(height, width) by the header, before any turn. Raises ``InputError``, for other formats too.

    OpenCV would decode a dozen formats more, each by a library of its own that nothing here bounds.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError as error:
        raise problem(path, f"cannot be read ({error.strerror})", "correct the column blockface in sections.tsv") from error
    if plain.format_of(head):
        with plain.open_image(path) as image:
            return int(image.height), int(image.width)
    if tiff.is_tiff(head):
        return _claimed_by_tiff(path)
    raise problem(path, "cannot be read as a photograph", REMEDY)


def _claimed_by_tiff(path: Path) -> tuple[int, int]:
    """The first directory's, which is the image that OpenCV decodes."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            return int(page.imagelength), int(page.imagewidth)
    except MemoryError:
        raise
    except Exception as error:  # tifffile trips in many ways over a damaged file
        raise problem(path, f"cannot be read as a photograph ({type(error).__name__}: {error})", REMEDY) from error


def _decoded(path: Path) -> NDArray[Any]:
    """Pixels (y, x, 3), blue first."""
    import cv2

    try:
        data = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"no memory to decode {path}") from error
        raise InputError(Problem(str(path), f"cannot be read as a photograph ({error.err})", REMEDY)) from error
    if data is None:
        raise problem(path, "cannot be read as a photograph", REMEDY)
    return np.asarray(data)
