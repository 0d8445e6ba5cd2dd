"""What changes slowly along a stack of sections, told apart from what jumps from one section to the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Float = NDArray[np.float64]
REACH = 3.0
ROBUST_SWEEPS = 3
LEAST = 1e-6


def slow_part(positions_mm: Float, values: Float, trust: Float, sigma_mm: float) -> Float:
    """The part of ``values`` (n, ...) that changes slowly with ``positions_mm`` (n,), at those positions: (n, ...).

    At each position a straight line is fitted to the values around it, with Gaussian weights of ``sigma_mm`` times ``trust`` (n,)
    (local linear regression, Cleveland 1979: what changes evenly is kept whole, at the ends too, whatever the gaps and the
    spacing). Vectors, the last axis, that are far from the line lose their weight (Cauchy's).
    """
    flat = values.reshape(len(values), -1, values.shape[-1])
    kernels = _kernels(positions_mm, sigma_mm)
    weight = np.repeat(np.maximum(trust, LEAST)[:, None], flat.shape[1], axis=1)
    slow = _lines(kernels, flat, weight)
    for _ in range(ROBUST_SWEEPS):
        off = np.linalg.norm(flat - slow, axis=-1)
        spread = 1.4826 * np.median(off[trust > 0.5] if (trust > 0.5).any() else off, axis=0) + 1e-9
        slow = _lines(kernels, flat, weight / (1 + (off / (2.385 * spread)) ** 2))
    return np.asarray(slow.reshape(values.shape))


def running_median(values: Float, reach: int) -> Float:
    """The median of each value (n,) and the ``reach`` ones on either side."""
    return np.array([np.median(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))])


def _kernels(positions_mm: Float, sigma_mm: float) -> list[csr_matrix]:
    """Gaussian weights of each position for each other one, (n, n), times 1, the distance and its square in sigmas."""
    away = (positions_mm[None] - positions_mm[:, None]) / sigma_mm
    near = np.where(np.abs(away) <= REACH, np.exp(-0.5 * away**2), 0)
    # sparse products add in a fixed order, whatever the number of threads
    return [csr_matrix(near * away**k) for k in range(3)]


def _lines(kernels: list[csr_matrix], values: Float, weight: Float) -> Float:
    """The value at its own position of each position's line: (n, m, d) of values (n, m, d) and weights (n, m)."""
    none, once, twice = (k @ weight for k in kernels)
    flat = (weight[..., None] * values).reshape(len(values), -1)
    sums, moments = ((k @ flat).reshape(values.shape) for k in kernels[:2])
    # where one place alone has weight there is no slope: the mean then
    spread = twice * none - once**2 + 1e-6 * none**2
    return np.asarray(((twice + 1e-6 * none)[..., None] * sums - once[..., None] * moments) / spread[..., None], np.float64)
