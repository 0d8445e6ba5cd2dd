"""How well two images on one grid agree: Dice of masks, NMI and local NCC of intensities."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from histomri.kernels.information import shared_information
from histomri.kernels.threshold import otsu

Mask = NDArray[np.bool_]


def dice(a: ArrayLike, b: ArrayLike) -> float:
    """``2 |a and b| / (|a| + |b|)`` of two boolean arrays; NaN when both are empty."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else float("nan")


def nmi(a: ArrayLike, b: ArrayLike, mask: ArrayLike, bins: int = 32) -> float:
    """Normalised mutual information ``(H(a) + H(b)) / H(a, b)`` within a mask: 1 for unrelated images, 2 for equal ones.

    A number for reports, so higher is better (the metrics that registration minimises have the other sign). Intensities
    fall into ``bins`` equal bins between their 0.5th and 99.5th percentile. NaN for fewer than ``bins`` pixels or where
    neither image varies.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    use = np.asarray(mask, bool) & np.isfinite(a) & np.isfinite(b)
    if use.sum() < bins:
        return float("nan")
    return shared_information(a[use], b[use], bins, tail_percent=0.5)


def local_ncc(a: ArrayLike, b: ArrayLike, mask: ArrayLike, window: int = 9) -> float:
    """Mean squared local correlation, in 0 to 1, of two 2D images over the pixels of a mask; NaN for an empty mask.

    Means and variances are taken over the masked pixels of a ``window`` x ``window`` square, so what lies outside the
    mask has no say. The square makes an inverted contrast as good as an equal one. A flat window counts as 0.
    """
    m = np.asarray(mask, bool)
    if not m.any():
        return float("nan")
    w = m.astype(np.float64)

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.blur(x, (window, window), borderType=cv2.BORDER_CONSTANT), np.float64)

    n = np.maximum(mean(w), 1e-9)
    # centred first, so that the variances do not drown in rounding
    x, y = ((np.where(m, i, 0) - np.asarray(i, float)[m].mean()) * w for i in (np.asarray(a, float), np.asarray(b, float)))
    mx, my = mean(x) / n, mean(y) / n
    vx, vy, cov = mean(x * x) / n - mx * mx, mean(y * y) / n - my * my, mean(x * y) / n - mx * my
    floor = 1e-6 * max(float(vx[m].mean() * vy[m].mean()), 1e-20)
    return float(np.clip(cov * cov / np.maximum(vx * vy, floor), 0, 1)[m].mean())


def best_threshold(values: ArrayLike) -> float:
    """Otsu's threshold of the finite values between their 0.5th and 99.5th percentile, for images of tissue on a dark background.

    Raises ``ValueError`` when the values do not vary.
    """
    return otsu(values, tail_percent=0.5)
