"""The CUDA forms of the kernels: sources in ``*.cu`` beside this file, compiled by ``backend`` where there is a GPU."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Any

from histomri.backend import raw_kernel

THREADS = 256
# threads of a reduction, at most: each takes every so manieth pixel, so that the order of its sum is fixed
WORKERS = 1 << 17


def source(name: str) -> str:
    """The text of ``<name>.cu``."""
    return files(__name__).joinpath(f"{name}.cu").read_text(encoding="utf-8")


def workers(size: int) -> int:
    """How many threads share a reduction over ``size`` pixels: whole blocks."""
    return min(WORKERS, -(-max(size, 1) // THREADS) * THREADS)


def whole_number_scale(count: int, most: float) -> float:
    """What numbers of at most ``most`` are multiplied by to be added as whole ones: no sum of ``count`` outgrows 63 bits."""
    return 2.0 ** min(61 - math.ceil(math.log2(count + 1)), 40) / most if 0 < most < math.inf else 1.0


def launch(name: str, function: str, count: int, arguments: tuple[Any, ...]) -> None:
    """Run ``function`` of ``<name>.cu`` with ``count`` threads; arguments are CuPy arrays and NumPy scalars."""
    if count > 0:
        raw_kernel(source(name), function)(((count + THREADS - 1) // THREADS,), (THREADS,), arguments)
