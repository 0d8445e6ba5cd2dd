"""Gauss-Newton sums of a linear map between two multichannel images.

For fixed samples at p (homogeneous, mm) with values f_c and weights w, and moving channels m_c at q = A p (indices):

    r_c = m_c(q) - f_c,   g_c = grad m_c(q),   J = g_c (x) p
    H = sum w J J^T = sum w (sum_c g_c g_c^T) (x) (p p^T),   b = sum w r_c g_c (x) p,   cost = sum w r_c^2

over the entries of A row by row. Outside the moving image its value is 0 and so is the gradient. Sums run over fixed blocks of
samples which are added in order, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from histomri.kernels.jit import njit, prange

Float = NDArray[np.float64]
BLOCK = 2048


@njit(parallel=True, cache=True, fastmath=False)
def _sums_2d(points, fixed, weights, moving, matrix, hessian, gradient, cost, total):  # type: ignore[no-untyped-def]
    n, channels = fixed.shape
    height, width = moving.shape[0], moving.shape[1]
    for block in prange(hessian.shape[0]):
        g = np.empty(2)
        for i in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            w = weights[i]
            if w == 0.0:
                continue
            py, px = points[i, 0], points[i, 1]
            y = matrix[0, 0] * py + matrix[0, 1] * px + matrix[0, 2]
            x = matrix[1, 0] * py + matrix[1, 1] * px + matrix[1, 2]
            gyy = gyx = gxx = ry = rx = rr = 0.0
            inside = 0.0 <= y < height - 1 and 0.0 <= x < width - 1
            iy, ix = int(y) if inside else 0, int(x) if inside else 0
            fy, fx = y - iy, x - ix
            for c in range(channels):
                if inside:
                    a, b = moving[iy, ix, c], moving[iy, ix + 1, c]
                    d, e = moving[iy + 1, ix, c], moving[iy + 1, ix + 1, c]
                    top, bottom = a + (b - a) * fx, d + (e - d) * fx
                    r = top + (bottom - top) * fy - fixed[i, c]
                    g[0] = bottom - top
                    g[1] = (b - a) + ((e - d) - (b - a)) * fy
                    gyy += g[0] * g[0]
                    gyx += g[0] * g[1]
                    gxx += g[1] * g[1]
                    ry += r * g[0]
                    rx += r * g[1]
                else:
                    r = -fixed[i, c]
                rr += r * r
            cost[block] += w * rr
            total[block] += w
            p = (py, px, 1.0)
            for j in range(3):
                gradient[block, j] += w * ry * p[j]
                gradient[block, 3 + j] += w * rx * p[j]
                for k in range(3):
                    pp = w * p[j] * p[k]
                    hessian[block, j, k] += gyy * pp
                    hessian[block, j, 3 + k] += gyx * pp
                    hessian[block, 3 + j, 3 + k] += gxx * pp


@njit(parallel=True, cache=True, fastmath=False)
def _sums_3d(points, fixed, weights, moving, matrix, hessian, gradient, cost, total):  # type: ignore[no-untyped-def]
    n, channels = fixed.shape
    depth, height, width = moving.shape[0], moving.shape[1], moving.shape[2]
    for block in prange(hessian.shape[0]):
        g, s, q, p = np.empty(3), np.empty(3), np.empty(3), np.empty(4)
        gg = np.empty((3, 3))
        p[3] = 1.0
        for i in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            w = weights[i]
            if w == 0.0:
                continue
            for a in range(3):
                p[a] = points[i, a]
            for a in range(3):
                q[a] = matrix[a, 0] * p[0] + matrix[a, 1] * p[1] + matrix[a, 2] * p[2] + matrix[a, 3]
                s[a] = 0.0
                for b in range(3):
                    gg[a, b] = 0.0
            rr = 0.0
            inside = 0.0 <= q[0] < depth - 1 and 0.0 <= q[1] < height - 1 and 0.0 <= q[2] < width - 1
            iz, iy, ix = (int(q[0]), int(q[1]), int(q[2])) if inside else (0, 0, 0)
            fz, fy, fx = q[0] - iz, q[1] - iy, q[2] - ix
            for c in range(channels):
                if inside:
                    v000, v001 = moving[iz, iy, ix, c], moving[iz, iy, ix + 1, c]
                    v010, v011 = moving[iz, iy + 1, ix, c], moving[iz, iy + 1, ix + 1, c]
                    v100, v101 = moving[iz + 1, iy, ix, c], moving[iz + 1, iy, ix + 1, c]
                    v110, v111 = moving[iz + 1, iy + 1, ix, c], moving[iz + 1, iy + 1, ix + 1, c]
                    x00, x01 = v000 + (v001 - v000) * fx, v010 + (v011 - v010) * fx
                    x10, x11 = v100 + (v101 - v100) * fx, v110 + (v111 - v110) * fx
                    y0, y1 = x00 + (x01 - x00) * fy, x10 + (x11 - x10) * fy
                    r = y0 + (y1 - y0) * fz - fixed[i, c]
                    g[0] = y1 - y0
                    g[1] = (x01 - x00) * (1 - fz) + (x11 - x10) * fz
                    g[2] = ((v001 - v000) * (1 - fy) + (v011 - v010) * fy) * (1 - fz) + (
                        (v101 - v100) * (1 - fy) + (v111 - v110) * fy
                    ) * fz
                    for a in range(3):
                        s[a] += r * g[a]
                        for b in range(3):
                            gg[a, b] += g[a] * g[b]
                else:
                    r = -fixed[i, c]
                rr += r * r
            cost[block] += w * rr
            total[block] += w
            for a in range(3):
                for j in range(4):
                    gradient[block, 4 * a + j] += w * s[a] * p[j]
            for a in range(3):
                for b in range(a, 3):
                    for j in range(4):
                        for k in range(4):
                            hessian[block, 4 * a + j, 4 * b + k] += w * gg[a, b] * p[j] * p[k]


def normal_equations(
    points: Float, fixed: NDArray[np.float32], weights: NDArray[np.float32], moving: NDArray[np.float32], matrix: Float
) -> tuple[float, Float, Float]:
    """Mean cost, gradient and Gauss-Newton matrix over the entries of ``matrix`` (ndim, ndim + 1).

    ``points`` (n, ndim) in mm, ``fixed`` (n, c), ``weights`` (n,), ``moving`` (*shape, c); all sums are divided by the total
    weight.

    Raises ``ValueError`` when no sample has weight.
    """
    ndim = points.shape[1]
    size = ndim * (ndim + 1)
    blocks = -(-len(points) // BLOCK)
    hessian, gradient = np.zeros((blocks, size, size)), np.zeros((blocks, size))
    cost, total = np.zeros(blocks), np.zeros(blocks)
    kernel = _sums_2d if ndim == 2 else _sums_3d
    kernel(points, fixed, weights, moving, np.ascontiguousarray(matrix[:ndim]), hessian, gradient, cost, total)
    weight = float(total.sum())
    if weight <= 0:
        raise ValueError("No sample has weight: the fixed mask is empty.")
    upper = hessian.sum(axis=0) / weight
    full = np.triu(upper) + np.triu(upper, 1).T
    return float(cost.sum()) / weight, gradient.sum(axis=0) / weight, _symmetric_blocks(full, upper, ndim)


def _symmetric_blocks(full: Float, upper: Float, ndim: int) -> Float:
    """Mirror the kernels' upper block triangle (whole blocks on the diagonal) into a symmetric matrix."""
    step = ndim + 1
    out = np.zeros_like(full)
    for a in range(ndim):
        for b in range(a, ndim):
            block = upper[a * step : (a + 1) * step, b * step : (b + 1) * step]
            out[a * step : (a + 1) * step, b * step : (b + 1) * step] = block
            out[b * step : (b + 1) * step, a * step : (a + 1) * step] = block.T
    return out
