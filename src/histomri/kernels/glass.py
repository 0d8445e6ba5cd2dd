"""The glass of a slide: whether it is bright or dark, its colour, and how its level drifts over the slide.

Pixels are (y, x, c) of any type. ``docs/decisions/tissue-mask.md`` has the measurements behind the numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.kernels.pieces import Bool, Float32, fill_holes, grown, opened

BINS = 256
PEAK_SHARE = 0.1
DARK_MEDIAN = 0.35
MIN_RING_PX = 100
RING_HOLE = 0.15
UNEXPLAINED = 0.5


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


def density_over(pixels: NDArray[Any], background: tuple[float, ...], inverted: bool) -> Float32:
    """``log10((background + 1) / (I + 1))`` per channel, its negative on dark slides, (y, x, c)."""
    level = np.maximum(np.asarray(background, np.float32), 0) + 1
    density = np.log10(level / (np.maximum(pixels, 0).astype(np.float32) + 1))
    return np.asarray(-density if inverted else density, np.float32)


def surface(shape: tuple[int, int], order: int) -> NDArray[np.float64]:
    """The products of powers of y and x up to ``order`` (total), over -1 to 1, (y, x, n)."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.stack([y**i * x**j for i in range(order + 1) for j in range(order + 1 - i)], axis=-1)


def drift_of_glass(density: Float32, least: float, tissue: Bool, rounds: int = 4) -> Float32:
    """How far the glass drifts from its level over the slide (vignette, shading), in optical density, (y, x, c).

    A quadratic of y and x per channel, grown out of what is surely glass: fitted there, then where it predicts the image to
    within ``least``, and so on; never on ``tissue``. 0 where the glass is too little or lies too much to one side to say.
    """
    terms = surface((density.shape[0], density.shape[1]), 2)
    step = max(1, max(density.shape[:2]) // 150)
    drift = np.zeros_like(density)
    for _ in range(rounds):
        glass = ~grown((np.abs(density - drift).max(axis=-1) > least) | tissue, 2)[::step, ::step]
        if not says_enough(glass):
            return np.zeros_like(density)
        weights, *_ = np.linalg.lstsq(terms[::step, ::step][glass], density[::step, ::step][glass].astype(np.float64), rcond=None)
        drift = np.asarray(terms @ weights, np.float32)
    before, after = (float(values[::step, ::step][glass].var()) for values in (density, density - drift))
    return drift if after < UNEXPLAINED * before else np.zeros_like(density)


def says_enough(glass: Bool) -> bool:
    """Whether there is glass in at least seven of the nine ninths of the image."""
    parts = [p for rows in np.array_split(glass, 3, axis=0) for p in np.array_split(rows, 3, axis=1)]
    return sum(float(p.mean()) > 0.03 for p in parts) >= 7
