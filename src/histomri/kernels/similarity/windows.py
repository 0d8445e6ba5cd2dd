"""Parzen windows: how a value between 0 and 1 is shared among the bins of a histogram.

    box      the bin it falls into                                   (Mattes et al. 2003, for the fixed image)
    linear   the two nearest bin centres, ``1 - |x - k|``, x = u (bins - 1)
    cubic    the four nearest, cubic B-spline of ``k - x``           (Mattes et al. 2003, for the moving image)

``box`` and ``cubic`` leave two bins free at both ends, ``x = 2 + u (bins - 4)``. Values beyond 0 and 1 count as
these, with slope 0.
"""

from __future__ import annotations

from histomri.backend import array_module
from histomri.kernels.similarity.channels import Array

PAIRS = {"linear": ("linear", "linear"), "cubic": ("box", "cubic")}
MARGIN = 2
"""Free bins at both ends of ``box`` and ``cubic``."""


def positions(unit: Array, bins: int, kind: str) -> tuple[Array, Array]:
    """First bin (integers) and place in it (0 to 1) of values in 0 to 1."""
    xp = array_module(unit)
    unit = xp.clip(unit.astype(xp.float64), 0, 1)
    x = unit * (bins - 1) if kind == "linear" else MARGIN + unit * (bins - 2 * MARGIN)
    last = bins - 2 if kind == "linear" else bins - 1 - MARGIN
    first = xp.minimum(xp.floor(x), last).astype(xp.int64)
    return first, x - first


def shares(unit: Array, bins: int, kind: str) -> tuple[Array, Array]:
    """Lowest bin (n,) of each value, and its shares (n, taps) in that and the following bins; they sum to 1."""
    xp = array_module(unit)
    first, t = positions(unit, bins, kind)
    if kind == "box":
        return first, xp.ones((*t.shape, 1))
    if kind == "linear":
        return first, xp.stack([1 - t, t], axis=-1)
    s = 1 - t
    parts = [s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3]
    return first - 1, xp.stack(parts, axis=-1) / 6


def slopes(unit: Array, bins: int, kind: str) -> Array:
    """Derivatives (n, taps) of :func:`shares` by the value; they sum to 0."""
    xp = array_module(unit)
    _, t = positions(unit, bins, kind)
    inside = ((unit >= 0) & (unit <= 1))[..., None]
    if kind == "linear":
        return inside * (bins - 1.0) * xp.stack([-xp.ones_like(t), xp.ones_like(t)], axis=-1)
    s = 1 - t
    parts = [-(s**2), -4 * t + 3 * t**2, 4 * s - 3 * s**2, t**2]
    return inside * (bins - 2.0 * MARGIN) * xp.stack(parts, axis=-1) / 2
