"""A 2D displacement field evaluated and inverted at scattered points; one of 3D that moves along z alone, inverted.

With u the bilinear interpolation of the field (the nearest edge value outside), in indices of its grid:

    forward: q = p + u(p);   inverse: the fixed point of p <- q - u(p)  (Chen et al. 2008), which converges where |du/dp| < 1.

A NaN in the point or in the field around it gives NaN.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

Float = NDArray[np.float64]


@njit(inline="always")
def _bilinear(field, y, x):  # type: ignore[no-untyped-def]
    height, width = field.shape[0], field.shape[1]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    iy, ix = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
    jy, jx = min(iy + 1, height - 1), min(ix + 1, width - 1)
    fy, fx = y - iy, x - ix
    a, b, c, d = (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx
    return (
        a * field[iy, ix, 0] + b * field[iy, jx, 0] + c * field[jy, ix, 0] + d * field[jy, jx, 0],
        a * field[iy, ix, 1] + b * field[iy, jx, 1] + c * field[jy, ix, 1] + d * field[jy, jx, 1],
    )


@njit(parallel=True, cache=True, nogil=True)
def _displace(field, points, out):  # type: ignore[no-untyped-def]
    for i in prange(points.shape[0]):
        y, x = points[i, 0], points[i, 1]
        if np.isnan(y) or np.isnan(x):
            out[i, 0] = out[i, 1] = np.nan
        else:
            out[i, 0], out[i, 1] = _bilinear(field, y, x)


@njit(parallel=True, cache=True, nogil=True)
def _invert(field, points, tolerance, iterations, out):  # type: ignore[no-untyped-def]
    for i in prange(points.shape[0]):
        qy, qx = points[i, 0], points[i, 1]
        if np.isnan(qy) or np.isnan(qx):
            out[i, 0] = out[i, 1] = np.nan
            continue
        uy, ux = _bilinear(field, qy, qx)
        y, x = qy - uy, qx - ux
        for _ in range(iterations):
            if np.isnan(y) or np.isnan(x):
                break
            uy, ux = _bilinear(field, y, x)
            sy, sx = qy - y - uy, qx - x - ux
            y, x = y + sy, x + sx
            if abs(sy) < tolerance and abs(sx) < tolerance:
                break
        out[i, 0], out[i, 1] = y, x


@njit(inline="always")
def trilinear(along, z, y, x):  # type: ignore[no-untyped-def]
    """A scalar (n, m, k) at one point in its indices: linear between nodes, the edge value beyond them. For other kernels."""
    n, m, k = along.shape
    z, y, x = min(max(z, 0.0), n - 1.0), min(max(y, 0.0), m - 1.0), min(max(x, 0.0), k - 1.0)
    i, j, h = int(z), int(y), int(x)
    ii, jj, hh = min(i + 1, n - 1), min(j + 1, m - 1), min(h + 1, k - 1)
    z, y, x = z - i, y - j, x - h
    front = (along[i, j, h] * (1 - x) + along[i, j, hh] * x) * (1 - y) + (along[i, jj, h] * (1 - x) + along[i, jj, hh] * x) * y
    back = (along[ii, j, h] * (1 - x) + along[ii, j, hh] * x) * (1 - y) + (along[ii, jj, h] * (1 - x) + along[ii, jj, hh] * x) * y
    return front * (1 - z) + back * z


@njit(cache=True, nogil=True)
def _invert_along(along, points, tolerance, iterations, out):  # type: ignore[no-untyped-def]
    for i in range(points.shape[0]):
        end, y, x = points[i, 0], points[i, 1], points[i, 2]
        z = end - trilinear(along, end, y, x)
        for _ in range(iterations):
            step = end - z - trilinear(along, z, y, x)
            z += step
            if abs(step) < tolerance:
                break
        out[i] = z


def inverted_along(along: Float, points: Float, tolerance: float, iterations: int) -> Float:
    """The z (n,) that ``z + along(z, y, x)`` takes to those of ``points`` (n, 3), to ``tolerance``; all in the grid's indices."""
    out = np.empty(len(points))
    _invert_along(along, points, tolerance, iterations, out)
    return out


def displacement_at(field: Float, points: Float) -> Float:
    """``u`` (n, 2) of a field (y, x, 2) at points (n, 2), all in indices of the field's grid."""
    out = np.empty_like(points)
    _displace(field, points, out)
    return out


def inverted_points(field: Float, points: Float, tolerance: float, iterations: int) -> Float:
    """The points (n, 2) that the field (y, x, 2) takes to ``points``, to ``tolerance``, all in indices of the field's grid."""
    out = np.empty_like(points)
    _invert(field, points, tolerance, iterations, out)
    return out
