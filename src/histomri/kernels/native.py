"""Kernels that numba compiles once and that later processes load without it.

numba takes 0.8 s of one core to be imported and made ready, even for functions that it kept; what it compiled is plain machine
code, which llvmlite (numba's own) loads in 0.1 s. A kernel here is a function of pointers and integers that returns nothing and
cannot raise. Its code is kept beside the package's bytecode (in the user's cache where that cannot be written), under a name made
of the kernels' source, the versions of the compilers, and the processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

Kernel = Callable[..., None]
# by the name that it is called by: the function, and a letter for each argument: i for an integer, else the type pointed to
Kernels = Mapping[str, tuple[Callable[..., None], tuple[str, ...]]]
INTEGER = "i"


def load(kernels: Kernels) -> dict[str, Kernel]:
    """The compiled kernels by their names, called with addresses and integers; they release the GIL.

    Compiles and keeps them where that was not done before.
    """
    import llvmlite.binding as llvm  # type: ignore[import-untyped]

    with suppress(RuntimeError):  # older versions want it, newer ones refuse it
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    host = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(*host, opt=3, jit=True, codemodel="jitdefault")
    name = f"native-{_key(kernels, host)}.o"
    code = _kept(name)
    if code is None:
        code = machine.emit_object(_compiled(kernels))
        _keep(name, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return {name: _callable(engine.get_function_address(name), letters) for name, (_, letters) in kernels.items()}


# what they compiled lives as long as they do
_engines: list[Any] = []


def _callable(address: int, letters: tuple[str, ...]) -> Kernel:
    kinds = [ctypes.c_int64 if letter == INTEGER else ctypes.c_void_p for letter in letters]
    called = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)(address)
    return functools.partial(called, ctypes.addressof(_unused), ctypes.addressof(_unused))


# where numba's functions put what they return and raise: nothing
_unused = ctypes.c_void_p()


def _key(kernels: Kernels, host: tuple[str, ...]) -> str:
    """What the machine code depends on."""
    sources = [(name, inspect.getsource(kernel), letters) for name, (kernel, letters) in kernels.items()]
    facts = sources, host, version("numba"), version("llvmlite")
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _places() -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [Path(__file__).parent / "__pycache__", cache / "histomri"]


def _kept(name: str) -> bytes | None:
    for place in _places():
        with suppress(OSError):
            return (place / name).read_bytes()
    return None


def _keep(name: str, code: bytes) -> None:
    """Keep machine code, whole or not at all; nowhere where nothing can be written."""
    for place in _places():
        temporary = place / f".{os.getpid()}-{name}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(code)
            temporary.replace(place / name)
            return
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _compiled(kernels: Kernels) -> Any:
    """One module of all kernels, each under its name. Raises ``RuntimeError`` where one calls what only numba has."""
    import llvmlite.binding as llvm
    import numba

    types: Any = numba.types
    # the wrappers for Python and C would bring numba's own functions in
    compiler: Any = functools.partial(numba.njit, no_cpython_wrapper=True, no_cfunc_wrapper=True)
    whole = llvm.parse_assembly("")
    for name, (kernel, letters) in kernels.items():
        kinds = [types.int64 if letter == INTEGER else types.CPointer(getattr(types, letter)) for letter in letters]
        compiled = compiler(types.void(*kinds))(kernel)
        (found,) = compiled.overloads.values()
        module = llvm.parse_assembly(found.library.get_llvm_str())
        module.get_function(found.fndesc.llvm_func_name).name = name
        foreign = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
        if foreign:
            # linking it would end the process
            raise RuntimeError(f"The kernel {name} calls {', '.join(foreign)}, which is not there without numba.")
        whole.link_in(module)
    return whole
