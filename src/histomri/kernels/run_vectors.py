"""What the warps do with one vector of ``LANES`` pixels of a run, written in LLVM's language; the rest is in ``runs``.

    find_2d, find_3d      q = A p + A u: the cells in which the displaced points fall, and the fractions in them
    sum_*, slope_*        sum_k w(q - k) m(k) over two taps per axis, and its derivatives by q

What is computed for a pixel depends on nothing but its own numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
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


SIZES = {REAL: 4, ir.IntType(8): 1, ir.IntType(16): 2}


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
    """``begin + step p`` for an axis of a vector: the whole number below, counted from ``origin``, and the fraction."""

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


def _store_between(builder: Any, rows: list[Any], moved: Any, part: Vector, ends: Callable[[Any], Any]) -> None:
    """The displacement by each of the last axes between the nodes ``ends`` that a row of nodes gives for the lanes."""
    for k, row in enumerate(rows):
        left, right = ends(row)
        (left + (right - left) * part).store(_further(builder, moved, (3 - len(rows) + k) * RUN))


def _of_two_cells(builder: Any, cell: Vector, first: Any, last: Any) -> Callable[[Any], Any]:
    """The nodes left and right of lanes that lie in the cell ``first`` or the one after it: three loads for all lanes."""
    in_first = cell.equals(Vector.filled(builder, first))
    steps = [builder.add(first, ir.Constant(LONG, k)) for k in range(3)]
    places = [builder.select(builder.icmp_signed("<", step, last), step, last) for step in steps]

    def ends(row: Any) -> tuple[Vector, Vector]:
        a, b, c = (Vector.filled(builder, builder.load(builder.gep(row, [place]))) for place in places)
        return in_first.choose(a, b), in_first.choose(b, c)

    return ends


def _mover(ndim: int) -> Any:
    """``u(p)`` of a vector from a line of nodes (ndim, across): linear between nodes, the outermost ones hold on beyond them.

    The node of column p is ``scale p + offset``, float64; across >= 2.
    """

    def move(typing, line, across, column, scale, offset, moved):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            line, across, moved = arguments[0], arguments[1], arguments[5]
            column, scale, offset = (Vector.filled(builder, number) for number in arguments[2:5])
            node = (column + Vector.constant(builder, DOUBLE, range(LANES))) * scale + offset
            cells = Vector.filled(builder, builder.sitofp(builder.sub(across, ir.Constant(LONG, 1)), DOUBLE))
            zero, one = (Vector.constant(builder, DOUBLE, [number] * LANES) for number in (0.0, 1.0))
            node = node.at_least(zero).at_most(cells)
            before = node.floor().at_most(cells - one)
            part, cell = (node - before).as_real(), before.as_integer(LONG)
            rows = [builder.gep(line, [builder.mul(across, ir.Constant(LONG, k))]) for k in range(ndim)]
            places = cell.lanes()
            span = builder.sub(places[-1], places[0])
            few = builder.icmp_unsigned("<=", span, ir.Constant(LONG, 1))
            with builder.if_else(few) as (then, otherwise):
                with then:
                    last = builder.sub(across, ir.Constant(LONG, 1))
                    _store_between(builder, rows, moved, part, _of_two_cells(builder, cell, places[0], last))
                with otherwise:
                    _store_between(
                        builder, rows, moved, part, lambda row: _pairs(builder, [builder.gep(row, [p]) for p in places])
                    )
            return context.get_dummy_value()

        return types.void(line, types.int64, *[types.float64] * 3, moved), generate

    return intrinsic(move)


def _finder(ndim: int, edge: bool) -> Any:
    """``q``, its cells, fractions and offsets, for a vector; returns whether it is wholly inside."""

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
    """The value of one channel of a vector into ``s.total``, the slopes by z, y, x in the rows after it.

    ``paired`` for one channel; ``partly`` where neighbourhoods may reach over the ends of the array, beyond which lies 0.
    """

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
fetch_pairs, fetch_singles = _fetcher(True), _fetcher(False)
place_lanes: Any = intrinsic(_place_lanes)
move_2d, move_3d = _mover(2), _mover(3)
find_2d, find_3d = _finder(2, False), _finder(3, False)
keep_2d, keep_3d = _finder(2, True), _finder(3, True)
sum_pairs_2d, sum_pairs_3d = _summer(2, True, False), _summer(3, True, False)
slope_pairs_2d, slope_pairs_3d = _summer(2, True, True), _summer(3, True, True)
sum_singles_2d, sum_singles_3d = _summer(2, False, False), _summer(3, False, False)
slope_singles_2d, slope_singles_3d = _summer(2, False, True), _summer(3, False, True)
sum_partly_2d, sum_partly_3d = _summer(2, True, False, True), _summer(3, True, False, True)
slope_partly_2d, slope_partly_3d = _summer(2, True, True, True), _summer(3, True, True, True)
