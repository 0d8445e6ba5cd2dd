"""Metrics of one channel, over several: the mean of the channels' values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from histomri.backend import array_module

Array = Any  # of NumPy or CuPy
OneChannel = Callable[[Array, Array, Array], tuple[float, Array]]


def mean_over_channels(metric: OneChannel, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value and force (*shape, c) of a metric of single channels (*shape), ``1 / c sum_c metric(f_c, m_c, w)``."""
    xp = array_module(warped)
    channels = warped.shape[-1]
    if channels == 1:
        value, force = metric(fixed[..., 0], warped[..., 0], weight)
        return value, force[..., None]
    pairs = [metric(xp.ascontiguousarray(fixed[..., c]), xp.ascontiguousarray(warped[..., c]), weight) for c in range(channels)]
    return sum(v for v, _ in pairs) / channels, xp.stack([f / channels for _, f in pairs], axis=-1)
