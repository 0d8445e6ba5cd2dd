"""Correlation ratio: for contrasts where the warped value is some function of the fixed one (Roche et al. 1998).

With fixed values between 0 and 1 shared among the bins k by linear :mod:`windows` s, ``W = sum w``:

    N_k = sum_i w_i s_k(f_i) / W,   M_k = sum_i w_i s_k(f_i) m_i / W / N_k
    explained = sum_k N_k M_k^2 - mean_m^2,   value = 1 - explained / var_m
    force_i = 2 w_i / (W var_m) ((1 - value) (m_i - mean_m) - (sum_k s_k(f_i) M_k - mean_m))
"""

from __future__ import annotations

import numpy as np

from histomri.backend import array_module
from histomri.kernels import cuda
from histomri.kernels.jit import njit, prange
from histomri.kernels.similarity import parzen
from histomri.kernels.similarity.channels import Array, mean_over_channels
from histomri.kernels.similarity.correlation import CONSTANT
from histomri.kernels.similarity.moments import BLOCK, Float, flat
from histomri.kernels.similarity.parzen import place
from histomri.kernels.similarity.passes import Core, Passes, evaluated, of_channels
from histomri.kernels.similarity.windows import shares

BINS = 32


def cr_reference(fixed: Array, warped: Array, weight: Array, bins: int = BINS) -> tuple[float, Array]:
    """Value (1 where an image does not vary or nothing has weight) and force (*shape, c) as array formulas; NumPy or CuPy."""

    def one_channel(f: Array, m: Array, w: Array) -> tuple[float, Array]:
        return _one_channel_reference(f, m, w, bins)

    return mean_over_channels(one_channel, fixed, warped, weight)


def _one_channel_reference(fixed: Array, warped: Array, weight: Array, bins: int) -> tuple[float, Array]:
    xp = array_module(warped)
    w = weight.astype(xp.float64)
    total = float(w.sum())
    if total <= 0:
        return 1.0, xp.zeros_like(warped)
    w = w / total
    mean = float((w * warped).sum())
    m = warped.astype(xp.float64) - mean
    variance = float((w * m * m).sum())
    if variance <= CONSTANT * (variance + mean * mean):
        return 1.0, xp.zeros_like(warped)
    first, share = shares(fixed, bins, "linear")
    count, summed = (_binned(first, share, values, bins) for values in (w, w * m))
    means = xp.where(count > 0, summed / xp.maximum(count, 1e-30), 0)
    ratio = float((count * means * means).sum()) / variance
    expected = share[..., 0] * means[first] + share[..., 1] * means[first + 1]
    return 1 - ratio, (2 / variance * w * (ratio * m - expected)).astype(warped.dtype)


def _binned(first: Array, share: Array, values: Array, bins: int) -> Array:
    xp = array_module(values)
    parts = (xp.bincount((first + j).ravel(), (share[..., j] * values).ravel(), minlength=bins) for j in range(2))
    return sum(parts)


def cr(fixed: Array, warped: Array, weight: Array, bins: int = BINS) -> tuple[float, Array]:
    """Value and force of the correlation ratio (see the module); fused for arrays of NumPy."""
    return evaluated(passes(bins), fixed, warped, weight)


def passes(bins: int = BINS) -> Passes:
    """The same over parts."""

    def sums(fixed: Array, warped: Array, weight: Array, core: Core) -> Float:
        return binned_sums(fixed[core], warped[core], weight[core], bins)

    def force(fixed: Array, warped: Array, weight: Array, total: Float, core: Core) -> tuple[Float, Array]:
        _, means, constants = _explained(total)
        return np.zeros(0), expected_force(fixed[core], warped[core], weight[core], means, constants)

    return of_channels(Passes(0, sums, force, lambda total, more: _explained(total)[0]))


def _explained(sums: Float) -> tuple[float, Float, tuple[float, float, float]]:
    """Value, means M_k - mean of the bins, and ``scale, ratio, mean`` of ``force = scale w (ratio (m - mean) - E(f))``."""
    count, summed, squared = sums.T
    total, mean, square = (float(x.sum()) / max(float(count.sum()), 1e-30) for x in (count, summed, squared))
    variance = square - mean * mean
    if total <= 0 or variance <= CONSTANT * square:
        return 1.0, np.zeros(len(count)), (0.0, 0.0, 0.0)
    means = np.where(count > 0, summed / np.maximum(count, 1e-30), mean) - mean
    ratio = float((count * means * means).sum() / count.sum()) / variance
    return 1 - ratio, means, (float(2 / variance / count.sum()), ratio, mean)


def binned_sums(fixed: Array, warped: Array, weight: Array, bins: int) -> Float:
    """Sums of w, w m, w m m in each bin of the fixed values, (bins, 3)."""
    images = flat(fixed), flat(warped), flat(weight)
    if array_module(warped) is not np:
        return parzen.binned_on_device(images, bins)
    blocks = np.empty((-(-warped.size // BLOCK), bins, 3))
    _bins(*images, bins, blocks)
    total: Float = blocks.sum(axis=0)
    return total


def expected_force(fixed: Array, warped: Array, weight: Array, means: Float, constants: tuple[float, float, float]) -> Array:
    """``scale w (ratio (m - mean) - E(f))`` with E by linear windows over ``means``."""
    xp, images = array_module(warped), (flat(fixed), flat(warped), flat(weight))
    force, table = xp.empty(warped.size, np.float32), xp.asarray(means.astype(np.float32))
    if xp is not np:
        numbers = (np.float32(x) for x in constants)
        sizes = np.int64(force.size), np.int64(len(means))
        cuda.launch("histogram", "expected_force", force.size, (*images, *sizes, table, *numbers, force))
    else:
        _force(*images, table, np.array(constants, np.float32), force)
    return force.reshape(warped.shape)


@njit(parallel=True, cache=True)
def _bins(fixed, warped, weight, bins, out):  # type: ignore[no-untyped-def]
    """Sums of w, w m, w m m in each bin, block by block."""
    for block in prange(out.shape[0]):
        sums = np.zeros((bins, 3))
        for i in range(block * BLOCK, min(warped.size, (block + 1) * BLOCK)):
            k, b = place(fixed[i], bins, False)
            m = np.float64(warped[i])
            upper = np.float64(weight[i]) * b
            lower = np.float64(weight[i]) - upper
            sums[k, 0] += lower
            sums[k, 1] += lower * m
            sums[k, 2] += lower * m * m
            sums[k + 1, 0] += upper
            sums[k + 1, 1] += upper * m
            sums[k + 1, 2] += upper * m * m
        out[block] = sums


@njit(parallel=True, cache=True, fastmath={"nsz", "contract"})
def _force(fixed, warped, weight, means, constants, out):  # type: ignore[no-untyped-def]
    scale, ratio, mean = constants
    for block in prange(-(-out.size // BLOCK)):
        for i in range(block * BLOCK, min(out.size, (block + 1) * BLOCK)):
            k, b = place(fixed[i], means.size, False)
            expected = means[k] + b * (means[k + 1] - means[k])
            out[i] = scale * weight[i] * (ratio * (warped[i] - mean) - expected)
