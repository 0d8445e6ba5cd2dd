"""The transpose of composing a displacement field with itself: what the gradient by a velocity needs.

Squaring is ``w(p) = u(p) + u(q)``, ``q = clamp(p + u(p))``, u linear between nodes. For a force g by w, the force by u is

    h = g + sum_p B(q(p))^T g(p) + Du(q)^T g,

the second term being the scatter of g with the linear weights B, the third the derivative of u at q along u (0 where the point
was clamped). The scatter runs over the points in order, one component per thread, so no result depends on the threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels import cuda
from histomri.kernels.folding import as_volume

Array = NDArray[np.float32]


@njit(inline="always")
def _cell(at, n):  # type: ignore[no-untyped-def]
    """First node, second node and share of the second of a clamped coordinate, and whether it moves freely."""
    free = 0.0 < at < n - 1.0
    at = min(max(at, 0.0), n - 1.0)
    first = min(int(at), max(n - 2, 0))
    return first, min(first + 1, n - 1), at - first, free


@njit(parallel=True, cache=True)
def _scatter(field, force, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    depth, height, width, channels = field.shape
    for c in prange(channels):
        for k in range(depth):
            for j in range(height):
                for i in range(width):
                    k0, k1, fz, _ = _cell(k + float(field[k, j, i, 0]), depth)
                    j0, j1, fy, _ = _cell(j + float(field[k, j, i, 1]), height)
                    i0, i1, fx, _ = _cell(i + float(field[k, j, i, 2]), width)
                    g = float(force[k, j, i, c])
                    out[k0, j0, i0, c] += (1 - fz) * (1 - fy) * (1 - fx) * g
                    out[k0, j0, i1, c] += (1 - fz) * (1 - fy) * fx * g
                    out[k0, j1, i0, c] += (1 - fz) * fy * (1 - fx) * g
                    out[k0, j1, i1, c] += (1 - fz) * fy * fx * g
                    out[k1, j0, i0, c] += fz * (1 - fy) * (1 - fx) * g
                    out[k1, j0, i1, c] += fz * (1 - fy) * fx * g
                    out[k1, j1, i0, c] += fz * fy * (1 - fx) * g
                    out[k1, j1, i1, c] += fz * fy * fx * g


@njit(parallel=True, cache=True)
def _slope(field, force, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    depth, height, width, channels = field.shape
    for row in prange(depth * height):
        k, j = row // height, row % height
        for i in range(width):
            k0, k1, fz, free_z = _cell(k + float(field[k, j, i, 0]), depth)
            j0, j1, fy, free_y = _cell(j + float(field[k, j, i, 1]), height)
            i0, i1, fx, free_x = _cell(i + float(field[k, j, i, 2]), width)
            for c in range(channels):
                g = float(force[k, j, i, c])
                a, b = float(field[k0, j0, i0, c]), float(field[k0, j0, i1, c])
                d, e = float(field[k0, j1, i0, c]), float(field[k0, j1, i1, c])
                p, q = float(field[k1, j0, i0, c]), float(field[k1, j0, i1, c])
                r, s = float(field[k1, j1, i0, c]), float(field[k1, j1, i1, c])
                near = (a * (1 - fx) + b * fx) * (1 - fy) + (d * (1 - fx) + e * fx) * fy
                far = (p * (1 - fx) + q * fx) * (1 - fy) + (r * (1 - fx) + s * fx) * fy
                low = (a * (1 - fx) + b * fx) * (1 - fz) + (p * (1 - fx) + q * fx) * fz
                high = (d * (1 - fx) + e * fx) * (1 - fz) + (r * (1 - fx) + s * fx) * fz
                left = (a * (1 - fy) + d * fy) * (1 - fz) + (p * (1 - fy) + r * fy) * fz
                right = (b * (1 - fy) + e * fy) * (1 - fz) + (q * (1 - fy) + s * fy) * fz
                out[k, j, i, c] += g
                out[k, j, i, 0] += g * (far - near) if free_z else 0.0
                out[k, j, i, 1] += g * (high - low) if free_y else 0.0
                out[k, j, i, 2] += g * (right - left) if free_x else 0.0


def square_adjoint(field: Array, force: NDArray[np.float64]) -> NDArray[np.float64]:
    """Force by u (*shape, ndim) of a force (*shape, ndim) by ``u + u o (id + u)``, all in pixels."""
    volume = as_volume(field)
    pushed: Any = as_volume(force)  # type: ignore[arg-type]
    out: NDArray[np.float64]
    if array_module(field) is not np:
        out = _on_device(volume, pushed)
    else:
        out = np.zeros(pushed.shape)
        _scatter(volume, np.ascontiguousarray(pushed), out)
        _slope(volume, np.ascontiguousarray(pushed), out)
    return out if field.shape[-1] == 3 else out[0, ..., 1:]


def _on_device(field: Any, force: Any) -> Any:
    """The same on the GPU that holds both, (z, y, x, 3)."""
    xp, count = array_module(field), field.size // 3
    given = xp.ascontiguousarray(field, np.float32), xp.ascontiguousarray(force, np.float64)
    scale = np.float64(cuda.whole_number_scale(count, float(abs(given[1]).max())))
    size, cells = xp.asarray(np.asarray(field.shape[:3], np.int64)), xp.zeros(field.size, np.uint64)
    out = xp.empty(field.shape, np.float64)
    cuda.launch("splat", "scatter", count, (*given, size, scale, cells))
    cuda.launch("splat", "gathered", count, (*given, size, scale, cells, out))
    return out
