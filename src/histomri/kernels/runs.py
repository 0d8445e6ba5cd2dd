"""What the warps do with a run of pixels: up to ``RUN`` neighbours along the last axis, whose numbers stay in the nearest cache.

A run goes through four steps, each a plain loop that the compiler turns into vector instructions: the displaced points, the
cells of the moving image in which they fall, the weights of the interpolation, and the sum over the neighbourhood, one line of
pixels after the other. All take three axes (z, y, x); in 2D the z axis has one plane of weight 1.

Buffers are flat with ``RUN`` numbers per row. Nothing here depends on where a run begins, on tiles or on threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

RUN = 128
LANES = 8
# rows of the weights' buffer per axis: as many as the widest neighbourhood
TAPS = 4
# how far outside the moving image, in pixels, a coordinate is kept: beyond any neighbourhood
BEYOND = 4.0


class Source(NamedTuple):
    """A moving image: flat ``values`` of the array (z, y, x, c) of ``size``, whose first pixel has the index ``origin``.

    Everything that the array does not hold counts as 0; with ``edge`` coordinates are moved between its outermost centres.
    """

    values: NDArray[Any]
    size: tuple[int, int, int]
    channels: int
    origin: tuple[float, float, float]
    edge: bool


class Target(NamedTuple):
    """The part of the fixed grid that is asked for, and ``matrix``, which takes its displaced indices to moving indices."""

    start: tuple[float, float, float]
    shape: tuple[int, int, int]
    matrix: NDArray[np.float64]


class Bend(NamedTuple):
    """A displacement: ``dense`` (pixels, ndim), or ``coarse`` (z, y, ndim, x) at nodes ``scale p + offset``, or both empty."""

    dense: NDArray[np.float32]
    coarse: NDArray[np.float32]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


class Scratch(NamedTuple):
    """Numbers of one run, ``RUN`` per row: see the functions that fill them."""

    points: NDArray[np.float64]
    cell: NDArray[np.int32]
    fraction: NDArray[np.float32]
    weight: NDArray[np.float32]
    slope: NDArray[np.float32]
    offset: NDArray[np.int64]
    line: NDArray[np.float32]
    sums: NDArray[np.float32]
    nodes: NDArray[np.float32]


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index], inbounds=True)


def _positions(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """Addresses ``source[offset[at + j] + shift]`` for the lanes j."""
    source, offset, shift, at = arguments[:4]
    addresses = []
    for lane in range(LANES):
        index = builder.add(at, ir.Constant(at.type, lane))
        begin = builder.load(_address(context, builder, signature.args[1], offset, index))
        addresses.append(_address(context, builder, signature.args[0], source, builder.add(begin, shift)))
    return addresses


def _store(context: Any, builder: Any, signature: Any, arguments: Any, vector: Any, row: int) -> None:
    """``into[at + row * RUN:][:LANES] = vector``."""
    index = builder.add(arguments[3], ir.Constant(arguments[3].type, row * RUN))
    address = _address(context, builder, signature.args[4], arguments[4], index)
    builder.store(vector, builder.bitcast(address, vector.type.as_pointer()), align=4)


@intrinsic  # type: ignore[untyped-decorator]
def _take(typing, source, offset, shift, at, into):  # type: ignore[no-untyped-def]
    """``into[at + j] = source[offset[at + j] + shift]`` for j < LANES, as float32.

    Written out because a compiler left to itself takes the processor's gather instruction, which is slower than
    single loads by 4 times on processors whose gathers are mended against data sampling.
    """
    signature = types.void(source, offset, types.int64, types.int64, into)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = signature.args[0].dtype
        vector = ir.Constant(ir.VectorType(context.get_data_type(kind), LANES), ir.Undefined)
        for lane, address in enumerate(_positions(context, builder, signature, arguments)):
            vector = builder.insert_element(vector, builder.load(address), ir.Constant(ir.IntType(32), lane))
        floats = ir.VectorType(ir.FloatType(), LANES)
        _store(context, builder, signature, arguments, vector if kind == types.float32 else builder.uitofp(vector, floats), 0)
        return context.get_dummy_value()

    return signature, generate


def _joined(builder: Any, left: Any, right: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))


@intrinsic  # type: ignore[untyped-decorator]
def _take_pairs(typing, source, offset, shift, at, into):  # type: ignore[no-untyped-def]
    """``into[at + j], into[at + RUN + j] = source[offset[at + j] + shift:][:2]`` for j < LANES: two neighbours in one load."""
    signature = types.void(source, offset, types.int64, types.int64, into)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pair = ir.VectorType(ir.FloatType(), 2)
        parts = [
            builder.load(builder.bitcast(address, pair.as_pointer()), align=4)
            for address in _positions(context, builder, signature, arguments)
        ]
        while len(parts) > 2:
            whole = list(range(2 * parts[0].type.count))
            parts = [_joined(builder, a, b, whole) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        for row in range(2):
            lanes = _joined(builder, parts[0], parts[1], list(range(row, 2 * LANES, 2)))
            _store(context, builder, signature, arguments, lanes, row)
        return context.get_dummy_value()

    return signature, generate


def fetch(source: Any, offset: Any, shift: Any, channels: Any, into: Any, count: Any) -> None:
    """``into[i], into[RUN + i] = source[offset[i] + shift:][0], [channels]`` for i < count and up to whole vectors."""
    raise NotImplementedError("for compiled code only")


@njit(cache=True)
def _singles(source, offset, shift, channels, into, count):  # type: ignore[no-untyped-def]
    for at in range(0, count, LANES):
        _take(source, offset, shift, at, into)  # type: ignore[call-arg]
        _take(source, offset, shift + channels, at, into[RUN:])  # type: ignore[call-arg]


@njit(cache=True)
def _pairs(source, offset, shift, channels, into, count):  # type: ignore[no-untyped-def]
    if channels != 1:
        _singles(source, offset, shift, channels, into, count)
        return
    for at in range(0, count, LANES):
        _take_pairs(source, offset, shift, at, into)  # type: ignore[call-arg]


@overload(fetch)
def _fetch(source, offset, shift, channels, into, count):  # type: ignore[no-untyped-def]
    chosen = _pairs if source.dtype == types.float32 else _singles

    def run(source, offset, shift, channels, into, count):  # type: ignore[no-untyped-def]
        chosen(source, offset, shift, channels, into, count)

    return run


@njit(cache=True)
def scratch_for(bend):  # type: ignore[no-untyped-def]
    """Buffers for a run; the z axis of a 2D image keeps its one plane of weight 1."""
    weight, slope = np.zeros(3 * TAPS * RUN, np.float32), np.zeros(3 * TAPS * RUN, np.float32)
    weight[:RUN] = 1
    return Scratch(
        np.empty(3 * RUN, np.float64),
        np.zeros(3 * RUN, np.int32),
        np.zeros(3 * RUN, np.float32),
        weight,
        slope,
        np.zeros(RUN, np.int64),
        np.empty(TAPS * RUN, np.float32),
        np.empty(4 * RUN, np.float32),
        np.empty(bend.coarse.shape[2] * bend.coarse.shape[3], np.float32),
    )


@njit(cache=True)
def _points(first, count, points):  # type: ignore[no-untyped-def]
    """Indices (z, y, x) on the fixed grid of the ``count`` pixels that begin at ``first``."""
    for i in range(count):
        points[i], points[RUN + i], points[2 * RUN + i] = first[0], first[1], first[2] + i


@njit(cache=True)
def _add_dense(dense, pixel, count, points):  # type: ignore[no-untyped-def]
    components = dense.shape[1]
    for k in range(components):
        at = (3 - components + k) * RUN
        for i in range(count):
            points[at + i] += dense[pixel + i, k]


@njit(cache=True)
def _node(index, scale, offset, nodes):  # type: ignore[no-untyped-def]
    """The node before an index and the fraction to the next one; the outermost nodes hold on beyond the field."""
    place = min(max(index * scale + offset, 0.0), nodes - 1.0)
    before = min(int(place), max(nodes - 2, 0))
    return before, np.float32(place - before)


@njit(cache=True)
def blend_nodes(bend, z, y, nodes):  # type: ignore[no-untyped-def]
    """The coarse field's line of nodes (ndim, x) at the row (z, y) of the fixed grid."""
    planes, lines, components, across = bend.coarse.shape
    k, fz = _node(z, bend.scale[0], bend.offset[0], planes)
    j, fy = _node(y, bend.scale[1], bend.offset[1], lines)
    m, n, one = min(k + 1, planes - 1), min(j + 1, lines - 1), np.float32(1)
    for c in range(components):
        for x in range(across):
            near = bend.coarse[k, j, c, x] * (one - fy) + bend.coarse[k, n, c, x] * fy
            far = bend.coarse[m, j, c, x] * (one - fy) + bend.coarse[m, n, c, x] * fy
            nodes[c * across + x] = near * (one - fz) + far * fz


@njit(cache=True)
def _add_coarse(bend, x, count, s):  # type: ignore[no-untyped-def]
    components, across = bend.coarse.shape[2], bend.coarse.shape[3]
    for i in range(count):
        s.offset[i], s.fraction[i] = _node(x + i, bend.scale[2], bend.offset[2], across)
    for i in range(count, (count + LANES - 1) // LANES * LANES):
        s.offset[i] = 0
    for k in range(components):
        fetch(s.nodes, s.offset, k * across, 1, s.line, count)
        at = (3 - components + k) * RUN
        for i in range(count):
            s.points[at + i] += s.line[i] + (s.line[RUN + i] - s.line[i]) * s.fraction[i]


@njit(cache=True)
def place_run(bend, target, pixel, first, count, s):  # type: ignore[no-untyped-def]
    """The displaced points ``p + u(p)`` of the run that begins at ``first``, number ``pixel`` of the tile."""
    _points(first, count, s.points)
    if bend.dense.shape[0] > 0:
        _add_dense(bend.dense, pixel, count, s.points)
    elif bend.coarse.shape[0] > 0:
        _add_coarse(bend, first[2], count, s)


@njit(cache=True)
def _placed(value, low, high, half):  # type: ignore[no-untyped-def]
    """Cell and fraction of a coordinate, kept from low to high; NaN counts as below."""
    value = value if value > low else low
    value = (value if value < high else high) + half
    whole = np.floor(value)
    return whole, np.float32(value - whole)


@njit(cache=True)
def _limits(source, axis):  # type: ignore[no-untyped-def]
    """Lowest and highest coordinate that an axis keeps."""
    margin = 0.0 if source.edge else BEYOND
    return source.origin[axis] - margin, source.origin[axis] + source.size[axis] - 1.0 + margin


@njit(cache=True)
def _cells_2d(matrix, source, half, count, s):  # type: ignore[no-untyped-def]
    points, cell, fraction = s.points, s.cell, s.fraction
    a, b, c, d, e, f = matrix[0, 0], matrix[0, 1], matrix[0, 2], matrix[1, 0], matrix[1, 1], matrix[1, 2]
    oy, ox = source.origin[1], source.origin[2]
    (ly, hy), (lx, hx) = _limits(source, 1), _limits(source, 2)
    for i in range(count):
        py, px = points[RUN + i], points[2 * RUN + i]
        y, fy = _placed(a * py + b * px + c, ly, hy, half)
        x, fx = _placed(d * py + e * px + f, lx, hx, half)
        cell[RUN + i], cell[2 * RUN + i] = np.int32(y - oy), np.int32(x - ox)
        fraction[RUN + i], fraction[2 * RUN + i] = fy, fx


@njit(cache=True)
def _cells_3d(matrix, source, half, count, s):  # type: ignore[no-untyped-def]
    points, cell, fraction = s.points, s.cell, s.fraction
    a, b, c, d = matrix[0, 0], matrix[0, 1], matrix[0, 2], matrix[0, 3]
    e, f, g, h = matrix[1, 0], matrix[1, 1], matrix[1, 2], matrix[1, 3]
    k, m, n, o = matrix[2, 0], matrix[2, 1], matrix[2, 2], matrix[2, 3]
    oz, oy, ox = source.origin
    (lz, hz), (ly, hy), (lx, hx) = _limits(source, 0), _limits(source, 1), _limits(source, 2)
    for i in range(count):
        pz, py, px = points[i], points[RUN + i], points[2 * RUN + i]
        z, fz = _placed(a * pz + b * py + c * px + d, lz, hz, half)
        y, fy = _placed(e * pz + f * py + g * px + h, ly, hy, half)
        x, fx = _placed(k * pz + m * py + n * px + o, lx, hx, half)
        cell[i], cell[RUN + i], cell[2 * RUN + i] = np.int32(z - oz), np.int32(y - oy), np.int32(x - ox)
        fraction[i], fraction[RUN + i], fraction[2 * RUN + i] = fz, fy, fx


@njit(cache=True)
def find_cells(matrix, source, half, count, s):  # type: ignore[no-untyped-def]
    """``q = A (p + u)``: the cell in which q + half lies, counted from the array's first pixel, and the fractions in it."""
    if matrix.shape[0] == 3:
        _cells_2d(matrix, source, half, count, s)
    else:
        _cells_3d(matrix, source, half, count, s)


@njit(cache=True)
def _linear_weights(axis, count, s):  # type: ignore[no-untyped-def]
    at, one = axis * TAPS * RUN, np.float32(1)
    for i in range(count):
        f = s.fraction[axis * RUN + i]
        s.weight[at + i], s.weight[at + RUN + i] = one - f, f
        s.slope[at + i], s.slope[at + RUN + i] = -one, one


@njit(cache=True)
def _cubic_weights(axis, count, s):  # type: ignore[no-untyped-def]
    at, half, one, two = axis * TAPS * RUN, np.float32(0.5), np.float32(1), np.float32(2)
    three, four, five = np.float32(3), np.float32(4), np.float32(5)
    eight, nine, ten = np.float32(8), np.float32(9), np.float32(10)
    for i in range(count):
        f = s.fraction[axis * RUN + i]
        s.weight[at + i] = half * f * (f * (two - f) - one)
        s.weight[at + RUN + i] = half * (f * f * (three * f - five) + two)
        s.weight[at + 2 * RUN + i] = half * f * (f * (four - three * f) + one)
        s.weight[at + 3 * RUN + i] = half * f * f * (f - one)
        s.slope[at + i] = half * (f * (four - three * f) - one)
        s.slope[at + RUN + i] = half * f * (nine * f - ten)
        s.slope[at + 2 * RUN + i] = half * (f * (eight - nine * f) + one)
        s.slope[at + 3 * RUN + i] = half * f * (three * f - two)


@njit(cache=True)
def weigh(taps, count, s):  # type: ignore[no-untyped-def]
    """Weights of the neighbourhood per axis and their derivatives by the coordinate, at ``(TAPS axis + tap) RUN + pixel``.

    Two taps: ``1 - f, f``. Four: cubic convolution with a = -1/2 (Keys 1981) at the distances 1 + f, f, 1 - f, 2 - f.
    """
    for axis in range(3):
        if taps[axis] == 2:
            _linear_weights(axis, count, s)
        elif taps[axis] == 4:
            _cubic_weights(axis, count, s)


@njit(cache=True)
def _clamped(index, last):  # type: ignore[no-untyped-def]
    return min(max(index, 0), last)


@njit(cache=True)
def find_offsets(source, taps, count, s):  # type: ignore[no-untyped-def]
    """Where each pixel's neighbourhood begins in the flat array; how many of them the array holds in part, and not at all.

    What is not whole begins at the nearest place where it would be, so that it can be read; ``mend`` puts it right.
    """
    depth, height, width = source.size
    dz, dy, dx = depth - taps[0], height - taps[1], width - taps[2]
    broken, outside = 0, 0
    for i in range(count):
        # from the cell to the first of the taps: 0 of 1 and of 2, 1 of 4
        z, y, x = s.cell[i] - taps[0] // 4, s.cell[RUN + i] - taps[1] // 4, s.cell[2 * RUN + i] - taps[2] // 4
        cz, cy, cx = _clamped(z, dz), _clamped(y, dy), _clamped(x, dx)
        broken += (cz != z) | (cy != y) | (cx != x)
        outside += (z <= -taps[0]) | (y <= -taps[1]) | (x <= -taps[2]) | (z >= depth) | (y >= height) | (x >= width)
        s.offset[i] = ((np.int64(cz) * height + cy) * width + cx) * source.channels
    for i in range(count, (count + LANES - 1) // LANES * LANES):
        s.offset[i] = 0
    return broken, outside


@njit(cache=True)
def _mend(source, taps, at, count, s):  # type: ignore[no-untyped-def]
    """Put the line ``at`` = (plane, row, channel) of each broken neighbourhood right: 0, or the edge, where the array ends."""
    depth, height, width = source.size
    for i in range(count):
        z, y, x = s.cell[i] - taps[0] // 4, s.cell[RUN + i] - taps[1] // 4, s.cell[2 * RUN + i] - taps[2] // 4
        if 0 <= z <= depth - taps[0] and 0 <= y <= height - taps[1] and 0 <= x <= width - taps[2]:
            continue
        cz, cy = _clamped(z + at[0], depth - 1), _clamped(y + at[1], height - 1)
        for k in range(taps[2]):
            cx = _clamped(x + k, width - 1)
            held = source.edge or (cz == z + at[0] and cy == y + at[1] and cx == x + k)
            where = ((np.int64(cz) * height + cy) * width + cx) * source.channels + at[2]
            s.line[k * RUN + i] = np.float32(source.values[where]) if held else np.float32(0)


@njit(cache=True)
def fetch_line(source, taps, at, broken, count, s):  # type: ignore[no-untyped-def]
    """``line[k RUN + i]`` = tap k along x of the neighbourhood's line ``at`` = (plane, row, channel)."""
    depth, height, width = source.size
    if depth >= taps[0] and height >= taps[1] and width >= taps[2]:
        shift = (at[0] * height + at[1]) * width * source.channels + at[2]
        for k in range(0, taps[2], 2):
            fetch(source.values, s.offset, shift + k * source.channels, source.channels, s.line[k * RUN :], count)
    if broken > 0:
        _mend(source, taps, at, count, s)


@njit(cache=True)
def _along(weight, line, taps, i):  # type: ignore[no-untyped-def]
    """``sum_k w_k line_k`` along x; ``weight`` may be the weights or their slopes."""
    at = 2 * TAPS * RUN + i
    total = weight[at] * line[i] + weight[at + RUN] * line[RUN + i]
    if taps == 4:
        total += weight[at + 2 * RUN] * line[2 * RUN + i] + weight[at + 3 * RUN] * line[3 * RUN + i]
    return total


@njit(cache=True)
def add_line(taps, at, count, s):  # type: ignore[no-untyped-def]
    """``sums += w_z w_y sum_x w_x line``."""
    z, y = at[0] * RUN, (TAPS + at[1]) * RUN
    if taps[2] == 2:
        for i in range(count):
            s.sums[i] += s.weight[z + i] * s.weight[y + i] * _along(s.weight, s.line, 2, i)
    else:
        for i in range(count):
            s.sums[i] += s.weight[z + i] * s.weight[y + i] * _along(s.weight, s.line, 4, i)


@njit(cache=True)
def _add_slope(taps, at, i, s):  # type: ignore[no-untyped-def]
    z, y = at[0] * RUN + i, (TAPS + at[1]) * RUN + i
    across, along = _along(s.weight, s.line, taps, i), _along(s.slope, s.line, taps, i)
    s.sums[i] += s.weight[z] * s.weight[y] * across
    s.sums[RUN + i] += s.slope[z] * s.weight[y] * across
    s.sums[2 * RUN + i] += s.weight[z] * s.slope[y] * across
    s.sums[3 * RUN + i] += s.weight[z] * s.weight[y] * along


@njit(cache=True)
def add_line_with_slopes(taps, at, count, s):  # type: ignore[no-untyped-def]
    """As :func:`add_line`, and in the rows 1 to 3 the derivatives by z, y and x."""
    if taps[2] == 2:
        for i in range(count):
            _add_slope(2, at, i, s)
    else:
        for i in range(count):
            _add_slope(4, at, i, s)
