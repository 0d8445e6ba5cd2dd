"""Correlation of the whole images: for one modality under any brightness and contrast.

With weighted moments over all voxels, ``W = sum w``:

    r = cov(f, m) / (s_f s_m),   value = 1 - r
    force = -w / W ((f - mean_f) / (s_f s_m) - r (m - mean_m) / s_m^2)
"""

from __future__ import annotations

import numpy as np

from histomri.backend import array_module
from histomri.kernels.similarity.channels import Array, mean_over_channels
from histomri.kernels.similarity.moments import Float, weighted_line, weighted_sums
from histomri.kernels.similarity.passes import Core, Passes, evaluated, of_channels

CONSTANT = 1e-13  # of the mean square: a variance below this share is rounding


def ncc_reference(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value (1 where an image does not vary or nothing has weight) and force (*shape, c) as array formulas; NumPy or CuPy."""
    return mean_over_channels(_one_channel_reference, fixed, warped, weight)


def _one_channel_reference(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    xp = array_module(warped)
    w = weight.astype(xp.float64)
    total = float(w.sum())
    if total <= 0:
        return 1.0, xp.zeros_like(warped)
    w = w / total
    f, m = (a.astype(xp.float64) - float((w * a).sum()) for a in (fixed, warped))
    squares = [float((w * a.astype(xp.float64) ** 2).sum()) for a in (fixed, warped)]
    var_f, var_m = float((w * f * f).sum()), float((w * m * m).sum())
    if var_f <= CONSTANT * squares[0] or var_m <= CONSTANT * squares[1]:
        return 1.0, xp.zeros_like(warped)
    scale = (var_f * var_m) ** -0.5
    r = float((w * f * m).sum()) * scale
    return 1 - r, (w * (r / var_m * m - scale * f)).astype(warped.dtype)


def ncc(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value and force of ``1 - r`` (see the module)."""
    return evaluated(PASSES, fixed, warped, weight)


def _line(sums: Float) -> tuple[float, float, float, float]:
    """``1 - r`` and a, b, c of ``force = w (a f + b m + c)``, from the sums of :func:`weighted_sums`."""
    if sums[0] <= 0:
        return 1.0, 0.0, 0.0, 0.0
    mean_f, mean_m, *squares, product = sums[1:] / sums[0]
    var_f, var_m = squares[0] - mean_f**2, squares[1] - mean_m**2
    if var_f <= CONSTANT * squares[0] or var_m <= CONSTANT * squares[1]:
        return 1.0, 0.0, 0.0, 0.0
    scale = (var_f * var_m) ** -0.5
    r = (product - mean_f * mean_m) * scale
    along_f, along_m = -scale / sums[0], r / var_m / sums[0]
    return float(1 - r), along_f, along_m, -along_f * mean_f - along_m * mean_m


def _sums(fixed: Array, warped: Array, weight: Array, core: Core) -> Float:
    return weighted_sums(fixed[core], warped[core], weight[core])


def _force(fixed: Array, warped: Array, weight: Array, total: Float, core: Core) -> tuple[Float, Array]:
    return np.zeros(0), weighted_line(fixed[core], warped[core], weight[core], *_line(total)[1:])


PASSES = of_channels(Passes(0, _sums, _force, lambda total, more: _line(total)[0]))
"""The same over parts."""
