"""Independent computations at one time, each with its share of the threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numba
from numba.np.ufunc.parallel import threading_layer

Result = TypeVar("Result")
# numba's own pool may not be entered from two threads at once
SHARED_LAYERS = ("omp", "tbb")


def together(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """What the calls return, in their order; they run side by side where there are threads for it, else one after the other.

    Each call must give the same for any number of threads. The first exception, in the order of the calls, is raised.
    """
    threads = numba.get_num_threads()
    workers = min(threads, len(calls))
    if workers < 2 or threading_layer() not in SHARED_LAYERS:  # type: ignore[no-untyped-call]
        return [call() for call in calls]
    # a number of threads is a matter of each thread: those of the pool begin with numba's own
    with ThreadPoolExecutor(workers, initializer=numba.set_num_threads, initargs=(threads // workers,)) as pool:
        return list(pool.map(lambda call: call(), calls))
