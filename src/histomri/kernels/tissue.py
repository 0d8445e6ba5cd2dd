"""Where on a slide there is tissue, from a small working image of it.

The background level is the brightest (on dark slides: darkest) prominent peak of the histogram. Tissue is what stands out
from it by a small contrast; lines, strips along the image border and ink in it, and crumbs are then taken away.
``docs/decisions/tissue-mask.md`` has the measurements behind the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]

BINS = 256
PEAK_SHARE = 0.1
DARK_MEDIAN = 0.35
SOLID = 3.0
MIN_RING_PX = 100
SMALLEST_PX = 12
RING_HOLE = 0.15


@dataclass(frozen=True)
class TissueParameters:
    """Limits of the tissue mask. Contrasts are in decades of intensity (optical density, log10), lengths in working pixels.

    ``min_contrast`` applies to bright, ``min_contrast_dark`` to dark backgrounds; ``blur_px`` and ``open_px`` hold at 300
    working pixels along the long side and grow with it; ``min_share`` is the smallest piece kept, as a share of the
    largest; ``max_hole`` the largest hole filled, as a share of all tissue; ``ink_contrast`` and ``ink_share`` say what near the
    border of the image is ink: darker than the one and smaller, as a share of the image, than the other.
    """

    min_contrast: float = 0.02
    min_contrast_dark: float = 0.1
    blur_px: float = 0.5
    open_px: float = 2.0
    min_share: float = 0.02
    max_hole: float = 0.3
    ink_contrast: float = 0.35
    ink_share: float = 0.015


@dataclass(frozen=True, eq=False)
class Tissue:
    """The mask, bool (y, x), the background per channel in pixel values, and whether tissue is brighter than it."""

    mask: Bool
    background: tuple[float, ...]
    inverted: bool


def grey_histogram(grey: Float32) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smoothed histogram over the 0.1 to 99.9 percent range of a grey image, and the centres of its bins."""
    low, high = (float(v) for v in np.percentile(grey, (0.1, 99.9)))
    counts, edges = np.histogram(np.clip(grey, low, high), bins=BINS, range=(low, max(high, low + max(1e-3, 1e-3 * abs(low)))))
    smooth = np.convolve(np.pad(counts.astype(float), 2, mode="symmetric"), np.array([1, 4, 6, 4, 1]) / 16, mode="valid")
    return smooth, (edges[:-1] + edges[1:]) / 2


def is_dark_slide(grey: Float32, full_range: float) -> bool:
    """Whether tissue is bright on dark: most of the image and of its rim lie low in its range and in the pixel type's.

    ``full_range`` is the largest value of the pixel type. 12-bit cameras fill little of a 16-bit type, so there the image's
    own bright end counts.
    """
    low, middle, high = (float(v) for v in np.percentile(grey, (1, 50, 99.5)))
    rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if high - low < 1e-6:
        return False
    rim_level = (float(np.median(rim)) - low) / (high - low)
    is_low = (middle - low) / (high - low) < DARK_MEDIAN and rim_level < 0.5
    return is_low and middle < 0.4 * (full_range if full_range <= 255 else max(high, 0.05 * full_range))


def full_range_of(pixels: NDArray[Any]) -> float:
    """Largest value of the pixel type; of float pixels the largest that there is."""
    return float(pixels.max()) if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)


def estimate_background(pixels: NDArray[Any], inverted: bool) -> tuple[float, ...]:
    """Background per channel of (y, x, c) pixels: the median colour at the outermost prominent peak of the grey values."""
    grey = pixels.mean(axis=-1, dtype=np.float32)
    counts, centres = grey_histogram(grey)
    inner = np.pad(counts, 1)
    peaks = (inner[1:-1] >= inner[:-2]) & (inner[1:-1] >= inner[2:]) & (counts >= PEAK_SHARE * counts.max())
    found = np.flatnonzero(peaks)
    peak = centres[found[0] if inverted else found[-1]]
    near = np.abs(grey - peak) <= 2 * max(centres[1] - centres[0], 1e-6)
    chosen = pixels[near] if near.any() else pixels.reshape(-1, pixels.shape[-1])
    return tuple(float(v) for v in np.median(chosen, axis=0))


def contrast(pixels: NDArray[Any], background: tuple[float, ...], inverted: bool) -> Float32:
    """``log10((background + 1) / (I + 1))``, its negative on dark slides, (y, x): the largest over the channels."""
    density = np.log10((np.maximum(np.asarray(background, np.float32), 0) + 1) / (np.maximum(pixels, 0).astype(np.float32) + 1))
    peak: Float32 = (-density if inverted else density).max(axis=-1)
    return peak


def tissue_bright(pixels: NDArray[Any], background: tuple[float, ...], inverted: bool, full_range: float) -> Float32:
    """Single channel (y, x) in which tissue is bright on a background of 0, from pixels (y, x, c).

    Brightfield: optical density ``-log10((I + 1) / (background + 1))``. ``inverted`` (tissue brighter than the background):
    ``(I - background) / full_range``. The mean over the channels, at least 0.
    """
    values, level = pixels.astype(np.float32), np.asarray(background, np.float32)
    density = (values - level) / np.float32(full_range) if inverted else np.log10((level + 1) / (np.maximum(values, 0) + 1))
    bright: Float32 = np.maximum(density.mean(axis=-1, dtype=np.float32), np.float32(0))
    return bright


def disk(radius: int) -> NDArray[np.uint8]:
    """A round structuring element of ``2 radius + 1`` pixels."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def opened(mask: Bool, radius: int) -> Bool:
    """Morphological opening with a disk; outside the image counts as background."""
    pad = radius + 1
    framed = np.pad(mask.astype(np.uint8), pad)
    return np.asarray(cv2.morphologyEx(framed, cv2.MORPH_OPEN, disk(radius))[pad:-pad, pad:-pad], bool)


def fill_holes(mask: Bool, largest_px: float) -> Bool:
    """Fill holes of at most ``largest_px`` pixels that do not touch the border of the image."""
    height, width = mask.shape
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    x, y, w, h, area = stats.T
    inside = (x > 0) & (y > 0) & (x + w < width) & (y + h < height) & (area <= largest_px)
    inside[0] = False
    return np.asarray(mask | inside[labels], bool)


def without_lines(mask: Bool, radius: int) -> Bool:
    """Drop the pieces that are thin everywhere and fill little of their bounding box: slide edges, scratches, loose strokes."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    thickest = strongest(depth, labels, count)
    thin = (stats[:, 4] < 0.12 * stats[:, 2] * stats[:, 3]) & (thickest <= 2 * radius + 0.5)
    thin[0] = True
    return np.asarray(~thin[labels], bool)


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


def without_ink_and_rims(mask: Bool, signal: Float32, parameters: TissueParameters) -> Bool:
    """Drop small very dark pieces near the border (handwriting), and pale or drawn-out ones on it (beyond the slide's edge)."""
    height, width = mask.shape
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    x, y, w, h, area = stats.T.astype(float)
    area[0] = 0
    gap = np.minimum.reduce([x, y, width - x - w, height - y - h])
    rim = np.ones_like(mask)
    rim[2:-2, 2:-2] = False
    on_rim = np.bincount(labels[rim], minlength=count)
    strength = medians(signal, labels, count)
    ink_area = max(parameters.ink_share * height * width, 40)
    ink = (gap <= 0.06 * max(height, width)) & (area < ink_area) & (strength > parameters.ink_contrast)
    # a word cut off by the border of a tiny image, blurred into its own halo
    ink |= (gap <= 1) & (area < 0.05 * height * width) & (strongest(signal, labels, count) > 2 * parameters.ink_contrast)
    area[ink] = 0
    pale = strength < 0.4 * strength[area.argmax()]
    strip = (on_rim > 0.12 * area) | (on_rim > 0.5 * max(height, width)) | (pale & (gap <= 1))
    keep = (area > 0) & ~(strip & (area < 0.25 * area.max()))
    return np.asarray(keep[labels], bool)


def largest_pieces(mask: Bool, min_share: float) -> Bool:
    """The pieces of at least ``min_share`` of the largest one's area, and of a dozen pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    area = stats[:, 4].copy()
    area[0] = 0
    return np.asarray(((area >= min_share * area.max()) & (area >= SMALLEST_PX))[labels], bool)


def local_background(pixels: NDArray[Any], signal: Float32, inverted: bool, solid_contrast: float) -> tuple[float, ...] | None:
    """Colour of the glass in a ring of 5 % of the long side around what is surely tissue; None where there is no such ring.

    The glass is a little darker than the light beside the slide, which the histogram's outermost peak may stand for. The
    upper quartile (lower on dark slides) keeps pale tissue in the ring from passing for glass.
    """
    solid = opened(signal > solid_contrast, 1)
    solid = fill_holes(solid, RING_HOLE * solid.sum())
    reach = max(3, round(0.05 * max(solid.shape)))
    ring = grown(solid, reach) & ~grown(solid, 1)
    ring &= signal < solid_contrast
    return (
        tuple(float(v) for v in np.percentile(pixels[ring], 25 if inverted else 75, axis=0)) if ring.sum() > MIN_RING_PX else None
    )


def grown(mask: Bool, margin: int) -> Bool:
    """The mask grown by ``margin`` pixels."""
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disk(margin)), bool)


def find_tissue(pixels: NDArray[Any], parameters: TissueParameters | None = None) -> Tissue:
    """Tissue on a working image, (y, x, c), of at best 256 to 1024 pixels along its long side.

    Holes inside the tissue (ventricles, vessels) belong to the mask. The mask may be empty.
    """
    limits = parameters or TissueParameters()
    inverted = is_dark_slide(pixels.mean(axis=-1, dtype=np.float32), full_range_of(pixels))
    least = limits.min_contrast_dark if inverted else limits.min_contrast
    scale = max(1.0, max(pixels.shape[:2]) / 300)
    # nuclei on black stand apart: they have to run together before anything is opened
    blur = limits.blur_px * scale * (4 if inverted else 1)
    background = estimate_background(pixels, inverted)
    signal = blurred(contrast(pixels, background, inverted), blur)
    background = local_background(pixels, signal, inverted, SOLID * least) or background
    signal = blurred(contrast(pixels, background, inverted), blur)
    mask = clean(signal > least, signal, limits)
    return Tissue(mask, background, inverted)


def blurred(signal: Float32, sigma_px: float) -> Float32:
    """Gaussian smoothing."""
    return np.asarray(cv2.GaussianBlur(signal, (0, 0), sigma_px), np.float32)


def clean(mask: Bool, signal: Float32, limits: TissueParameters) -> Bool:
    """The pieces of a raw mask that are tissue: without lines, ink, strips along the border and crumbs, its holes filled."""
    scale = max(1.0, max(mask.shape) / 300)
    radius = round(min(limits.open_px * scale, max(1, min(mask.shape) // 40)))
    mask = without_lines(mask, radius)
    largest_hole = limits.max_hole * float(mask.sum())
    mask = opened(fill_holes(mask, largest_hole), radius)
    mask = without_ink_and_rims(mask, signal, limits)
    return fill_holes(largest_pieces(mask, limits.min_share), largest_hole)
