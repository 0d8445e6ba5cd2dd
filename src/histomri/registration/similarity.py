"""Similarity metrics as dissimilarities of two arrays of samples: lower is better."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nmi(fixed: NDArray[np.float32], moving: NDArray[np.float32], bins: int = 32) -> float:
    """``1 - (H(f) + H(m)) / H(f, m)`` (Studholme et al. 1999) of paired samples, from -1 (each tells the other) to 0 (independent).

    Intensities are binned between their 1st and 99th percentiles.
    """
    indices = [_binned(np.asarray(a).ravel(), bins) for a in (fixed, moving)]
    joint = np.bincount(indices[0] * bins + indices[1], minlength=bins * bins).reshape(bins, bins).astype(float)
    joint /= max(joint.sum(), 1.0)
    both = _entropy(joint.ravel())
    return 1 - (_entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))) / both if both > 0 else 0.0


def _binned(values: NDArray[np.float32], bins: int) -> NDArray[np.int64]:
    low, high = np.percentile(values, [1, 99]) if values.size else (0.0, 1.0)
    return np.clip((values - low) / max(high - low, 1e-12) * bins, 0, bins - 1).astype(np.int64)


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
