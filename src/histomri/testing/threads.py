"""Kernels that release the GIL, run over ranges in threads.

Every item is computed alone, so the number of threads changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from numba import get_num_threads


def over_ranges(kernel: Callable[[int, int], None], n: int, step: int) -> None:
    """Call ``kernel(start, stop)`` for the ranges of ``step`` that make up ``n``, in as many threads as numba is given."""
    starts = range(0, n, step)
    if len(starts) < 2:
        kernel(0, n)
        return
    with ThreadPoolExecutor(get_num_threads()) as pool:
        for _ in pool.map(lambda start: kernel(start, min(n, start + step)), starts):
            pass
