"""Pen marks by their colour: stained enough to have a hue, of a hue that the slide's tissue does not have, and thin."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.kernels.pieces import Bool, Float32, blurred, grown, opened, pieces_of, strongest

HUE_BINS = 48
HAS_HUE = 0.06  # length of the optical density (three channels) from which on a pixel has a hue
INK_HUE = 0.15  # and from which on it may be ink
DARKER = 1.5  # ink over the 90th percentile of the tissue
MOSTLY = 0.7
IS_OPAQUE = 1.0  # and from which on it is more likely ink than tissue, on a working level
TAIL_SHARE = 0.01  # hues rarer than this share of the commonest one's are none of the tissue's
MAX_STROKE = 0.04  # half the width of a stroke, at most, as a share of the long side
MAX_RIM = 0.01  # the same for grey lines
MIN_STROKE_PX = 6
DARK_LINE = 0.08
MOST_LOOPS = 12  # of one piece: writing has fewer, the walls of alveoli and of fat cells hundreds


def hue_plane(density: Float32) -> tuple[Float32, Float32]:
    """Length of the optical density (y, x, 3) and its hue, (y, x, 2): the unit vector seen along the grey axis.

    The hue does not change with the amount of a dye (Beer and Lambert); grey lies at the origin.
    """
    length = np.linalg.norm(density, axis=-1).astype(np.float32)
    unit = density / np.maximum(length, 1e-6)[..., None]
    axes = np.array([[1, -1, 0], [1, 1, -2]], np.float32) / np.sqrt(np.array([[2], [6]], np.float32))
    return length, np.asarray(unit @ axes.T, np.float32)


def tissue_hues(cells: NDArray[np.intp], weights: Float32) -> Bool:
    """Which of the (``HUE_BINS``, ``HUE_BINS``) hues are the tissue's: those that hang together with the commonest one."""
    counts = np.bincount(cells, weights, HUE_BINS**2).reshape(HUE_BINS, HUE_BINS).astype(np.float32)
    smooth = cv2.GaussianBlur(counts, (0, 0), 0.8, borderType=cv2.BORDER_CONSTANT)
    common = (smooth > TAIL_SHARE * smooth.max()).astype(np.uint8)
    _, labels = cv2.connectedComponents(common, connectivity=8)
    return grown(labels == labels.ravel()[int(smooth.argmax())], 1)


def foreign_to(tissue: Bool, density: Float32) -> Bool:
    """Pixels (y, x) of optical density (y, x, 3) that are coloured as nothing common in ``tissue``, or far darker."""
    smooth = np.stack([blurred(np.ascontiguousarray(density[..., c]), 0.7) for c in range(3)], axis=-1)
    length, hue = hue_plane(np.maximum(smooth, 0))
    index = np.clip(((hue + 1) / 2 * HUE_BINS).astype(np.intp), 0, HUE_BINS - 1)
    cells = index[..., 0] * HUE_BINS + index[..., 1]
    shown = tissue & (length > HAS_HUE)
    if not shown.any():
        return np.zeros_like(tissue)
    # ink is even and lies over tissue too: opaque pixels say less about what tissue looks like
    weights = np.where(length[shown] < IS_OPAQUE, 1.0, 0.2).astype(np.float32)
    own = tissue_hues(cells[shown], weights)
    odd = (length > INK_HUE) & ~own.ravel()[cells]
    return np.asarray(odd | (length > max(INK_HUE, DARKER * float(np.percentile(length[shown], 90)))), bool)


def find_ink(density: Float32, raw: Bool, tinted: Bool) -> Bool:
    """Strokes of a pen and grey rims and hairs on a working image, bool (y, x).

    ``density`` (y, x, 3) is optical density over the glass, ``raw`` what is darker than it, ``tinted`` what is tinted as
    tissue is. Tissue is what is thicker than a stroke. Ink is thin and has a hue foreign to the tissue or is far darker; grey
    lines are thinner still, and without its tint. Larger areas of an odd hue are tissue all the same.
    """
    long_side = max(raw.shape)
    solid = opened(raw, max(3, round(MAX_STROKE * long_side)))
    solid = solid if solid.any() else raw
    foreign = foreign_to(solid, density)
    labels, stats = pieces_of(foreign)
    depth = cv2.distanceTransform(np.pad(foreign.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    keep = (strongest(depth, labels, len(stats)) <= max(3.0, MAX_STROKE * long_side)) & (stats[:, 4] >= MIN_STROKE_PX)
    keep[0] = False
    ink = np.asarray(keep[labels], bool)
    if tinted[solid].any() and tinted[solid].mean() > MOSTLY:
        grey = raw & ~tinted & (density.max(axis=-1) > DARK_LINE)
        ink |= grey & ~opened(grey, 1 + round(MAX_RIM * long_side))
    return without_nets(grown(ink, 1 + round(long_side / 300))) if ink.any() else ink


def without_nets(ink: Bool) -> Bool:
    """The pieces (y, x) with few loops: thin walls of a hue of their own around many holes are tissue."""
    outlines: Any
    outlines, hierarchy = cv2.findContours(ink.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = np.asarray(hierarchy).reshape(-1, 4)[:, 3]
    loops = np.bincount(outer[outer >= 0], minlength=len(outlines))
    kept = [outlines[i] for i in np.flatnonzero((outer < 0) & (loops <= MOST_LOOPS))]
    seeds = np.zeros(ink.shape, np.uint8)
    for outline in kept:
        x, y = np.asarray(outline).reshape(-1, 2).T
        seeds[y, x] = 1
    labels, stats = pieces_of(ink)
    return np.asarray(ink & (strongest(seeds.astype(np.float32), labels, len(stats)) > 0)[labels], bool)


def without_ink(raw: Bool, ink: Bool) -> Bool:
    """A raw mask without ink; under ink a pixel is what most of the pixels around it are."""
    if not ink.any():
        return raw
    clear = (~ink).astype(np.float32)
    depth = float(cv2.distanceTransform(np.pad(ink.astype(np.uint8), 1), cv2.DIST_L2, 3).max())
    share = blurred((raw & ~ink).astype(np.float32), depth + 1) / np.maximum(blurred(clear, depth + 1), 1e-6)
    return np.asarray((raw & ~ink) | (ink & (share > 0.5)), bool)
