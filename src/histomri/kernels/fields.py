"""Displacement fields as maps: composed, inverted, exponentiated, and their Jacobian; 2D and 3D, in pixels of their own grid.

A field u (*shape, n) stands for the map ``T(p) = p + u(p)``; between pixels it is linear, beyond the outermost centres it keeps
their value.

    compose        T2 o T1:  u(p) = u1(p) + u2(p + u1(p))
    invert         v with  p + v(p) + u(p + v(p)) = p:  the fixed point of  v <- -u(p + v)  (Chen et al. 2008)
    exponential    exp(v):  u0 = v / 2^n, then n times u <- u o u  (Arsigny et al. 2006)
    determinant    det(I + du/dp), central differences, one-sided at the edges
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels import cuda
from histomri.kernels.interpolate import warp, warp_reference

Array = NDArray[np.float32]
# the longest step, in pixels, of the field that an exponential begins with: what its first step leaves out is halved with it
FIRST_STEP = 0.125


class Inverse(NamedTuple):
    """An inverse field (*shape, n), and what is left: the largest ``|v(p) + u(p + v(p))|`` in pixels after ``iterations``."""

    field: Array
    residual: float
    iterations: int


def _shape(field: Any) -> tuple[int, ...]:
    """The shape in space; refuses what is no field."""
    if field.ndim not in (3, 4) or field.shape[-1] != field.ndim - 1:
        raise ValueError(f"a displacement field is (y, x, 2) or (z, y, x, 3); got {field.shape}.")
    shape: tuple[int, ...] = field.shape[:-1]
    return shape


def at_displaced(values: Array, field: Array) -> Array:
    """``values(p + field(p))``, linear, edge values outside; ``values`` (*shape, c) lies on the field's grid."""
    ndim = len(_shape(field))
    return warp(values, np.eye(ndim + 1), _shape(field), field, outside="edge")


def compose(first: Array, second: Array) -> Array:
    """The field of ``second o first``: ``first(p) + second(p + first(p))``, both (*shape, n) on one grid.

    Raises ``ValueError`` where the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"fields to compose lie on one grid; got {first.shape} and {second.shape}.")
    out = at_displaced(second, first)
    out += first
    return out


def invert(field: Array, tolerance: float = 1e-3, iterations: int = 50) -> Inverse:
    """The inverse field, by fixed-point iteration until no pixel moves by more than ``tolerance`` pixels.

    It converges where ``|du/dp| < 1``. What is left is measured and returned; a residual above the tolerance says that there is
    no inverse there (the field folds), or that more iterations are needed.
    """
    xp = array_module(field)
    inverse = -xp.ascontiguousarray(field, np.float32)
    residual = math.inf
    for done in range(1, iterations + 1):
        nearer = -at_displaced(field, inverse)
        residual = float(xp.sqrt(((nearer - inverse) ** 2).sum(-1).max()))
        if residual <= tolerance:
            return Inverse(inverse, residual, done)
        inverse = nearer
    return Inverse(inverse, residual, iterations)


def squarings(velocity: Array) -> int:
    """How often the exponential squares: until the first step is at most an eighth of a pixel."""
    longest = math.sqrt(float((velocity.astype(np.float64) ** 2).sum(-1).max())) if velocity.size else 0.0
    return max(0, math.ceil(math.log2(longest / FIRST_STEP))) if longest > FIRST_STEP else 0


def exponential(velocity: Array, steps: int | None = None) -> Array:
    """The field of ``exp(velocity)``, by scaling and squaring with ``steps`` squarings (by default :func:`squarings`)."""
    steps = squarings(velocity) if steps is None else steps
    field = velocity.astype(np.float32) * np.float32(0.5**steps)
    for _ in range(steps):
        field = compose(field, field)
    return field


@njit(cache=True, inline="always")
def _difference(n, i):  # type: ignore[no-untyped-def]
    """The neighbours of i that a difference takes, and what it is divided by."""
    before, after = max(i - 1, 0), min(i + 1, n - 1)
    return before, after, np.float32(1.0 / max(after - before, 1))


@njit(parallel=True, cache=True)
def _determinant_2d(field, out):  # type: ignore[no-untyped-def]
    height, width, _ = field.shape
    one = np.float32(1)
    for y in prange(height):
        up, down, dy = _difference(height, y)
        for x in range(width):
            left, right, dx = _difference(width, x)
            a = one + (field[down, x, 0] - field[up, x, 0]) * dy
            b = (field[y, right, 0] - field[y, left, 0]) * dx
            c = (field[down, x, 1] - field[up, x, 1]) * dy
            d = one + (field[y, right, 1] - field[y, left, 1]) * dx
            out[y, x] = a * d - b * c


@njit(parallel=True, cache=True)
def _determinant_3d(field, out):  # type: ignore[no-untyped-def]
    depth, height, width, _ = field.shape
    one = np.float32(1)
    for row in prange(depth * height):
        z, y = row // height, row % height
        near, far, dz = _difference(depth, z)
        up, down, dy = _difference(height, y)
        for x in range(width):
            left, right, dx = _difference(width, x)
            a = one + (field[far, y, x, 0] - field[near, y, x, 0]) * dz
            b = (field[z, down, x, 0] - field[z, up, x, 0]) * dy
            c = (field[z, y, right, 0] - field[z, y, left, 0]) * dx
            d = (field[far, y, x, 1] - field[near, y, x, 1]) * dz
            e = one + (field[z, down, x, 1] - field[z, up, x, 1]) * dy
            f = (field[z, y, right, 1] - field[z, y, left, 1]) * dx
            g = (field[far, y, x, 2] - field[near, y, x, 2]) * dz
            h = (field[z, down, x, 2] - field[z, up, x, 2]) * dy
            k = one + (field[z, y, right, 2] - field[z, y, left, 2]) * dx
            out[z, y, x] = a * (e * k - f * h) - b * (d * k - f * g) + c * (d * h - e * g)


def jacobian_determinant(field: Array) -> Array:
    """``det(I + du/dp)`` (*shape) float32: below 0 where the map folds, 1 where it keeps areas or volumes."""
    xp, shape = array_module(field), _shape(field)
    given = xp.ascontiguousarray(field, np.float32)
    out: Array = xp.empty(shape, np.float32)
    if xp is not np:
        cuda.launch("fields", f"determinant_{out.ndim}d", out.size, (given, *map(np.int64, shape), out))
        return out
    (_determinant_2d if out.ndim == 2 else _determinant_3d)(given, out)
    return out


def at_displaced_reference(values: Any, field: Any) -> Any:
    """What :func:`at_displaced` does, readable, on NumPy or CuPy, float64."""
    xp = array_module(values)
    return warp_reference(values, xp.eye(field.ndim), field.shape[:-1], field, outside="edge")[0]


def compose_reference(first: Any, second: Any) -> Any:
    """What :func:`compose` does, readable."""
    return first + at_displaced_reference(second, first)


def invert_reference(field: Any, iterations: int = 50) -> Any:
    """What :func:`invert` tends to, readable."""
    inverse = -field
    for _ in range(iterations):
        inverse = -at_displaced_reference(field, inverse)
    return inverse


def exponential_reference(velocity: Any, steps: int) -> Any:
    """What :func:`exponential` does, readable."""
    field = velocity / 2.0**steps
    for _ in range(steps):
        field = compose_reference(field, field)
    return field


def jacobian_determinant_reference(field: Any) -> Any:
    """What :func:`jacobian_determinant` does, readable, on NumPy or CuPy."""
    xp = array_module(field)
    ndim = field.shape[-1]
    slopes = [xp.stack(xp.gradient(field[..., k], axis=tuple(range(ndim))), axis=-1) for k in range(ndim)]
    return xp.linalg.det(xp.eye(ndim) + xp.stack(slopes, axis=-2))
