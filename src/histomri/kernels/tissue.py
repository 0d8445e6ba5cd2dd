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

from histomri.kernels.glass import (
    DARK_MEDIAN,
    contrast,
    density_over,
    drift_of_glass,
    estimate_background,
    is_dark_slide,
    local_background,
)
from histomri.kernels.ink import find_ink, without_ink, without_nets
from histomri.kernels.pieces import Bool, Float32, blurred, fill_holes, grown, medians, opened, pieces_of, strongest

__all__ = ["DARK_MEDIAN", "Tissue", "TissueParameters", "find_tissue", "full_range_of", "tissue_bright"]

SOLID = 3.0
SMALLEST_PX = 12
FAINT = 4.0
PALEST = 0.004
MATTERS = 0.75
MIN_GLASS_PX = 100
NEAR_BORDER = 0.06
DARKEST_GLASS = 0.08
SMALL_HOLE = 1.5
# averages over so many pixels tell what no pixel tells. Fat of walls of 2 um has twice of each of the others (density, root mean
# square of its texture, tint); shaded glass and specks of dirt have less than half of one or the other
WIDE_PX, WIDE_LEVEL, WIDE_TEXTURE, WIDE_TINT = 4.0, 0.005, 0.006, 0.003


@dataclass(frozen=True)
class TissueParameters:
    """Limits of the tissue mask. Contrasts are in decades of intensity (optical density, log10), lengths in working pixels.

    ``min_contrast`` applies to bright, ``min_contrast_dark`` to dark backgrounds; ``blur_px`` and ``open_px`` hold at 300
    working pixels along the long side and grow with it; ``min_share`` is the smallest piece kept, as a share of the
    largest; ``max_hole`` the largest hole filled, as a share of all tissue; ``ink_contrast`` and ``ink_share`` say what near the
    border of the image is ink: darker than the one and smaller, as a share of the image, than the other; islands are pieces of at
    least ``island_share`` of the largest one's area within ``island_reach`` (of the long side) of the large ones; pixels at the
    edge with less than ``edge_share`` of the signal inside of it are glass.
    """

    min_contrast: float = 0.02
    min_contrast_dark: float = 0.1
    blur_px: float = 0.5
    open_px: float = 2.0
    min_share: float = 0.02
    max_hole: float = 0.3
    ink_contrast: float = 0.35
    ink_share: float = 0.015
    island_share: float = 0.002
    island_reach: float = 0.1
    edge_share: float = 0.1

    def levels(self, inverted: bool, shape: tuple[int, ...]) -> tuple[float, float]:
        """The smallest contrast, and the blur in pixels of an image of this shape; ``inverted``: on a dark background."""
        # nuclei on black stand apart: they have to run together before anything is opened
        blur = self.blur_px * max(1.0, max(shape[:2]) / 300) * (4 if inverted else 1)
        return self.min_contrast_dark if inverted else self.min_contrast, blur


@dataclass(frozen=True, eq=False)
class Tissue:
    """The mask, bool (y, x), the background per channel in pixel values, and whether tissue is brighter than it."""

    mask: Bool
    background: tuple[float, ...]
    inverted: bool
    drift: float = 0.0


def full_range_of(pixels: NDArray[Any]) -> float:
    """Largest value of the pixel type; of float pixels the largest that there is."""
    return float(pixels.max()) if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)


def tissue_bright(pixels: NDArray[Any], background: tuple[float, ...], inverted: bool, full_range: float) -> Float32:
    """Single channel (y, x) in which tissue is bright on a background of 0, from pixels (y, x, c).

    Brightfield: optical density ``-log10((I + 1) / (background + 1))``. ``inverted`` (tissue brighter than the background):
    ``(I - background) / full_range``. The mean over the channels, at least 0.
    """
    values, level = pixels.astype(np.float32), np.asarray(background, np.float32)
    density = (values - level) / np.float32(full_range) if inverted else np.log10((level + 1) / (np.maximum(values, 0) + 1))
    bright: Float32 = np.maximum(density.mean(axis=-1, dtype=np.float32), np.float32(0))
    return bright


def without_lines(mask: Bool, radius: int) -> Bool:
    """Drop the pieces that are thin everywhere and fill little of their bounding box: slide edges, scratches, loose strokes."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    thickest = strongest(depth, labels, count)
    is_long = stats[:, 2:4].max(axis=1) > 20 * thickest
    thin = ((stats[:, 4] < 0.12 * stats[:, 2] * stats[:, 3]) | is_long) & (thickest <= 2 * radius + 0.5)
    thin[0] = True
    return np.asarray(~thin[labels], bool)


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
    ink = (gap <= NEAR_BORDER * max(height, width)) & (area < ink_area) & (strength > parameters.ink_contrast)
    # a word cut off by the border of a tiny image, blurred into its own halo
    ink |= (gap <= 1) & (area < 0.05 * height * width) & (strongest(signal, labels, count) > 2 * parameters.ink_contrast)
    area[ink] = 0
    pale = strength < 0.4 * strength[area.argmax()]
    strip = (on_rim > 0.12 * area) | (on_rim > 0.5 * max(height, width)) | (pale & (gap <= 1))
    keep = (area > 0) & ~(strip & (area < 0.25 * area.max()))
    return np.asarray(keep[labels], bool)


def tissue_pieces(mask: Bool, signal: Float32, tinted: Bool, limits: TissueParameters) -> Bool:
    """The large pieces, and the islands near them that are stained and ``tinted`` as they are (dust is grey).

    In a grey image an island looks as debris does, and goes with it.
    """
    labels, stats = pieces_of(mask, 4)
    area = stats[:, 4].copy()
    area[0] = 0
    large = (area >= limits.min_share * area.max()) & (area >= SMALLEST_PX)
    if not large.any():
        return np.zeros_like(mask)
    low, high = np.percentile(signal[large[labels]], (10, 90))
    strength = medians(signal, labels, len(stats))
    reach = limits.island_reach * max(mask.shape)
    near = strongest((cv2.distanceTransform((~large[labels]).astype(np.uint8), cv2.DIST_L2, 5) <= reach), labels, len(stats)) > 0
    island = (area >= limits.island_share * area.max()) & (area >= SMALLEST_PX) & near
    island &= (strength > 0.7 * low) & (strength < 1.2 * high)
    island &= np.bincount(labels.ravel(), tinted.ravel(), len(stats)) > 0.5 * area
    return np.asarray((large | island)[labels], bool)


def without_rim(mask: Bool, signal: Float32, share: float, scale: float) -> Bool:
    """The mask without the rim of glass that blur and a low threshold add: at its edge, what holds less tissue than ``share``.

    The tissue's own signal is taken from inside of the edge, so that pale tissue keeps its edge.
    """
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    inner = (depth > 2 * scale).astype(np.float32)
    sigma = 2.0 * scale
    level = blurred(signal * inner, sigma) / np.maximum(blurred(inner, sigma), 1e-3)
    return np.asarray(mask & ~((depth <= 2 * scale) & (signal < share * level)), bool)


def find_background(pixels: NDArray[Any], parameters: TissueParameters | None = None) -> tuple[tuple[float, ...], bool]:
    """The background per channel in pixel values of a working image (y, x, c), and whether tissue is brighter than it."""
    limits = parameters or TissueParameters()
    inverted = is_dark_slide(pixels.mean(axis=-1, dtype=np.float32), full_range_of(pixels))
    least, blur = limits.levels(inverted, pixels.shape)
    background = estimate_background(pixels, inverted)
    signal = blurred(contrast(pixels, background, inverted), blur)
    return local_background(pixels, signal, inverted, SOLID * least) or background, inverted


def find_tissue(pixels: NDArray[Any], parameters: TissueParameters | None = None) -> Tissue:
    """Tissue on a working image, (y, x, c), of at best 256 to 1024 pixels along its long side.

    Holes inside the tissue (ventricles, vessels) belong to the mask. The mask may be empty.
    """
    limits = parameters or TissueParameters()
    background, inverted = find_background(pixels, limits)
    least, blur = limits.levels(inverted, pixels.shape)
    scale = max(1.0, max(pixels.shape[:2]) / 300)
    density = density_over(pixels, background, inverted)
    signal = blurred(density.max(axis=-1), blur)
    if inverted:
        return Tissue(clean(signal > least, signal, np.zeros_like(signal, bool), limits), background, inverted)
    nets = nets_filled(signal, least, limits) if density.shape[-1] == 3 else np.zeros(signal.shape, bool)
    textured, tinted = looks_alive(density, (signal > least) | nets, scale)
    drift = drift_of_glass(density, least, textured | tinted)
    if np.ptp(drift.mean(axis=-1)) > MATTERS * least:
        density -= drift
        signal = blurred(density.max(axis=-1), blur)
    sure = (signal > least) | nets
    raw = sure | faint_tissue(density, textured, tinted, sure, scale)
    raw &= ~other_glass(raw & (signal < DARKEST_GLASS) & ~(textured | tinted | nets), scale)
    if density.shape[-1] == 3:
        raw = without_ink(raw, find_ink(density, raw, tinted))
    mask = clean(raw, signal, tinted, limits)
    sparse = sparse_tissue(density, limits) if density.shape[-1] == 3 and mask.mean() < limits.min_share else np.zeros_like(mask)
    # what was found beside it is a crumb of it
    mask = mask | sparse if mask.sum() < limits.min_share * sparse.sum() else mask
    return Tissue(mask, background, inverted, float(np.ptp(drift.mean(axis=-1))))


def nets_filled(signal: Float32, least: float, limits: TissueParameters) -> Bool:
    """Thin walls around many holes, and those holes, bool (y, x): fatty tissue, whose vacuoles are as pale as the glass.

    The walls must stand out twice as far as tissue must: what hovers about the threshold is the glass with its noise.
    """
    walls = np.asarray(signal > least, bool)
    if not walls.any():
        return walls
    walls &= ~without_nets(walls)
    labels, stats = pieces_of(walls)
    strong = medians(signal, labels, len(stats)) > 2 * least
    strong[0] = False
    walls = np.asarray(strong[labels], bool)
    return fill_holes(walls, limits.max_hole * float(walls.sum())) if walls.any() else walls


def sparse_tissue(density: Float32, limits: TissueParameters) -> Bool:
    """Tissue of which no pixel stands out, bool (y, x): nothing but fat, whose walls are much thinner than a pixel.

    Averaged over some pixels it is darker than the glass at all, rougher, and all of one tint. The glass is the paler half.
    """
    scale = max(1.0, max(density.shape[:2]) / 300)
    grey, wide = density.mean(axis=-1), WIDE_PX * scale
    level, texture = blurred(grey, wide), spread(grey, wide)
    glass = level <= np.median(level)
    is_rough = texture > max(WIDE_TEXTURE, FAINT * float(np.median(texture[glass])))
    rough = opened((level > WIDE_LEVEL) & is_rough, round(wide))
    if not rough.any():
        return rough
    tints = np.stack([blurred(np.ascontiguousarray(density[..., c] - grey), wide) for c in range(density.shape[-1])], axis=-1)
    own = tints[rough].mean(axis=0)
    tint = tints @ (own / max(float(np.linalg.norm(own)), 1e-6))
    noise = float(np.median(np.linalg.norm(tints[glass], axis=-1)))
    found = away_from_border(opened(rough & (tint > max(WIDE_TINT, FAINT * noise)), round(wide)))
    if not found.any():
        return found
    # blurring and opening moved its edge: it is where half of what is inside is left
    edge = grown(found, round(wide)) & (level > 0.5 * float(np.median(level[found])))
    labels, stats = pieces_of(fill_holes(edge, limits.max_hole * float(edge.sum())))
    large = stats[:, 4] >= limits.min_share * stats[1:, 4].max()
    large[0] = False
    return np.asarray(large[labels], bool)


def spread(values: Float32, sigma_px: float) -> Float32:
    """Root of the local mean square of what is finer than 1.5 pixels, (y, x)."""
    fine = values - blurred(values, 1.5)
    return np.asarray(np.sqrt(blurred(fine * fine, sigma_px)), np.float32)


def looks_alive(density: Float32, sure: Bool, scale: float) -> tuple[Bool, Bool]:
    """Where the image is textured, and where it is tinted as its tissue, by several times what the glass is, however pale.

    Two bool (y, x). ``density`` is the optical density (y, x, c) over the glass, ``sure`` what stands out by itself. Nothing
    where there is hardly any glass or tissue; a grey image has no tint.
    """
    grey, glass, solid = density.mean(axis=-1), ~grown(sure, round(4 * scale)), opened(sure, round(2 * scale))
    if min(glass.sum(), solid.sum()) < MIN_GLASS_PX:
        return np.zeros_like(sure), np.zeros_like(sure)
    texture = spread(grey, 2.0 * scale)
    tints = np.stack([blurred(np.ascontiguousarray(density[..., c] - grey), scale) for c in range(density.shape[-1])], axis=-1)
    own = tints[solid].mean(axis=0)
    tint = tints @ (own / max(float(np.linalg.norm(own)), 1e-6))
    noise = float(np.median(np.linalg.norm(tints[glass], axis=-1)))
    textured = texture > max(0.0025, FAINT * float(np.median(texture[glass])))
    return np.asarray(textured, bool), np.asarray(tint > max(0.005, FAINT * noise), bool)


def faint_tissue(density: Float32, textured: Bool, tinted: Bool, sure: Bool, scale: float) -> Bool:
    """Pale tissue beyond the sure, bool (y, x): tinted or textured, and darker than the glass at all.

    Texture and tint reach a little beyond sure tissue, so only what is wider than that speaks for itself. Near the border of
    the image dirt is textured too.
    """
    dark = blurred(density.mean(axis=-1), scale) > PALEST
    reach = round(3 * scale)
    beyond = ~grown(opened(sure, round(2 * scale)), reach)
    core = opened(tinted & dark & beyond, reach) | away_from_border(opened(textured & dark & beyond, reach))
    return np.asarray(grown(core, reach + 1) & (textured | tinted) & dark & ~sure, bool)


def other_glass(bare: Bool, scale: float) -> Bool:
    """Glass of another level, bool (y, x): of ``bare`` (pale, grey and smooth) what is wide and reaches the border of the image.

    So lies what is beyond the edge of the coverslip, of the mounting medium or of the slide.
    """
    labels, stats = pieces_of(opened(bare, round(4 * scale)))
    x, y, w, h, _ = stats.T
    at_border = (np.minimum(x, y) <= 1) | (x + w >= bare.shape[1] - 1) | (y + h >= bare.shape[0] - 1)
    at_border[0] = False
    return grown(np.asarray(at_border[labels], bool), round(4 * scale)) & (bare | grown(np.asarray(at_border[labels], bool), 2))


def away_from_border(mask: Bool) -> Bool:
    """The pieces of a mask that keep a distance of 6 % of the long side from the border of the image."""
    labels, stats = pieces_of(mask)
    x, y, w, h, _ = stats.T
    gap = np.minimum.reduce([x, y, mask.shape[1] - x - w, mask.shape[0] - y - h])
    keep = gap > NEAR_BORDER * max(mask.shape)
    keep[0] = False
    return np.asarray(keep[labels], bool)


def clean(mask: Bool, signal: Float32, tinted: Bool, limits: TissueParameters) -> Bool:
    """The pieces of a raw mask that are tissue: without lines, ink, strips along the border and crumbs, its holes filled."""
    scale = max(1.0, max(mask.shape) / 300)
    radius = round(min(limits.open_px * scale, max(1, min(mask.shape) // 40)))
    mask = without_lines(mask, radius)
    largest_hole = limits.max_hole * float(mask.sum())
    # in a grey image what only something thin encloses (a bubble's rim, a sulcus nearly closed) is no hole of the tissue; in a
    # coloured one rims are gone by now
    closed = largest_hole if tinted.any() else min(largest_hole, (SMALL_HOLE * radius) ** 2)
    mask = opened(fill_holes(mask, closed), radius)
    mask = fill_holes(mask, largest_hole)
    mask = without_ink_and_rims(mask, signal, limits)
    mask = fill_holes(tissue_pieces(mask, signal, tinted, limits), largest_hole)
    return without_rim(mask, signal, limits.edge_share, scale)
