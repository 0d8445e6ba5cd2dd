"""What the warps do with a run of pixels: ``RUN`` neighbours along the last axis, whose numbers stay in the nearest cache.

A run goes through four steps, each a plain loop that the compiler turns into vector instructions: the displacements, the cells
of the moving image in which the displaced points fall, the weights of the interpolation, and the sum over the neighbourhood, one
line of pixels after the other. All take three axes (z, y, x); in 2D the z axis has one plane of weight 1. What a run computes
for a pixel does not depend on where the run begins.

Buffers are handed on as pointers with ``RUN`` numbers per row: an array that is passed on or sliced costs reference counts that
all threads share, which took most of the time, and an index that may be negative keeps the compiler from using vectors. Loops
go over whole runs; what is beyond the last pixel of a short run is computed from leftovers and never stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic, overload

RUN = 128
LANES = 8
# taps per axis of the widest neighbourhood
TAPS = 4
# how far outside the moving image, in pixels, a coordinate is kept: beyond any neighbourhood
BEYOND = 4.0
# where the rows of the float32 buffer begin: displacement and fraction per axis, weights and slopes per axis and tap, a line of
# the neighbourhood per tap, and the sums: value, derivatives by z, y, x
MOVED, PART, WEIGHT, SLOPE, LINE, SUM = (RUN * row for row in (0, 3, 6, 6 + 3 * TAPS, 6 + 6 * TAPS, 6 + 7 * TAPS))
REALS = SUM + 4 * RUN
# and those of the int32 buffer: cell per axis, and the pixels whose neighbourhood is not whole
CELL, BROKEN = 0, 3 * RUN
INTEGERS = 4 * RUN


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


class Scratch(NamedTuple):
    """Pointers to a run's buffers: float32 and int32 (rows above), the offsets int64, and the coarse field's present line."""

    real: Any
    integer: Any
    offset: Any
    line: Any


def _pointer(typing, array):  # type: ignore[no-untyped-def]
    """Pointer to the first number of a contiguous array, which the caller keeps alive."""
    signature = types.CPointer(array.dtype)(array)  # type: ignore[no-untyped-call]

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return signature, generate


def _ahead(typing, start, count):  # type: ignore[no-untyped-def]
    """The pointer ``count`` numbers further on."""
    signature = start(start, types.int64)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.gep(arguments[0], [arguments[1]])

    return signature, generate


def _addresses(builder: Any, arguments: Any) -> list[Any]:
    """Addresses ``source[offset[at + j] + shift]`` for the lanes j."""
    source, offset, shift, at = arguments[:4]
    places = [builder.gep(offset, [builder.add(at, ir.Constant(at.type, lane))]) for lane in range(LANES)]
    return [builder.gep(source, [builder.add(builder.load(place), shift)]) for place in places]


def _store(builder: Any, arguments: Any, vector: Any, row: int) -> None:
    """``into[at + row * RUN:][:LANES] = vector``."""
    at, into = arguments[3:]
    address = builder.gep(into, [builder.add(at, ir.Constant(at.type, row * RUN))])
    builder.store(vector, builder.bitcast(address, vector.type.as_pointer()), align=4)


def _take_signature(source: Any, offset: Any, into: Any) -> Any:
    return types.void(source, offset, types.int64, types.int64, into)


def _single_lanes(typing, source, offset, shift, at, into):  # type: ignore[no-untyped-def]
    """``into[at + j] = source[offset[at + j] + shift]`` for j < LANES, as float32.

    Written out because a compiler left to itself takes the processor's gather instruction, which is slower than
    single loads by 4 times on processors whose gathers are mended against data sampling.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = signature.args[0].dtype
        vector = ir.Constant(ir.VectorType(context.get_data_type(kind), LANES), ir.Undefined)
        for lane, address in enumerate(_addresses(builder, arguments)):
            vector = builder.insert_element(vector, builder.load(address), ir.Constant(ir.IntType(32), lane))
        floats = ir.VectorType(ir.FloatType(), LANES)
        _store(builder, arguments, vector if kind == types.float32 else builder.uitofp(vector, floats), 0)
        return context.get_dummy_value()

    return _take_signature(source, offset, into), generate


def _joined(builder: Any, left: Any, right: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))


def _pair_lanes(typing, source, offset, shift, at, into):  # type: ignore[no-untyped-def]
    """``into[at + j], into[at + RUN + j] = source[offset[at + j] + shift:][:2]`` for j < LANES: two neighbours in one load."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pair = ir.VectorType(ir.FloatType(), 2).as_pointer()
        parts = [builder.load(builder.bitcast(address, pair), align=4) for address in _addresses(builder, arguments)]
        while len(parts) > 2:
            whole = list(range(2 * parts[0].type.count))
            parts = [_joined(builder, a, b, whole) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        for row in range(2):
            _store(builder, arguments, _joined(builder, parts[0], parts[1], list(range(row, 2 * LANES, 2))), row)
        return context.get_dummy_value()

    return _take_signature(source, offset, into), generate


# as Any, since their callers are compiled
pointer: Any = intrinsic(_pointer)
ahead: Any = intrinsic(_ahead)
_take: Any = intrinsic(_single_lanes)
_take_pairs: Any = intrinsic(_pair_lanes)


@njit(cache=True)
def _singles(source, offset, shift, channels, into):  # type: ignore[no-untyped-def]
    for at in range(0, RUN, LANES):
        _take(source, offset, shift, at, into)
        _take(source, offset, shift + channels, at, ahead(into, RUN))


@njit(cache=True)
def _pairs(source, offset, shift, channels, into):  # type: ignore[no-untyped-def]
    if channels != 1:
        _singles(source, offset, shift, channels, into)
        return
    for at in range(0, RUN, LANES):
        _take_pairs(source, offset, shift, at, into)


def fetch(source: Any, offset: Any, shift: Any, channels: Any, into: Any) -> None:
    """``into[i], into[RUN + i] = source[offset[i] + shift], source[offset[i] + shift + channels]`` for i < RUN."""
    raise NotImplementedError("for compiled code only")


@overload(fetch)
def _fetch(source, offset, shift, channels, into):  # type: ignore[no-untyped-def]
    chosen = _pairs if source.dtype == types.float32 else _singles

    def run(source, offset, shift, channels, into):  # type: ignore[no-untyped-def]
        chosen(source, offset, shift, channels, into)

    return run


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
def _move_coarse(bend, ndim, x, s):  # type: ignore[no-untyped-def]
    across, part, pair, offset = bend.nodes[2], ahead(s.real, PART), ahead(s.real, LINE), s.offset
    for i in range(RUN):
        offset[i], part[i] = _node(x + i, bend.scale[2], bend.offset[2], across)
    for k in range(ndim):
        fetch(s.line, offset, k * across, 1, pair)
        moved = ahead(s.real, MOVED + (3 - ndim + k) * RUN)
        for i in range(RUN):
            moved[i] = pair[i] + (pair[RUN + i] - pair[i]) * part[i]


@njit(cache=True)
def displace(bend, ndim, pixel, x, count, s):  # type: ignore[no-untyped-def]
    """``u(p)`` of the run that begins at column ``x`` of the fixed grid, its tile's pixel number ``pixel``, into ``MOVED``."""
    if bend.kind == 1:
        _move_dense(ahead(bend.dense, pixel * ndim), ndim, count, ahead(s.real, MOVED))
    elif bend.kind == 2:
        _move_coarse(bend, ndim, x, s)


@njit(cache=True)
def _limits(source, axis):  # type: ignore[no-untyped-def]
    """Lowest and highest coordinate that an axis keeps."""
    low, high = source.origin[axis], source.origin[axis] + source.size[axis] - 1.0
    # just below the last centre the neighbourhood is whole, and the fraction is 1 in float32
    return (low, np.nextafter(high, -np.inf)) if source.edge else (low - BEYOND, high + BEYOND)


@njit(cache=True)
def _cells_of_axis(rows, line, limits, origin, moved, cell, part):  # type: ignore[no-untyped-def]
    """One axis of :func:`find_cells`: ``line`` = (begin, step, column), ``limits`` = (low, high, half); NaN counts as low."""
    (a, b, c), (begin, step, column), (low, high, half) = rows, line, limits
    for i in range(RUN):
        q = (begin + step * (column + i)) + (a * moved[i] + b * moved[RUN + i] + c * moved[2 * RUN + i])
        q = q if q > low else low
        q = (q if q < high else high) + half
        whole = np.floor(q)
        cell[i] = np.int32(whole) - origin
        part[i] = np.float32(q - whole)


@njit(cache=True)
def find_cells(target, source, first, half, s):  # type: ignore[no-untyped-def]
    """``q = A p + A u``: the cell in which q + half lies, counted from the array's first pixel, and the fractions in it.

    ``A p`` is summed in float64, ``A u`` in float32.
    """
    n, m = target.ndim, target.matrix
    for axis in range(3 - n, 3):
        row = ahead(m, (axis - 3 + n) * (n + 1))
        z, y, x = row[0] if n == 3 else 0.0, row[n - 2], row[n - 1]
        low, high = _limits(source, axis)
        rows = (np.float32(z), np.float32(y), np.float32(x))
        # counted from the grid's first column, not the tile's, so that every tile rounds alike
        line = (row[n] + z * first[0] + y * first[1], x, first[2])
        cell, part = ahead(s.integer, CELL + axis * RUN), ahead(s.real, PART + axis * RUN)
        _cells_of_axis(rows, line, (low, high, half), np.int32(source.origin[axis]), ahead(s.real, MOVED), cell, part)


@njit(cache=True)
def _linear_weights(part, weight):  # type: ignore[no-untyped-def]
    for i in range(RUN):
        weight[i], weight[RUN + i] = np.float32(1) - part[i], part[i]


@njit(cache=True)
def _linear_slopes(slope):  # type: ignore[no-untyped-def]
    for i in range(RUN):
        slope[i], slope[RUN + i] = np.float32(-1), np.float32(1)


@njit(cache=True)
def _cubic_weights(part, weight):  # type: ignore[no-untyped-def]
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    three, four, five = np.float32(3), np.float32(4), np.float32(5)
    for i in range(RUN):
        f = part[i]
        weight[i] = half * f * (f * (two - f) - one)
        weight[RUN + i] = half * (f * f * (three * f - five) + two)
        weight[2 * RUN + i] = half * f * (f * (four - three * f) + one)
        weight[3 * RUN + i] = half * f * f * (f - one)


@njit(cache=True)
def _cubic_slopes(part, slope):  # type: ignore[no-untyped-def]
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    three, four, eight, nine, ten = np.float32(3), np.float32(4), np.float32(8), np.float32(9), np.float32(10)
    for i in range(RUN):
        f = part[i]
        slope[i] = half * (f * (four - three * f) - one)
        slope[RUN + i] = half * f * (nine * f - ten)
        slope[2 * RUN + i] = half * (f * (eight - nine * f) + one)
        slope[3 * RUN + i] = half * f * (three * f - two)


@njit(cache=True)
def weigh(taps, slopes, real):  # type: ignore[no-untyped-def]
    """Weights of the neighbourhood per axis, and if asked for their derivatives by the coordinate, per axis and tap.

    Two taps: ``1 - f, f``. Four: cubic convolution with a = -1/2 (Keys 1981) at the distances 1 + f, f, 1 - f, 2 - f.
    """
    for axis in range(3):
        part, rows = ahead(real, PART + axis * RUN), axis * TAPS * RUN
        weight, slope = ahead(real, WEIGHT + rows), ahead(real, SLOPE + rows)
        if taps[axis] == 2:
            _linear_weights(part, weight)
            if slopes:
                _linear_slopes(slope)
        elif taps[axis] == 4:
            _cubic_weights(part, weight)
            if slopes:
                _cubic_slopes(part, slope)


@njit(cache=True)
def find_offsets(source, taps, count, s):  # type: ignore[no-untyped-def]
    """Where each pixel's neighbourhood begins in the flat array; how many of them it holds in part, and whether it holds none.

    What is not whole begins at the nearest place where it would be, so that it can be read; ``_mend`` puts it right.
    """
    cell, offset, zero = ahead(s.integer, CELL), s.offset, np.int32(0)
    for i in range(count, RUN):
        cell[i], cell[RUN + i], cell[2 * RUN + i] = cell[count - 1], cell[RUN + count - 1], cell[2 * RUN + count - 1]
    depth, height, width = np.int32(source.size[0]), np.int32(source.size[1]), np.int32(source.size[2])
    tz, ty, tx = np.int32(-taps[0]), np.int32(-taps[1]), np.int32(-taps[2])
    dz, dy, dx = np.int32(depth + tz), np.int32(height + ty), np.int32(width + tx)
    # from the cell to the first of the taps: 0 of 1 and of 2, 1 of 4
    bz, by, bx = np.int32(taps[0] // 4), np.int32(taps[1] // 4), np.int32(taps[2] // 4)
    plane, line, channels = np.uint32(source.size[1] * source.size[2]), np.uint32(width), np.uint32(source.channels)
    broken, outside = np.int32(0), np.int32(0)
    for i in range(RUN):
        z, y, x = np.int32(cell[i] - bz), np.int32(cell[RUN + i] - by), np.int32(cell[2 * RUN + i] - bx)
        broken += np.int32((z < zero) | (y < zero) | (x < zero) | (z > dz) | (y > dy) | (x > dx))
        outside += np.int32((z <= tz) | (y <= ty) | (x <= tx) | (z >= depth) | (y >= height) | (x >= width))
        cz, cy, cx = min(max(z, zero), dz), min(max(y, zero), dy), min(max(x, zero), dx)
        pixel = np.uint64(np.uint32(cz)) * np.uint64(plane) + np.uint64(np.uint32(cy)) * np.uint64(line) + np.uint64(cx)
        offset[i] = np.int64(pixel * np.uint64(channels))
    listed = _list_broken((dz, dy, dx), (bz, by, bx), count, s.integer) if broken > 0 and outside < RUN else 0
    return listed, outside == RUN


@njit(cache=True)
def _list_broken(last, before, count, integer):  # type: ignore[no-untyped-def]
    found, cell, broken = 0, ahead(integer, CELL), ahead(integer, BROKEN)
    for i in range(count):
        z, y, x = cell[i] - before[0], cell[RUN + i] - before[1], cell[2 * RUN + i] - before[2]
        if z < 0 or y < 0 or x < 0 or z > last[0] or y > last[1] or x > last[2]:
            broken[found] = i
            found += 1
    return found


@njit(cache=True)
def _mend(source, taps, at, broken, s):  # type: ignore[no-untyped-def]
    """Put the line ``at`` = (plane, row, channel) of each broken neighbourhood right: 0, or the edge, where the array ends."""
    depth, height, width = source.size
    cell, listed, line = ahead(s.integer, CELL), ahead(s.integer, BROKEN), ahead(s.real, LINE)
    for number in range(broken):
        i = listed[number]
        z, y, x = cell[i] - taps[0] // 4 + at[0], cell[RUN + i] - taps[1] // 4 + at[1], cell[2 * RUN + i] - taps[2] // 4
        cz, cy = min(max(z, 0), depth - 1), min(max(y, 0), height - 1)
        for k in range(taps[2]):
            cx = min(max(x + k, 0), width - 1)
            held = source.edge or (cz == z and cy == y and cx == x + k)
            where = ((cz * height + cy) * width + cx) * source.channels + at[2]
            line[k * RUN + i] = np.float32(source.values[where]) if held else np.float32(0)


@njit(cache=True)
def fetch_line(source, taps, at, broken, s):  # type: ignore[no-untyped-def]
    """Tap k along x of the neighbourhood's line ``at`` = (plane, row, channel) into row k of ``LINE``."""
    depth, height, width = source.size
    if depth >= taps[0] and height >= taps[1] and width >= taps[2]:
        shift = (at[0] * height + at[1]) * width * source.channels + at[2]
        for k in range(0, taps[2], 2):
            fetch(source.values, s.offset, shift + k * source.channels, source.channels, ahead(s.real, LINE + k * RUN))
    if broken > 0:
        _mend(source, taps, at, broken, s)


@njit(cache=True)
def _along(weight, line, taps, i):  # type: ignore[no-untyped-def]
    """``sum_k w_k line_k`` along x, with the weights or the slopes."""
    total = weight[i] * line[i] + weight[RUN + i] * line[RUN + i]
    if taps == 4:
        total += weight[2 * RUN + i] * line[2 * RUN + i] + weight[3 * RUN + i] * line[3 * RUN + i]
    return total


@njit(cache=True)
def add_line(taps, at, real):  # type: ignore[no-untyped-def]
    """``sum += w_z w_y sum_x w_x line``, for the line ``at`` = (plane, row)."""
    wz, wy = ahead(real, WEIGHT + at[0] * RUN), ahead(real, WEIGHT + (TAPS + at[1]) * RUN)
    wx, line, total = ahead(real, WEIGHT + 2 * TAPS * RUN), ahead(real, LINE), ahead(real, SUM)
    if taps[2] == 2:
        for i in range(RUN):
            total[i] += wz[i] * wy[i] * _along(wx, line, 2, i)
    else:
        for i in range(RUN):
            total[i] += wz[i] * wy[i] * _along(wx, line, 4, i)


@njit(cache=True)
def _add_slopes(taps, at, real):  # type: ignore[no-untyped-def]
    z, y, x = at[0] * RUN, (TAPS + at[1]) * RUN, 2 * TAPS * RUN
    wz, wy, wx = ahead(real, WEIGHT + z), ahead(real, WEIGHT + y), ahead(real, WEIGHT + x)
    sz, sy, sx = ahead(real, SLOPE + z), ahead(real, SLOPE + y), ahead(real, SLOPE + x)
    line, total = ahead(real, LINE), ahead(real, SUM)
    for i in range(RUN):
        across, along = _along(wx, line, taps, i), _along(sx, line, taps, i)
        total[i] += wz[i] * wy[i] * across
        total[RUN + i] += sz[i] * wy[i] * across
        total[2 * RUN + i] += wz[i] * sy[i] * across
        total[3 * RUN + i] += wz[i] * wy[i] * along


@njit(cache=True)
def add_line_with_slopes(taps, at, real):  # type: ignore[no-untyped-def]
    """As :func:`add_line`, and the derivatives by z, y and x in the rows after the first."""
    if taps[2] == 2:
        _add_slopes(2, at, real)
    else:
        _add_slopes(4, at, real)
