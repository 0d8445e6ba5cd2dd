"""Mutual information, plain and normalised, from a joint histogram with Parzen windows: for any two modalities.

With values between 0 and 1 shared among the bins by :mod:`windows`, k for the fixed and l for the warped image:

    P_kl = sum_i w_i s_k(f_i) s_l(m_i) / sum w
    mi    value = -(H(f) + H(m) - H(f, m))            (Mattes et al. 2003, with window ``cubic``)
    nmi   value = 1 - (H(f) + H(m)) / H(f, m)         (Studholme et al. 1999)
    force_i = w_i / sum w  sum_kl s_k(f_i) s_l'(m_i) T_kl,   T = d value / dP

in nats. What is constant along l drops out of T, because the slopes of the windows sum to 0.
"""

from __future__ import annotations

import numpy as np

from histomri.backend import array_module
from histomri.kernels.information import entropy
from histomri.kernels.similarity import parzen
from histomri.kernels.similarity.channels import Array, mean_over_channels
from histomri.kernels.similarity.passes import Core, Float, Passes, evaluated, of_channels
from histomri.kernels.similarity.windows import PAIRS, shares, slopes

BINS = 32
TINY = 1e-30
TRACE = 1e-9


def joint_histogram_reference(fixed: Array, warped: Array, weight: Array, bins: int = BINS, window: str = "linear") -> Array:
    """Shares P (bins, bins) of single-channel images in 0 to 1; they sum to 1 unless nothing has weight; NumPy or CuPy."""
    xp = array_module(warped)
    w = weight.astype(xp.float64).ravel()
    (first_f, share_f), (first_m, share_m) = (
        shares(a.ravel(), bins, kind) for a, kind in zip((fixed, warped), PAIRS[window], strict=True)
    )
    out = xp.zeros(bins * bins)
    for j in range(share_f.shape[-1]):
        for k in range(share_m.shape[-1]):
            where = (first_f + j) * bins + first_m + k
            out += xp.bincount(where, w * share_f[:, j] * share_m[:, k], minlength=bins * bins)
    return (out / max(float(w.sum()), TINY)).reshape(bins, bins)


def mutual_information(joint: Array) -> tuple[float, Array]:
    """``-I`` of shares (bins, bins) and its derivative T by them, up to what is constant along the second axis."""
    value = entropy(joint) - entropy(joint.sum(axis=1)) - entropy(joint.sum(axis=0))
    return value, _slope(joint, 1.0)


def normalised_mutual_information(joint: Array) -> tuple[float, Array]:
    """``1 - (H(f) + H(m)) / H(f, m)`` of shares (bins, bins) and T likewise; 0 where everything is in one bin."""
    both, single = entropy(joint), entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0))
    if both <= 1e-12:
        return 0.0, joint * 0
    return 1 - single / both, _slope(joint, single / both) / both


def _slope(joint: Array, ratio: float) -> Array:
    """``log P_l - ratio log P_kl``; empty bins count as if they held a trace of independent pairs, which keeps forces finite."""
    xp = array_module(joint)
    across, along = joint.sum(axis=0) + TRACE, joint.sum(axis=1)
    return xp.log(across)[None] - ratio * xp.log(xp.maximum(joint + TRACE * along[:, None], TINY))


INFORMATION = {"mi": mutual_information, "nmi": normalised_mutual_information}


def information_reference(
    fixed: Array, warped: Array, weight: Array, bins: int = BINS, window: str = "linear", kind: str = "nmi"
) -> tuple[float, Array]:
    """Value (0 where an image does not vary or nothing has weight) and force (*shape, c) as array formulas; NumPy or CuPy.

    ``kind``: ``mi`` or ``nmi``; ``window``: ``linear`` or ``cubic``.
    """

    def one_channel(f: Array, m: Array, w: Array) -> tuple[float, Array]:
        value, slope = INFORMATION[kind](joint_histogram_reference(f, m, w, bins, window))
        return value, _pulled_back_reference(f, m, w, slope, window)

    return mean_over_channels(one_channel, fixed, warped, weight)


def _pulled_back_reference(fixed: Array, warped: Array, weight: Array, slope: Array, window: str) -> Array:
    xp = array_module(warped)
    bins = slope.shape[0]
    first_f, share_f = shares(fixed, bins, PAIRS[window][0])
    first_m, _ = shares(warped, bins, PAIRS[window][1])
    by_value = slopes(warped, bins, PAIRS[window][1])
    out = xp.zeros(warped.shape)
    for j in range(share_f.shape[-1]):
        for k in range(by_value.shape[-1]):
            out += share_f[..., j] * by_value[..., k] * slope[first_f + j, first_m + k]
    w = weight.astype(xp.float64)
    return (w / max(float(w.sum()), TINY) * out).astype(warped.dtype)


def joint_histogram(fixed: Array, warped: Array, weight: Array, bins: int = BINS, window: str = "linear") -> Array:
    """The same as :func:`joint_histogram_reference`, by :mod:`parzen`; an array of NumPy."""
    counts = parzen.joint_histogram(fixed, warped, weight, bins, window)
    return counts / max(float(counts.sum()), TINY)


def information(
    fixed: Array, warped: Array, weight: Array, bins: int = BINS, window: str = "linear", kind: str = "nmi"
) -> tuple[float, Array]:
    """Value and force of the (normalised) mutual information (see the module)."""
    return evaluated(passes(bins, window, kind), fixed, warped, weight)


def passes(bins: int = BINS, window: str = "linear", kind: str = "nmi") -> Passes:
    """The same over parts."""

    def sums(fixed: Array, warped: Array, weight: Array, core: Core) -> Float:
        return parzen.joint_histogram(fixed[core], warped[core], weight[core], bins, window)

    def force(fixed: Array, warped: Array, weight: Array, total: Float, core: Core) -> tuple[Float, Array]:
        count = max(float(total.sum()), TINY)
        slope = INFORMATION[kind](total / count)[1] / count
        return np.zeros(0), parzen.pulled_back(fixed[core], warped[core], weight[core], slope, window)

    def value(total: Float, more: Float) -> float:
        return INFORMATION[kind](total / max(float(total.sum()), TINY))[0]

    return of_channels(Passes(0, sums, force, value))


def information_value(
    fixed: Array, warped: Array, weight: Array, bins: int = BINS, window: str = "linear", kind: str = "nmi"
) -> float:
    """The value alone: one pass over the images."""
    channels = range(warped.shape[-1])
    joint = (joint_histogram(fixed[..., c], warped[..., c], weight, bins, window) for c in channels)
    return sum(INFORMATION[kind](shares)[0] for shares in joint) / len(channels)
