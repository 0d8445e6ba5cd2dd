"""The CUDA forms of the kernels: sources in ``*.cu`` beside this file, compiled by ``backend`` where there is a GPU."""

from __future__ import annotations

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


def launch(name: str, function: str, count: int, arguments: tuple[Any, ...]) -> None:
    """Run ``function`` of ``<name>.cu`` with ``count`` threads; arguments are CuPy arrays and NumPy scalars."""
    if count > 0:
        raw_kernel(source(name), function)(((count + THREADS - 1) // THREADS,), (THREADS,), arguments)
