"""Binary masks by their connected pieces: opening, holes, and measures of each piece. Masks are bool (y, x)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]


def disk(radius: int) -> NDArray[np.uint8]:
    """A round structuring element of ``2 radius + 1`` pixels."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def opened(mask: Bool, radius: int) -> Bool:
    """Morphological opening with a disk; outside the image counts as background."""
    pad = radius + 1
    framed = np.pad(mask.astype(np.uint8), pad)
    return np.asarray(cv2.morphologyEx(framed, cv2.MORPH_OPEN, disk(radius))[pad:-pad, pad:-pad], bool)


def grown(mask: Bool, margin: int) -> Bool:
    """The mask grown by ``margin`` pixels."""
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disk(margin)), bool)


def blurred(signal: Float32, sigma_px: float) -> Float32:
    """Gaussian smoothing."""
    return np.asarray(cv2.GaussianBlur(signal, (0, 0), sigma_px), np.float32)


def fill_holes(mask: Bool, largest_px: float) -> Bool:
    """Fill holes of at most ``largest_px`` pixels that do not touch the border of the image."""
    height, width = mask.shape
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    x, y, w, h, area = stats.T
    inside = (x > 0) & (y > 0) & (x + w < width) & (y + h < height) & (area <= largest_px)
    inside[0] = False
    return np.asarray(mask | inside[labels], bool)


def strongest(values: NDArray[Any], labels: NDArray[Any], count: int) -> Float32:
    """Largest value of each label, (count,), at least 0."""
    largest = np.zeros(count, np.float32)
    np.maximum.at(largest, labels.ravel().astype(np.intp), values.ravel())
    return largest


def medians(values: NDArray[Any], labels: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Median of the values of each label, (count,); NaN for a label without pixels."""
    order = np.argsort(labels, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(labels.ravel(), minlength=count))[:-1]
    return np.array([np.median(part) if part.size else np.nan for part in np.split(values.ravel()[order], ends)])


def pieces_of(mask: Bool, connectivity: int = 8) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Labels (y, x), 0 outside, and statistics (n, 5) of the pieces: x, y, width, height and area; row 0 is the outside."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    return np.asarray(labels, np.int32), np.asarray(stats, np.int32)
