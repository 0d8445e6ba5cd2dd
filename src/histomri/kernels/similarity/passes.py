"""A metric in two passes, so that it can be evaluated over the parts of an image that is too large for one go.

    total = sum over parts of sums(part),   (more_k, force_k) = force(part_k, total),   value = value(total, sum of more_k)

A part is a box of the image whose ``core`` (slices into the box) it answers for; the rest of the box is the halo, which reaches
``halo`` pixels beyond the core, or to the image's border. What is summed is float64 and added in the order of the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels.similarity.channels import Array

Float = NDArray[np.float64]
Core = tuple[slice, ...]


class Passes(NamedTuple):
    """What a metric does with a part: ``fixed`` and ``warped`` (*box, c), ``weight`` (*box).

    ``sums(fixed, warped, weight, core)`` adds up over the core; ``force(fixed, warped, weight, total, core)`` gives further sums
    and the force (*core, c). Both sums are float64 of any shape, on the CPU. ``value(total, more)`` is the dissimilarity.
    """

    halo: int
    sums: Callable[[Array, Array, Array, Core], Float]
    force: Callable[[Array, Array, Array, Float, Core], tuple[Float, Array]]
    value: Callable[[Float, Float], float]


def whole(shape: tuple[int, ...]) -> Core:
    """The core that is all of a box."""
    return tuple(slice(0, n) for n in shape)


def evaluated(passes: Passes, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value and force of a whole image: a single part."""
    core = whole(weight.shape)
    total = passes.sums(fixed, warped, weight, core)
    more, force = passes.force(fixed, warped, weight, total, core)
    return passes.value(total, more), force


def of_channels(one: Passes) -> Passes:
    """The mean over the channels of a metric of single channels (*box): sums (c, ...)."""

    def sums(fixed: Array, warped: Array, weight: Array, core: Core) -> Float:
        return np.stack([one.sums(f, m, weight, core) for f, m in _pairs(fixed, warped)])

    def force(fixed: Array, warped: Array, weight: Array, total: Float, core: Core) -> tuple[Float, Array]:
        found = [one.force(f, m, weight, t, core) for (f, m), t in zip(_pairs(fixed, warped), total, strict=True)]
        channels, more = len(found), np.stack([part for part, _ in found])
        if channels == 1:
            return more, found[0][1][..., None]
        return more, array_module(warped).stack([part / channels for _, part in found], axis=-1)

    def value(total: Float, more: Float) -> float:
        return sum(one.value(t, m) for t, m in zip(total, more, strict=True)) / len(total)

    return Passes(one.halo, sums, force, value)


def _pairs(fixed: Array, warped: Array) -> list[tuple[Any, Any]]:
    xp, channels = array_module(warped), warped.shape[-1]
    if channels == 1:
        return [(fixed[..., 0], warped[..., 0])]
    return [(xp.ascontiguousarray(fixed[..., c]), xp.ascontiguousarray(warped[..., c])) for c in range(channels)]
