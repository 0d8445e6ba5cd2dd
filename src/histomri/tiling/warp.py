"""Warps over parts: driven by the output, each part reads the box of the moving image that its own part of the field leads to.

For the points p of a part, ``q = A (p + u(p))`` lies within ``A p`` of the part's corners plus ``A`` times the range of u in it,
taken component by component: no coordinate is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module, device_of
from histomri.kernels import interpolate
from histomri.kernels.interpolate import TAPS, CoarseField, Order, Outside, Tile
from histomri.tiling.boxes import Box, boxes, read, size_of, start_of

Float = NDArray[np.float64]


def source_box(matrix: Float, box: Box, field: Any, size: Sequence[int], order: Order = "linear") -> Box:
    """The box of a moving image of ``size`` that the warp of a part can ask for, at least one pixel.

    ``field`` is the part's own dense field, a :class:`CoarseField`, or None. Where it is not finite, all of the image.
    """
    lowest, highest = _range_of(field, box)
    first = np.asarray(start_of(box)) + lowest
    last = np.asarray([b.stop - 1 for b in box]) + highest
    linear, shift = matrix[:-1, :-1], matrix[:-1, -1]
    ends = linear * first, linear * last
    low, high = np.minimum(*ends).sum(axis=1) + shift, np.maximum(*ends).sum(axis=1) + shift
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return tuple(slice(0, n) for n in size)
    # one more than the taps, since the kernels round a displacement to float32
    margin = TAPS[order] // 2 + 1
    start = np.clip(np.floor(low) - margin, 0, np.asarray(size) - 1).astype(int)
    stop = np.clip(np.floor(high) + margin + 1, start + 1, size).astype(int)
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))


def _range_of(field: Any, box: Box) -> tuple[Float, Float]:
    """Smallest and largest displacement in a part, per component."""
    if field is None:
        return np.zeros(len(box)), np.zeros(len(box))
    values = _nodes(field, box) if isinstance(field, CoarseField) else field
    over = tuple(range(len(box)))
    ends = values.min(axis=over), values.max(axis=over)
    return tuple(np.asarray(end.tolist(), np.float64) for end in ends)  # type: ignore[return-value]


def _nodes(field: CoarseField, box: Box) -> Any:
    """The nodes of a coarse field between which a part lies."""
    parts = []
    for b, scale, offset, n in zip(box, field.scale, field.offset, field.values.shape, strict=False):
        ends = sorted((b.start * scale + offset, (b.stop - 1) * scale + offset))
        first = int(np.clip(np.floor(ends[0]), 0, n - 1))
        parts.append(slice(first, int(np.clip(np.floor(ends[1]) + 2, first + 1, n))))
    return field.values[tuple(parts)]


def source_part(
    moving: Any, matrix: Float, box: Box, field: Any, order: Order = "linear", device: str | None = None
) -> tuple[Any, Box]:
    """What a part needs of a moving image, and where that lies in it; all of what is in the device's memory already.

    ``field`` is the part's own.
    """
    ndim, where = len(box), device_of(moving)
    source: Box = tuple(slice(0, n) for n in moving.shape[:ndim])
    if where is not None and where == (device or where):
        return moving, source
    source = source_box(matrix, box, field, moving.shape[:ndim], order)
    return read(moving, source, device), source


def moved_to(matrix: Float, box: Box, source: Box) -> Float:
    """A matrix of indices as one from indices of the part to indices of its box of the moving image."""
    out = matrix.astype(np.float64)
    out[:-1, -1] += matrix[:-1, :-1] @ np.asarray(start_of(box), np.float64) - start_of(source)
    return out


def warp_part(
    moving: Any,
    matrix: Float,
    box: Box,
    field: Any = None,
    order: Order = "linear",
    *,
    outside: Outside = "zero",
    gradient: bool = False,
    device: str | None = None,
) -> Any:
    """What :func:`kernels.interpolate.warp` gives in a part of its output, or with ``gradient`` ``warp_with_gradient``.

    ``field`` is the field of the whole, dense or coarse; of ``moving`` and of a dense field only what the part needs is read.
    """
    coarse = isinstance(field, CoarseField)
    own = field if field is None or coarse else read(field, box, device)
    part, source = source_part(moving, matrix, box, own, order, device)
    if coarse:
        own = CoarseField(array_module(part).asarray(field.values), field.scale, field.offset)
    call: Any = interpolate.warp_with_gradient if gradient else interpolate.warp
    return call(part, matrix, size_of(box), own, order, outside=outside, tile=Tile(start_of(box), start_of(source)))


def warp(
    moving: Any,
    matrix: Float,
    shape: Sequence[int],
    field: Any = None,
    order: Order = "linear",
    *,
    outside: Outside = "zero",
    tile: Sequence[int],
    out: Any = None,
) -> Any:
    """The warp of the whole, tile by tile, into ``out`` (anything that parts can be written to; by default an array of NumPy)."""
    for box in boxes(shape, tile):
        part = warp_part(moving, matrix, box, field, order, outside=outside)
        if out is None:
            out = array_module(part).empty((*shape, *part.shape[len(box) :]), part.dtype)
        out[box] = part
    return out
