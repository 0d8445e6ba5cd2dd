"""Similarity metrics as dissimilarities of two arrays of samples: lower is better."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from histomri.kernels.information import shared_information


def nmi(fixed: NDArray[np.float32], moving: NDArray[np.float32], bins: int = 32) -> float:
    """``1 - (H(f) + H(m)) / H(f, m)`` of paired samples, from -1 (each tells the other) to 0 (independent, or nothing varies)."""
    value = shared_information(fixed, moving, bins, tail_percent=1.0)
    return 1 - value if np.isfinite(value) else 0.0
