"""Kernels run the same machine code, just compiled or kept: other last bits in a first run would repeat nowhere."""

from __future__ import annotations

import numpy as np

from histomri.kernels.jit import COPIES, njit, prange


def summed(values, out):  # type: ignore[no-untyped-def]
    for i in prange(values.shape[0]):
        total = np.float32(0)
        for j in range(values.shape[1]):
            total += values[i, j] * values[i, j]
        out[i] = total


def test_a_kernel_keeps_to_its_own_copy_of_its_loop():
    summed.__module__ = "histomri.kernels.of_a_test"
    kernel = njit(parallel=True, fastmath=True)(summed)
    values, out = np.ones((3, 5), np.float32), np.zeros(3, np.float32)
    kernel(values, out)
    assert (out == 5).all()
    library = next(iter(kernel.overloads.values())).library
    bodies = [f for f in library.get_defined_functions() if "gufunc" in f.name]
    assert bodies, "the loop's body must be in the kernel's own code"
    assert not [f.name for f in bodies if f.linkage.name in COPIES]
