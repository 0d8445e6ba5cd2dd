"""Value and force of :mod:`local_correlation`, as one fused kernel for the CPU.

Tiles of the image are computed alone, each from what lies up to ``2 radius`` around it. A tile runs through its planes once:
sums over boxes are running sums over planes, then over rows, then differences of sums along the row. All of them are float64, so
that their rounding does not grow, and their cost does not depend on the radius. Nothing of the image's size is stored but the
force.

    stage 1   sums of w, w f, w m, w f f, w m m, w f m  ->  R_p (the value) and a_p, b_p, g_p = b_p mean_m - a_p mean_f
    stage 2   sums of a, b, g  ->  force

Planes of stage 2 come ``radius`` planes after those of stage 1, whose last ``2 radius + 1`` are kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels import cuda
from histomri.kernels.jit import njit, prange
from histomri.kernels.similarity.moments import flat

Array = NDArray[np.float32]
SEGMENT = 32  # planes through which a thread of the GPU walks
TILE_2D, TILE_3D = (128, 1, 512), (128, 32, 128)
FAST = {"nsz", "contract"}  # sums keep their order


@njit(cache=True, error_model="numpy")
def _load(image, z, y, x, offset, out):  # type: ignore[no-untyped-def]
    """A window of one plane from (y, x) on, minus ``offset``; zeros beyond the image."""
    depth, height, width = image.shape
    rows, columns = out.shape
    if z < 0 or z >= depth or y < 0 or x < 0 or y + rows > height or x + columns > width:
        out.fill(0)
        if z < 0 or z >= depth:
            return
    top, bottom = max(0, -y), min(rows, height - y)
    left, right = max(0, -x), min(columns, width - x)
    for i in range(top, bottom):
        source, target = image[z, y + i, x + left : x + right], out[i, left:right]
        for j in range(target.size):
            target[j] = source[j] - offset


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _slide_planes(f, m, w, g, n, v, sums):  # type: ignore[no-untyped-def]
    """Add a plane (f, m, w) to the six running sums over planes and take another (g, n, v) away."""
    s0, s1, s2, s3, s4, s5 = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    for i in range(f.size):
        wi, fi, mi = np.float64(w[i]), np.float64(f[i]), np.float64(m[i])
        vi, gi, ni = np.float64(v[i]), np.float64(g[i]), np.float64(n[i])
        wf, wm, vg, vn = wi * fi, wi * mi, vi * gi, vi * ni
        s0[i] += wi - vi
        s1[i] += wf - vg
        s2[i] += wm - vn
        s3[i] += wf * fi - vg * gi
        s4[i] += wm * mi - vn * ni
        s5[i] += wf * mi - vg * ni


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _slide_rows(sums, y, height, columns):  # type: ignore[no-untyped-def]
    """Sums (q, columns) over the ``height`` rows that end in row y, from those that end in the row before."""
    for q in range(sums.shape[0]):
        # indices from the left keep the rows contiguous for the compiler
        a, c = sums[q, y], columns[q]
        if y >= height:
            b = sums[q, y - height]
            for i in range(c.size):
                c[i] += a[i] - b[i]
        else:
            for i in range(c.size):
                c[i] += a[i]


@njit(cache=True, error_model="numpy")
def _along(columns, running):  # type: ignore[no-untyped-def]
    """Sums from the row's start, (q, n + 1), of quantities (q, n), three at a time to keep the processor busy."""
    for q in range(0, columns.shape[0], 3):
        a, b, c = columns[q], columns[q + 1], columns[q + 2]
        p, r, s = running[q], running[q + 1], running[q + 2]
        x = y = z = 0.0
        for i in range(a.size):
            p[i], r[i], s[i] = x, y, z
            x += a[i]
            y += b[i]
            z += c[i]
        p[a.size], r[a.size], s[a.size] = x, y, z


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _moments(running, width, out):  # type: ignore[no-untyped-def]
    """``1 / A``, means, variances and covariance (6, n) of the boxes of a row from the sums along it."""
    s0, s1, s2, s3, s4, s5 = running[0], running[1], running[2], running[3], running[4], running[5]
    e0, e1, e2, e3, e4, e5 = s0[width:], s1[width:], s2[width:], s3[width:], s4[width:], s5[width:]
    o0, o1, o2, o3, o4, o5 = out[0], out[1], out[2], out[3], out[4], out[5]
    for i in range(o0.size):
        weight = e0[i] - s0[i]
        share = 1.0 / (weight if weight > 1e-12 else 1e-12)
        mean_f, mean_m = (e1[i] - s1[i]) * share, (e2[i] - s2[i]) * share
        o0[i], o1[i], o2[i] = share, mean_f, mean_m
        o3[i] = (e3[i] - s3[i]) * share - mean_f * mean_f
        o4[i] = (e4[i] - s4[i]) * share - mean_m * mean_m
        o5[i] = (e5[i] - s5[i]) * share - mean_f * mean_m


@njit(cache=True)
def _narrow(values, out):  # type: ignore[no-untyped-def]
    """float64 to float32, which numba's own assignment does not turn into vector instructions."""
    for i in range(out.size):
        out[i] = values[i]


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _coefficients(moments, w, floor, a, b, g, r):  # type: ignore[no-untyped-def]
    """a, b, g and ``w R`` of a row."""
    share, mean_f, mean_m, var_f, var_m, cov = moments[0], moments[1], moments[2], moments[3], moments[4], moments[5]
    none, two = np.float32(0), np.float32(2)
    for i in range(a.size):
        vf = (var_f[i] if var_f[i] > none else none) + floor
        vm = (var_m[i] if var_m[i] > none else none) + floor
        part = cov[i] / (vf * vm)
        slope, ratio = two * w[i] * share[i] * part, part * vf
        a[i] = slope
        b[i] = slope * ratio
        g[i] = slope * (ratio * mean_m[i] - mean_f[i])
        r[i] = w[i] * cov[i] * part


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _exchange(new, kept, sums):  # type: ignore[no-untyped-def]
    """``sums += new - kept``, then ``kept = new``."""
    for i in range(sums.size):
        sums[i] += np.float64(new[i]) - np.float64(kept[i])
        kept[i] = new[i]


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _force_of_row(running, width, f, m, w, constants, out):  # type: ignore[no-untyped-def]
    mean_f, mean_m, scale = constants
    s0, s1, s2 = running[0], running[1], running[2]
    e0, e1, e2 = s0[width:], s1[width:], s2[width:]
    for i in range(out.size):
        a, b, g = e0[i] - s0[i], e1[i] - s1[i], e2[i] - s2[i]
        out[i] = np.float32(-scale * w[i] * ((f[i] - mean_f) * a - (m[i] - mean_m) * b + g))


@njit(cache=True, fastmath={"reassoc", "nsz", "contract"})
def _total(row):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(row.size):
        total += row[i]
    return total


@njit(cache=True, error_model="numpy")
def _row_sums(sums, y, height, columns):  # type: ignore[no-untyped-def]
    """Sums over the ``height`` rows that end in row y, (q, columns): the row itself where there is only one."""
    if sums.shape[1] == 1:
        return sums.reshape(sums.shape[0], -1)
    if y == 0:
        columns.fill(0)
    _slide_rows(sums, y, height, columns)
    return columns


@njit(cache=True, error_model="numpy")
def _first_stage(sums, w, reach, floor, work, coefficients):  # type: ignore[no-untyped-def]
    """a, b, g of a plane of the tile (3, rows, columns) from its sums over planes; returns ``sum w R`` without the halo."""
    rows, columns = w.shape
    width = 2 * reach[2] + 1
    column_sums, running, moments, narrow, r = work
    value = 0.0
    for y in range(sums.shape[1]):
        within = _row_sums(sums, y, 2 * reach[1] + 1, column_sums)
        j = y - 2 * reach[1]
        if j >= 0:
            _along(within, running)
            _moments(running, width, moments)
            _narrow(moments.reshape(-1), narrow.reshape(-1))
            _coefficients(narrow, w[j], floor, coefficients[0, j], coefficients[1, j], coefficients[2, j], r)
            if reach[1] <= j < rows - reach[1]:
                value += _total(r[reach[2] : columns - reach[2]])
    return value


@njit(cache=True, error_model="numpy")
def _second_stage(sums, images, corner, reach, constants, work, force):  # type: ignore[no-untyped-def]
    """Force of a plane of the tile from the coefficients' sums over planes (3, rows and columns with their halo)."""
    z, y0, x0 = corner
    f, m, w = images
    column_sums, running = work
    x1 = x0 + sums.shape[2] - 2 * reach[2]
    for y in range(sums.shape[1]):
        within = _row_sums(sums, y, 2 * reach[1] + 1, column_sums)
        j = y0 + y - 2 * reach[1]
        if j >= y0:
            _along(within, running)
            here = f[z, j, x0:x1], m[z, j, x0:x1], w[z, j, x0:x1]
            _force_of_row(running, 2 * reach[2] + 1, here[0], here[1], here[2], constants, force[z, j, x0:x1])


@njit(cache=True, error_model="numpy")
def _tile(images, corner, size, reach, floor, constants, force):  # type: ignore[no-untyped-def]
    """Value and force of one tile; ``reach`` is the box's radius along planes, rows and columns."""
    z0, y0, x0 = corner
    rows, columns = size[1] + 2 * reach[1], size[2] + 2 * reach[2]  # of the coefficients
    tall, wide = rows + 2 * reach[1], columns + 2 * reach[2]  # of what they are made of
    new, old = np.zeros((3, tall, wide), np.float32), np.zeros((3, tall, wide), np.float32)
    sums, later = np.zeros((6, tall, wide)), np.zeros((3, rows, columns))
    weight, coefficients = np.empty((rows, columns), np.float32), np.empty((3, rows, columns), np.float32)
    kept = np.zeros((2 * reach[0] + 1, 3 * rows * columns), np.float32)
    r, narrow = np.empty(columns, np.float32), np.empty((6, columns), np.float32)
    work = np.zeros((6, wide)), np.empty((6, wide + 1)), np.empty((6, columns)), narrow, r
    later_work = np.zeros((3, columns)), np.empty((3, columns + 1))
    value = 0.0
    for z in range(z0 - 2 * reach[0], z0 + size[0] + 2 * reach[0]):
        gone = z - 2 * reach[0] - 1
        _load_all(images, z, y0 - 2 * reach[1], x0 - 2 * reach[2], constants, new)
        _load_all(images, gone if gone >= z0 - 2 * reach[0] else -1, y0 - 2 * reach[1], x0 - 2 * reach[2], constants, old)
        n, o = new.reshape(3, -1), old.reshape(3, -1)
        _slide_planes(n[0], n[1], n[2], o[0], o[1], o[2], sums.reshape(6, -1))
        here = z - reach[0]
        if here < z0 - reach[0]:
            continue
        _load(images[2], here, y0 - reach[1], x0 - reach[2], np.float32(0), weight)
        part = _first_stage(sums, weight, reach, np.float32(floor), work, coefficients)
        if z0 <= here < z0 + size[0]:
            value += part
        _exchange(coefficients.reshape(-1), kept[here % (2 * reach[0] + 1)], later.reshape(-1))
        if here - reach[0] >= z0:
            _second_stage(later, images, (here - reach[0], y0, x0), reach, constants, later_work, force)
    return value


@njit(cache=True, error_model="numpy")
def _load_all(images, z, y, x, constants, out):  # type: ignore[no-untyped-def]
    """A window of fixed and warped, less their means, and of the weight."""
    _load(images[0], z, y, x, constants[0], out[0])
    _load(images[1], z, y, x, constants[1], out[1])
    _load(images[2], z, y, x, np.float32(0), out[2])


@njit(parallel=True, cache=True, error_model="numpy")
def _tiles(f, m, w, core, tile, reach, floor, constants, values, force):  # type: ignore[no-untyped-def]
    start, stop = core
    across = -(-(stop[2] - start[2]) // tile[2])
    down = -(-(stop[1] - start[1]) // tile[1])
    for t in prange(values.size):
        z = start[0] + t // (across * down) * tile[0]
        y, x = start[1] + t // across % down * tile[1], start[2] + t % across * tile[2]
        size = min(tile[0], stop[0] - z), min(tile[1], stop[1] - y), min(tile[2], stop[2] - x)
        values[t] = _tile((f, m, w), (z, y, x), size, reach, floor, constants, force)


def box_correlation(
    fixed: Array,
    warped: Array,
    weight: Array,
    radius: int,
    floor: float,
    sums: tuple[float, float, float],
    core: tuple[slice, ...],
) -> tuple[float, Array]:
    """``sum w R`` and the force of a single channel, 2D or 3D; ``sums`` are the whole images' sum of w, w f and w m.

    Both are those of ``core``, around which the arrays hold all within two radii.
    """
    # an image is a volume whose planes are its rows
    shape = fixed.shape if fixed.ndim == 3 else (fixed.shape[0], 1, fixed.shape[1])
    parts = core if fixed.ndim == 3 else (core[0], slice(0, 1), core[1])
    start, stop = tuple(p.start for p in parts), tuple(p.stop for p in parts)
    tile, reach = (TILE_3D, (radius,) * 3) if fixed.ndim == 3 else (TILE_2D, (radius, 0, radius))
    constants = np.float32(sums[1] / sums[0]), np.float32(sums[2] / sums[0]), 1 / sums[0]
    if array_module(warped) is not np:
        images = tuple(flat(a) for a in (fixed, warped, weight))
        value, slope = _on_device(images, shape, (*start, *stop), reach, floor, constants)
        return value, slope.reshape(fixed.shape)[core]
    f, m, w = (np.ascontiguousarray(a, np.float32).reshape(shape) for a in (fixed, warped, weight))
    count = math.prod(-(-(b - a) // t) for a, b, t in zip(start, stop, tile, strict=True))
    values, force = np.empty(count), np.empty(shape, np.float32)
    _tiles(f, m, w, (start, stop), tile, reach, floor, constants, values, force)
    return float(values.sum()), force.reshape(fixed.shape)[core]


def _on_device(
    images: Any, shape: tuple[int, ...], core: tuple[int, ...], reach: tuple[int, ...], floor: float, constants: Any
) -> tuple[float, Any]:
    """The same on a GPU, of flat images; the force of all of them."""
    xp, size = array_module(images[1]), images[1].size
    count = shape[1] * shape[2] * -(-shape[0] // SEGMENT)
    walk = [xp.asarray(np.asarray(numbers, np.int64)) for numbers in (shape, reach, core)]
    means, place = constants[:2], (*walk, np.int64(SEGMENT), np.int64(count))
    values, coefficients = xp.empty(count, np.float64), xp.empty(3 * size, np.float32)
    cuda.launch("boxes", "box_coefficients", count, (*images, *place, *means, np.float32(floor), values, coefficients))
    force = xp.empty(size, np.float32)
    cuda.launch("boxes", "box_force", count, (*images, coefficients, *place, *means, np.float64(constants[2]), force))
    return float(values.sum()), force
