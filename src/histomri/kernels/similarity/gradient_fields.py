"""Normalised gradient fields: edges at the same place and angle, of either sign (Haber and Modersitzki 2006).

With central differences ``g = grad m``, ``h = grad f`` (per voxel), ``a = |h|^2 + 1``, ``b = |g|^2 + 1``, ``v`` the weight:

    value = 1 - sum v <h, g>^2 / (a b) / sum v
    force = D^T c,   c = -2 v / sum v (<h, g> h / (a b) - <h, g>^2 g / (a b^2))

D^T being the transposed differences. Images come divided by the gradient that counts as an edge, hence the 1. A voxel whose
neighbours have no weight, or are beyond the border, has no gradient: ``v = min of w over the voxel and its face neighbours``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from histomri.backend import array_module, to_device
from histomri.kernels import cuda
from histomri.kernels.jit import njit, prange
from histomri.kernels.similarity.channels import Array, mean_over_channels
from histomri.kernels.similarity.moments import REORDERED, flat
from histomri.kernels.similarity.passes import Core, Float, Passes, of_channels, whole

PLANES, ROWS = 8, 64  # of a volume, of an image: what one thread does at a time


def ngf_reference(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value (1 where an image does not vary or nothing has weight) and force (*shape, c) as array formulas; NumPy or CuPy."""
    return mean_over_channels(_one_channel_reference, fixed, warped, weight)


def _one_channel_reference(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    xp = array_module(warped)
    v = least_of_neighbours(weight.astype(xp.float64))
    total = float(v.sum())
    if total <= 0:
        return 1.0, xp.zeros_like(warped)
    h, g = (central_differences(image.astype(xp.float64)) for image in (fixed, warped))
    a, b = (sum(d * d for d in grad) + 1 for grad in (h, g))
    along = sum(d * e for d, e in zip(h, g, strict=True))
    first, second = along / (a * b), along * along / (a * b * b)
    value = 1 - float((v * along * first).sum()) / total
    coefficients = [-2 / total * v * (first * d - second * e) for d, e in zip(h, g, strict=True)]
    return value, transposed_differences(coefficients).astype(warped.dtype)


def _shifted(image: Array, axis: int, step: int) -> Array:
    """``I(p + step e_axis)``, 0 beyond the border."""
    xp = array_module(image)
    out = xp.zeros_like(image)
    to, of = [slice(None)] * image.ndim, [slice(None)] * image.ndim
    to[axis], of[axis] = (slice(None, -1), slice(1, None)) if step > 0 else (slice(1, None), slice(None, -1))
    out[tuple(to)] = image[tuple(of)]
    return out


def least_of_neighbours(weight: Array) -> Array:
    """The smallest weight among a voxel and its face neighbours, 0 at the border; NumPy or CuPy."""
    xp = array_module(weight)
    out = weight
    for axis in range(weight.ndim):
        for step in (1, -1):
            out = xp.minimum(out, _shifted(weight, axis, step))
    return out


def central_differences(image: Array) -> list[Array]:
    """``(I(p + e) - I(p - e)) / 2`` along each axis, zeros beyond the border; NumPy or CuPy."""
    return [(_shifted(image, axis, 1) - _shifted(image, axis, -1)) / 2 for axis in range(image.ndim)]


def transposed_differences(parts: list[Array]) -> Array:
    """The transpose of :func:`central_differences`: ``sum_axis (c(p - e) - c(p + e)) / 2``."""
    total: Array = sum((_shifted(c, axis, -1) - _shifted(c, axis, 1)) / 2 for axis, c in enumerate(parts))
    return total


def ngf(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value and force of the normalised gradient fields (see the module)."""
    return mean_over_channels(_one_channel, fixed, warped, weight)


def _one_channel(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    aligned, total, force = aligned_force(fixed, warped, weight, whole(warped.shape))
    if total <= 0:
        return 1.0, array_module(warped).zeros_like(warped)
    force *= np.float32(1 / total)
    return 1 - aligned / total, force


def _sums(fixed: Array, warped: Array, weight: Array, core: Core) -> Float:
    return np.array([float(least_of_neighbours(weight)[core].sum(dtype=np.float64))])


def _force(fixed: Array, warped: Array, weight: Array, total: Float, core: Core) -> tuple[Float, Array]:
    if total[0] <= 0:
        return np.zeros(1), array_module(warped).zeros_like(warped[core])
    aligned, _, force = aligned_force(fixed, warped, weight, core)
    force *= np.float32(1 / total[0])
    return np.array([aligned]), force


def _value(total: Float, more: Float) -> float:
    return float(1 - more[0] / total[0]) if total[0] > 0 else 1.0


PASSES = of_channels(Passes(2, _sums, _force, _value))
"""The same over parts; the whole in one pass is :func:`ngf`."""


def aligned_force(fixed: Array, warped: Array, weight: Array, core: Core) -> tuple[float, float, Array]:
    """``sum v <h, g>^2 / (a b)`` and ``sum v`` over the core, and there ``D^T c``, not yet divided by ``sum v``."""
    # an image is a volume whose rows are the planes and which has one row in each
    shape = warped.shape if warped.ndim == 3 else (warped.shape[0], 1, warped.shape[1])
    parts = core if warped.ndim == 3 else (core[0], slice(0, 1), core[1])
    if array_module(warped) is not np:
        return _on_device(tuple(flat(a) for a in (fixed, warped, weight)), shape, parts, core, warped)
    f, m, w = (np.ascontiguousarray(a, np.float32).reshape(shape) for a in (fixed, warped, weight))
    slab = PLANES if warped.ndim == 3 else ROWS
    sums, force = np.zeros((-(-shape[0] // slab), 2)), np.empty(shape, np.float32)
    ends = tuple(p.start for p in parts), tuple(p.stop for p in parts)
    _slabs(f, m, w, slab, warped.ndim == 3, ends, sums, force)
    aligned, total = (float(s) for s in sums.sum(axis=0))
    return aligned, total, force.reshape(warped.shape)[core]


def _on_device(images: Any, shape: tuple[int, ...], parts: Core, core: Core, like: Any) -> tuple[float, float, Any]:
    """The same on a GPU, of flat images."""
    xp, size, volume = array_module(like), like.size, np.int64(like.ndim == 3)
    ends = [p.start for p in parts] + [p.stop for p in parts]
    box, counted = (xp.asarray(np.asarray(numbers, np.int64)) for numbers in (shape, ends))
    count = cuda.workers(size)
    sums, c, force = xp.empty((2, count), np.float64), xp.empty(3 * size, np.float32), xp.empty(size, np.float32)
    cuda.launch("edges", "edge_coefficients", count, (*images, box, counted, volume, np.int64(count), sums, c))
    cuda.launch("edges", "edge_force", size, (c, box, volume, np.float32(1), force))
    aligned, total = (float(s) for s in to_device(sums.sum(axis=1), "cpu"))
    return aligned, total, force.reshape(like.shape)[core]


@njit(cache=True, fastmath=REORDERED)
def _row(h, g, w, volume, out):  # type: ignore[no-untyped-def]
    """c (not yet divided by sum v) of a row without its ends, into ``out``; returns ``sum v <h, g>^2 / (a b)`` and ``sum v``.

    ``h``, ``g``, ``w``: rows of fixed, warped and weight (before, after, above, below, here); above and below in volumes only.
    """
    h0, h1, h2, h3, h4, h5 = h[0][1:], h[1][1:], h[2][1:], h[3][1:], h[4][2:], h[4]
    g0, g1, g2, g3, g4, g5 = g[0][1:], g[1][1:], g[2][1:], g[3][1:], g[4][2:], g[4]
    w0, w1, w2, w3, w4, w5, w6 = w[0][1:], w[1][1:], w[2][1:], w[3][1:], w[4][2:], w[4], w[4][1:]
    cz, cy, cx = out
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    aligned = total = 0.0
    for i in range(cz.size):
        hz, gz = half * (h1[i] - h0[i]), half * (g1[i] - g0[i])
        hy, gy = half * (h3[i] - h2[i]), half * (g3[i] - g2[i])
        hx, gx = half * (h4[i] - h5[i]), half * (g4[i] - g5[i])
        v = min(min(min(w0[i], w1[i]), min(w4[i], w5[i])), min(min(w2[i], w3[i]), w6[i]))
        a, b = hz * hz + hy * hy + hx * hx + one, gz * gz + gy * gy + gx * gx + one
        along = hz * gz + hy * gy + hx * gx
        first = along / (a * b)
        second = first * along / b
        cz[i], cx[i] = -two * v * (first * hz - second * gz), -two * v * (first * hx - second * gx)
        if volume:
            cy[i] = -two * v * (first * hy - second * gy)
        aligned += np.float64(v * along * first)
        total += np.float64(v)
    return aligned, total


@njit(inline="always")
def _rows(image, z, y, volume):  # type: ignore[no-untyped-def]
    here = image[z, y]
    return image[z - 1, y], image[z + 1, y], image[z, y - 1] if volume else here, image[z, y + 1] if volume else here, here


@njit(inline="always")
def _cut(rows, part):  # type: ignore[no-untyped-def]
    a, b = part
    return rows[0][a:b], rows[1][a:b], rows[2][a:b], rows[3][a:b], rows[4][a:b]


@njit(parallel=True, cache=True)
def _slabs(fixed, warped, weight, slab, volume, core, sums, force):  # type: ignore[no-untyped-def]
    depth, height, width = warped.shape
    first, last = core
    margin = 1 if volume else 0
    for s in prange(sums.shape[0]):
        start = s * slab
        stop = min(depth, start + slab)
        c = np.zeros((3, stop - start + 2, height + 2, width + 2), np.float32)
        for z in range(max(start - 1, 1), min(stop + 1, depth - 1)):
            for y in range(margin, height - margin):
                h, g, w = _rows(fixed, z, y, volume), _rows(warped, z, y, volume), _rows(weight, z, y, volume)
                k = z - start + 1
                cz, cy, cx = c[0, k, y + 1], c[1, k, y + 1], c[2, k, y + 1]
                counted = start <= z < stop and first[0] <= z < last[0] and first[1] <= y < last[1]
                low, high = max(first[2], 1), min(last[2], width - 1)
                for begin, end, own in ((1, low, False), (low, high, counted), (high, width - 1, False)):
                    if begin >= end:
                        continue
                    out = cz[begin + 1 : end + 1], cy[begin + 1 : end + 1], cx[begin + 1 : end + 1]
                    part = begin - 1, end + 1
                    aligned, total = _row(_cut(h, part), _cut(g, part), _cut(w, part), volume, out)
                    if own:
                        sums[s, 0] += aligned
                        sums[s, 1] += total
        for z in range(start, stop):
            k = z - start + 1
            for y in range(height):
                _scatter(c[0, k - 1, y + 1], c[0, k + 1, y + 1], c[1, k, y], c[1, k, y + 2], c[2, k, y + 1], force[z, y])


@njit(cache=True)
def _scatter(before, after, above, below, here, force):  # type: ignore[no-untyped-def]
    """The transposed differences of a row, from rows of c with one column more at both ends."""
    a, b, d, e, f = before[1:], after[1:], above[1:], below[1:], here[2:]
    for i in range(force.size):
        force[i] = np.float32(0.5) * (a[i] - b[i] + d[i] - e[i] + here[i] - f[i])
