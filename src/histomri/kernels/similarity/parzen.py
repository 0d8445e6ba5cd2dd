"""The joint histogram and the force of :mod:`histogram`, as fused kernels for the CPU.

A pair of values touches 2 x 2 bins (linear) or 1 x 4 (cubic). Each first bin has a cell of four sums of its own, which one vector
instruction changes; the histogram is put together from the cells afterwards. Even and odd voxels have cells of their own, so that
flat regions need not wait for the sum before. Cells are float32 and are added to float64 after every ``FLUSH`` voxels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module, to_device
from histomri.kernels import cuda
from histomri.kernels.jit import njit, prange
from histomri.kernels.similarity.lanes import Lanes, adder
from histomri.kernels.similarity.moments import flat

Array = NDArray[np.float32]
Float = NDArray[np.float64]
CHUNK = 512
FLUSH = 65536
PARTS = 64
LEAST = 16384  # voxels of a part
CELLS = 4096  # of a histogram on the GPU, in a block's shared memory
FAST = {"nsz", "contract"}  # sums keep their order


def _linear(weight: Lanes, a: Lanes, b: Lanes) -> Lanes:
    """``w (1 - a, 1 - a, a, a) (1 - b, b, 1 - b, b)``."""
    return weight * (a * (-1, -1, 1, 1) + (1, 1, 0, 0)) * (b * (-1, 1, -1, 1) + (1, 0, 1, 0))


def _cubic(weight: Lanes, _: Lanes, t: Lanes) -> Lanes:
    """``w ((1 - t)^3, 4 - 6 t^2 + 3 t^3, 1 + 3 t + 3 t^2 - 3 t^3, t^3) / 6``."""
    terms = ((1, 4, 1, 0), (-3, 0, 3, 0), (3, -6, 3, 0), (-1, 3, -3, 1))
    c0, c1, c2, c3 = ([x / 6 for x in row] for row in terms)
    return weight * (((t * c3 + c2) * t + c1) * t + c0)


_add_linear, _add_cubic = adder(_linear), adder(_cubic)


@njit(fastmath=FAST, inline="always")
def place(value, bins, cubic):  # type: ignore[no-untyped-def]
    """First bin and place in it of a value (0 for NaN); linear: x = u (bins - 1), cubic: x = 2 + u (bins - 4)."""
    low = np.float32(2.0) if cubic else np.float32(0.0)
    span = np.float32(bins - 4) if cubic else np.float32(bins - 1)
    x = value * span
    x = x if x > np.float32(0.0) else np.float32(0.0)
    x = low + (x if x < span else span)
    last = low + span - np.float32(1.0)
    first = np.int32(x if x < last else last)
    return first, x - np.float32(first)


@njit(cache=True, fastmath=FAST)
def _fill(fixed, warped, weight, bins, cubic, cells):  # type: ignore[no-untyped-def]
    """Add voxels to cells (2 * bins * bins * 4)."""
    index, a, b = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for start in range(0, fixed.size, CHUNK):
        # slices: their indices are known to be positive, and the loop becomes vector instructions
        f, m, w = fixed[start : start + CHUNK], warped[start : start + CHUNK], weight[start : start + CHUNK]
        for i in range(f.size):
            k, a[i] = place(f[i], bins, cubic)
            n, b[i] = place(m[i], bins, cubic)
            index[i] = ((np.int32(i & 1) * np.int32(bins) + k) * np.int32(bins) + n) * np.int32(4)
        if cubic:
            for i in range(f.size):
                _add_cubic(cells, index[i], w[i], a[i], b[i])
        else:
            for i in range(f.size):
                _add_linear(cells, index[i], w[i], a[i], b[i])


@njit(cache=True)
def _assemble(cells, bins, cubic, joint):  # type: ignore[no-untyped-def]
    """Add the cells to the histogram (bins, bins) and empty them."""
    for half in range(2):
        for k in range(bins):
            for n in range(bins):
                for lane in range(4):
                    i = ((half * bins + k) * bins + n) * 4 + lane
                    value = cells[i]
                    if value != 0.0:
                        if cubic:
                            joint[k, n - 1 + lane] += value
                        else:
                            joint[k + lane // 2, n + lane % 2] += value
                        cells[i] = 0.0


@njit(parallel=True, cache=True)
def _joint(fixed, warped, weight, bins, cubic, size, out):  # type: ignore[no-untyped-def]
    for part in prange(out.shape[0]):
        cells = np.zeros(2 * bins * bins * 4, np.float32)
        end = min(fixed.size, (part + 1) * size)
        for start in range(part * size, end, FLUSH):
            stop = min(end, start + FLUSH)
            _fill(fixed[start:stop], warped[start:stop], weight[start:stop], bins, cubic, cells)
            _assemble(cells, bins, cubic, out[part])


def joint_histogram(fixed: Array, warped: Array, weight: Array, bins: int, window: str) -> Float:
    """``sum_i w_i s_k(f_i) s_l(m_i)`` (bins, bins) of float32 arrays of one size; not divided by the total weight."""
    f, m, w = flat(fixed), flat(warped), flat(weight)
    if array_module(warped) is not np:
        return _joint_on_device((f, m, w), bins, window == "cubic")
    size = max(LEAST, -(-f.size // PARTS))
    out = np.zeros((-(-f.size // size), bins, bins))
    _joint(f, m, w, bins, window == "cubic", size, out)
    # the cubic window's ends are 0 but for rounding, which may fall below
    total: Float = np.maximum(out.sum(axis=0), 0)
    return total


@njit(parallel=True, cache=True, fastmath=FAST)
def _force(fixed, warped, weight, slope, cubic, out):  # type: ignore[no-untyped-def]
    bins = slope.shape[0]
    table = slope.reshape(-1)
    for part in prange(-(-fixed.size // LEAST)):
        start = part * LEAST
        stop = min(fixed.size, start + LEAST)
        f, m, w, force = fixed[start:stop], warped[start:stop], weight[start:stop], out[start:stop]
        for i in range(f.size):
            k, a = place(f[i], bins, cubic)
            n, t = place(m[i], bins, cubic)
            j = np.uint32(k * np.int32(bins) + n)
            if cubic:
                s = np.float32(1.0) - t
                slant = (
                    -s * s * table[j - np.uint32(1)]
                    + (np.float32(3.0) * t - np.float32(4.0)) * t * table[j]
                    + (np.float32(4.0) - np.float32(3.0) * s) * s * table[j + np.uint32(1)]
                    + t * t * table[j + np.uint32(2)]
                )
            else:
                slant = table[j] + a * (table[j + np.uint32(bins)] - table[j])
            inside = (m[i] >= np.float32(0.0)) & (m[i] <= np.float32(1.0))
            force[i] = w[i] * slant if inside else np.float32(0.0)


def pulled_back(fixed: Array, warped: Array, weight: Array, slope: Float, window: str) -> Array:
    """``w_i sum_kl s_k(f_i) s_l'(m_i) T_kl`` of the images' shape, for the table ``slope`` (bins, bins)."""
    bins = len(slope)
    table = slope * ((bins - 4) / 2)
    if window == "linear":
        table = np.diff(slope, axis=1, append=slope[:, -1:]) * (bins - 1)
    xp, cubic, images = array_module(warped), window == "cubic", (flat(fixed), flat(warped), flat(weight))
    out: Array = xp.empty(warped.size, np.float32)
    cells = xp.asarray(np.ascontiguousarray(table, np.float32))
    if xp is not np:
        sizes = np.int64(out.size), np.int64(bins), np.int64(cubic)
        cuda.launch("histogram", "pulled_back", out.size, (*images, *sizes, cells, out))
    else:
        _force(*images, cells, cubic, out)
    return out.reshape(warped.shape)


def _scale(weight: Any, top: float = 1.0) -> float:
    """What makes whole numbers of shares of a weight times at most ``top``."""
    return cuda.whole_number_scale(weight.size, float(weight.max()) * top if weight.size else 0.0)


def _joint_on_device(images: Any, bins: int, cubic: bool) -> Float:
    xp, size = array_module(images[1]), images[1].size
    if bins * bins > CELLS:
        raise ValueError(f"on a GPU a joint histogram has at most {math.isqrt(CELLS)} bins a side; got {bins}.")
    count, scale = cuda.workers(size), _scale(images[2])
    out = xp.zeros(bins * bins, np.uint64)
    numbers = (np.int64(n) for n in (size, count, bins, cubic))
    cuda.launch("histogram", "joint_histogram", count, (*images, *numbers, np.float64(scale), out))
    whole = np.asarray(to_device(out, "cpu")).view(np.int64)
    return np.maximum(whole.reshape(bins, bins) / scale, 0)


def binned_on_device(images: Any, bins: int) -> Float:
    """Sums of w, w m, w m m (bins, 3) in each bin of the fixed values, of flat images on a GPU."""
    xp, size = array_module(images[1]), images[1].size
    top = float(abs(images[1]).max()) if size else 0.0
    count, scales = cuda.workers(size), [_scale(images[2], top**k) for k in range(3)]
    out = xp.zeros(3 * bins, np.uint64)
    numbers = (*(np.int64(n) for n in (size, count, bins)), *(np.float64(s) for s in scales))
    cuda.launch("histogram", "binned", count, (*images, *numbers, out))
    whole = np.asarray(to_device(out, "cpu")).view(np.int64).reshape(3, bins)
    return np.ascontiguousarray((whole / np.asarray(scales)[:, None]).T)
