"""What the warps do with a run of pixels: ``RUN`` neighbours along the last axis, whose numbers stay in the nearest cache.

A run goes through three steps, each over vectors of ``LANES`` pixels: the displacements, the cells of the moving image in which
the displaced points fall, and the sum over the neighbourhood. All take three axes (z, y, x); in 2D the z axis has one plane of
weight 1. What is computed for a pixel does not depend on where its run begins or on its neighbours.

A vector whose neighbourhoods are linear and wholly inside the array is summed in registers. Every other one goes through the
general form, which has any number of taps and mends what the array does not hold; for the same pixel both give the same bits.

Buffers are handed on as pointers: an array that is passed on or sliced costs reference counts that all threads share, which took
most of the time, and an index that may be negative keeps the compiler from using vectors. Whole vectors are computed; what is
beyond the last pixel of a row comes from leftovers and is never stored.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from histomri.kernels.vectors import DOUBLE, INTEGER, LANES, LONG, REAL, Vector

RUN = 128
# taps per axis of the widest neighbourhood
TAPS = 4
# coordinates are kept between - and +, in pixels: beyond any image, and whole numbers still fit
FAR = 2.0**29
# where the rows of a vector's float32 buffer begin: weights and slopes per axis and tap, a line of the neighbourhood per tap, the
# sums (value, derivatives by z, y, x); and the matrix without its shift, three numbers per axis
WEIGHT, SLOPE, LINE, TURN = (LANES * row for row in (0, 3 * TAPS, 6 * TAPS, 7 * TAPS))
REALS = TURN + 9
# of the int32 buffer: per axis how many first taps are wholly inside, and the least and greatest first tap that is kept; the
# pixels of a vector whose neighbourhood is not whole; which vectors of the run are
LIMIT, LEAST, GREATEST, BROKEN, WHOLE = 0, 3, 6, 9, 9 + LANES
INTEGERS = WHOLE + RUN
# of the float64 buffer, per axis: A p at column 0 of the row and its step, the index of the first tap that is 0 in the array, and
# how far apart neighbours are in the flat array
BEGIN, STEP, ORIGIN, STRIDE = range(4)
DOUBLES = 3 * 4


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
    """Pointers to the buffers of a run, a row of ``RUN`` per axis: displacement and fraction (float32), first tap of the
    neighbourhood (int32); where that lies in the flat array (int64). Then those whose rows stand above: of a vector (float32),
    int32 and float64; and the coarse field's present line of nodes.
    """

    moved: Any
    part: Any
    cell: Any
    offset: Any
    total: Any
    real: Any
    integer: Any
    double: Any
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


SIZES = {REAL: 4, ir.IntType(8): 1, ir.IntType(16): 2}


def _prefetch(typing, start):  # type: ignore[no-untyped-def]
    """Ask for the line of memory at the pointer, which need not be there."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        builder.call(function, [builder.bitcast(arguments[0], byte), *(ir.Constant(flag, k) for k in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(start), generate


def _further(builder: Any, buffer: Any, count: int) -> Any:
    """The address ``buffer + count``."""
    return builder.gep(buffer, [ir.Constant(LONG, count)])


def _number(builder: Any, buffer: Any, index: int) -> Vector:
    """``buffer[index]`` in every lane."""
    return Vector.filled(builder, builder.load(_further(builder, buffer, index)))


def _real(builder: Any, number: float) -> Vector:
    return Vector.constant(builder, REAL, [number] * LANES)


def _integer(builder: Any, number: int) -> Vector:
    return Vector.constant(builder, INTEGER, [number] * LANES)


def _of_lanes(builder: Any, source: Any, offset: Any) -> list[Any]:
    """Addresses ``source + offset[lane]``."""
    places = [_further(builder, offset, lane) for lane in range(LANES)]
    return [builder.gep(source, [builder.load(place)]) for place in places]


def _singles(builder: Any, addresses: list[Any]) -> Vector:
    """What lies at the addresses, as float32.

    Loaded one by one because the processor's gather instruction is slower by 4 times where gathers are mended against data
    sampling.
    """
    kind = ir.VectorType(addresses[0].type.pointee, LANES)
    vector = ir.Constant(kind, ir.Undefined)
    for lane, address in enumerate(addresses):
        vector = builder.insert_element(vector, builder.load(address), ir.Constant(INTEGER, lane))
    return Vector(builder, vector).as_real()


def _joined(builder: Any, left: Any, right: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(INTEGER, len(order)), order))


def _pairs(builder: Any, addresses: list[Any]) -> list[Vector]:
    """What lies at the addresses and after them, as float32: two neighbours in one load."""
    kind = addresses[0].type.pointee
    pair = ir.VectorType(kind, 2).as_pointer()
    parts = [builder.load(builder.bitcast(address, pair), align=SIZES[kind]) for address in addresses]
    while len(parts) > 2:
        whole = list(range(2 * parts[0].type.count))
        parts = [_joined(builder, a, b, whole) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    taps = (_joined(builder, parts[0], parts[1], list(range(first, 2 * LANES, 2))) for first in range(2))
    return [Vector(builder, tap).as_real() for tap in taps]


def _neighbours(builder: Any, source: Any, offset: Any, step: Any) -> list[Vector]:
    """``source[offset]`` and ``source[offset + step]`` per lane; without a step the next one."""
    addresses = _of_lanes(builder, source, offset)
    if step is None:
        return _pairs(builder, addresses)
    return [_singles(builder, addresses), _singles(builder, _of_lanes(builder, builder.gep(source, [step]), offset))]


def _fetcher(paired: bool) -> Any:
    """``into[i], into[LANES + i] = source[offset[i]], source[offset[i] + step]`` for a vector; paired for a step of 1."""

    def fetch(typing, source, offset, step, into):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            source, offset, step, into = arguments
            for row, vector in enumerate(_neighbours(builder, source, offset, None if paired else step)):
                vector.store(_further(builder, into, row * LANES))
            return context.get_dummy_value()

        return types.void(source, offset, types.int64, into), generate

    return intrinsic(fetch)


def _at(builder: Any, s: Any, at: Any) -> Scratch:
    """The buffers as the vector that begins at ``at`` of the run sees them."""
    pointers = [builder.extract_value(s, k) for k in range(len(Scratch._fields))]
    return Scratch(*(builder.gep(p, [at]) for p in pointers[:5]), *pointers[5:])


def _place_lanes(typing, begin, step, origin, column, cell, part):  # type: ignore[no-untyped-def]
    """:func:`place` for an axis of a vector."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        begin, step, origin, column = (Vector.filled(builder, number) for number in arguments[:4])
        far = [Vector.constant(builder, DOUBLE, [sign * FAR] * LANES) for sign in (-1, 1)]
        columns = column + Vector.constant(builder, DOUBLE, range(LANES))
        q = step.times_plus(columns, begin).at_least(far[0]).at_most(far[1])
        whole = q.floor()
        (whole - origin).as_integer(INTEGER).store(arguments[4])
        (q - whole).as_real().store(arguments[5])
        return context.get_dummy_value()

    return types.void(*[types.float64] * 4, cell, part), generate


def _finder(ndim: int, edge: bool) -> Any:
    """:func:`find_cells` for one vector; returns whether it is wholly inside."""

    def find(typing, s, at):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return _find(builder, range(3 - ndim, 3), _at(builder, *arguments), edge)

        return types.boolean(s, types.int64), generate

    return intrinsic(find)


def _find(builder: Any, axes: range, s: Scratch, edge: bool) -> Any:
    moved = {k: Vector.loaded(builder, _further(builder, s.moved, k * RUN)) for k in axes}
    offset, inside = Vector.constant(builder, DOUBLE, [0.0] * LANES), ir.Constant(ir.IntType(1), 1)
    for axis in axes:
        part, cell = _further(builder, s.part, axis * RUN), _further(builder, s.cell, axis * RUN)
        q = Vector.loaded(builder, part)
        for k in axes:
            q = _number(builder, s.real, TURN + 3 * axis + k).times_plus(moved[k], q)
        q = q.at_least(_real(builder, -FAR)).at_most(_real(builder, FAR))
        whole = q.floor()
        fraction, tap = q - whole, Vector.loaded(builder, cell).plus(whole.as_integer(INTEGER))
        if edge:
            fraction, tap = _kept(builder, s, axis, fraction, tap)
        fraction.store(part)
        tap.store(cell)
        limit = _number(builder, s.integer, LIMIT + axis)
        inside = builder.and_(inside, tap.all_below(limit))
        place = tap.at_least(_integer(builder, 0)).at_most(limit.less(_integer(builder, 1)))
        offset = place.as_double().times_plus(_number(builder, s.double, 4 * axis + STRIDE), offset)
    offset.as_integer(LONG).store(s.offset)
    return inside


def _kept(builder: Any, s: Scratch, axis: int, fraction: Vector, tap: Vector) -> tuple[Vector, Vector]:
    """Moved between the outermost centres: to the first pixel at the fraction 0, or to the last interval at the fraction 1."""
    least, greatest = (_number(builder, s.integer, row + axis) for row in (LEAST, GREATEST))
    below = least.exceeds(tap)
    fraction, tap = below.choose(_real(builder, 0), fraction), below.choose(least, tap)
    above = tap.exceeds(greatest)
    return above.choose(_real(builder, 1), fraction), above.choose(greatest, tap)


class Taps(NamedTuple):
    """Of the two pixels per axis that are read: their weights, the slopes of these, and, if not all count, which do."""

    weights: tuple[Vector, Vector]
    slopes: tuple[Vector, Vector]
    held: tuple[Vector, Vector] | None = None


def _whole_taps(builder: Any, fraction: Vector) -> Taps:
    """``1 - f, f``."""
    return Taps((_real(builder, 1) - fraction, fraction), (_real(builder, -1), _real(builder, 1)))


def _held_taps(builder: Any, fraction: Vector, cell: Vector, limit: Vector) -> Taps:
    """The same where a tap may lie outside: the pixels read are the nearest two inside, and one may have the other's weight."""
    none, whole = _real(builder, 0), _whole_taps(builder, fraction)
    zero, up = _integer(builder, 0), _integer(builder, 1)
    inside = cell.at_least(zero).at_most(limit.less(up))
    here, before, after = cell.equals(inside), cell.equals(inside.less(up)), inside.equals(cell.less(up))
    weights, slopes = (
        (here.choose(a, before.choose(b, none)), here.choose(b, after.choose(a, none))) for a, b in (whole.weights, whole.slopes)
    )
    return Taps(weights, slopes, (here.either(before), here.either(after)))


def _summer(ndim: int, paired: bool, with_slopes: bool, partly: bool = False) -> Any:
    """See :func:`sum_whole` and :func:`sum_partly`, for one vector."""

    def add(typing, source, s, at, steps):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            source, s, at, steps = arguments
            s, steps = _at(builder, s, at), [builder.extract_value(steps, axis) for axis in range(3)]
            taps = [_taps_of_axis(builder, s, axis, partly) for axis in range(3 - ndim, 3)]
            lines = {}
            for z, y in product(range(ndim - 1), range(2)):
                shift = builder.add(steps[0] if z else ir.Constant(LONG, 0), steps[1] if y else ir.Constant(LONG, 0))
                lines[z, y] = _neighbours(builder, builder.gep(source, [shift]), s.offset, None if paired else steps[2])
            for row, vector in enumerate(_linear_sums(builder, taps, lines, with_slopes)):
                vector.store(_further(builder, s.total, row * RUN))
            return context.get_dummy_value()

        three = types.UniTuple(types.int64, 3)  # type: ignore[no-untyped-call]
        return types.void(source, s, types.int64, three), generate

    return intrinsic(add)


def _taps_of_axis(builder: Any, s: Scratch, axis: int, partly: bool) -> Taps:
    fraction = Vector.loaded(builder, _further(builder, s.part, axis * RUN))
    if not partly:
        return _whole_taps(builder, fraction)
    cell = Vector.loaded(builder, _further(builder, s.cell, axis * RUN))
    return _held_taps(builder, fraction, cell, _number(builder, s.integer, LIMIT + axis))


def _linear_sums(builder: Any, taps: list[Taps], lines: Any, with_slopes: bool) -> list[Vector]:
    """``sum w_z w_y sum_x w_x line`` and, if asked for, its derivatives by z, y and x, in the order of the general form."""
    zero, one = _real(builder, 0), _real(builder, 1)
    tz, ty, tx = [Taps((one, one), (zero, zero)), *taps][-3:]
    sums = [zero] * (4 if with_slopes else 1)
    for (z, y), line in lines.items():
        left, right = _held_line(line, taps, (z, y), zero) if tx.held else line
        across, along = (w[0] * left + w[1] * right for w in (tx.weights, tx.slopes))
        factors = [(tz.weights, ty.weights, across), (tz.slopes, ty.weights, across)]
        factors += [(tz.weights, ty.slopes, across), (tz.weights, ty.weights, along)]
        for row in range(len(sums)):
            by_z, by_y, by_x = factors[row]
            sums[row] += by_z[z] * by_y[y] * by_x
    return sums


def _held_line(line: list[Vector], taps: list[Taps], at: tuple[int, int], zero: Vector) -> list[Vector]:
    """The two pixels of a line of the neighbourhood, 0 where they do not count."""
    places = [axis.held[k] for axis, k in zip(taps[:-1], at[-len(taps) + 1 :], strict=True) if axis.held]
    found = []
    for pixel, held in zip(line, taps[-1].held or (), strict=True):
        for place in places:
            held = held.both(place)
        found.append(held.choose(pixel, zero))
    return found


# as Any, since their callers are compiled
pointer: Any = intrinsic(_pointer)
ahead: Any = intrinsic(_ahead)
prefetch: Any = intrinsic(_prefetch)
_fetch_pairs, _fetch_singles = _fetcher(True), _fetcher(False)
_place: Any = intrinsic(_place_lanes)
_find_2d, _find_3d = _finder(2, False), _finder(3, False)
_keep_2d, _keep_3d = _finder(2, True), _finder(3, True)
_sum_pairs_2d, _sum_pairs_3d = _summer(2, True, False), _summer(3, True, False)
_slope_pairs_2d, _slope_pairs_3d = _summer(2, True, True), _summer(3, True, True)
_sum_singles_2d, _sum_singles_3d = _summer(2, False, False), _summer(3, False, False)
_slope_singles_2d, _slope_singles_3d = _summer(2, False, True), _summer(3, False, True)
_sum_partly_2d, _sum_partly_3d = _summer(2, True, False, True), _summer(3, True, False, True)
_slope_partly_2d, _slope_partly_3d = _summer(2, True, True, True), _summer(3, True, True, True)


@njit(cache=True, forceinline=True)
def fetch(source, offset, step, into):  # type: ignore[no-untyped-def]
    """``into[i], into[LANES + i] = source[offset[i]], source[offset[i] + step]`` for a vector."""
    if step == 1:
        _fetch_pairs(source, offset, step, into)
    else:
        _fetch_singles(source, offset, step, into)


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
def _move_coarse(bend, ndim, x, at, s):  # type: ignore[no-untyped-def]
    across, part, pair, offset = bend.nodes[2], ahead(s.part, at), ahead(s.real, LINE), ahead(s.offset, at)
    for i in range(LANES):
        offset[i], part[i] = _node(x + i, bend.scale[2], bend.offset[2], across)
    for k in range(3 - ndim, 3):
        fetch(ahead(s.line, (k + ndim - 3) * across), offset, 1, pair)
        moved = ahead(s.moved, k * RUN + at)
        for i in range(LANES):
            moved[i] = pair[i] + (pair[LANES + i] - pair[i]) * part[i]


@njit(cache=True)
def displace(bend, ndim, pixel, x, count, s):  # type: ignore[no-untyped-def]
    """``u(p)`` of the run that begins at column ``x`` of the fixed grid, its tile's pixel number ``pixel``."""
    if bend.kind == 1:
        _move_dense(ahead(bend.dense, pixel * ndim), ndim, count, s.moved)
    elif bend.kind == 2:
        for at in range(0, count, LANES):
            _move_coarse(bend, ndim, x + at, at, s)


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
            _place(begin, step, origin, column + at, ahead(cell, at), ahead(part, at))


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
            s.integer[WHOLE + at] = _keep_3d(s, at) if ndim == 3 else _keep_2d(s, at)
        else:
            s.integer[WHOLE + at] = _find_3d(s, at) if ndim == 3 else _find_2d(s, at)


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
                _sum_pairs_3d(values, s, at, steps)
            elif steps[2] == 1:
                _sum_pairs_2d(values, s, at, steps)
            elif ndim == 3:
                _sum_singles_3d(values, s, at, steps)
            else:
                _sum_singles_2d(values, s, at, steps)
        elif held and ndim == 3:
            _sum_partly_3d(values, s, at, steps)
        elif held:
            _sum_partly_2d(values, s, at, steps)


@njit(cache=True)
def sum_linear_with_slopes(source, ndim, channel, held, count, s):  # type: ignore[no-untyped-def]
    """The same, and its derivatives by z, y and x in the rows after the first."""
    values, steps = ahead(source.values, channel), steps_of(source)
    for at in range(0, count, LANES):
        if s.integer[WHOLE + at] != 0:
            if steps[2] == 1 and ndim == 3:
                _slope_pairs_3d(values, s, at, steps)
            elif steps[2] == 1:
                _slope_pairs_2d(values, s, at, steps)
            elif ndim == 3:
                _slope_singles_3d(values, s, at, steps)
            else:
                _slope_singles_2d(values, s, at, steps)
        elif held and ndim == 3:
            _slope_partly_3d(values, s, at, steps)
        elif held:
            _slope_partly_2d(values, s, at, steps)


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
