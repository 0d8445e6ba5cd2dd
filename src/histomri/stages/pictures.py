"""Pictures in pages: outlines of masks, and images as data addresses."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]
# orange and blue stay apart for every kind of colour vision
SECTION_COLOUR, MRI_COLOUR = (255, 159, 28), (76, 201, 240)


def outline(rgb: Rgb, mask: Mask, colour: tuple[int, int, int], width: int = 1) -> None:
    """Draw the outline of a mask onto an image of the same shape, in place."""
    lines, _ = cv2.findContours(np.ascontiguousarray(mask, dtype=np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(rgb, lines, -1, colour, width, cv2.LINE_AA)


def png_address(png: bytes) -> str:
    """A PNG file's content as a data address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def data_address(rgb: Rgb, quality: int = 72) -> str:
    """An RGB image, (y, x, 3), as a data address of a JPEG."""
    done, coded = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"An image of shape {rgb.shape} could not be encoded.")
    return "data:image/jpeg;base64," + base64.b64encode(coded.tobytes()).decode("ascii")
