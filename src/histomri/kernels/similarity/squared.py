"""Sum of squared differences: for images of one modality and for descriptors.

value = sum_p w_p sum_c (m_c - f_c)^2 / sum_p w_p,   force_c = 2 w (m_c - f_c) / sum w
"""

from __future__ import annotations

from histomri.backend import array_module
from histomri.kernels.similarity.channels import Array


def ssd_reference(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value (infinity where nothing has weight) and force (*shape, c) as array formulas; NumPy or CuPy."""
    xp = array_module(warped)
    w = weight.astype(xp.float64)[..., None]
    total = float(w.sum())
    if total <= 0:
        return float("inf"), xp.zeros_like(warped)
    residual = warped.astype(xp.float64) - fixed
    value = float((w * residual * residual).sum()) / total
    return value, (2 / total * w * residual).astype(warped.dtype)


def ssd(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value and force of the sum of squared differences (see the module)."""
    return ssd_reference(fixed, warped, weight)
