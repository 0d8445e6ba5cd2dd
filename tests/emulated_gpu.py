"""A GPU in the CPU's memory, for machines without one: CuPy's arrays and raw kernels as far as histomri uses them.

Arrays refuse what CuPy's refuse (to become arrays of NumPy by themselves, to be mixed with them, keywords that CuPy's reductions
do not have), kernels are the CUDA sources compiled as C++, one call for one thread, and the memory has a limit.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from histomri import backend

AS_CPP = """
#include <cmath>
#include <cstddef>
#include <utility>
using std::floor;
struct Index { long long x; };
static Index blockIdx = {0}, blockDim = {1}, threadIdx = {0};
typedef unsigned long long Whole;
static inline Whole atomicAdd(Whole* a, Whole b) { const Whole old = *a; *a += b; return old; }
#define __global__
#define __device__
#define __shared__ static
#define __syncthreads()
"""
# every block has one thread: what lies in shared memory between two of its waits is what one thread left there
LAUNCH = """
template <typename... P, std::size_t... I> void call(void (*f)(P...), void** a, std::index_sequence<I...>) { f(*(P*)a[I]...); }
template <typename... P> void each(void (*f)(P...), long long n, void** a) {
    for (long long t = 0; t < n; ++t) { blockIdx.x = t; call(f, a, std::index_sequence_for<P...>{}); }
}
"""
COMPILER = shutil.which("g++") or shutil.which("clang++")


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class Memory:
    """What lies on the device, and how much may."""

    limit: float = float("inf")
    live: int = 0
    most: int = 0

    @classmethod
    def take(cls, count: int) -> None:
        if cls.live + count > cls.limit:
            raise OutOfMemoryError(f"out of memory: {count} bytes on top of {cls.live}, limit {cls.limit:g}")
        cls.live += count
        cls.most = max(cls.most, cls.live)


def _inner(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, tuple | list):
        return type(value)(_inner(v) for v in value)
    return {k: _inner(v) for k, v in value.items()} if isinstance(value, dict) else value


def _outer(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return DeviceArray(np.asarray(value))
    return type(value)(_outer(v) for v in value) if isinstance(value, tuple | list) else value


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the emulated device."""

    def __init__(self, host: np.ndarray) -> None:
        self.counted = 0
        if host.base is None:
            Memory.take(host.nbytes)
            self.counted = host.nbytes
        self.host = host

    def __del__(self) -> None:
        Memory.live -= self.counted

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        if out is not None:
            getattr(ufunc, method)(*_inner(inputs), out=_inner(out), **_inner(kwargs))
            return out[0]
        return _outer(getattr(ufunc, method)(*_inner(inputs), **_inner(kwargs)))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _outer(func(*_inner(args), **_inner(kwargs)))

    def __getitem__(self, index: Any) -> Any:
        return _outer(self.host[_inner(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.host[_inner(index)] = _inner(value)

    def __float__(self) -> float:
        return float(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Iterator[Any]:
        return (_outer(v) for v in self.host)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.host, name)
        if not callable(found):
            return _outer(found) if isinstance(found, np.ndarray) else found

        def method(*args: Any, **kwargs: Any) -> Any:
            if name in ("max", "min", "sum") and {"initial", "where"} & set(kwargs):
                raise TypeError(f"{name}() got an unexpected keyword argument")
            return _outer(found(*_inner(args), **_inner(kwargs)))

        return method


@cache
def _library(source: str) -> ctypes.CDLL:
    assert COMPILER is not None
    folder = (
        Path(tempfile.gettempdir()) / f"histomri-emulated-{hashlib.sha256((AS_CPP + source + LAUNCH).encode()).hexdigest()[:16]}"
    )
    folder.mkdir(exist_ok=True)
    if not (folder / "k.so").exists():
        functions = re.findall(r"__global__ void (\w+)\(", source)
        launchers = [f'extern "C" void launch_{f}(long long n, void** a) {{ each(&{f}, n, a); }}' for f in functions]
        (folder / "k.cpp").write_text(AS_CPP + source + LAUNCH + "\n".join(launchers))
        command = [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(folder / "k.part"), str(folder / "k.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (folder / "k.part").rename(folder / "k.so")
    return ctypes.CDLL(str(folder / "k.so"))


class RawKernel:
    """A function of a CUDA source, run thread by thread."""

    def __init__(self, source: str, function: str) -> None:
        self.call = getattr(_library(source), f"launch_{function}")

    def __call__(self, blocks: tuple[int, ...], threads: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        held = [self._value(a) for a in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
        self.call(ctypes.c_longlong(blocks[0] * threads[0]), pointers)

    @staticmethod
    def _value(argument: Any) -> Any:
        if isinstance(argument, DeviceArray):
            assert argument.host.flags.c_contiguous
            return ctypes.c_void_p(argument.host.ctypes.data)
        assert isinstance(argument, np.generic), f"{type(argument)} is no array and no number of NumPy"
        return {"int64": ctypes.c_longlong, "float64": ctypes.c_double, "float32": ctypes.c_float}[argument.dtype.name](argument)


class Emulated(ModuleType):
    """CuPy, as a module: NumPy's functions on the device's arrays."""

    ndarray = DeviceArray
    RawKernel = RawKernel

    def __init__(self) -> None:
        super().__init__("cupy")
        memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
        runtime = SimpleNamespace(memGetInfo=lambda: (min(Memory.limit - Memory.live, 1 << 40), 1 << 40))
        device = SimpleNamespace(synchronize=lambda: None)
        self.cuda = SimpleNamespace(is_available=lambda: True, memory=memory, runtime=runtime, Device=lambda: device)

    def get_array_module(self, *arrays: Any) -> Any:
        return self if any(isinstance(a, DeviceArray) for a in arrays) else np

    def asnumpy(self, array: Any) -> np.ndarray:
        return array.host.copy() if isinstance(array, DeviceArray) else np.asarray(array)

    def asarray(self, array: Any, dtype: Any = None) -> DeviceArray:
        if isinstance(array, DeviceArray) and dtype in (None, array.dtype):
            return array
        return DeviceArray(np.array(array.host if isinstance(array, DeviceArray) else array, dtype))

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: Memory.most)

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *args, **kwargs: _outer(found(*_inner(args), **_inner(kwargs)))


@contextmanager
def emulated_gpu(limit: float = float("inf")) -> Iterator[type[Memory]]:
    """A device of so many bytes in place of CuPy's, for as long as it is open."""
    real = backend.cupy
    backend.raw_kernel.cache_clear()
    backend.cupy, Memory.limit, Memory.live, Memory.most = Emulated(), limit, 0, 0
    try:
        yield Memory
    finally:
        backend.cupy, Memory.limit = real, float("inf")
        backend.raw_kernel.cache_clear()
