"""Eight channels of a pixel at a time, in registers: the inner step of ``flow_nodes``, written in LLVM's language.

Left to the compiler's vectoriser each pixel costs six sums across channels; here one, as the others are kept by channel until a
block is done.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 8
# rows of WIDTH numbers in the scratch: residual and slopes of one pixel; the sums of a block: yy, yx, xx, y, x
RESIDUAL, SLOPE_Y, SLOPE_X, SUMS = 0, WIDTH, 2 * WIDTH, 3 * WIDTH
SCRATCH = SUMS + 5 * WIDTH
REAL, INTEGER, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
EIGHT = ir.VectorType(REAL, WIDTH)


def _load(builder: Any, address: Any) -> Any:
    return builder.load(builder.bitcast(address, EIGHT.as_pointer()), align=4)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.bitcast(address, EIGHT.as_pointer()), align=4)


def _row(builder: Any, scratch: Any, first: int) -> Any:
    return builder.gep(scratch, [ir.Constant(LONG, first)])


def _filled(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(EIGHT, ir.Undefined), scalar, ir.Constant(INTEGER, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(INTEGER, WIDTH), [0] * WIDTH))


def _times_plus(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``."""
    kind = ir.FunctionType(EIGHT, [EIGHT] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{WIDTH}f32")  # type: ignore[no-untyped-call]
    return builder.call(function, [a, b, c])


def _total(builder: Any, vector: Any) -> Any:
    """The sum of all lanes, halves first."""
    width = WIDTH
    while width > 1:
        width //= 2
        halves = [
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(INTEGER, width), list(range(first, first + width))))
            for first in (0, width)
        ]
        vector = builder.fadd(*halves)
    return builder.extract_element(vector, ir.Constant(INTEGER, 0))


def _compare(typing, moving, corners, fixed, near, parts, scratch):  # type: ignore[no-untyped-def]
    """The squared residual of eight channels; their residuals and slopes go to ``scratch``.

    ``moving`` and ``fixed`` point to float32 arrays (y, x, 8). ``corners``: offsets of the two pixels at the left of the cell,
    upper and lower; ``near``: of the fixed pixel, and those above, below, left and right of it; ``parts``: the fractions (y, x).
    """
    signature = types.float32(moving, corners, fixed, near, parts, scratch)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        moving, corners, fixed, near, parts, scratch = arguments
        fy, fx = (_filled(builder, part) for part in cgutils.unpack_tuple(builder, parts, 2))  # type: ignore[no-untyped-call]
        rows = [builder.gep(moving, [offset]) for offset in cgutils.unpack_tuple(builder, corners, 2)]  # type: ignore[no-untyped-call]
        left = [_load(builder, row) for row in rows]
        ahead = [builder.fsub(_load(builder, _row(builder, row, WIDTH)), m) for row, m in zip(rows, left, strict=True)]
        top, bottom = (_times_plus(builder, a, fx, m) for a, m in zip(ahead, left, strict=True))
        down = builder.fsub(bottom, top)
        across = _times_plus(builder, builder.fsub(ahead[1], ahead[0]), fy, ahead[0])
        here, *others = (
            _load(builder, builder.gep(fixed, [offset]))
            for offset in cgutils.unpack_tuple(builder, near, 5)  # type: ignore[no-untyped-call]
        )
        residual = builder.fsub(_times_plus(builder, down, fy, top), here)
        half, quarter = (ir.Constant(EIGHT, [number] * WIDTH) for number in (0.5, 0.25))
        for first, slope, before, after in ((SLOPE_Y, down, *others[:2]), (SLOPE_X, across, *others[2:])):
            own = builder.fmul(builder.fsub(after, before), quarter)
            _store(builder, _times_plus(builder, slope, half, own), _row(builder, scratch, first))
        _store(builder, residual, _row(builder, scratch, RESIDUAL))
        return _total(builder, builder.fmul(residual, residual))

    return signature, generate


def _collect(typing, scratch, weight):  # type: ignore[no-untyped-def]
    """Add what :func:`_compare` left in ``scratch``, ``weight`` times, to the sums of the block."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        scratch, weight = arguments
        w = _filled(builder, weight)
        r, gy, gx = (_load(builder, _row(builder, scratch, first)) for first in (RESIDUAL, SLOPE_Y, SLOPE_X))
        wy, wx = builder.fmul(w, gy), builder.fmul(w, gx)
        for i, (a, b) in enumerate(((wy, gy), (wy, gx), (wx, gx), (wy, r), (wx, r))):
            place = _row(builder, scratch, SUMS + i * WIDTH)
            _store(builder, _times_plus(builder, a, b, _load(builder, place)), place)
        return context.get_dummy_value()

    return types.void(scratch, types.float32), generate


def _block_sum(typing, scratch, which):  # type: ignore[no-untyped-def]
    """The sum over channels of the block's ``which``-th sum, which is emptied."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        scratch, which = arguments
        place = builder.gep(scratch, [builder.add(ir.Constant(LONG, SUMS), builder.mul(which, ir.Constant(LONG, WIDTH)))])
        total = _total(builder, _load(builder, place))
        _store(builder, ir.Constant(EIGHT, [0.0] * WIDTH), place)
        return total

    return types.float32(scratch, types.int64), generate


# typed so that mypy does not take them for what they are written as
compare: Any = intrinsic(_compare)
collect: Any = intrinsic(_collect)
block_sum: Any = intrinsic(_block_sum)
