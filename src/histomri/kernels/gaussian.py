"""Separable Gaussian of scalar and vector fields, 2D and 3D, edges replicated.

    out(p) = sum_k g_z(k_z) g_y(k_y) g_x(k_x) in(clamp(p + k)),   g(k) = exp(-k^2 / (2 sigma^2)) / sum_j exp(-j^2 / (2 sigma^2))

over ``|k| <= r``, ``r = floor(truncate sigma + 1/2)`` per axis, as scipy's ``gaussian_filter`` with ``mode="nearest"``. Every
value is summed in the same order, whatever the blocks or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from histomri.backend import array_module

Array = NDArray[np.float32]
# rows of a plane that are smoothed along x and y together, while they are in the cache
ROWS = 64


def gaussian_weights(sigma: float, truncate: float = 3.0) -> NDArray[np.float32]:
    """``g(0), g(1), ... g(r)``: one half of the weights along an axis, (r + 1,), of the sampled Gaussian whose sum is 1."""
    reach = int(truncate * sigma + 0.5)
    if reach == 0:
        return np.ones(1, np.float32)
    half = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    return np.asarray(half / (2 * half.sum() - half[0]), np.float32)


@njit(cache=True)
def _pad(row, inner, reach, padded):  # type: ignore[no-untyped-def]
    """A row of ``inner`` numbers per pixel with ``reach`` more pixels of its first and last value at its ends."""
    size, last = row.shape[0], row.shape[0] - inner
    for k in range(reach * inner):
        padded[k] = row[k % inner]
        padded[reach * inner + size + k] = row[last + k % inner]
    padded[reach * inner : reach * inner + size] = row


@njit(cache=True)
def _smooth_row(row, inner, weights, padded, out):  # type: ignore[no-untyped-def]
    """Along the row itself."""
    reach, size = weights.shape[0] - 1, row.shape[0]
    _pad(row, inner, reach, padded)
    for j in range(size):
        out[j] = weights[0] * padded[reach * inner + j]
    for k in range(1, reach + 1):
        w, before, after = weights[k], padded[(reach - k) * inner :], padded[(reach + k) * inner :]
        for j in range(size):
            out[j] += w * (before[j] + after[j])


@njit(cache=True)
def _smooth_across(rows, at, weights, out):  # type: ignore[no-untyped-def]
    """Row ``at`` of ``rows`` (n, size), across the rows."""
    last, size = rows.shape[0] - 1, rows.shape[1]
    middle = rows[at]
    for j in range(size):
        out[j] = weights[0] * middle[j]
    for k in range(1, weights.shape[0]):
        w, before, after = weights[k], rows[max(at - k, 0)], rows[min(at + k, last)]
        for j in range(size):
            out[j] += w * (before[j] + after[j])


@njit(cache=True)
def _smooth_block(plane, first, last, inner, across, along, out):  # type: ignore[no-untyped-def]
    """Rows ``first`` to ``last`` of a plane (y, x inner), along x and y; the rows beyond that y asks for are done again."""
    reach, height, size = across.shape[0] - 1, plane.shape[0], plane.shape[1]
    begin, end = max(first - reach, 0), min(last + reach, height)
    held = np.empty((end - begin, size), np.float32)
    padded = np.empty(size + 2 * inner * (along.shape[0] - 1), np.float32)
    for y in range(begin, end):
        _smooth_row(plane[y], inner, along, padded, held[y - begin])
    for y in range(first, last):
        _smooth_across(held, y - begin, across, out[y])


@njit(parallel=True, cache=True)
def _smooth_planes(values, inner, across, along, out):  # type: ignore[no-untyped-def]
    blocks = (values.shape[1] + ROWS - 1) // ROWS
    for block in prange(values.shape[0] * blocks):
        z, first = block // blocks, block % blocks * ROWS
        _smooth_block(values[z], first, min(first + ROWS, values.shape[1]), inner, across, along, out[z])


@njit(parallel=True, cache=True)
def _smooth_depth(values, weights, out):  # type: ignore[no-untyped-def]
    for y in prange(values.shape[1]):
        for z in range(values.shape[0]):
            _smooth_across(values[:, y], z, weights, out[z, y])


def gaussian(values: Array, sigma: float | Sequence[float], ndim: int, truncate: float = 3.0) -> Array:
    """The smoothed image or field, float32, of the same shape.

    ``values`` is (*shape) or (*shape, c) with ``ndim`` (2 or 3) axes in space, ``sigma`` in pixels, one for all axes or one per
    axis; 0 leaves an axis as it is. Raises ``ValueError`` for other shapes and for a negative or infinite sigma.
    """
    sigmas = _sigmas(values, sigma, ndim)
    whole = np.ascontiguousarray(values, np.float32)
    inner = 1 if whole.ndim == ndim else whole.shape[-1]
    depth, (height, width) = whole.shape[0] if ndim == 3 else 1, whole.shape[ndim - 2 : ndim]
    if whole.size == 0:
        return whole.copy()
    planes = whole.reshape(depth, height, width * inner)
    weights = [gaussian_weights(s, truncate) for s in sigmas]
    out = np.empty_like(planes)
    _smooth_planes(planes, inner, weights[-2], weights[-1], out)
    if ndim == 3 and len(weights[0]) > 1:
        between, out = out, np.empty_like(planes)
        _smooth_depth(between, weights[0], out)
    return out.reshape(whole.shape)


def _sigmas(values: Any, sigma: float | Sequence[float], ndim: int) -> list[float]:
    if ndim not in (2, 3) or values.ndim not in (ndim, ndim + 1):
        raise ValueError(f"a Gaussian is 2D or 3D of (*shape) or (*shape, c); got ndim {ndim} and the shape {values.shape}.")
    sigmas = [float(sigma)] * ndim if isinstance(sigma, int | float) else [float(s) for s in sigma]
    if len(sigmas) != ndim or not all(0 <= s < np.inf for s in sigmas):
        raise ValueError(f"sigma is one or {ndim} numbers of pixels, 0 or more; got {sigma}.")
    return sigmas


def gaussian_reference(values: Any, sigma: float | Sequence[float], ndim: int, truncate: float = 3.0) -> Any:
    """What :func:`gaussian` does, readable, on NumPy or CuPy, float64: one weighted sum of shifted arrays per axis."""
    xp = array_module(values)
    out = values.astype(float)
    for axis, s in enumerate(_sigmas(values, sigma, ndim)):
        half = [float(w) for w in gaussian_weights(s, truncate)]
        place = xp.arange(out.shape[axis])
        shifted = [xp.take(out, xp.clip(place + k, 0, out.shape[axis] - 1), axis) for k in range(-len(half) + 1, len(half))]
        out = sum(half[abs(k)] * part for k, part in zip(range(-len(half) + 1, len(half)), shifted, strict=True))
    return out
