"""Four neighbouring float32 values changed by one vector instruction, which LLVM does not find by itself in a scatter.

The formulas are written once on :class:`Lanes` and become LLVM vectors of four, on any processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

FOUR = ir.VectorType(ir.FloatType(), 4)
INDEX = ir.IntType(32)
CONTRACT = ("contract",)  # a product and a sum may become one instruction


class Lanes:
    """Four float32 under construction in LLVM's language; ``+`` and ``*`` take another one or four constants."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @staticmethod
    def filled(builder: Any, scalar: Any) -> Lanes:
        """The scalar in all four."""
        undefined = ir.Constant(FOUR, ir.Undefined)
        one = builder.insert_element(undefined, scalar, ir.Constant(INDEX, 0))
        return Lanes(builder, builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INDEX, 4), [0] * 4)))

    def _other(self, other: Any) -> Any:
        return other.value if isinstance(other, Lanes) else ir.Constant(FOUR, [float(x) for x in other])

    def __add__(self, other: Any) -> Lanes:
        return Lanes(self.builder, self.builder.fadd(self.value, self._other(other), CONTRACT))

    def __mul__(self, other: Any) -> Lanes:
        return Lanes(self.builder, self.builder.fmul(self.value, self._other(other), CONTRACT))


def adder(formula: Callable[[Lanes, Lanes, Lanes], Lanes]) -> Any:
    """A function ``add(cells, index, a, b, c)`` for use in numba: ``cells[index : index + 4] += formula(a, b, c)``.

    ``cells`` (n,) and ``a``, ``b``, ``c`` are float32, ``index`` is an int32 >= 0; nothing is checked.
    """

    @intrinsic  # type: ignore[misc]
    def add(typing: Any, cells: Any, index: Any, a: Any, b: Any, c: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, args[0])
            change = formula(*(Lanes.filled(builder, scalar) for scalar in args[2:]))
            place = builder.gep(array.data, [builder.zext(args[1], ir.IntType(64))])
            place = builder.bitcast(place, FOUR.as_pointer())
            builder.store((change + Lanes(builder, builder.load(place, align=4))).value, place, align=4)
            return context.get_dummy_value()

        return types.void(cells, types.int32, types.float32, types.float32, types.float32), generate

    return add
