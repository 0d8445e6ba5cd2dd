"""Which array module, and moving data to a device. The only importer of cupy."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

try:
    import cupy
except ImportError:  # the optional extra ``gpu``
    cupy = None


def has_gpu() -> bool:
    """True when CuPy is installed and sees a working device."""
    try:
        return cupy is not None and bool(cupy.cuda.is_available())
    except Exception:  # a broken driver raises from inside CuPy; it means "no GPU", never a crash
        return False


def array_module(array: Any) -> ModuleType:
    """NumPy or CuPy, whichever made the array."""
    return cupy.get_array_module(array) if cupy is not None else np


def device_of(array: Any) -> str | None:
    """``cpu`` or ``gpu``, in whose memory an array lies; None for one that is kept elsewhere (zarr, dask)."""
    if isinstance(array, np.ndarray):
        return "cpu"
    return "gpu" if cupy is not None and isinstance(array, cupy.ndarray) else None


def to_device(array: Any, device: str) -> Any:
    """The array on ``cpu`` or ``gpu``."""
    if device == "gpu":
        return cupy.asarray(array)
    return cupy.asnumpy(array) if cupy is not None and array_module(array) is cupy else np.asarray(array)


def beside(array: Any, other: Any) -> Any:
    """The array in the memory where the other one lies."""
    return to_device(array, device_of(other) or "cpu")


def out_of_memory() -> tuple[type[BaseException], ...]:
    """What is raised where a GPU's memory runs out, for ``except``; nothing without CuPy."""
    return () if cupy is None else (cupy.cuda.memory.OutOfMemoryError,)


def free_memory() -> int:
    """Bytes that are free on the GPU, once what its pool holds for later use is given back."""
    cupy.get_default_memory_pool().free_all_blocks()
    return int(cupy.cuda.runtime.memGetInfo()[0])


def resolve_device(device: str) -> str:
    """``cpu`` or ``gpu`` for the config's ``auto``, ``cpu`` or ``gpu``.

    Raises ``RuntimeError`` when a GPU is asked for and there is none.
    """
    if device == "auto":
        return "gpu" if has_gpu() else "cpu"
    if device == "gpu" and not has_gpu():
        raise RuntimeError("device: gpu was asked for, but CuPy finds no working GPU; set device: auto or cpu.")
    return device


@cache
def raw_kernel(source: str, function: str) -> Any:
    """The CUDA kernel ``function`` of a source text, compiled once: called with (blocks,), (threads,), (arguments, ...).

    Raises ``RuntimeError`` where CuPy is not installed.
    """
    if cupy is None:
        raise RuntimeError(
            "a CUDA kernel was asked for, but CuPy is not installed; install the extra: pip install 'histomri[gpu]'."
        )
    return cupy.RawKernel(source, function)
