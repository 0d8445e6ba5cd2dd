"""Weighted sums over two whole images in one pass: fixed blocks of voxels, in float64, added in order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module, to_device
from histomri.kernels import cuda
from histomri.kernels.jit import njit, prange

Array = NDArray[np.float32]
Float = NDArray[np.float64]
BLOCK = 16384
# within a block the order of a sum is the vector instructions', whatever the number of threads
REORDERED = {"reassoc", "nsz", "contract"}


@njit(parallel=True, cache=True, fastmath=REORDERED)
def _sums(fixed, warped, weight, out):  # type: ignore[no-untyped-def]
    for block in prange(out.shape[0]):
        start = block * BLOCK
        stop = min(fixed.size, start + BLOCK)
        f, m, w = fixed[start:stop], warped[start:stop], weight[start:stop]
        s0 = s1 = s2 = s3 = s4 = s5 = 0.0
        for i in range(f.size):
            wi, fi, mi = np.float64(w[i]), np.float64(f[i]), np.float64(m[i])
            wf, wm = wi * fi, wi * mi
            s0 += wi
            s1 += wf
            s2 += wm
            s3 += wf * fi
            s4 += wm * mi
            s5 += wf * mi
        out[block, 0], out[block, 1], out[block, 2] = s0, s1, s2
        out[block, 3], out[block, 4], out[block, 5] = s3, s4, s5


def flat(array: Any) -> Any:
    """All values in a row, contiguous float32."""
    return array_module(array).ascontiguousarray(array, np.float32).reshape(-1)


def _sums_on_device(fixed: Any, warped: Any, weight: Any) -> Float:
    count = cuda.workers(fixed.size)
    out = array_module(fixed).empty((6, count), np.float64)
    cuda.launch("moments", "weighted_sums", count, (fixed, warped, weight, np.int64(fixed.size), np.int64(count), out))
    return np.asarray(to_device(out.sum(axis=1), "cpu"), np.float64)


def weighted_sums(fixed: Array, warped: Array, weight: Array) -> Float:
    """``sum w (1, f, m, f f, m m, f m)`` (6,) of single-channel images of one shape."""
    if array_module(warped) is not np:
        return _sums_on_device(flat(fixed), flat(warped), flat(weight))
    out = np.empty((-(-fixed.size // BLOCK), 6))
    _sums(flat(fixed), flat(warped), flat(weight), out)
    total: Float = out.sum(axis=0)
    return total


@njit(parallel=True, cache=True, fastmath=REORDERED)
def _line(fixed, warped, weight, a, b, c, out):  # type: ignore[no-untyped-def]
    for block in prange(-(-out.size // BLOCK)):
        start = block * BLOCK
        stop = min(out.size, start + BLOCK)
        f, m, w, o = fixed[start:stop], warped[start:stop], weight[start:stop], out[start:stop]
        for i in range(o.size):
            o[i] = np.float32(w[i] * (a * f[i] + b * m[i] + c))


def weighted_line(fixed: Array, warped: Array, weight: Array, a: float, b: float, c: float) -> Array:
    """``w (a f + b m + c)`` of single-channel images of one shape, in float64 until it is stored."""
    images = flat(fixed), flat(warped), flat(weight)
    out: Array = array_module(warped).empty(warped.size, np.float32)
    if array_module(warped) is not np:
        numbers = (np.float64(x) for x in (a, b, c))
        cuda.launch("moments", "weighted_line", out.size, (*images, np.int64(out.size), *numbers, out))
    else:
        _line(*images, float(a), float(b), float(c), out)
    return out.reshape(warped.shape)
