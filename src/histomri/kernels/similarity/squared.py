"""Sum of squared differences: for images of one modality and for descriptors.

value = sum_p w_p sum_c (m_c - f_c)^2 / sum_p w_p,   force_c = 2 w (m_c - f_c) / sum w
"""

from __future__ import annotations

import numpy as np

from histomri.backend import array_module
from histomri.kernels import cuda
from histomri.kernels.jit import njit, prange
from histomri.kernels.similarity.channels import Array
from histomri.kernels.similarity.moments import BLOCK, REORDERED, Float, flat
from histomri.kernels.similarity.passes import Core, Passes, evaluated


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
    return evaluated(PASSES, fixed, warped, weight)


def _sums(fixed: Array, warped: Array, weight: Array, core: Core) -> Float:
    """``sum w``."""
    return np.array([float(weight[core].sum(dtype=np.float64))])


def _force(fixed: Array, warped: Array, weight: Array, total: Float, core: Core) -> tuple[Float, Array]:
    """``sum w r^2`` and the force."""
    if total[0] <= 0:
        return np.zeros(1), array_module(warped).zeros_like(warped[core])
    channels, shape = warped.shape[-1], warped[core].shape
    images, scale = (flat(fixed[core]), flat(warped[core]), flat(weight[core])), np.float32(2 / total[0])
    if array_module(warped) is not np:
        return _force_on_device(images, channels, scale, shape)
    f, m = images[0].reshape(-1, channels), images[1].reshape(-1, channels)
    force, values = np.empty_like(m), np.empty(-(-len(m) // BLOCK))
    _ssd(f, m, images[2], scale, values, force)
    return values.sum(keepdims=True), force.reshape(shape)


def _force_on_device(images: tuple[Array, Array, Array], channels: int, scale: Array, shape: Array) -> tuple[Float, Array]:
    xp, size = array_module(images[1]), images[1].size
    count = cuda.workers(size)
    values, force = xp.empty(count, np.float64), xp.empty(size, np.float32)
    numbers = np.int64(size), np.int64(channels), np.int64(count), scale
    cuda.launch("moments", "squared", count, (*images, *numbers, values, force))
    return np.array([float(values.sum())]), force.reshape(shape)


def _value(total: Float, more: Float) -> float:
    return float(more[0] / total[0]) if total[0] > 0 else float("inf")


PASSES = Passes(0, _sums, _force, _value)
"""The same over parts."""


@njit(parallel=True, cache=True, fastmath=REORDERED)
def _ssd(fixed, warped, weight, scale, values, force):  # type: ignore[no-untyped-def]
    for block in prange(values.size):
        start = block * BLOCK
        stop = min(weight.size, start + BLOCK)
        value = 0.0
        for i in range(start, stop):
            w = weight[i]
            for c in range(warped.shape[1]):
                r = warped[i, c] - fixed[i, c]
                value += w * r * r
                force[i, c] = scale * w * r
        values[block] = value
