"""What the warps do with a run of pixels: ``RUN`` neighbours along the last axis, whose numbers stay in the nearest cache.

A run goes through four steps, each over vectors of ``LANES`` pixels (``run_vectors``): the displacements, ``A p``, the cells of
the moving image in which the displaced points fall, and the sum over the neighbourhood. All take three axes (z, y, x); in 2D the
z axis has one plane of weight 1. What is computed for a pixel does not depend on where its run begins or on its neighbours.

A vector whose neighbourhoods are linear and wholly inside the array is summed in registers, and so is one that reaches over its
ends, if there is one channel and 0 outside. The rest goes through the general form, line by line, which has any number of taps
and mends what the array does not hold. For the same pixel all give the same bits.

Buffers are handed on as pointers: an array that is passed on or sliced costs reference counts that all threads share, which took
most of the time, and an index that may be negative keeps the compiler from using vectors. Whole vectors are computed; what is
beyond the last pixel of a row comes from leftovers and is never stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from histomri.kernels.run_vectors import (
    BEGIN,
    BROKEN,
    FAR,
    GREATEST,
    LEAST,
    LIMIT,
    LINE,
    ORIGIN,
    RUN,
    SLOPE,
    STEP,
    STRIDE,
    TAPS,
    TURN,
    WEIGHT,
    WHOLE,
    Scratch,
    ahead,
    fetch_pairs,
    fetch_singles,
    find_2d,
    find_3d,
    keep_2d,
    keep_3d,
    move_2d,
    move_3d,
    place_lanes,
    prefetch,
    slope_pairs_2d,
    slope_pairs_3d,
    slope_partly_2d,
    slope_partly_3d,
    slope_singles_2d,
    slope_singles_3d,
    sum_pairs_2d,
    sum_pairs_3d,
    sum_partly_2d,
    sum_partly_3d,
    sum_singles_2d,
    sum_singles_3d,
)
from histomri.kernels.vectors import LANES


class Source(NamedTuple):
    """A moving image: pointer to the ``values`` of an array (z, y, x, c) of ``size``, whose first pixel has the index ``origin``.

    Everything that the array does not hold counts as 0; with ``edge`` coordinates are moved between its outermost centres.
    """

    values: Any
    size: tuple[int, int, int]
    channels: int
    origin: tuple[float, float, float]
    edge: bool


class Target(NamedTuple):
    """The part of the fixed grid that is asked for, and pointer to the matrix (ndim + 1, ndim + 1) from its to moving indices."""

    start: tuple[float, float, float]
    shape: tuple[int, int, int]
    matrix: Any
    ndim: int


class Bend(NamedTuple):
    """A displacement: pointer to ``dense`` (pixels, ndim), or to ``coarse`` (z, y, ndim, x) at nodes ``scale p + offset``.

    ``kind`` is 0 for none, 1 for dense, 2 for coarse.
    """

    kind: int
    dense: Any
    coarse: Any
    nodes: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


@njit(cache=True, forceinline=True)
def fetch(source, offset, step, into):  # type: ignore[no-untyped-def]
    """``into[i], into[LANES + i] = source[offset[i]], source[offset[i] + step]`` for a vector."""
    if step == 1:
        fetch_pairs(source, offset, step, into)
    else:
        fetch_singles(source, offset, step, into)


@njit(cache=True)
def _move_dense(dense, ndim, count, moved):  # type: ignore[no-untyped-def]
    if ndim == 3:
        for i in range(count):
            moved[i], moved[RUN + i], moved[2 * RUN + i] = dense[3 * i], dense[3 * i + 1], dense[3 * i + 2]
    else:
        for i in range(count):
            moved[RUN + i], moved[2 * RUN + i] = dense[2 * i], dense[2 * i + 1]


@njit(cache=True)
def _node(index, scale, offset, nodes):  # type: ignore[no-untyped-def]
    """The node before an index and the fraction to the next one; the outermost nodes hold on beyond the field."""
    place = min(max(index * scale + offset, 0.0), nodes - 1.0)
    before = min(int(place), max(nodes - 2, 0))
    return before, np.float32(place - before)


@njit(cache=True)
def blend_nodes(bend, ndim, z, y, line):  # type: ignore[no-untyped-def]
    """The coarse field's line of nodes (ndim, x) at the row (z, y) of the fixed grid."""
    planes, lines, across = bend.nodes
    k, fz = _node(z, bend.scale[0], bend.offset[0], planes)
    j, fy = _node(y, bend.scale[1], bend.offset[1], lines)
    m, n, one, size = min(k + 1, planes - 1), min(j + 1, lines - 1), np.float32(1), ndim * across
    a, b = ahead(bend.coarse, (k * lines + j) * size), ahead(bend.coarse, (k * lines + n) * size)
    c, d = ahead(bend.coarse, (m * lines + j) * size), ahead(bend.coarse, (m * lines + n) * size)
    for i in range(size):
        line[i] = (a[i] * (one - fy) + b[i] * fy) * (one - fz) + (c[i] * (one - fy) + d[i] * fy) * fz


@njit(cache=True)
def displace(bend, ndim, pixel, x, count, s):  # type: ignore[no-untyped-def]
    """``u(p)`` of the run that begins at column ``x`` of the fixed grid, its tile's pixel number ``pixel``."""
    if bend.kind == 1:
        _move_dense(ahead(bend.dense, pixel * ndim), ndim, count, s.moved)
    elif bend.kind == 2:
        across, scale, offset = bend.nodes[2], bend.scale[2], bend.offset[2]
        for at in range(0, count, LANES):
            if ndim == 3:
                move_3d(s.line, across, x + at, scale, offset, ahead(s.moved, at))
            else:
                move_2d(s.line, across, x + at, scale, offset, ahead(s.moved, at))


@njit(cache=True)
def aim(target, source, taps, first, s):  # type: ignore[no-untyped-def]
    """What :func:`place` and :func:`find_cells` need of the row (z, y) of the fixed grid."""
    n, m, stride = target.ndim, target.matrix, source.channels
    for axis in range(2, 2 - n, -1):
        row, double, turn = ahead(m, (axis - 3 + n) * (n + 1)), ahead(s.double, 4 * axis), ahead(s.real, TURN + 3 * axis)
        # the pixel that holds a point is the one to whose centre it is nearest: half a pixel further on, the cell
        z, half, before = row[0] if n == 3 else 0.0, 0.5 if taps[axis] == 1 else 0.0, taps[axis] // 4
        turn[0], turn[1], turn[2] = np.float32(z), np.float32(row[n - 2]), np.float32(row[n - 1])
        # counted from the grid's first column, not the tile's, so that every tile rounds alike
        double[BEGIN], double[STEP] = (row[n] + z * first[0] + row[n - 2] * first[1]) + half, row[n - 1]
        double[ORIGIN], double[STRIDE] = source.origin[axis] + before, stride
        s.integer[LIMIT + axis] = max(source.size[axis] - taps[axis] + 1, 0)
        s.integer[LEAST + axis], s.integer[GREATEST + axis] = -before, source.size[axis] - min(taps[axis], 2) - before
        stride *= source.size[axis]


@njit(cache=True)
def place(ndim, column, count, s):  # type: ignore[no-untyped-def]
    """``A p`` of a run in float64, as the whole number below, counted from the array's first tap, and the fraction."""
    for axis in range(3 - ndim, 3):
        begin, step, origin = s.double[4 * axis + BEGIN], s.double[4 * axis + STEP], s.double[4 * axis + ORIGIN]
        cell, part = ahead(s.cell, axis * RUN), ahead(s.part, axis * RUN)
        if np.floor(step) == step and abs(begin) + abs(step) * (column + RUN) < FAR:
            _place_in_whole_steps(begin, step, origin, column, cell, part)
            continue
        for at in range(0, count, LANES):
            place_lanes(begin, step, origin, column + at, ahead(cell, at), ahead(part, at))


@njit(cache=True)
def _place_in_whole_steps(begin, step, origin, column, cell, part):  # type: ignore[no-untyped-def]
    """An axis along which the fraction stays, as it does without turning and scaling."""
    whole = np.floor(begin)
    first, each, rest = np.int32(whole + step * column - origin), np.int32(step), np.float32(begin - whole)
    for i in range(RUN):
        cell[i], part[i] = first + each * np.int32(i), rest


@njit(cache=True)
def find_cells(ndim, edge, count, following, s):  # type: ignore[no-untyped-def]
    """``q = A p + A u`` of a run, float32 from the cell of ``A p`` on: the first tap and the fraction per axis, the offset in the
    flat array, and which vectors are wholly inside. What is not a number lies before the first pixel.

    Meanwhile the displacements of the run that follows are asked for.
    """
    for at in range(0, count, LANES):
        for k in range(ndim):
            prefetch(ahead(following, at * ndim + k * LANES))
        if edge:
            s.integer[WHOLE + at] = keep_3d(s, at) if ndim == 3 else keep_2d(s, at)
        else:
            s.integer[WHOLE + at] = find_3d(s, at) if ndim == 3 else find_2d(s, at)


@njit(cache=True)
def at_vector(s, at):  # type: ignore[no-untyped-def]
    """The buffers as the vector that begins at ``at`` of the run sees them."""
    moved, part, cell, offset, total = (
        ahead(s.moved, at),
        ahead(s.part, at),
        ahead(s.cell, at),
        ahead(s.offset, at),
        ahead(s.total, at),
    )
    return Scratch(moved, part, cell, offset, total, s.real, s.integer, s.double, s.line)


@njit(cache=True)
def into(s, total):  # type: ignore[no-untyped-def]
    """The buffers with another place for the sums."""
    return Scratch(s.moved, s.part, s.cell, s.offset, total, s.real, s.integer, s.double, s.line)


@njit(cache=True)
def steps_of(source):  # type: ignore[no-untyped-def]
    """How far apart neighbours are in the flat array, per axis."""
    line = source.size[2] * source.channels
    return source.size[1] * line, line, source.channels


@njit(cache=True)
def can_be_held(source, taps):  # type: ignore[no-untyped-def]
    """Whether what is not whole can be summed in registers: linear, one channel, 0 outside, and two pixels per axis to read."""
    depth, height, width = source.size
    return taps[2] == 2 and source.channels == 1 and not source.edge and depth >= taps[0] and height >= 2 and width >= 2


# one call for a run, not for a vector: the named arguments are some 30 numbers, which to hand on takes as long as a vector
@njit(cache=True)
def sum_linear(source, ndim, channel, held, count, s):  # type: ignore[no-untyped-def]
    """The value of a channel over the vectors of a run that are wholly inside and, if they are ``held``, the others too."""
    values, steps = ahead(source.values, channel), steps_of(source)
    for at in range(0, count, LANES):
        if s.integer[WHOLE + at] != 0:
            if steps[2] == 1 and ndim == 3:
                sum_pairs_3d(values, s, at, steps)
            elif steps[2] == 1:
                sum_pairs_2d(values, s, at, steps)
            elif ndim == 3:
                sum_singles_3d(values, s, at, steps)
            else:
                sum_singles_2d(values, s, at, steps)
        elif held and ndim == 3:
            sum_partly_3d(values, s, at, steps)
        elif held:
            sum_partly_2d(values, s, at, steps)


@njit(cache=True)
def sum_linear_with_slopes(source, ndim, channel, held, count, s):  # type: ignore[no-untyped-def]
    """The same, and its derivatives by z, y and x in the rows after the first."""
    values, steps = ahead(source.values, channel), steps_of(source)
    for at in range(0, count, LANES):
        if s.integer[WHOLE + at] != 0:
            if steps[2] == 1 and ndim == 3:
                slope_pairs_3d(values, s, at, steps)
            elif steps[2] == 1:
                slope_pairs_2d(values, s, at, steps)
            elif ndim == 3:
                slope_singles_3d(values, s, at, steps)
            else:
                slope_singles_2d(values, s, at, steps)
        elif held and ndim == 3:
            slope_partly_3d(values, s, at, steps)
        elif held:
            slope_partly_2d(values, s, at, steps)


@njit(cache=True)
def interleave(rows, number, count, into):  # type: ignore[no-untyped-def]
    """``into[number * i + k] = rows[k * RUN + i]`` for one to three rows."""
    if number == 3:
        for i in range(count):
            into[3 * i], into[3 * i + 1], into[3 * i + 2] = rows[i], rows[RUN + i], rows[2 * RUN + i]
    elif number == 2:
        for i in range(count):
            into[2 * i], into[2 * i + 1] = rows[i], rows[RUN + i]
    else:
        for i in range(count):
            into[i] = rows[i]


@njit(cache=True, forceinline=True)
def _linear_weights(part, weight):  # type: ignore[no-untyped-def]
    for i in range(LANES):
        weight[i], weight[LANES + i] = np.float32(1) - part[i], part[i]


@njit(cache=True, forceinline=True)
def _linear_slopes(slope):  # type: ignore[no-untyped-def]
    for i in range(LANES):
        slope[i], slope[LANES + i] = np.float32(-1), np.float32(1)


@njit(cache=True, forceinline=True)
def _cubic_weights(part, weight):  # type: ignore[no-untyped-def]
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    three, four, five = np.float32(3), np.float32(4), np.float32(5)
    for i in range(LANES):
        f = part[i]
        weight[i] = half * f * (f * (two - f) - one)
        weight[LANES + i] = half * (f * f * (three * f - five) + two)
        weight[2 * LANES + i] = half * f * (f * (four - three * f) + one)
        weight[3 * LANES + i] = half * f * f * (f - one)


@njit(cache=True, forceinline=True)
def _cubic_slopes(part, slope):  # type: ignore[no-untyped-def]
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    three, four, eight, nine, ten = np.float32(3), np.float32(4), np.float32(8), np.float32(9), np.float32(10)
    for i in range(LANES):
        f = part[i]
        slope[i] = half * (f * (four - three * f) - one)
        slope[LANES + i] = half * f * (nine * f - ten)
        slope[2 * LANES + i] = half * (f * (eight - nine * f) + one)
        slope[3 * LANES + i] = half * f * (three * f - two)


@njit(cache=True, forceinline=True)
def weigh(taps, slopes, s):  # type: ignore[no-untyped-def]
    """Weights of the neighbourhood per axis, and if asked for their derivatives by the coordinate, per axis and tap.

    Two taps: ``1 - f, f``. Four: cubic convolution with a = -1/2 (Keys 1981) at the distances 1 + f, f, 1 - f, 2 - f.
    """
    for axis in range(3):
        part, rows = ahead(s.part, axis * RUN), axis * TAPS * LANES
        weight, slope = ahead(s.real, WEIGHT + rows), ahead(s.real, SLOPE + rows)
        if taps[axis] == 2:
            _linear_weights(part, weight)
            if slopes:
                _linear_slopes(slope)
        elif taps[axis] == 4:
            _cubic_weights(part, weight)
            if slopes:
                _cubic_slopes(part, slope)


@njit(cache=True)
def list_broken(source, taps, count, s):  # type: ignore[no-untyped-def]
    """How many pixels of a vector have a neighbourhood that is not whole, listed for ``_mend``; and whether none has any part."""
    cell, listed, broken, outside = s.cell, ahead(s.integer, BROKEN), 0, 0
    (depth, height, width), (tz, ty, tx) = source.size, taps
    for i in range(count):
        z, y, x = cell[i], cell[RUN + i], cell[2 * RUN + i]
        if z < 0 or y < 0 or x < 0 or z > depth - tz or y > height - ty or x > width - tx:
            listed[broken] = i
            broken += 1
        outside += z <= -tz or y <= -ty or x <= -tx or z >= depth or y >= height or x >= width
    return broken, outside == count


@njit(cache=True)
def _mend(source, taps, at, broken, s):  # type: ignore[no-untyped-def]
    """Put the line ``at`` = (plane, row, channel) of each broken neighbourhood right: 0, or the edge, where the array ends."""
    depth, height, width = source.size
    cell, listed, line = s.cell, ahead(s.integer, BROKEN), ahead(s.real, LINE)
    for number in range(broken):
        i = listed[number]
        z, y, x = cell[i] + at[0], cell[RUN + i] + at[1], cell[2 * RUN + i]
        cz, cy = min(max(z, 0), depth - 1), min(max(y, 0), height - 1)
        for k in range(taps[2]):
            cx = min(max(x + k, 0), width - 1)
            held = source.edge or (cz == z and cy == y and cx == x + k)
            where = ((cz * height + cy) * width + cx) * source.channels + at[2]
            line[k * LANES + i] = np.float32(source.values[where]) if held else np.float32(0)


@njit(cache=True, forceinline=True)
def fetch_line(source, taps, at, broken, s):  # type: ignore[no-untyped-def]
    """Tap k along x of the neighbourhood's line ``at`` = (plane, row, channel) into row k of ``LINE``."""
    depth, height, width = source.size
    if depth >= taps[0] and height >= taps[1] and width >= taps[2]:
        shift = (at[0] * height + at[1]) * width * source.channels + at[2]
        for k in range(0, taps[2], 2):
            fetch(ahead(source.values, shift + k * source.channels), s.offset, source.channels, ahead(s.real, LINE + k * LANES))
    if broken > 0:
        _mend(source, taps, at, broken, s)


@njit(cache=True, forceinline=True)
def _along(weight, line, taps, i):  # type: ignore[no-untyped-def]
    """``sum_k w_k line_k`` along x, with the weights or the slopes."""
    total = weight[i] * line[i] + weight[LANES + i] * line[LANES + i]
    if taps == 4:
        total += weight[2 * LANES + i] * line[2 * LANES + i] + weight[3 * LANES + i] * line[3 * LANES + i]
    return total


@njit(cache=True, forceinline=True)
def add_line(taps, at, real, total):  # type: ignore[no-untyped-def]
    """``sum += w_z w_y sum_x w_x line``, for the line ``at`` = (plane, row)."""
    wz, wy = ahead(real, WEIGHT + at[0] * LANES), ahead(real, WEIGHT + (TAPS + at[1]) * LANES)
    wx, line = ahead(real, WEIGHT + 2 * TAPS * LANES), ahead(real, LINE)
    if taps[2] == 2:
        for i in range(LANES):
            total[i] += wz[i] * wy[i] * _along(wx, line, 2, i)
    else:
        for i in range(LANES):
            total[i] += wz[i] * wy[i] * _along(wx, line, 4, i)


@njit(cache=True, forceinline=True)
def _add_slopes(taps, at, real, total):  # type: ignore[no-untyped-def]
    z, y, x = at[0] * LANES, (TAPS + at[1]) * LANES, 2 * TAPS * LANES
    wz, wy, wx = ahead(real, WEIGHT + z), ahead(real, WEIGHT + y), ahead(real, WEIGHT + x)
    sz, sy, sx = ahead(real, SLOPE + z), ahead(real, SLOPE + y), ahead(real, SLOPE + x)
    line = ahead(real, LINE)
    for i in range(LANES):
        across, along = _along(wx, line, taps, i), _along(sx, line, taps, i)
        total[i] += wz[i] * wy[i] * across
        total[RUN + i] += sz[i] * wy[i] * across
        total[2 * RUN + i] += wz[i] * sy[i] * across
        total[3 * RUN + i] += wz[i] * wy[i] * along


@njit(cache=True, forceinline=True)
def add_line_with_slopes(taps, at, real, total):  # type: ignore[no-untyped-def]
    """As :func:`add_line`, and the derivatives by z, y and x in the rows after the first."""
    if taps[2] == 2:
        _add_slopes(2, at, real, total)
    else:
        _add_slopes(4, at, real, total)
