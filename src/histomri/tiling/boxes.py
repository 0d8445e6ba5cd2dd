"""Boxes of an array: the parts that are computed one at a time, and what around them they look at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from histomri.backend import array_module, to_device

Box = tuple[slice, ...]
# no part is made thinner than this along any axis, however little memory there is
THINNEST = 8


def boxes(shape: Sequence[int], tile: Sequence[int]) -> list[Box]:
    """The parts of ``shape`` of at most ``tile`` pixels along each axis, in the order of the array; the last ones are smaller."""
    axes = [[slice(a, min(a + t, n)) for a in range(0, n, t)] for n, t in zip(shape, tile, strict=True)]
    return list(itertools.product(*axes))


def grown(box: Box, halo: int | Sequence[int], shape: Sequence[int]) -> tuple[Box, Box]:
    """The box with a halo around it, cut off at the array's border, and the box itself as slices into that."""
    reach = [halo] * len(box) if isinstance(halo, int) else list(halo)
    outer = tuple(slice(max(b.start - h, 0), min(b.stop + h, n)) for b, h, n in zip(box, reach, shape, strict=True))
    return outer, tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, outer, strict=True))


def size_of(box: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(b.stop - b.start for b in box)


def start_of(box: Box) -> tuple[int, ...]:
    """Its first index."""
    return tuple(b.start for b in box)


def fitting(shape: Sequence[int], pixel_bytes: float, memory_bytes: float | None, halo: int = 0) -> tuple[int, ...]:
    """The shape of the largest tiles, halving the longest axis, which with their halo keep to a memory; all without a limit."""
    tile = [int(n) for n in shape]
    if memory_bytes is None:
        return tuple(tile)
    while math.prod(min(t + 2 * halo, n) for t, n in zip(tile, shape, strict=True)) * pixel_bytes > memory_bytes:
        longest = int(np.argmax(tile))
        if tile[longest] <= THINNEST:
            break
        tile[longest] = -(-tile[longest] // 2)
    return tuple(tile)


def read(array: Any, box: Box, device: str | None = None) -> Any:
    """What an array holds in a box, as an array of NumPy or CuPy, on ``device`` if one is named."""
    part = array[box]
    if device is not None:
        return to_device(part, device)
    return part if array_module(part) is not np else np.asarray(part)
