"""numba's ``njit`` for kernels with relaxed arithmetic: just compiled or kept from an earlier run, the same machine code runs.

numba puts a copy of each function that a kernel calls (the body of a parallel loop too) into the kernel's own machine code, and
optimises it there once more. With ``fastmath`` a second round may round differently. In the process that compiled it, the linker
takes the first copy that it meets, which is that of the function by itself; a later process, which loads the kept code, has the
kernel's own copy alone. So the first run of an installation gave other last bits than all later ones. Here a kernel keeps to its
own copies.
"""

from __future__ import annotations

from typing import Any

from numba import njit, prange
from numba.core import codegen

__all__ = ["njit", "prange"]

PACKAGE = "histomri"
LOOP_BODY = "gufunc"
COPIES = ("linkonce_odr", "weak_odr")
OWN = "external"


def keep_own_copies(module: Any) -> None:
    """Make what was linked into a kernel of ours visible to it alone; code of other packages stays as it is."""
    functions = [f for f in module.functions if not f.is_declaration]
    if not any(PACKAGE in f.name and f.linkage.name == OWN for f in functions):
        return
    for function in functions:
        if (PACKAGE in function.name or LOOP_BODY in function.name) and function.linkage.name in COPIES:
            function.linkage = "internal"


def _optimise(self: Any) -> None:
    keep_own_copies(self._final_module)
    _numba_optimises(self)


_library: Any = codegen.CPUCodeLibrary
_numba_optimises = _library._optimize_final_module
_library._optimize_final_module = _optimise
