"""Separable bases on a regular grid, as sparse matrices along each axis: cubic B-splines, and linear interpolation between grids.

Sparse products run in one thread in a fixed order, so nothing depends on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Float = NDArray[np.float64]


def cubic_weights(t: Float) -> Float:
    """The four cubic B-splines around a point at the share ``t`` (n,) of its interval: (n, 4), which sum to 1."""
    parts = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return np.stack(parts, axis=1) / 6


def cubic_slopes(t: Float) -> Float:
    """Their derivatives by t."""
    parts = [-((1 - t) ** 2), 3 * t**2 - 4 * t, -3 * t**2 + 2 * t + 1, t**2]
    return np.stack(parts, axis=1) / 2


def along(operator: Any, values: NDArray[Any], axis: int) -> Float:
    """A matrix (m, n) applied to an axis of n."""
    moved = np.moveaxis(values, axis, 0)
    out = operator @ np.ascontiguousarray(moved).reshape(len(moved), -1)
    return np.moveaxis(np.asarray(out).reshape(operator.shape[0], *moved.shape[1:]), 0, axis)


@dataclass(frozen=True)
class SplineGrid:
    """Cubic B-splines over ``shape`` pixels with knots every ``knots_px``; the first knot lies on the first pixel's centre."""

    shape: tuple[int, ...]
    knots_px: float

    @cached_property
    def _axes(self) -> list[tuple[Any, Any]]:
        return [self._axis(n) for n in self.shape]

    def _axis(self, n: int) -> tuple[Any, Any]:
        """Values and derivatives per pixel of each spline at each pixel, (n, control points)."""
        at = np.arange(n) / self.knots_px
        first = np.floor(at).astype(int)
        count = int(first[-1]) + 4
        column = first[:, None] + np.arange(4)
        row = np.repeat(np.arange(n), 4)
        both = (cubic_weights(at - first), cubic_slopes(at - first) / self.knots_px)
        made = [sparse.csr_array((w.ravel(), (row, column.ravel())), shape=(n, count)) for w in both]
        return made[0], made[1]

    @property
    def size(self) -> tuple[int, ...]:
        """Number of control points along each axis."""
        return tuple(values.shape[1] for values, _ in self._axes)

    def values(self, control: Float) -> Float:
        """The sums (*shape, c) of splines with coefficients (*size, c)."""
        for axis, (basis, _) in enumerate(self._axes):
            control = along(basis, control, axis)
        return control

    def transposed(self, values: Float) -> Float:
        """The transpose of :meth:`values`: (*shape, c) to (*size, c)."""
        for axis, (basis, _) in enumerate(self._axes):
            values = along(basis.T.tocsr(), values, axis)
        return values

    def derivatives(self, control: Float) -> Float:
        """``d values_c / d x_j`` (*shape, c, j), per pixel."""
        out = []
        for j in range(len(self.shape)):
            part = control
            for axis, (basis, slope) in enumerate(self._axes):
                part = along(slope if axis == j else basis, part, axis)
            out.append(part)
        return np.stack(out, axis=-1)

    def fitted(self, values: Float) -> Float:
        """The coefficients (*size, c) of the least squares fit to values (*shape, c); the smallest of several."""
        for axis, (basis, _) in enumerate(self._axes):
            values = along(np.linalg.pinv(basis.toarray(), rcond=1e-6), values, axis)
        return values


def resampled(values: NDArray[Any], shape: tuple[int, ...], start: Float, step: Float) -> NDArray[np.float32]:
    """Values (*old shape, c) at indices ``start + step * i`` of the old grid, (*shape, c): linear, the edge value outside."""
    for axis, n in enumerate(shape):
        at = np.clip(start[axis] + step[axis] * np.arange(n), 0, values.shape[axis] - 1)
        first = np.minimum(at.astype(int), max(values.shape[axis] - 2, 0))
        second = np.minimum(first + 1, values.shape[axis] - 1)
        weight = np.stack([1 - (at - first), at - first], axis=1)
        index = (np.repeat(np.arange(n), 2), np.stack([first, second], axis=1).ravel())
        values = along(sparse.csr_array((weight.ravel(), index), shape=(n, values.shape[axis])), values, axis)
    return np.asarray(values, np.float32)
