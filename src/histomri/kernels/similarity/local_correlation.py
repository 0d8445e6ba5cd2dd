"""Squared correlation in a box around each voxel: for contrasts that are linear locally, of either sign, and vary in space.

With weighted moments over the box of ``2 radius + 1`` voxels a side around p (cut off at the image's border), ``A = sum w``:

    R_p = cov^2 / ((var_f + floor) (var_m + floor)),   value = 1 - sum_p w_p R_p / sum_p w_p

``floor`` keeps noise in flat places from counting as structure; images are expected at about unit variance. Each voxel i is
in the boxes of its neighbours p, and the force is exact (Avants et al. 2008 keep the term p = i only):

    force_i = -w_i / W (f_i sum_p a_p - m_i sum_p b_p + sum_p (b_p mean_m - a_p mean_f))
    a_p = 2 w_p / A_p cov / ((var_f + floor) (var_m + floor)),   b_p = a_p cov / (var_m + floor)
"""

from __future__ import annotations

import numpy as np

from histomri.backend import array_module
from histomri.kernels.similarity.boxes import box_correlation
from histomri.kernels.similarity.channels import Array, mean_over_channels
from histomri.kernels.similarity.moments import Float, weighted_sums
from histomri.kernels.similarity.passes import Core, Passes, evaluated, of_channels

RADIUS = 2
FLOOR = 1e-3


def lncc_reference(fixed: Array, warped: Array, weight: Array, radius: int = RADIUS, floor: float = FLOOR) -> tuple[float, Array]:
    """Value (1 where an image does not vary or nothing has weight) and force (*shape, c) as array formulas; NumPy or CuPy."""

    def one_channel(f: Array, m: Array, w: Array) -> tuple[float, Array]:
        return _one_channel_reference(f, m, w, radius, floor)

    return mean_over_channels(one_channel, fixed, warped, weight)


def _one_channel_reference(fixed: Array, warped: Array, weight: Array, radius: int, floor: float) -> tuple[float, Array]:
    xp = array_module(warped)
    w = weight.astype(xp.float64)
    total = float(w.sum())
    if total <= 0:
        return 1.0, xp.zeros_like(warped)
    f, m = (a.astype(xp.float64) - float((w * a).sum()) / total for a in (fixed, warped))
    share = xp.where(w > 0, 1 / xp.maximum(box_sum(w, radius), 1e-30), 0.0)
    mean_f, mean_m = (box_sum(w * a, radius) * share for a in (f, m))
    var_f, var_m = (xp.maximum(box_sum(w * a * a, radius) * share - b * b, 0) + floor for a, b in ((f, mean_f), (m, mean_m)))
    cov = box_sum(w * f * m, radius) * share - mean_f * mean_m
    a = 2 * w * share * cov / (var_f * var_m)
    b = a * cov / var_m
    slope = f * box_sum(a, radius) - m * box_sum(b, radius) + box_sum(b * mean_m - a * mean_f, radius)
    value = 1 - float((w * cov * cov / (var_f * var_m)).sum()) / total
    return value, (-w / total * slope).astype(warped.dtype)


def box_sum(image: Array, radius: int) -> Array:
    """Sum over the box of ``2 radius + 1`` voxels a side around each voxel, zeros beyond the border; NumPy or CuPy."""
    xp = array_module(image)
    for axis in range(image.ndim):
        n = image.shape[axis]
        before = [(radius + 1, radius) if k == axis else (0, 0) for k in range(image.ndim)]
        running = xp.cumsum(xp.pad(image, before), axis=axis)
        ends = [slice(None)] * image.ndim
        starts = list(ends)
        ends[axis], starts[axis] = slice(2 * radius + 1, 2 * radius + 1 + n), slice(0, n)
        image = running[tuple(ends)] - running[tuple(starts)]
    return image


def lncc(fixed: Array, warped: Array, weight: Array, radius: int = RADIUS, floor: float = FLOOR) -> tuple[float, Array]:
    """Value and force of the local squared correlation (see the module), by :mod:`boxes`."""
    return evaluated(passes(radius, floor), fixed, warped, weight)


def passes(radius: int = RADIUS, floor: float = FLOOR) -> Passes:
    """The same over parts, with a halo of two radii."""

    def force(fixed: Array, warped: Array, weight: Array, total: Float, core: Core) -> tuple[Float, Array]:
        if total[0] <= 0:
            return np.zeros(1), array_module(warped).zeros_like(warped[core])
        constants = float(total[0]), float(total[1]), float(total[2])
        value, slope = box_correlation(fixed, warped, weight, radius, floor, constants, core)
        return np.array([value]), slope

    return of_channels(Passes(2 * radius, _sums, force, _value))


def _sums(fixed: Array, warped: Array, weight: Array, core: Core) -> Float:
    return weighted_sums(fixed[core], warped[core], weight[core])[:3]


def _value(total: Float, more: Float) -> float:
    return float(1 - more[0] / total[0]) if total[0] > 0 else 1.0
