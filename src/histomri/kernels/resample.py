"""One section's share in a tile of the output volume: the whole chain evaluated per voxel, one interpolation.

``b = to_block (z, y, x, 1)`` is the voxel's point in the block (mm); where planes are bent, ``b_z += c(b)`` with c trilinear
between nodes and constant beyond them. ``w = w(b_z)`` is the weight of the section's plane,
``q = to_index (p + u(p), 1)`` with ``p = (b_y, b_x)`` the point in pixels of the section. Where q lies in the image, the tile
gets ``sum += w m(q)`` and ``weight += w``, m being linear between pixel centres and constant over the outer half pixel.
Voxels and pixels are counted over the whole volume and image, so no result depends on tiles, boxes or threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histomri.kernels.displacement import trilinear

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

# a coordinate that differs from a whole number by rounding only is that number: an aligned grid gives its input back
SNAP = 1e-6


class PlaneWeight(NamedTuple):
    """How far a section speaks for the block: its ``position``, those of its neighbours (infinite without one), in mm.

    Up to a gap of ``max_gap`` two sections share what lies between them, by distance or (``nearest``) the nearer alone; beyond
    it, and past the last section, each reaches ``half_spacing``.
    """

    position: float
    before: float
    after: float
    max_gap: float
    half_spacing: float
    nearest: bool


class PlaneBend(NamedTuple):
    """By how many mm planes are bent along z: ``along`` (n, m, k) on nodes at ``frame`` (2, 3), origin and spacing; the reach of
    its values, ``low`` to ``high``. One of (0, 0, 0) is flat.
    """

    along: Float
    frame: Float
    low: float
    high: float


FLAT = PlaneBend(np.zeros((0, 0, 0)), np.ones((2, 3)), 0.0, 0.0)


class SectionSource(NamedTuple):
    """A section's box of pixels (h, w, c) that begins at ``origin`` (y, x) of an image of ``shape``, and the way there.

    ``to_index`` (2, 3) takes block-plane mm to pixels; ``field`` (n, m, 2) holds u in mm on nodes at ``field_frame`` (2, 2):
    origin and spacing; a field of (0, 0, 2) is none. ``nearest`` takes the nearest pixel.
    """

    pixels: NDArray[Any]
    origin: NDArray[np.int64]
    shape: NDArray[np.int64]
    to_index: Float
    field: Float
    field_frame: Float
    nearest: bool


@numba.njit(cache=True)
def _snapped(value):  # type: ignore[no-untyped-def]  # pragma: no cover
    whole = np.floor(value + 0.5)
    return whole if abs(value - whole) < SNAP else value


@numba.njit(cache=True)
def _weight(z, plane):  # type: ignore[no-untyped-def]  # pragma: no cover
    distance = abs(z - plane.position)
    neighbour = plane.after if z > plane.position else plane.before
    gap = abs(neighbour - plane.position)
    if distance <= SNAP * min(gap, 1.0):
        return 1.0
    if gap > plane.max_gap:
        return 1.0 if distance <= plane.half_spacing * (1 + SNAP) else 0.0
    share = 1.0 - _snapped(distance / gap)
    if plane.nearest:
        # halfway between two sections the one before speaks
        return 1.0 if share > 0.5 or (share == 0.5 and z > plane.position) else 0.0
    return max(share, 0.0)


@numba.njit(cache=True)
def _displacement(field, frame, y, x, axis):  # type: ignore[no-untyped-def]  # pragma: no cover
    fy = min(max((y - frame[0, 0]) / frame[1, 0], 0.0), field.shape[0] - 1.0)
    fx = min(max((x - frame[0, 1]) / frame[1, 1], 0.0), field.shape[1] - 1.0)
    i, j = int(fy), int(fx)
    k, m = min(i + 1, field.shape[0] - 1), min(j + 1, field.shape[1] - 1)
    fy, fx = fy - i, fx - j
    top = field[i, j, axis] * (1 - fx) + field[i, m, axis] * fx
    bottom = field[k, j, axis] * (1 - fx) + field[k, m, axis] * fx
    return top * (1 - fy) + bottom * fy


@numba.njit(cache=True)
def _along(bend, z, y, x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The bend at a block point."""
    first, step = bend.frame[0], bend.frame[1]
    return trilinear(bend.along, (z - first[0]) / step[0], (y - first[1]) / step[1], (x - first[2]) / step[2])


@numba.njit(cache=True)
def _add(sums, y, x, w, source):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add the pixel at (y, x) of the image, known to be inside, with weight w."""
    y, x = min(max(y, 0.0), source.shape[0] - 1.0), min(max(x, 0.0), source.shape[1] - 1.0)
    if source.nearest:
        y, x = np.floor(y + 0.5), np.floor(x + 0.5)
    i, j = int(y), int(x)
    fy, fx = y - i, x - j
    i0, j0 = i - source.origin[0], j - source.origin[1]
    i1, j1 = i0 + (1 if fy > 0 else 0), j0 + (1 if fx > 0 else 0)
    channels = source.pixels.shape[2]
    for c in range(channels):
        top = source.pixels[i0, j0, c] * (1 - fx) + source.pixels[i0, j1, c] * fx
        bottom = source.pixels[i1, j0, c] * (1 - fx) + source.pixels[i1, j1, c] * fx
        sums[c] += np.float32(w * (top * (1 - fy) + bottom * fy))
    sums[channels] += np.float32(w)


@numba.njit(cache=True)
def _columns(first, step, width, plane, bend):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Columns of a row that the plane may reach, the row's flat position being ``first + step * column``; a few too many."""
    low = plane.before if plane.position - plane.before <= plane.max_gap else plane.position - plane.half_spacing * 1.001
    high = plane.after if plane.after - plane.position <= plane.max_gap else plane.position + plane.half_spacing * 1.001
    low, high = low - bend.high, high - bend.low
    if abs(step) * width < SNAP:
        return 0, (width if low - 2 * SNAP <= first <= high + 2 * SNAP else 0)
    a, b = (low - first) / step, (high - first) / step
    # clipped before they become whole numbers, since they may be infinite
    start, stop = max(min(a, b) - 2.0, 0.0), min(max(a, b) + 3.0, float(width))
    return (int(start), int(stop)) if start < stop else (0, 0)


@numba.njit(parallel=True, cache=True)
def _accumulate(sums, start, to_block, bend, plane, source):  # type: ignore[no-untyped-def]  # pragma: no cover
    depth, height, width, _ = sums.shape
    bent, bowed = source.field.shape[0] > 0, bend.along.shape[0] > 0
    a, t = to_block, source.to_index
    for row in numba.prange(depth * height):
        k, j = row // height, row % height
        z, y = float(k + start[0]), float(j + start[1])
        row_start = a[0, 0] * z + a[0, 1] * y + a[0, 2] * start[2] + a[0, 3]
        begin, end = _columns(row_start, a[0, 2], width, plane, bend)
        for i in range(begin, end):
            x = float(i + start[2])
            bz = a[0, 0] * z + a[0, 1] * y + a[0, 2] * x + a[0, 3]
            by = a[1, 0] * z + a[1, 1] * y + a[1, 2] * x + a[1, 3]
            bx = a[2, 0] * z + a[2, 1] * y + a[2, 2] * x + a[2, 3]
            if bowed:
                bz += _along(bend, bz, by, bx)
            w = _weight(bz, plane)
            if w <= 0.0:
                continue
            if bent:
                uy = _displacement(source.field, source.field_frame, by, bx, 0)
                bx += _displacement(source.field, source.field_frame, by, bx, 1)
                by += uy
            qy = _snapped(t[0, 0] * by + t[0, 1] * bx + t[0, 2])
            qx = _snapped(t[1, 0] * by + t[1, 1] * bx + t[1, 2])
            if -0.5 <= qy <= source.shape[0] - 0.5 and -0.5 <= qx <= source.shape[1] - 0.5:
                _add(sums[k, j, i], qy, qx, w, source)


def accumulate(
    sums: Float32,
    start: NDArray[np.int64],
    to_block: Float,
    plane: PlaneWeight,
    source: SectionSource,
    bend: PlaneBend = FLAT,
) -> None:
    """Add a section to ``sums`` (z, y, x, c + 1), the weighted channels and the weight of a tile that begins at voxel ``start``.

    ``to_block`` is (3, 4). The caller guarantees that the box holds every pixel that the tile asks for (see ``needed_box``).
    """
    _accumulate(sums, start, to_block, bend, plane, source)


def _snapped_all(values: Float) -> Float:
    nearest = np.floor(values + 0.5)
    return np.where(np.abs(values - nearest) < SNAP, nearest, values)


def weight_reference(z: Float, plane: PlaneWeight) -> Float:
    """The weight w(z) of a section's plane, readable."""
    distance = np.abs(z - plane.position)
    gap = np.where(z > plane.position, plane.after - plane.position, plane.position - plane.before)
    share = 1 - _snapped_all(distance / gap)
    if plane.nearest:
        share = ((share > 0.5) | ((share == 0.5) & (z > plane.position))).astype(float)
    return np.where(gap > plane.max_gap, (distance <= plane.half_spacing * (1 + SNAP)).astype(float), np.maximum(share, 0))


def _bilinear(values: NDArray[Any], index: Float) -> Float:
    """Bilinear ``values`` (n, m, c) at ``index`` (..., 2), constant beyond the outermost nodes."""
    last = np.asarray(values.shape[:2]) - 1
    index = np.clip(index, 0, last)
    i = np.floor(index).astype(int)
    k, f = np.minimum(i + 1, last), (index - i)[..., None]
    top = values[i[..., 0], i[..., 1]] * (1 - f[..., 1, :]) + values[i[..., 0], k[..., 1]] * f[..., 1, :]
    bottom = values[k[..., 0], i[..., 1]] * (1 - f[..., 1, :]) + values[k[..., 0], k[..., 1]] * f[..., 1, :]
    blended: Float = top * (1 - f[..., 0, :]) + bottom * f[..., 0, :]
    return blended


def accumulate_reference(
    sums: Float32,
    start: NDArray[np.int64],
    to_block: Float,
    plane: PlaneWeight,
    source: SectionSource,
    bend: PlaneBend = FLAT,
) -> None:
    """What :func:`accumulate` does, readable: the formula at the top of this module, for small tiles."""
    index = np.stack(np.meshgrid(*map(np.arange, sums.shape[:3]), indexing="ij"), -1) + start
    block = index @ to_block[:, :3].T + to_block[:, 3]
    if bend.along.size:
        nodes = np.moveaxis((block - bend.frame[0]) / bend.frame[1], -1, 0)
        block[..., 0] += ndimage.map_coordinates(bend.along, nodes, order=1, mode="nearest")
    weight, plane_mm = weight_reference(block[..., 0], plane), block[..., 1:]
    if source.field.size:
        nodes = (plane_mm - source.field_frame[0]) / source.field_frame[1]
        plane_mm = plane_mm + _bilinear(source.field, nodes)
    q = _snapped_all(plane_mm @ source.to_index[:, :2].T + source.to_index[:, 2])
    inside = ((q >= -0.5) & (q <= source.shape - 0.5)).all(-1)
    q = np.clip(q, 0, source.shape - 1)
    q = np.floor(q + 0.5) if source.nearest else q
    weight = np.where(inside, weight, 0)
    sums[..., :-1] += weight[..., None] * _bilinear(source.pixels, q - source.origin)
    sums[..., -1] += weight


def needed_box(corners: Float, source: SectionSource) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last + 1 pixel (y, x) that a tile of ``corners``, (n, 3) in the block, can ask for; none: last <= first."""
    low, high = corners[:, 1:].min(0), corners[:, 1:].max(0)
    if source.field.size:
        nodes = (np.stack([low, high]) - source.field_frame[0]) / source.field_frame[1]
        last = np.asarray(source.field.shape[:2]) - 1
        first = np.clip(np.floor(nodes[0]), 0, last).astype(int)
        until = np.clip(np.ceil(nodes[1]), 0, last).astype(int) + 1
        part = source.field[first[0] : until[0], first[1] : until[1]].reshape(-1, 2)
        low = low + np.nan_to_num(np.nanmin(part, axis=0))
        high = high + np.nan_to_num(np.nanmax(part, axis=0))
    ends = np.array([(y, x) for y in (low[0], high[0]) for x in (low[1], high[1])])
    index = ends @ source.to_index[:, :2].T + source.to_index[:, 2]
    first = np.clip(np.floor(index.min(0)).astype(np.int64) - 1, 0, source.shape)
    return first, np.clip(np.ceil(index.max(0)).astype(np.int64) + 2, 0, source.shape)


def finished(sums: Float32, dtype: Any) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Pixels (z, y, x, c) of ``dtype`` and coverage (z, y, x): 1 where at least half of the weight was found, 0 elsewhere.

    The nearer of two sections thus decides alone whether there is anything; where only it holds the point, it speaks alone.
    """
    weight = sums[..., -1]
    covered = weight >= np.float32(0.5 - SNAP)
    # weights that add up to 1 but for rounding are left alone, so that whole values stay whole
    divisor = np.where(covered & (np.abs(weight - 1) > SNAP), weight, np.float32(1))
    values = np.where(covered[..., None], sums[..., :-1] / divisor[..., None], np.float32(0))
    kind = np.dtype(dtype)
    if kind.kind in "ui":
        values = np.clip(np.rint(values), np.iinfo(kind).min, np.iinfo(kind).max)
    return values.astype(kind), covered.astype(np.uint8)
