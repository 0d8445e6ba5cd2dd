"""MIND of a plane in one pass: what ``features.mind`` says in full, without a mask, for the registration's inner loop."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.kernels.jit import njit, prange

Array = NDArray[np.float32]
# half of the 8 neighbours; the distance to the other half is the same image, shifted
OFFSETS = ((0, 1), (1, -1), (1, 0), (1, 1))


@njit(parallel=True, cache=True, fastmath=True, nogil=True)
def _squares(image, reach, out):  # type: ignore[no-untyped-def]
    """``(I(p) - I(p + r))^2`` for the four offsets, edges replicated, on a canvas ``reach`` wider on every side."""
    height, width = image.shape
    for row in prange(out.shape[1]):
        i = np.int64(row)
        y = min(max(i - reach, 0), height - 1)
        below = min(max(i, 0), height - 1)
        for j in range(out.shape[2]):
            x, ahead, back = min(max(j - reach, 0), width - 1), min(max(j, 0), width - 1), min(max(j - 2 * reach, 0), width - 1)
            here = image[y, x]
            a, b = here - image[y, ahead], here - image[below, back]
            c, d = here - image[below, x], here - image[below, ahead]
            out[0, i, j], out[1, i, j], out[2, i, j], out[3, i, j] = a * a, b * b, c * c, d * d


@njit(parallel=True, cache=True, fastmath=True, nogil=True)
def _describe(distance, variance, low, high, reach, size, out):  # type: ignore[no-untyped-def]
    for row in prange(out.shape[0]):
        i = np.int64(row)
        for j in range(out.shape[1]):
            y, x = i + reach, j + reach
            scale = np.float32(-1) / min(max(variance[i, j], low), high)
            out[i, j, 0] = distance[0, y, x]
            out[i, j, 1] = distance[1, y, x]
            out[i, j, 2] = distance[2, y, x]
            out[i, j, 3] = distance[3, y, x]
            out[i, j, 4] = distance[0, y, x - reach]
            out[i, j, 5] = distance[1, y - reach, x + reach]
            out[i, j, 6] = distance[2, y - reach, x]
            out[i, j, 7] = distance[3, y - reach, x - reach]
            least = out[i, j, 0]
            for k in range(1, 8):
                least = min(least, out[i, j, k])
            for k in range(8):
                out[i, j, k] = size * (np.exp((out[i, j, k] - least) * scale) - np.float32(0.5))


@njit(parallel=True, cache=True, fastmath=True, nogil=True)
def _mean_distance(distance, reach, out):  # type: ignore[no-untyped-def]
    for row in prange(out.shape[0]):
        i = np.int64(row)
        for j in range(out.shape[1]):
            y, x = i + reach, j + reach
            total = distance[0, y, x] + distance[1, y, x] + distance[2, y, x] + distance[3, y, x]
            total += distance[0, y, x - reach] + distance[1, y - reach, x + reach]
            total += distance[2, y - reach, x] + distance[3, y - reach, x - reach]
            out[i, j] = total * np.float32(0.125)


def mind_plane(image: Array, inside: NDArray[np.bool_], sigma_px: float = 1.0, reach: int = 2, size: float = 1.0) -> Array:
    """The 8 channels (y, x, 8) of ``features.mind``, ``size`` times, channels last and nowhere set to 0.

    ``inside`` only sets its noise level.
    ``S_r = exp(-(D_r - min D) / V) - 1/2`` with ``D_r = G_sigma * (I(p) - I(p + r))^2`` and V the mean of D, bounded to 0.05
    to 50 times its median inside.
    """
    squares = np.empty((4, image.shape[0] + 2 * reach, image.shape[1] + 2 * reach), np.float32)
    _squares(image, reach, squares)
    width = 2 * int(np.ceil(3 * sigma_px)) + 1
    for plane in squares:
        cv2.GaussianBlur(plane, (width, width), sigma_px, dst=plane, borderType=cv2.BORDER_REPLICATE)
    variance = np.empty(image.shape, np.float32)
    _mean_distance(squares, reach, variance)
    chosen = variance[inside]
    middle = float(np.median(chosen[:: max(1, chosen.size // 20_000)])) if chosen.size else 1.0
    out = np.empty((*image.shape, 8), np.float32)
    _describe(squares, variance, np.float32(0.05 * middle + 1e-6), np.float32(50 * middle + 2e-6), reach, np.float32(size), out)
    return out
