"""Gauss-Newton of a displacement that lives on nodes: the sums, the regularised solve and the composition, all in 2D.

The displacement u (rows, columns, 2) in pixels lives on nodes ``stride`` pixels apart, at the middles of blocks of
``stride x stride`` pixels, and is bilinear between them (constant beyond the outermost). A smooth field needs far fewer nodes
than the images have pixels, so the pass over the pixels is all that costs. For the pixels p of the block of node n, with
``q = p + o + u(p)``, ``r_c = m_c(q) - f_c(p)``, ``e = sum_c r_c^2``, g_c the mean of the gradients of m_c at q and of f_c at p
(efficient second-order minimisation, Malis 2004), v = w_f(p) w_m(q) and the robust w = v s / (s + e) (Geman and McClure 1985):

    T_n = sum w sum_c g_c g_c^T  (yy, yx, xx),  b_n = sum w sum_c r_c g_c  (y, x),  E_n = sum w e,  W_n = sum v

c runs over the channels of a descriptor, the outline if there is one, and one more, the tone, which counts ``|a(p)|`` times and
is compared with ``sign(a) f``: a, the gain, says how far, and with which sign, the tones agree about p.
A colour, where the images have one, is another channel with a robust weight of its own, ``v c / (c + r^2)``.
o is the offset of the fixed image's corner in the moving one. Where q leaves the moving image the weight is 0: what was not
imaged says nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels.channel_vectors import SCRATCH, WIDTH, block_sum, collect, compare
from histomri.kernels.jit import njit, prange
from histomri.kernels.run_vectors import pointer

Array = NDArray[np.float32]
TERMS = 7
ONE = np.float32(1)


@njit(inline="always")
def _between(field, y, x):  # type: ignore[no-untyped-def]
    """Both components at a point in units of the nodes, bilinear, the nearest edge value outside."""
    rows, columns = field.shape[0], field.shape[1]
    y = min(max(y, np.float32(0)), np.float32(rows - 1))
    x = min(max(x, np.float32(0)), np.float32(columns - 1))
    iy, ix = int(y), int(x)
    jy, jx = min(iy + 1, rows - 1), min(ix + 1, columns - 1)
    fy, fx = y - np.float32(iy), x - np.float32(ix)
    a, b, c, d = (ONE - fy) * (ONE - fx), (ONE - fy) * fx, fy * (ONE - fx), fy * fx
    return (
        a * field[iy, ix, 0] + b * field[iy, jx, 0] + c * field[jy, ix, 0] + d * field[jy, jx, 0],
        a * field[iy, ix, 1] + b * field[iy, jx, 1] + c * field[jy, ix, 1] + d * field[jy, jx, 1],
    )


@njit(inline="always")
def _plain(m00, m01, m10, m11, fy, fx, here, up, down, left, right, size, sign):  # type: ignore[no-untyped-def]
    """Residual and slopes (y, x) of one channel that counts ``size`` times, the fixed image ``sign`` times."""
    half = np.float32(0.5)
    top, bottom = m00 + (m01 - m00) * fx, m10 + (m11 - m10) * fx
    r = top + (bottom - top) * fy - sign * here
    gy = bottom - top + sign * half * (down - up)
    gx = (m01 - m00) + ((m11 - m10) - (m01 - m00)) * fy + sign * half * (right - left)
    return size * r, size * half * gy, size * half * gx


@njit(inline="always")
def _plane(moving, iy, ix, fy, fx, fixed, i, j, up, down, left, right, size):  # type: ignore[no-untyped-def]
    """:func:`_plain` of two planes at a cell of the moving one and a pixel of the fixed one, the sign that of ``size``."""
    m00, m01, m10, m11 = moving[iy, ix], moving[iy, ix + 1], moving[iy + 1, ix], moving[iy + 1, ix + 1]
    f, above, below, before, after = fixed[i, j], fixed[up, j], fixed[down, j], fixed[i, left], fixed[i, right]
    return _plain(m00, m01, m10, m11, fy, fx, f, above, below, before, after, abs(size), math.copysign(ONE, size))


@njit(parallel=True, cache=True, fastmath=True, nogil=True)
def _node_terms(still, other, gain, field, stride, offset, scales, out):  # type: ignore[no-untyped-def]
    fixed, fixed_outline, fixed_tone, fixed_weight, fixed_colour = still
    moving, moving_outline, moving_tone, moving_weight, moving_colour = other
    scale, colour_scale = scales
    height, width = fixed.shape[0], fixed.shape[1]
    outlined, coloured = fixed_outline.shape[0] == height, fixed_colour.shape[0] == height
    across, last, rows = moving.shape[1], field.shape[1] - 1, field.shape[0] - 1
    tall, wide = np.float32(moving.shape[0] - 1), np.float32(moving.shape[1] - 1)
    step, half, zero = ONE / np.float32(stride), np.float32(0.5), np.float32(0)
    shift = half * step - half
    fixed_start, moving_start = pointer(fixed), pointer(moving)
    for line in prange(out.shape[0]):
        row = np.int64(line)
        kept = np.zeros(SCRATCH, np.float32)
        scratch = pointer(kept)
        for column in range(out.shape[1]):
            before, after = max(column - 1, 0), min(column + 1, last)
            syy = syx = sxx = sy = sx = se = sw = zero
            for i in range(row * stride, min((row + 1) * stride, height)):
                up, down = max(i - 1, 0), min(i + 1, height - 1)
                # the displacement along this line of pixels, at the nodes before, of and after the block
                part = np.float32(i) * step + shift
                part = min(max(part, zero), np.float32(rows))
                low = int(part)
                high, part = min(low + 1, rows), part - np.float32(low)
                ay = field[low, before, 0] + part * (field[high, before, 0] - field[low, before, 0])
                ax = field[low, before, 1] + part * (field[high, before, 1] - field[low, before, 1])
                oy = field[low, column, 0] + part * (field[high, column, 0] - field[low, column, 0])
                ox = field[low, column, 1] + part * (field[high, column, 1] - field[low, column, 1])
                zy = field[low, after, 0] + part * (field[high, after, 0] - field[low, after, 0])
                zx = field[low, after, 1] + part * (field[high, after, 1] - field[low, after, 1])
                for j in range(column * stride, min((column + 1) * stride, width)):
                    w = fixed_weight[i, j]
                    if w == zero:
                        continue
                    ahead = np.float32(j - column * stride) * step + shift
                    y = np.float32(i + offset[0]) + oy + ahead * ((oy - ay) if ahead < zero else (zy - oy))
                    x = np.float32(j + offset[1]) + ox + ahead * ((ox - ax) if ahead < zero else (zx - ox))
                    if not (zero <= y < tall and zero <= x < wide):
                        continue
                    iy, ix = int(y), int(x)
                    fy, fx = y - np.float32(iy), x - np.float32(ix)
                    w *= moving_weight[int(y + half), int(x + half)]
                    if w == zero:
                        continue
                    left, right = max(j - 1, 0), min(j + 1, width - 1)
                    tyy = tyx = txx = by = bx = zero
                    here = i * width
                    near = (
                        (here + j) * WIDTH,
                        (up * width + j) * WIDTH,
                        (down * width + j) * WIDTH,
                        (here + left) * WIDTH,
                        (here + right) * WIDTH,
                    )
                    corner = (iy * across + ix) * WIDTH
                    corners = (corner, corner + across * WIDTH)
                    e = compare(moving_start, corners, fixed_start, near, (fy, fx), scratch)
                    if outlined:
                        r, gy, gx = _plane(moving_outline, iy, ix, fy, fx, fixed_outline, i, j, up, down, left, right, ONE)
                        tyy, tyx, txx, by, bx, e = (
                            tyy + gy * gy,
                            tyx + gy * gx,
                            txx + gx * gx,
                            by + r * gy,
                            bx + r * gx,
                            e + r * r,
                        )
                    a = gain[i, j]
                    if a != zero:
                        r, gy, gx = _plane(moving_tone, iy, ix, fy, fx, fixed_tone, i, j, up, down, left, right, a)
                        tyy, tyx, txx, by, bx, e = (
                            tyy + gy * gy,
                            tyx + gy * gx,
                            txx + gx * gx,
                            by + r * gy,
                            bx + r * gx,
                            e + r * r,
                        )
                    if coloured:
                        r, gy, gx = _plane(moving_colour, iy, ix, fy, fx, fixed_colour, i, j, up, down, left, right, ONE)
                        belief = w * colour_scale / (colour_scale + r * r)
                        syy += belief * gy * gy
                        syx += belief * gy * gx
                        sxx += belief * gx * gx
                        sy += belief * r * gy
                        sx += belief * r * gx
                        se += belief * r * r
                    trust = scale / (scale + e)
                    se += w * trust * e
                    sw += w
                    w *= trust
                    syy += w * tyy
                    syx += w * tyx
                    sxx += w * txx
                    sy += w * by
                    sx += w * bx
                    collect(scratch, w)
            out[row, column, 0] = syy + block_sum(scratch, 0)
            out[row, column, 1] = syx + block_sum(scratch, 1)
            out[row, column, 2] = sxx + block_sum(scratch, 2)
            out[row, column, 3] = sy + block_sum(scratch, 3)
            out[row, column, 4] = sx + block_sum(scratch, 4)
            out[row, column, 5], out[row, column, 6] = se, sw


@dataclass(frozen=True, eq=False)
class Looks:
    """One image as it is compared: descriptor (y, x, 8), tone, weight and outline, (y, x) each, all float32.

    The outline is one more channel that counts as it is, the colour one more with a robust weight of its own; either both images
    have one or none does.
    """

    descriptor: Array
    tone: Array
    weight: Array
    outline: Array | None = None
    colour: Array | None = None


def _planes(look: Looks) -> tuple[Array, Array, Array, Array, Array]:
    none = np.zeros((0, 0), np.float32)
    outline, colour = (none if plane is None else plane for plane in (look.outline, look.colour))
    return look.descriptor, outline, look.tone, look.weight, colour


def node_terms(
    fixed: Looks,
    moving: Looks,
    gain: Array,
    field: Array,
    stride: int,
    offset: tuple[int, int],
    scale: float,
    colour_scale: float = 1.0,
) -> Array:
    """The seven terms (rows, columns, 7): T_yy, T_yx, T_xx, b_y, b_x, E, W.

    The images may differ in size; ``gain`` (y, x) is that of the tone on the fixed grid, ``field`` (rows, columns, 2) in pixels,
    ``scale`` the residual s at which a pixel loses half of its say (infinite: none does), ``colour_scale`` that of the colour.
    """
    out = np.empty((*field.shape[:2], TERMS), np.float32)
    robust = np.float32(min(scale, 1e9)), np.float32(min(colour_scale, 1e9))
    _node_terms(_planes(fixed), _planes(moving), gain, field, stride, offset, robust, out)
    return out


def node_terms_reference(
    fixed: Looks,
    moving: Looks,
    gain: Any,
    field: Any,
    stride: int,
    offset: tuple[int, int],
    scale: float,
    colour_scale: float = 1.0,
) -> Any:
    """What :func:`node_terms` does, readable, for whole blocks; NumPy or CuPy by the arrays it gets."""
    xp = array_module(field)
    height, width = fixed.weight.shape
    p = xp.stack(xp.meshgrid(xp.arange(height), xp.arange(width), indexing="ij"), axis=-1)
    u, _ = _linear_reference(field, (p + 0.5) / stride - 0.5)
    q = p + xp.asarray(offset) + u
    last = xp.asarray(moving.weight.shape) - 1
    seen = ((q >= 0) & (q < last)).all(axis=-1)
    nearest = xp.clip(xp.floor(q + 0.5), 0, last).astype(int)
    v = fixed.weight * seen * moving.weight[nearest[..., 0], nearest[..., 1]]
    sign = xp.where(gain < 0, -1.0, 1.0)[..., None]
    shapes = [_shapes_reference(xp, look) for look in (fixed, moving)]
    ones = xp.ones(shapes[0].shape)
    size = xp.concatenate([ones, xp.abs(gain)[..., None]], axis=-1)
    f = xp.concatenate([shapes[0], sign * fixed.tone[..., None]], axis=-1)
    value, slope = _linear_reference(xp.concatenate([shapes[1], moving.tone[..., None]], axis=-1), q)
    own = _slope_reference(xp, xp.concatenate([shapes[0], fixed.tone[..., None]], axis=-1))
    own = own * xp.concatenate([ones, sign], axis=-1)[..., None, :]
    r, g = size * (value - f), size[..., None, :] * (slope + own) / 2
    terms = _sums_reference(r, g, v, scale)
    if fixed.colour is not None and moving.colour is not None:
        value, slope = _linear_reference(moving.colour[..., None], q)
        own = _slope_reference(xp, fixed.colour[..., None])
        terms = terms + _sums_reference(value - fixed.colour[..., None], (slope + own) / 2, v, colour_scale)
    blocks = xp.concatenate([terms, v[..., None]], axis=-1).reshape(height // stride, stride, width // stride, stride, TERMS)
    return blocks.sum(axis=(1, 3))


def _sums_reference(r: Any, g: Any, v: Any, scale: float) -> Any:
    """The first six terms of each pixel, (y, x, 6), of channels of one weight: residuals (y, x, c), slopes (y, x, 2, c)."""
    xp = array_module(r)
    e = (r**2).sum(axis=-1)
    w = v * scale / (scale + e)
    tensor, force = xp.einsum("yxic,yxjc->yxij", g, g), xp.einsum("yxc,yxic->yxi", r, g)
    terms = [tensor[..., 0, 0], tensor[..., 0, 1], tensor[..., 1, 1], force[..., 0], force[..., 1], e]
    return w[..., None] * xp.stack(terms, axis=-1)


def _shapes_reference(xp: Any, look: Looks) -> Any:
    """Descriptor and outline as channels."""
    return look.descriptor if look.outline is None else xp.concatenate([look.descriptor, look.outline[..., None]], axis=-1)


def _linear_reference(values: Any, index: Any) -> tuple[Any, Any]:
    """Bilinear ``values`` (n, m, c) at ``index`` (..., 2), edge values outside, and the slope (..., 2, c)."""
    xp = array_module(values)
    last = xp.asarray(values.shape[:2]) - 1
    index = xp.clip(index, 0, last)
    i = xp.minimum(xp.floor(index).astype(int), xp.maximum(last - 1, 0))
    k = xp.minimum(i + 1, last)
    fy, fx = (index - i)[..., :1], (index - i)[..., 1:]
    a, b = values[i[..., 0], i[..., 1]], values[i[..., 0], k[..., 1]]
    c, d = values[k[..., 0], i[..., 1]], values[k[..., 0], k[..., 1]]
    top, bottom = a + (b - a) * fx, c + (d - c) * fx
    slope = xp.stack([bottom - top, (b - a) + ((d - c) - (b - a)) * fy], axis=-2)
    return top + (bottom - top) * fy, slope


def _slope_reference(xp: Any, values: Any) -> Any:
    """Half the difference of the two neighbours along y and x, edges replicated: (y, x, 2, c)."""
    padded = xp.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return xp.stack([padded[2:, 1:-1] - padded[:-2, 1:-1], padded[1:-1, 2:] - padded[1:-1, :-2]], axis=-2) / 2


@njit(parallel=True, cache=True, fastmath=True, nogil=True)
def _relax(system, alpha, update, colour):  # type: ignore[no-untyped-def]
    rows, columns = update.shape[0], update.shape[1]
    for line in prange(rows):
        i = np.int64(line)
        for j in range((i + colour) % 2, columns, 2):
            ny = nx = np.float32(0)
            n = 0
            if i > 0:
                ny, nx, n = ny + update[i - 1, j, 0], nx + update[i - 1, j, 1], n + 1
            if i < rows - 1:
                ny, nx, n = ny + update[i + 1, j, 0], nx + update[i + 1, j, 1], n + 1
            if j > 0:
                ny, nx, n = ny + update[i, j - 1, 0], nx + update[i, j - 1, 1], n + 1
            if j < columns - 1:
                ny, nx, n = ny + update[i, j + 1, 0], nx + update[i, j + 1, 1], n + 1
            yy, yx, xx = system[i, j, 0] + alpha * n, system[i, j, 1], system[i, j, 2] + alpha * n
            ry, rx = system[i, j, 3] + alpha * ny, system[i, j, 4] + alpha * nx
            det = yy * xx - yx * yx
            update[i, j, 0] = (xx * ry - yx * rx) / det
            update[i, j, 1] = (yy * rx - yx * ry) / det


def relaxed(terms: Array, field: Array, alpha: float, ridge: float, sweeps: int) -> Array:
    """The update d (rows, columns, 2) of ``(T + ridge + alpha L) d = -b - alpha L u``, L the graph Laplacian of the nodes.

    Red-black Gauss-Seidel from 0: the same for any number of threads. ``alpha`` is the weight of ``sum |u_n - u_m|^2`` over
    neighbouring nodes.
    """
    system = np.ascontiguousarray(terms[..., :5])
    system[..., 3:] *= -1
    system[..., 3:] -= np.float32(alpha) * laplacian(field)
    system[..., 0] += np.float32(ridge)
    system[..., 2] += np.float32(ridge)
    update = np.zeros_like(field)
    for _ in range(sweeps):
        _relax(system, np.float32(alpha), update, 0)
        _relax(system, np.float32(alpha), update, 1)
    return update


def laplacian(field: Array) -> Array:
    """``sum over neighbours m of (u_n - u_m)``, nodes at the border having fewer neighbours."""
    out = np.zeros_like(field)
    down, right = np.diff(field, axis=0), np.diff(field, axis=1)
    out[:-1] -= down
    out[1:] += down
    out[:, :-1] -= right
    out[:, 1:] += right
    return out


@njit(parallel=True, cache=True, nogil=True)
def _compose(field, update, step, out):  # type: ignore[no-untyped-def]
    for line in prange(field.shape[0]):
        i = np.int64(line)
        for j in range(field.shape[1]):
            dy, dx = update[i, j, 0], update[i, j, 1]
            uy, ux = _between(field, np.float32(i) + dy * step, np.float32(j) + dx * step)
            out[i, j, 0], out[i, j, 1] = uy + dy, ux + dx


def composed(field: Array, update: Array, stride: int) -> Array:
    """``d + u(p + d)`` on the nodes, both in pixels."""
    out = np.empty_like(field)
    _compose(field, update, np.float32(1 / stride), out)
    return out


@njit(parallel=True, cache=True, nogil=True)
def _least_jacobian(field, step, out):  # type: ignore[no-untyped-def]
    for line in prange(field.shape[0] - 1):
        i = np.int64(line)
        least = np.float32(np.inf)
        for j in range(field.shape[1] - 1):
            for corner in range(4):
                a, b = i + corner // 2, j + corner % 2
                yy = ONE + (field[i + 1, b, 0] - field[i, b, 0]) * step
                xy = (field[i + 1, b, 1] - field[i, b, 1]) * step
                yx = (field[a, j + 1, 0] - field[a, j, 0]) * step
                xx = ONE + (field[a, j + 1, 1] - field[a, j, 1]) * step
                least = min(least, yy * xx - xy * yx)
        out[i] = least


def least_jacobian(field: Array, stride: int) -> float:
    """The smallest determinant of ``d(p + u)/dp`` anywhere: that of a bilinear cell is bilinear too, so its corners bound it."""
    out = np.full(max(field.shape[0] - 1, 1), 1.0, np.float32)
    _least_jacobian(field, np.float32(1 / stride), out)
    return float(out.min())
