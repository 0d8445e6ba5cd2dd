"""One threshold between two classes of values."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def otsu(values: ArrayLike, bins: int = 256, tail_percent: float = 0.0) -> float:
    """The threshold t of greatest variance between the classes ``v <= t`` and ``v > t`` (Otsu 1979), to one of ``bins``.

    ``max_t n0 n1 (mean0 - mean1)^2`` over the finite values; those beyond the ``tail_percent`` percentiles of both ends count
    as the percentile. Raises ``ValueError`` when the values do not vary.
    """
    v = np.asarray(values, float).ravel()
    v = v[np.isfinite(v)]
    low, high = np.percentile(v, [tail_percent, 100 - tail_percent]) if len(v) else (0.0, 0.0)
    if not high > low:
        raise ValueError("A threshold needs intensities that vary, found a constant image.")
    count, edges = np.histogram(np.clip(v, low, high), bins)
    centre = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(count)
    above = below[-1] - below
    sums = np.cumsum(count * centre)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between[:-1]))])
