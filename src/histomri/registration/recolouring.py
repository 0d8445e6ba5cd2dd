"""One image in the colours of another: the conditional mean of what the one shows where the other shows this."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float64]
Array = NDArray[np.float32]

BINS = 64


@dataclass(frozen=True, eq=False)
class Curve:
    """``E[b | a]``: ``values`` at ``places``; ``ratio`` is the share of b's variance that it explains."""

    places: Float
    values: Float
    ratio: float

    def apply(self, image: Array) -> Array:
        """The image's values on the curve."""
        return np.interp(image, self.places, self.values).astype(np.float32)


def conditional_mean(given: Array, wanted: Array) -> Curve:
    """Mean of ``wanted`` (n,) for each of 64 levels of ``given`` (n,), smoothed over about two levels."""
    low, high = (float(v) for v in np.percentile(given[:: max(1, len(given) // 200_000)], (0.2, 99.8)))
    place = np.clip((given - low) / max(high - low, 1e-12) * BINS, 0, BINS - 1).astype(np.intp)
    count = np.bincount(place, minlength=BINS).astype(float)
    total = np.bincount(place, wanted, minlength=BINS)
    explained = float((total**2 / np.maximum(count, 1)).sum() - total.sum() ** 2 / len(given))
    variance = float(wanted.astype(np.float64).var()) * len(given)
    smooth = [ndimage.gaussian_filter1d(v, 1.5, mode="constant") for v in (total, count + 1e-9)]
    places = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    return Curve(places, smooth[0] / smooth[1], explained / max(variance, 1e-12))
