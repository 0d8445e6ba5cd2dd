"""The smallest Jacobian determinant of a displacement field, by every one-sided difference: what decides whether it folds.

At a node, ``D_s`` is the matrix of differences towards the neighbours of sign ``s = (+-1, ..)`` along each axis, in pixels:

    det_s(p) = det(I + D_s u(p)),   least = min over nodes p of the mask and signs s

A piecewise (bi)linear map in 2D is one-to-one on a cell where the four determinants at its corners are positive; in 3D this is
the usual check at the eight corners of a cell. Central differences, which most tools report, miss folds of one pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels import cuda

Array = NDArray[np.float32]


@njit(inline="always")
def _difference(field, k, j, i, axis, sign, c):  # type: ignore[no-untyped-def]
    """One-sided difference of component c along an axis; the other side at the border, 0 along an axis of one node."""
    n = field.shape[axis]
    if n == 1:
        return 0.0
    at = (k, j, i)[axis]
    s = sign if 0 <= at + sign < n else -sign
    dk, dj, di = (s if axis == 0 else 0), (s if axis == 1 else 0), (s if axis == 2 else 0)
    return s * (float(field[k + dk, j + dj, i + di, c]) - float(field[k, j, i, c]))


@njit(inline="always")
def _determinant(m):  # type: ignore[no-untyped-def]
    return (
        m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
        - m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
        + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
    )


@njit(parallel=True, cache=True)
def _below(field, limit, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    height, width = field.shape[1], field.shape[2]
    for row in prange(field.shape[0] * height):
        k, j = row // height, row % height
        # d u_c / d x_axis towards either side, and 1 where c is the axis: a row's numbers beside each other
        m = np.empty((2, 3, 3, width))
        _columns(field, k, j, m)
        _fall_below(m, limit, out[k, j])


@njit(cache=True)
def _columns(field, k, j, m):  # type: ignore[no-untyped-def]  # pragma: no cover
    depth, height, width, _ = field.shape
    rows = ((max(k - 1, 0), j), (min(k + 1, depth - 1), j)), ((k, max(j - 1, 0)), (k, min(j + 1, height - 1)))
    for axis in range(2):
        before, after = rows[axis]
        # at a border the other side counts twice
        low, high = before != (k, j), after != (k, j)
        for c in range(3):
            one = 1.0 if c == axis else 0.0
            for i in range(width):
                here = float(field[k, j, i, c])
                down, up = here - float(field[before[0], before[1], i, c]), float(field[after[0], after[1], i, c]) - here
                m[0, axis, c, i] = one + (down if low else up)
                m[1, axis, c, i] = one + (up if high else down)
    for c in range(3):
        one = 1.0 if c == 2 else 0.0
        for i in range(1, width):
            m[0, 2, c, i] = m[1, 2, c, i - 1] = one + (float(field[k, j, i, c]) - float(field[k, j, i - 1, c]))
        m[0, 2, c, 0] = m[1, 2, c, 0] if width > 1 else one
        m[1, 2, c, width - 1] = m[0, 2, c, width - 1]


@njit(cache=True)
def _fall_below(m, limit, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Whether any of the eight determinants ``a . (b x c)`` of a row's nodes is below the limit, or no number."""
    out[:] = False
    for side in range(4):
        b, c = m[side & 1, 1], m[side >> 1, 2]
        for i in range(out.shape[0]):
            x = b[1, i] * c[2, i] - b[2, i] * c[1, i]
            y = b[2, i] * c[0, i] - b[0, i] * c[2, i]
            z = b[0, i] * c[1, i] - b[1, i] * c[0, i]
            first = m[0, 0, 0, i] * x + m[0, 0, 1, i] * y + m[0, 0, 2, i] * z
            second = m[1, 0, 0, i] * x + m[1, 0, 1, i] * y + m[1, 0, 2, i] * z
            out[i] |= (not first >= limit) | (not second >= limit)


def nodes_below(field: Array, limit: float) -> NDArray[np.bool_]:
    """Nodes (z, y, x) of a field (z, y, x, 3) in pixels where one of the eight determinants is below the limit, or no number."""
    out = np.empty(field.shape[:-1], bool)
    _below(np.ascontiguousarray(field), limit, out)
    return out


@njit(parallel=True, cache=True)
def _least(field, mask, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    depth, height, width, _ = field.shape
    for row in prange(depth * height):
        k, j = row // height, row % height
        d, m = np.empty((2, 3, 3)), np.empty((3, 3))
        least = np.inf
        for i in range(width):
            if not mask[k, j, i]:
                continue
            largest = 0.0
            for axis in range(3):
                for side in range(2):
                    for c in range(3):
                        d[side, c, axis] = _difference(field, k, j, i, axis, 2 * side - 1, c)
                        largest = max(largest, abs(d[side, c, axis]))
            # all eigenvalues of I + D lie within 3 max|D| of 1: this node cannot be the smallest
            if 3 * largest < 1.0 and (1.0 - 3 * largest) ** 3 >= least:
                continue
            for signs in range(8):
                for c in range(3):
                    for axis in range(3):
                        m[c, axis] = d[(signs >> axis) & 1, c, axis] + (1.0 if c == axis else 0.0)
                least = min(least, _determinant(m))
        out[row] = least


def least_jacobian(field: Array, mask: NDArray[np.bool_] | None = None) -> float:
    """The smallest determinant of a field (*shape, ndim) in pixels over the nodes of ``mask``; infinite for an empty one."""
    xp = array_module(field)
    inside = xp.ones(field.shape[:-1], bool) if mask is None else xp.ascontiguousarray(xp.asarray(mask), bool)
    volume = as_volume(field)
    if xp is not np:
        return _least_on_device(volume, inside)
    out = np.full(volume.shape[0] * volume.shape[1], np.inf)
    _least(volume, inside.reshape(volume.shape[:3]), out)
    return float(out.min(initial=np.inf))


def _least_on_device(volume: Any, inside: Any) -> float:
    xp, count = array_module(volume), cuda.workers(inside.size)
    out = xp.empty(count, np.float64)
    sizes = (np.int64(n) for n in (*volume.shape[:3], count))
    given = xp.ascontiguousarray(volume, np.float32), inside.reshape(-1).view(np.uint8)
    cuda.launch("folding", "least_jacobian", count, (*given, *sizes, np.float64(np.inf), out))
    return float(out.min())


def as_volume(field: Array) -> Array:
    """A field (y, x, 2) as one of a single plane (1, y, x, 3) that does not leave it; a field (z, y, x, 3) as it is."""
    xp = array_module(field)
    if field.shape[-1] == 3:
        return xp.ascontiguousarray(field)  # type: ignore[no-any-return]
    return xp.ascontiguousarray(xp.pad(field, [(0, 0), (0, 0), (1, 0)])[None])  # type: ignore[no-any-return]


def least_jacobian_reference(field: Array, mask: NDArray[np.bool_] | None = None) -> float:
    """What :func:`least_jacobian` does, readable."""
    ndim = field.shape[-1]
    sides = [[_one_sided(field, axis, sign) for sign in (-1, 1)] for axis in range(ndim)]
    least = np.full(field.shape[:-1], np.inf)
    for signs in np.ndindex(*(2,) * ndim):
        jacobian = np.stack([sides[axis][s] for axis, s in enumerate(signs)], axis=-1) + np.eye(ndim)
        least = np.minimum(least, np.linalg.det(jacobian))
    return float(least[np.ones(least.shape, bool) if mask is None else mask].min(initial=np.inf))


def _one_sided(field: Array, axis: int, sign: int) -> NDArray[np.float64]:
    data = np.moveaxis(field.astype(np.float64), axis, 0)
    if len(data) == 1:
        return np.moveaxis(np.zeros_like(data), 0, axis)
    step = np.diff(data, axis=0)
    parts = [step, step[-1:]] if sign > 0 else [step[:1], step]
    return np.moveaxis(np.concatenate(parts), 0, axis)
