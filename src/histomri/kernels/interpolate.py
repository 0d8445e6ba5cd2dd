"""Linear interpolation of multichannel images at mapped points: tiles of the fixed grid pull from the moving image.

``out(p) = sum_k w_k(q) m(k)`` with ``q = A (p + u(p))`` in indices of the moving image and w the (bi-, tri-)linear
weights; 0 outside.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

Array = NDArray[np.float32]


@njit(parallel=True, cache=True)
def _warp_2d(moving, matrix, field, use_field, out):  # type: ignore[no-untyped-def]
    height, width = moving.shape[0], moving.shape[1]
    for r in prange(out.shape[0]):
        for c in range(out.shape[1]):
            py, px = float(r), float(c)
            if use_field:
                py += field[r, c, 0]
                px += field[r, c, 1]
            y = matrix[0, 0] * py + matrix[0, 1] * px + matrix[0, 2]
            x = matrix[1, 0] * py + matrix[1, 1] * px + matrix[1, 2]
            if not (-1.0 < y < height and -1.0 < x < width):
                for k in range(out.shape[2]):
                    out[r, c, k] = 0.0
                continue
            iy, ix = int(np.floor(y)), int(np.floor(x))
            fy, fx = y - iy, x - ix
            y0, y1, x0, x1 = max(iy, 0), min(iy + 1, height - 1), max(ix, 0), min(ix + 1, width - 1)
            a, b = (1 - fy) * (1 - fx), (1 - fy) * fx
            d, e = fy * (1 - fx), fy * fx
            if iy < 0 or ix < 0 or iy + 1 > height - 1 or ix + 1 > width - 1:
                # beyond the outermost centres the image fades to 0 over one pixel, as if padded with zeros
                a = a if iy >= 0 and ix >= 0 else 0.0
                b = b if iy >= 0 and ix + 1 <= width - 1 else 0.0
                d = d if iy + 1 <= height - 1 and ix >= 0 else 0.0
                e = e if iy + 1 <= height - 1 and ix + 1 <= width - 1 else 0.0
            for k in range(out.shape[2]):
                out[r, c, k] = a * moving[y0, x0, k] + b * moving[y0, x1, k] + d * moving[y1, x0, k] + e * moving[y1, x1, k]


@njit(parallel=True, cache=True)
def _sample_3d(moving, matrix, points, out):  # type: ignore[no-untyped-def]
    depth, height, width = moving.shape[0], moving.shape[1], moving.shape[2]
    for i in prange(points.shape[0]):
        p0, p1, p2 = points[i, 0], points[i, 1], points[i, 2]
        z = matrix[0, 0] * p0 + matrix[0, 1] * p1 + matrix[0, 2] * p2 + matrix[0, 3]
        y = matrix[1, 0] * p0 + matrix[1, 1] * p1 + matrix[1, 2] * p2 + matrix[1, 3]
        x = matrix[2, 0] * p0 + matrix[2, 1] * p1 + matrix[2, 2] * p2 + matrix[2, 3]
        for k in range(out.shape[1]):
            out[i, k] = 0.0
        if not (-1.0 < z < depth and -1.0 < y < height and -1.0 < x < width):
            continue
        iz, iy, ix = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
        fz, fy, fx = z - iz, y - iy, x - ix
        for a in range(2):
            jz = iz + a
            if jz < 0 or jz >= depth:
                continue
            wz = fz if a else 1 - fz
            for b in range(2):
                jy = iy + b
                if jy < 0 or jy >= height:
                    continue
                wy = wz * (fy if b else 1 - fy)
                for c in range(2):
                    jx = ix + c
                    if jx < 0 or jx >= width:
                        continue
                    w = wy * (fx if c else 1 - fx)
                    for k in range(out.shape[1]):
                        out[i, k] += w * moving[jz, jy, jx, k]


def warp_2d(moving: Array, matrix: NDArray[np.float64], shape: tuple[int, int], field: Array | None = None) -> Array:
    """Moving channels (y, x, c) on a fixed grid of ``shape``: (*shape, c).

    ``matrix`` (3, 3) maps fixed indices to moving indices after ``field`` (*shape, 2), a displacement in fixed pixels, is added.
    """
    out = np.empty((*shape, moving.shape[2]), np.float32)
    unused = np.zeros((1, 1, 2), np.float32)
    _warp_2d(np.ascontiguousarray(moving, np.float32), matrix, unused if field is None else field, field is not None, out)
    return out


def sample_3d(moving: Array, matrix: NDArray[np.float64], points: NDArray[np.float64]) -> Array:
    """Moving channels (z, y, x, c) at ``points`` (n, 3), which ``matrix`` (4, 4) maps to moving indices: (n, c)."""
    out = np.empty((len(points), moving.shape[3]), np.float32)
    _sample_3d(np.ascontiguousarray(moving, np.float32), matrix, np.ascontiguousarray(points, np.float64), out)
    return out
