"""Metrics over parts: a pass of sums, added in the order of the parts, then value and force from the total."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels.similarity.passes import Core, Passes
from histomri.tiling.boxes import Box, boxes, grown, read

Float = NDArray[np.float64]
# a part's fixed and warped values (*outer, c), its weight (*outer), and its core in them
Part = tuple[Any, Any, Any, Core]


def added(sums: Iterable[Float]) -> Float:
    """The sum of arrays in their order; of nothing, an empty one."""
    total: Float | None = None
    for one in sums:
        total = one if total is None else total + one
    return np.zeros(0) if total is None else total


def in_parts(passes: Passes, parts: Callable[[], Iterable[Part]], take: Callable[[Any], None]) -> float:
    """The value; ``take`` gets the force of each part's core in turn. ``parts`` are asked for twice, in one order."""
    total = added(passes.sums(*part) for part in parts())

    def second(part: Part) -> Float:
        more, force = passes.force(*part[:3], total, part[3])
        take(force)
        return more

    return passes.value(total, added(second(part) for part in parts()))


def evaluate(passes: Passes, fixed: Any, warped: Any, weight: Any, tile: Sequence[int], out: Any = None) -> tuple[float, Any]:
    """Value and force of whole images (*shape, c) under a weight (*shape), tile by tile; the force goes into ``out``."""
    shape = weight.shape
    found = boxes(shape, tile)

    def parts() -> Iterable[Part]:
        for box in found:
            outer, core = grown(box, passes.halo, shape)
            yield read(fixed, outer), read(warped, outer), read(weight, outer), core

    out = array_module(warped).empty(warped.shape, np.float32) if out is None else out
    return in_parts(passes, parts, placed(out, found)), out


def placed(out: Any, found: Sequence[Box]) -> Callable[[Any], None]:
    """What puts forces into ``out``, part by part."""
    waiting = iter(found)

    def take(force: Any) -> None:
        out[next(waiting)] = force

    return take
