"""Separable Gaussian of scalar and vector fields, 2D and 3D, edges replicated.

    out(p) = sum_k g_z(k_z) g_y(k_y) g_x(k_x) in(clamp(p + k)),   g(k) = exp(-k^2 / (2 sigma^2)) / sum_j exp(-j^2 / (2 sigma^2))

over ``|k| <= r``, ``r = floor(truncate sigma + 1/2)`` per axis, as scipy's ``gaussian_filter`` with ``mode="nearest"``. Every
value is summed in the same order, whatever the blocks or threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels import cuda
from histomri.kernels.run_vectors import ahead, pointer

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
def _weighted(lines, at, last, step, weights, size, out):  # type: ignore[no-untyped-def]
    """``out = w_0 line(at) + sum_k w_k (line(at - k) + line(at + k))`` of lines of ``size`` numbers, ``step`` apart."""
    middle, reach, w = ahead(lines, at * step), weights.shape[0] - 1, weights[0]
    for j in range(size):
        out[j] = w * middle[j]
    # two distances at a time halve what goes to and from the sum
    for k in range(1, reach, 2):
        v, w = weights[k], weights[k + 1]
        a, b = ahead(lines, max(at - k, 0) * step), ahead(lines, min(at + k, last) * step)
        c, d = ahead(lines, max(at - k - 1, 0) * step), ahead(lines, min(at + k + 1, last) * step)
        for j in range(size):
            out[j] += v * (a[j] + b[j]) + w * (c[j] + d[j])
    if reach % 2 == 1:
        v, a, b = weights[reach], ahead(lines, max(at - reach, 0) * step), ahead(lines, min(at + reach, last) * step)
        for j in range(size):
            out[j] += v * (a[j] + b[j])


@njit(cache=True)
def _smooth_row(row, size, inner, weights, padded, out):  # type: ignore[no-untyped-def]
    """Along a row of ``inner`` numbers per pixel, copied between repetitions of its first and last pixel."""
    reach = weights.shape[0] - 1
    begin, end, last = ahead(padded, reach * inner), ahead(padded, reach * inner + size), ahead(row, size - inner)
    for k in range(reach):
        for c in range(inner):
            padded[k * inner + c] = row[c]
            end[k * inner + c] = last[c]
    for j in range(size):
        begin[j] = row[j]
    _weighted(padded, reach, 2 * reach, inner, weights, size, out)


@njit(cache=True)
def _smooth_block(plane, span, size, inner, across, along, out):  # type: ignore[no-untyped-def]
    """Rows ``span`` = (first, last, height) of a plane, along x and y; the rows beyond that y asks for are done again."""
    first, last, height = span
    reach = across.shape[0] - 1
    begin, end = max(first - reach, 0), min(last + reach, height)
    held, padded = np.empty((end - begin) * size, np.float32), np.empty(size + 2 * inner * (along.shape[0] - 1), np.float32)
    rows, line = pointer(held), pointer(padded)
    for y in range(begin, end):
        _smooth_row(ahead(plane, y * size), size, inner, along, line, ahead(rows, (y - begin) * size))
    for y in range(first, last):
        _weighted(rows, y - begin, end - begin - 1, size, across, size, ahead(out, y * size))
    held[0] = padded[0] = 0  # the buffers live until here


@njit(parallel=True, cache=True)
def _smooth_planes(values, inner, across, along, out):  # type: ignore[no-untyped-def]
    height, size = values.shape[1], values.shape[2]
    blocks = (height + ROWS - 1) // ROWS
    for block in prange(values.shape[0] * blocks):
        plane, first = block // blocks * height * size, block % blocks * ROWS
        span = (first, min(first + ROWS, height), height)
        _smooth_block(ahead(pointer(values), plane), span, size, inner, across, along, ahead(pointer(out), plane))


@njit(parallel=True, cache=True)
def _smooth_depth(values, weights, out):  # type: ignore[no-untyped-def]
    depth, height, size = values.shape
    for y in prange(height):
        column, into = ahead(pointer(values), y * size), ahead(pointer(out), y * size)
        for z in range(depth):
            _weighted(column, z, depth - 1, height * size, weights, size, ahead(into, z * height * size))


def gaussian(values: Array, sigma: float | Sequence[float], ndim: int, truncate: float = 3.0) -> Array:
    """The smoothed image or field, float32, of the same shape.

    ``values`` is (*shape) or (*shape, c) with ``ndim`` (2 or 3) axes in space, ``sigma`` in pixels, one for all axes or one per
    axis; 0 leaves an axis as it is. Raises ``ValueError`` for other shapes and for a negative or infinite sigma.
    """
    sigmas = _sigmas(values, sigma, ndim)
    if array_module(values) is not np:
        smoothed: Array = _on_device(values, sigmas, truncate)
        return smoothed
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


def _on_device(values: Any, sigmas: Sequence[float], truncate: float) -> Any:
    """The same on the GPU that holds ``values``, axis by axis."""
    xp = array_module(values)
    out = xp.ascontiguousarray(values, np.float32)
    for axis, sigma in enumerate(sigmas):
        weights, smoothed, shape = gaussian_weights(sigma, truncate), xp.empty_like(out), out.shape
        sizes = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]), len(weights) - 1)
        cuda.launch("gaussian", "smooth_axis", out.size, (out, xp.asarray(weights), *map(np.int64, sizes), smoothed))
        out = smoothed
    return out


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
