"""Summaries of many numbers, and how far one of them stands out from its peers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]
MAD_TO_SIGMA = 1.4826


def summarise(values: ArrayLike) -> dict[str, float | int | None]:
    """``n``, ``median``, ``mean``, ``p10``, ``p95`` and ``max`` of the finite values; all but ``n`` are None without any."""
    v = np.asarray(values, float).ravel()
    v = v[np.isfinite(v)]
    if not len(v):
        return {"n": 0, "median": None, "mean": None, "p10": None, "p95": None, "max": None}
    p10, median, p95 = np.percentile(v, [10, 50, 95])
    return {
        "n": len(v),
        "median": float(median),
        "mean": float(v.mean()),
        "p10": float(p10),
        "p95": float(p95),
        "max": float(v.max()),
    }


def peer_trend(values: ArrayLike, window: int) -> Float:
    """What the ``window`` finite values on either side of each value, itself left out, make one expect; NaN without any.

    The line through them by the median of slopes (Theil and Sen), which up to a quarter of bad peers cannot bend, and
    which at the ends, with peers on one side only, follows a drift where their median would lag behind. Below five peers
    it is their median.
    """
    v = np.asarray(values, float)
    known = np.flatnonzero(np.isfinite(v))
    out = np.full(len(v), np.nan)
    for i in range(len(v)):
        near = np.concatenate([known[known < i][-window:], known[known > i][:window]])
        if len(near):
            out[i] = np.median(v[near] - _slope(near, v[near]) * (near - i))
    return out


def _slope(at: NDArray[np.intp], values: Float) -> float:
    if len(at) < 5:
        return 0.0
    first, second = np.triu_indices(len(at), 1)
    return float(np.median((values[second] - values[first]) / (at[second] - at[first])))


def robust_z(values: ArrayLike, window: int, floor: float) -> Float:
    """How many robust standard deviations each value lies above what its peers make one expect, (n,); NaN stays NaN.

    The peers are the ``window`` values on either side, so that a drift along the stack is no outlier. Sigma is
    1.4826 times the median absolute difference over all values and at least ``floor`` (in the values' unit), so that a
    nearly constant series does not make outliers of noise.
    """
    v = np.asarray(values, float)
    difference = v - peer_trend(v, window)
    finite = np.abs(difference[np.isfinite(difference)])
    sigma = max(floor, MAD_TO_SIGMA * float(np.median(finite))) if len(finite) else floor
    return np.asarray(difference / sigma, float)
