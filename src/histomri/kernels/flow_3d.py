"""Structure tensor and force of a multichannel difference of volumes under an affine and a displacement: ``flow`` in 3D.

With ``r_c = m_c(A (p + u(p))) - f_c(p)`` and ``g_c = A^T grad m_c``, summed over the fixed voxels p of each node's block:

    T = sum w sum_c g_c g_c^T   (zz, zy, zx, yy, yx, xx),   b = sum w sum_c r_c g_c   (z, y, x),   e = sum w sum_c r_c^2

in voxels of the fixed grid, A being the map of fixed to moving indices. The displacement u lives on nodes that are ``step`` fixed
voxels apart (block centres) and is trilinear between them: a smooth field needs fewer nodes than the images have voxels, and all
that follows (windows, solves, composition) runs on ``step^3`` times fewer values. Where the map leaves the moving image, m and
its gradient are 0.

The symmetric solve is ``d = -(T + R)^-1 b`` by cofactors, R a diagonal ridge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels.flow import terms_on_device
from histomri.kernels.jit import njit, prange

Array = NDArray[np.float32]
TERMS = 10
TENSOR = slice(0, 6)
FORCE = slice(6, 9)
COST = 9


@njit(inline="always", fastmath=True)
def _field_at(field, z, y, x, i):  # type: ignore[no-untyped-def]
    """One component of a field at a point in units of its nodes, trilinear; edge values outside."""
    depth, height, width = field.shape[0], field.shape[1], field.shape[2]
    z = min(max(z, np.float32(0)), np.float32(depth - 1))
    y = min(max(y, np.float32(0)), np.float32(height - 1))
    x = min(max(x, np.float32(0)), np.float32(width - 1))
    iz, iy, ix = int(z), int(y), int(x)
    jz, jy, jx = min(iz + 1, depth - 1), min(iy + 1, height - 1), min(ix + 1, width - 1)
    fz, fy, fx = z - np.float32(iz), y - np.float32(iy), x - np.float32(ix)
    a = field[iz, iy, ix, i] + (field[iz, iy, jx, i] - field[iz, iy, ix, i]) * fx
    b = field[iz, jy, ix, i] + (field[iz, jy, jx, i] - field[iz, jy, ix, i]) * fx
    c = field[jz, iy, ix, i] + (field[jz, iy, jx, i] - field[jz, iy, ix, i]) * fx
    d = field[jz, jy, ix, i] + (field[jz, jy, jx, i] - field[jz, jy, ix, i]) * fx
    low, high = a + (b - a) * fy, c + (d - c) * fy
    return low + (high - low) * fz


@njit(parallel=True, cache=True, fastmath=True)
def _flow_3d(fixed, moving, weight, matrix, field, step, out):  # type: ignore[no-untyped-def]
    depth, height, width = fixed.shape[0], fixed.shape[1], fixed.shape[2]
    rows = out.shape[1]
    channels = fixed.shape[3]
    zero = np.float32(0)
    scale = np.float32(1) / np.float32(step)
    shift = scale * np.float32(0.5) - np.float32(0.5)
    a00, a01, a02, a03 = matrix[0, 0], matrix[0, 1], matrix[0, 2], matrix[0, 3]
    a10, a11, a12, a13 = matrix[1, 0], matrix[1, 1], matrix[1, 2], matrix[1, 3]
    a20, a21, a22, a23 = matrix[2, 0], matrix[2, 1], matrix[2, 2], matrix[2, 3]
    top_z, top_y, top_x = np.float32(moving.shape[0] - 1), np.float32(moving.shape[1] - 1), np.float32(moving.shape[2] - 1)
    for row in prange(out.shape[0] * rows):
        bz, by = row // rows, row % rows
        for bx in range(out.shape[2]):
            szz = szy = szx = syy = syx = sxx = tz = ty = tx = te = zero
            for i in range(bz * step, min((bz + 1) * step, depth)):
                for j in range(by * step, min((by + 1) * step, height)):
                    for k in range(bx * step, min((bx + 1) * step, width)):
                        w = weight[i, j, k]
                        if w == zero:
                            continue
                        pz, py, px = np.float32(i), np.float32(j), np.float32(k)
                        if step == 1:
                            pz, py, px = pz + field[i, j, k, 0], py + field[i, j, k, 1], px + field[i, j, k, 2]
                        else:
                            nz, ny, nx = pz * scale + shift, py * scale + shift, px * scale + shift
                            pz += _field_at(field, nz, ny, nx, 0)
                            py += _field_at(field, nz, ny, nx, 1)
                            px += _field_at(field, nz, ny, nx, 2)
                        z = a00 * pz + a01 * py + a02 * px + a03
                        y = a10 * pz + a11 * py + a12 * px + a13
                        x = a20 * pz + a21 * py + a22 * px + a23
                        e = zero
                        if not (zero <= z < top_z and zero <= y < top_y and zero <= x < top_x):
                            for c in range(channels):
                                e += fixed[i, j, k, c] * fixed[i, j, k, c]
                            te += w * e
                            continue
                        iz, iy, ix = int(z), int(y), int(x)
                        fz, fy, fx = z - np.float32(iz), y - np.float32(iy), x - np.float32(ix)
                        mzz = mzy = mzx = myy = myx = mxx = hz = hy = hx = zero
                        f = fixed[i, j, k]
                        m000, m001 = moving[iz, iy, ix], moving[iz, iy, ix + 1]
                        m010, m011 = moving[iz, iy + 1, ix], moving[iz, iy + 1, ix + 1]
                        m100, m101 = moving[iz + 1, iy, ix], moving[iz + 1, iy, ix + 1]
                        m110, m111 = moving[iz + 1, iy + 1, ix], moving[iz + 1, iy + 1, ix + 1]
                        for c in range(channels):
                            v000, v010, v100, v110 = m000[c], m010[c], m100[c], m110[c]
                            d00, d01, d10, d11 = m001[c] - v000, m011[c] - v010, m101[c] - v100, m111[c] - v110
                            x00, x01 = v000 + d00 * fx, v010 + d01 * fx
                            x10, x11 = v100 + d10 * fx, v110 + d11 * fx
                            e0, e1 = x01 - x00, x11 - x10
                            y0, y1 = x00 + e0 * fy, x10 + e1 * fy
                            gz = y1 - y0
                            gy = e0 + (e1 - e0) * fz
                            g0, g1 = d00 + (d01 - d00) * fy, d10 + (d11 - d10) * fy
                            gx = g0 + (g1 - g0) * fz
                            r = y0 + gz * fz - f[c]
                            mzz += gz * gz
                            mzy += gz * gy
                            mzx += gz * gx
                            myy += gy * gy
                            myx += gy * gx
                            mxx += gx * gx
                            hz += r * gz
                            hy += r * gy
                            hx += r * gx
                            e += r * r
                        # A^T M A and A^T h, once for all channels
                        qz0, qz1, qz2 = (
                            mzz * a00 + mzy * a10 + mzx * a20,
                            mzz * a01 + mzy * a11 + mzx * a21,
                            mzz * a02 + mzy * a12 + mzx * a22,
                        )
                        qy0, qy1, qy2 = (
                            mzy * a00 + myy * a10 + myx * a20,
                            mzy * a01 + myy * a11 + myx * a21,
                            mzy * a02 + myy * a12 + myx * a22,
                        )
                        qx0, qx1, qx2 = (
                            mzx * a00 + myx * a10 + mxx * a20,
                            mzx * a01 + myx * a11 + mxx * a21,
                            mzx * a02 + myx * a12 + mxx * a22,
                        )
                        szz += w * (a00 * qz0 + a10 * qy0 + a20 * qx0)
                        szy += w * (a00 * qz1 + a10 * qy1 + a20 * qx1)
                        szx += w * (a00 * qz2 + a10 * qy2 + a20 * qx2)
                        syy += w * (a01 * qz1 + a11 * qy1 + a21 * qx1)
                        syx += w * (a01 * qz2 + a11 * qy2 + a21 * qx2)
                        sxx += w * (a02 * qz2 + a12 * qy2 + a22 * qx2)
                        tz += w * (a00 * hz + a10 * hy + a20 * hx)
                        ty += w * (a01 * hz + a11 * hy + a21 * hx)
                        tx += w * (a02 * hz + a12 * hy + a22 * hx)
                        te += w * e
            node = out[bz, by, bx]
            node[0], node[1], node[2], node[3], node[4], node[5] = szz, szy, szx, syy, syx, sxx
            node[6], node[7], node[8], node[9] = tz, ty, tx, te


def flow_terms_3d(fixed: Array, moving: Array, weight: Array, matrix: NDArray[np.float64], field: Array, step: int = 1) -> Array:
    """The ten terms (Z, Y, X, 10) at the field's nodes: T_zz, T_zy, T_zx, T_yy, T_yx, T_xx, b_z, b_y, b_x, e.

    ``fixed`` (z, y, x, c), ``moving`` (d, h, w, c), ``weight`` (z, y, x), ``matrix`` (4, 4) on indices, ``field`` (Z, Y, X, 3) in
    fixed voxels, one node for ``step`` voxels along each axis, ``Z = ceil(z / step)``.

    Raises ``ValueError`` when the field has another number of nodes.
    """
    nodes = tuple(-(-n // step) for n in fixed.shape[:3])
    if field.shape != (*nodes, 3):
        raise ValueError(
            f"A field with a node every {step} voxels of {fixed.shape[:3]} has shape {(*nodes, 3)}, found {field.shape}."
        )
    if array_module(fixed) is not np:
        if step != 1:
            raise ValueError("on a GPU the field has a node in every voxel.")
        return terms_on_device(fixed, moving, weight, matrix, field)  # type: ignore[no-any-return]
    out = np.empty((*nodes, TERMS), np.float32)
    flat = np.ascontiguousarray(matrix, np.float32)
    _flow_3d(fixed, moving, weight, flat, np.ascontiguousarray(field, np.float32), step, out)
    return out


@njit(parallel=True, cache=True, fastmath=True)
def _solve(terms, ridge, limit, out):  # type: ignore[no-untyped-def]
    one = np.float32(1)
    rows = terms.shape[1]
    for row in prange(terms.shape[0] * rows):
        i, j = row // rows, row % rows
        for k in range(terms.shape[2]):
            t = terms[i, j, k]
            zz, zy, zx, yy, yx, xx = t[0] + ridge, t[1], t[2], t[3] + ridge, t[4], t[5] + ridge
            c00, c01, c02 = yy * xx - yx * yx, zx * yx - zy * xx, zy * yx - zx * yy
            c11, c12, c22 = zz * xx - zx * zx, zy * zx - zz * yx, zz * yy - zy * zy
            scale = -one / (zz * c00 + zy * c01 + zx * c02)
            dz = (c00 * t[6] + c01 * t[7] + c02 * t[8]) * scale
            dy = (c01 * t[6] + c11 * t[7] + c12 * t[8]) * scale
            dx = (c02 * t[6] + c12 * t[7] + c22 * t[8]) * scale
            shrink = limit / max(np.sqrt(dz * dz + dy * dy + dx * dx), limit)
            out[i, j, k, 0], out[i, j, k, 1], out[i, j, k, 2] = dz * shrink, dy * shrink, dx * shrink


def solve_3d(terms: Array, ridge: float, limit: float) -> Array:
    """``d = -(T + ridge I)^-1 b`` at every node, shortened to ``limit``: (Z, Y, X, 3), in the units of the terms.

    ``ridge`` must be above 0, which keeps a node without any structure where it is.
    """
    if array_module(terms) is not np:
        return _solve_formula(terms, ridge, limit)  # type: ignore[no-any-return]
    out = np.empty((*terms.shape[:3], 3), np.float32)
    _solve(terms, np.float32(ridge), np.float32(limit), out)
    return out


def _solve_formula(terms: Any, ridge: float, limit: float) -> Any:
    """The same as array formulas; NumPy or CuPy."""
    xp = array_module(terms)
    zz, zy, zx, yy, yx, xx, tz, ty, tx = (terms[..., k] for k in range(9))
    zz, yy, xx = (d + xp.float32(ridge) for d in (zz, yy, xx))
    c00, c01, c02 = yy * xx - yx * yx, zx * yx - zy * xx, zy * yx - zx * yy
    c11, c12, c22 = zz * xx - zx * zx, zy * zx - zz * yx, zz * yy - zy * zy
    step = xp.stack([c00 * tz + c01 * ty + c02 * tx, c01 * tz + c11 * ty + c12 * tx, c02 * tz + c12 * ty + c22 * tx], axis=-1)
    step *= (-1 / (zz * c00 + zy * c01 + zx * c02))[..., None]
    length = xp.sqrt((step * step).sum(axis=-1, keepdims=True))
    return (step * (np.float32(limit) / xp.maximum(length, np.float32(limit)))).astype(np.float32)
