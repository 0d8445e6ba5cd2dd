"""``LANES`` neighbouring numbers that stay in registers: formulas written once on :class:`Vector` become LLVM vectors.

A loop left to the compiler's vectoriser keeps what it hands to the next loop in memory, and takes half of the register's width
on processors that have 512 bits. LLVM splits these vectors where registers are narrower.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils

LANES = 16
REAL, DOUBLE, INTEGER, LONG = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)


class Vector:
    """``LANES`` numbers of one type under construction; ``+ - *`` take another such vector, ``<`` is for :func:`between`."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @staticmethod
    def filled(builder: Any, scalar: Any) -> Vector:
        """The scalar in every lane."""
        kind = ir.VectorType(scalar.type, LANES)
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(INTEGER, 0))
        return Vector(builder, builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(INTEGER, LANES), [0] * LANES)))

    @staticmethod
    def constant(builder: Any, kind: Any, numbers: Any) -> Vector:
        """Numbers that are known beforehand, one per lane."""
        return Vector(builder, ir.Constant(ir.VectorType(kind, LANES), list(numbers)))

    @staticmethod
    def loaded(builder: Any, address: Any) -> Vector:
        """``address[: LANES]``."""
        kind = ir.VectorType(address.type.pointee, LANES)
        return Vector(builder, builder.load(builder.bitcast(address, kind.as_pointer()), align=4))

    def store(self, address: Any) -> None:
        """``address[: LANES] = self``."""
        self.builder.store(self.value, self.builder.bitcast(address, self.value.type.as_pointer()), align=4)

    def lanes(self) -> list[Any]:
        """Each number by itself."""
        return [self.builder.extract_element(self.value, ir.Constant(INTEGER, lane)) for lane in range(LANES)]

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fadd(self.value, other.value))

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fsub(self.value, other.value))

    def __mul__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fmul(self.value, other.value))

    def plus(self, other: Vector) -> Vector:
        """The sum of integers."""
        return Vector(self.builder, self.builder.add(self.value, other.value))

    def less(self, other: Vector) -> Vector:
        """The difference of integers."""
        return Vector(self.builder, self.builder.sub(self.value, other.value))

    def _call(self, name: str, *others: Vector) -> Vector:
        kind = self.value.type
        full = f"{name}.v{LANES}{'f32' if kind.element == REAL else 'f64'}"
        signature = ir.FunctionType(kind, [kind] * (1 + len(others)))
        function = cgutils.get_or_insert_function(self.builder.module, signature, full)  # type: ignore[no-untyped-call]
        return Vector(self.builder, self.builder.call(function, [self.value, *(v.value for v in others)]))

    def times_plus(self, factor: Vector, summand: Vector) -> Vector:
        """``self * factor + summand``, in one instruction where the processor has it, always the same."""
        return self._call("llvm.fmuladd", factor, summand)

    def floor(self) -> Vector:
        """The whole number at or below."""
        return self._call("llvm.floor")

    def at_least(self, low: Vector) -> Vector:
        """The greater one, ``low`` for what is not a number."""
        return Vector(self.builder, self.builder.select(self._compared(">", low), self.value, low.value))

    def at_most(self, high: Vector) -> Vector:
        """The smaller one."""
        return Vector(self.builder, self.builder.select(self._compared("<", high), self.value, high.value))

    def _compared(self, sign: str, other: Vector) -> Any:
        real = self.value.type.element in (REAL, DOUBLE)
        compare = self.builder.fcmp_ordered if real else self.builder.icmp_signed
        return compare(sign, self.value, other.value)

    def equals(self, other: Vector) -> Vector:
        """Per lane, for :meth:`choose`."""
        return Vector(self.builder, self._compared("==", other))

    def exceeds(self, other: Vector) -> Vector:
        """Per lane, for :meth:`choose`."""
        return Vector(self.builder, self._compared(">", other))

    def either(self, other: Vector) -> Vector:
        """Of two comparisons."""
        return Vector(self.builder, self.builder.or_(self.value, other.value))

    def both(self, other: Vector) -> Vector:
        """Of two comparisons."""
        return Vector(self.builder, self.builder.and_(self.value, other.value))

    def choose(self, yes: Vector, no: Vector) -> Vector:
        """``yes`` where the comparison holds."""
        return Vector(self.builder, self.builder.select(self.value, yes.value, no.value))

    def as_double(self) -> Vector:
        """float32, or a signed integer, to float64."""
        convert = self.builder.fpext if self.value.type.element == REAL else self.builder.sitofp
        return Vector(self.builder, convert(self.value, ir.VectorType(DOUBLE, LANES)))

    def as_real(self) -> Vector:
        """float64, or an unsigned integer, to float32."""
        if self.value.type.element == REAL:
            return self
        convert = self.builder.fptrunc if self.value.type.element == DOUBLE else self.builder.uitofp
        return Vector(self.builder, convert(self.value, ir.VectorType(REAL, LANES)))

    def as_integer(self, kind: Any) -> Vector:
        """A whole number, float32 or float64, to a signed integer."""
        return Vector(self.builder, self.builder.fptosi(self.value, ir.VectorType(kind, LANES)))

    def all_below(self, limit: Vector) -> Any:
        """Whether ``0 <= self < limit`` in every lane, of integers: as unsigned ones the negative lie above."""
        below = self.builder.icmp_unsigned("<", self.value, limit.value)
        bits = ir.IntType(LANES)
        return self.builder.icmp_unsigned("==", self.builder.bitcast(below, bits), ir.Constant(bits, -1))
