"""Entropies of binned intensities: how much one image tells about another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histomri.backend import array_module

Float = NDArray[np.float64]


def tails(values: Any, tail_percent: float) -> tuple[float, float]:
    """The ``tail_percent`` percentiles from both ends of all values (NumPy or CuPy); 0 and 1 where there are none."""
    if not values.size:
        return 0.0, 1.0
    low, high = array_module(values).percentile(values, [tail_percent, 100 - tail_percent])
    return float(low), float(high)


def levels(values: ArrayLike, bins: int, tail_percent: float) -> NDArray[np.intp]:
    """Bin (0 to ``bins`` - 1) of each value between the ``tail_percent`` percentiles of both ends; beyond is clipped."""
    values = np.asarray(values, float).ravel()
    low, high = tails(values, tail_percent)
    scaled = (values - low) / max(high - low, 1e-12)
    return np.asarray(np.clip(scaled * bins, 0, bins - 1).astype(np.intp), np.intp)


def joint_histogram(a: ArrayLike, b: ArrayLike, bins: int, tail_percent: float) -> Float:
    """Shares (bins, bins) of the paired samples that fall into each pair of bins; they sum to 1 unless there are no samples."""
    pairs = levels(a, bins, tail_percent) * bins + levels(b, bins, tail_percent)
    counts = np.bincount(pairs, minlength=bins * bins).reshape(bins, bins).astype(float)
    return np.asarray(counts / max(float(counts.sum()), 1.0))


def entropy(shares: Float) -> float:
    """``-sum p log p`` in nats over the shares above 0."""
    p = shares[shares > 0]
    return float(-(p * np.log(p)).sum())


def shared_information(a: ArrayLike, b: ArrayLike, bins: int = 32, tail_percent: float = 1.0) -> float:
    """``(H(a) + H(b)) / H(a, b)`` (Studholme et al. 1999) of paired samples: 1 for unrelated, 2 where each tells the other.

    NaN where neither varies.
    """
    joint = joint_histogram(a, b, bins, tail_percent)
    both = entropy(joint)
    return (entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0))) / both if both > 0 else float("nan")
