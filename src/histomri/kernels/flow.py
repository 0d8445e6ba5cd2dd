"""Structure tensor and force of a multichannel difference under a dense displacement.

With ``r_c = m_c(A (p + u)) - f_c`` and ``g_c = A^T grad m_c``, per pixel p of the fixed grid:

    T = w sum_c g_c g_c^T   (yy, yx, xx),   b = w sum_c r_c g_c   (y, x),   e = w sum_c r_c^2

in pixels of the fixed grid, A being the map of fixed to moving indices. Where the map leaves the moving image, m and
its gradient are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels import cuda

Array = NDArray[np.float32]


@njit(parallel=True, cache=True)
def _flow_2d(fixed, moving, weight, matrix, field, out):  # type: ignore[no-untyped-def]
    height, width = moving.shape[0], moving.shape[1]
    for i in prange(fixed.shape[0]):
        for j in range(fixed.shape[1]):
            w = weight[i, j]
            for k in range(6):
                out[i, j, k] = 0.0
            if w == 0.0:
                continue
            py, px = i + field[i, j, 0], j + field[i, j, 1]
            y = matrix[0, 0] * py + matrix[0, 1] * px + matrix[0, 2]
            x = matrix[1, 0] * py + matrix[1, 1] * px + matrix[1, 2]
            inside = 0.0 <= y < height - 1 and 0.0 <= x < width - 1
            iy, ix = (int(y), int(x)) if inside else (0, 0)
            fy, fx = y - iy, x - ix
            tyy = tyx = txx = by = bx = e = 0.0
            for c in range(fixed.shape[2]):
                if not inside:
                    e += fixed[i, j, c] * fixed[i, j, c]
                    continue
                a, b = moving[iy, ix, c], moving[iy, ix + 1, c]
                d, f = moving[iy + 1, ix, c], moving[iy + 1, ix + 1, c]
                top, bottom = a + (b - a) * fx, d + (f - d) * fx
                r = top + (bottom - top) * fy - fixed[i, j, c]
                gy = bottom - top
                gx = (b - a) + ((f - d) - (b - a)) * fy
                hy = matrix[0, 0] * gy + matrix[1, 0] * gx
                hx = matrix[0, 1] * gy + matrix[1, 1] * gx
                tyy += hy * hy
                tyx += hy * hx
                txx += hx * hx
                by += r * hy
                bx += r * hx
                e += r * r
            out[i, j, 0], out[i, j, 1], out[i, j, 2] = w * tyy, w * tyx, w * txx
            out[i, j, 3], out[i, j, 4], out[i, j, 5] = w * by, w * bx, w * e


def flow_terms(fixed: Array, moving: Array, weight: Array, matrix: NDArray[np.float64], field: Array) -> Array:
    """The six terms (y, x, 6): T_yy, T_yx, T_xx, b_y, b_x, e.

    ``fixed`` (y, x, c), ``moving`` (h, w, c), ``weight`` (y, x), ``matrix`` (3, 3) on indices,
    ``field`` (y, x, 2) in fixed pixels.
    """
    if array_module(fixed) is not np:
        return terms_on_device(fixed, moving, weight, matrix, field)  # type: ignore[no-any-return]
    out = np.empty((*fixed.shape[:2], 6), np.float32)
    _flow_2d(fixed, moving, weight, np.ascontiguousarray(matrix), np.ascontiguousarray(field, np.float32), out)
    return out


def terms_on_device(fixed: Any, moving: Any, weight: Any, matrix: NDArray[np.float64], field: Any) -> Any:
    """The terms of this module or of :mod:`flow_3d`, (*shape, 6 or 10), on the GPU that holds the images."""
    xp, ndim = array_module(fixed), weight.ndim
    images = (xp.ascontiguousarray(array, np.float32) for array in (fixed, moving, weight))
    sizes = (xp.asarray(np.asarray(shape, np.int64)) for shape in (weight.shape, moving.shape[:ndim]))
    onto = xp.asarray(np.ascontiguousarray(matrix, np.float64))
    out = xp.empty((*weight.shape, ndim * (ndim + 1) // 2 + ndim + 1), np.float32)
    given = (*images, *sizes, np.int64(moving.shape[-1]), onto, xp.ascontiguousarray(field, np.float32), out)
    cuda.launch("flow", f"terms_{ndim}d", weight.size, given)
    return out


def solve(terms: Array, ridge: float, limit: float = 1.0) -> Array:
    """``d = -(T + ridge I)^-1 b`` of terms (y, x, 5), shortened to ``limit``: (y, x, 2), in the units of the terms.

    ``ridge`` must be above 0, which keeps a pixel without any structure where it is.
    """
    xp = array_module(terms)
    yy, yx, xx = terms[..., 0] + xp.float32(ridge), terms[..., 1], terms[..., 2] + xp.float32(ridge)
    step = xp.stack([yx * terms[..., 4] - xx * terms[..., 3], yx * terms[..., 3] - yy * terms[..., 4]], axis=-1)
    step /= (yy * xx - yx * yx)[..., None]
    length = xp.sqrt((step**2).sum(axis=-1, keepdims=True))
    out: Array = (step * (limit / xp.maximum(length, limit))).astype(np.float32)
    return out
