"""The CUDA kernels compile, give what the CPU gives (run on the CPU thread by thread), and run on a GPU where there is one.

Without a GPU their text is compiled as C++, one call standing for one thread, and held against the readable formulas.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histomri.backend import has_gpu, to_device
from histomri.kernels import cuda, fields
from histomri.kernels.gaussian import gaussian, gaussian_reference, gaussian_weights
from histomri.kernels.interpolate import CoarseField, _jobs, warp, warp_reference, warp_with_gradient

TOLERANCE = 1e-5
RANDOM = np.random.default_rng(23)
SOURCES = ("warp", "gaussian", "fields")
ALL = sorted(p.stem for p in Path(cuda.__file__).parent.glob("*.cu"))
AS_CPP = """
#include <cmath>
using std::floor;
struct Index { long long x; };
static Index blockIdx = {0}, blockDim = {1}, threadIdx = {0};
extern "C" void stand_for(long long thread) { blockIdx.x = thread; }
#define __global__
#define __device__
"""
MATRICES = {
    2: np.array([[0.8, -0.3531, 2.317], [0.2973, 1.1, -1.219], [0, 0, 1]]),
    3: np.array([[0.7, 0.2137, -0.1, 0.613], [-0.3, 1.2, 0.1713, -1.437], [0.1, 0.2931, 0.9, -2.111], [0, 0, 0, 1]]),
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    """The sources compiled for the CPU."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to run the CUDA sources with on the CPU")
    folder, found = tmp_path_factory.mktemp("cuda"), {}
    for name in SOURCES:
        (folder / f"{name}.cpp").write_text(AS_CPP + cuda.source(name))
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(folder / f"{name}.so"), str(folder / f"{name}.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[name] = ctypes.CDLL(str(folder / f"{name}.so"))
    return found


def _run(library: ctypes.CDLL, function: str, threads: int, *arguments: Any) -> None:
    given = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_longlong(a) for a in arguments]
    for thread in range(threads):
        library.stand_for(ctypes.c_longlong(thread))
        getattr(library, function)(*given)


@pytest.mark.parametrize("name", ALL)
def test_the_sources_compile_for_a_gpu(name: str, tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc to compile CUDA with")
    (tmp_path / "k.cu").write_text(cuda.source(name))
    done = subprocess.run([compiler, "--ptx", "-o", "k.ptx", "k.cu"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _fields(ndim: int, shape: tuple[int, ...]) -> list[Any]:
    dense = RANDOM.normal(size=(*shape, ndim)).astype(np.float32)
    nodes = RANDOM.normal(size=(*(3, 4, 5)[:ndim], ndim)).astype(np.float32)
    return [None, dense, CoarseField(nodes, (0.21, 0.19, 0.137)[:ndim], (-0.3, 0.2, 0.7)[:ndim])]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
def test_the_warps_text_gives_the_formula(libraries: dict[str, ctypes.CDLL], ndim: int, kind: str) -> None:
    shape = (13, 21) if ndim == 2 else (5, 6, 9)
    moving = np.clip(RANDOM.normal(size=(*(15, 11, 8)[:ndim], 2)) * 40 + 128, 0, 255).astype(kind)
    for field, order, outside in zip(_fields(ndim, shape), ("linear", "cubic", "linear"), ("zero", "zero", "edge"), strict=True):
        job = _jobs(moving, MATRICES[ndim], (shape, field, order, outside, None))
        count = int(np.prod(shape))
        out, slopes = np.empty((count, 2), np.float32), np.empty((count, 2, ndim), np.float32)
        _run(libraries["warp"], f"warp_{kind}", count, *job, out, slopes)
        values, gradient = warp_reference(moving.astype(float), MATRICES[ndim], shape, field, order, outside=outside)
        np.testing.assert_allclose(out.reshape(values.shape), values, atol=255 * TOLERANCE)
        wrong = np.abs(slopes.reshape(gradient.shape) - gradient) > 2550 * TOLERANCE
        assert wrong.mean() < (0.2 if field is None else 1e-3), "but where the gradient jumps, at whole coordinates"


@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16", "int32"])
def test_the_nearest_pixels_text_gives_the_formula(libraries: dict[str, ctypes.CDLL], kind: str) -> None:
    moving = RANDOM.integers(0, 250, (15, 11, 2)).astype(kind)
    job = _jobs(moving, MATRICES[2], ((13, 21), _fields(2, (13, 21))[1], "nearest", "zero", None))
    out = np.empty((13 * 21, 2), kind)
    _run(libraries["warp"], f"nearest_{kind}", 13 * 21, *job, out)
    np.testing.assert_array_equal(
        out.reshape(13, 21, 2), warp(moving, MATRICES[2], (13, 21), job.dense.reshape(13, 21, 2), "nearest")
    )


def test_the_gaussians_text_gives_the_formula(libraries: dict[str, ctypes.CDLL]) -> None:
    values, weights = RANDOM.normal(size=(6, 11, 7, 3)).astype(np.float32), gaussian_weights(1.4)
    out = np.empty_like(values)
    _run(libraries["gaussian"], "smooth_axis", values.size, values, weights, 6, 11, 21, len(weights) - 1, out)
    np.testing.assert_allclose(out, gaussian_reference(values, [0, 1.4, 0], 3), atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(7, 9), (4, 6, 5), (1, 5)], ids=str)
def test_the_determinants_text_gives_the_formula(libraries: dict[str, ctypes.CDLL], shape: tuple[int, ...]) -> None:
    field, out = RANDOM.normal(size=(*shape, len(shape))).astype(np.float32), np.empty(shape, np.float32)
    _run(libraries["fields"], f"determinant_{len(shape)}d", out.size, field, *shape, out)
    np.testing.assert_allclose(out, fields.jacobian_determinant(field), atol=10 * TOLERANCE)


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="no GPU that CuPy can use")
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_gpu_gives_what_the_cpu_gives(ndim: int) -> None:
    shape = (37, 141) if ndim == 2 else (9, 17, 33)
    moving, field = RANDOM.normal(size=(*shape, 2)).astype(np.float32), _fields(ndim, shape)[1]
    there = to_device(moving, "gpu"), MATRICES[ndim], shape, to_device(field, "gpu")
    for order in ("linear", "cubic"):
        on_gpu = [to_device(a, "cpu") for a in warp_with_gradient(*there, order)]  # type: ignore[arg-type]
        for found, expected in zip(on_gpu, warp_with_gradient(moving, MATRICES[ndim], shape, field, order), strict=True):  # type: ignore[arg-type]
            np.testing.assert_allclose(found, expected, atol=10 * TOLERANCE)
    for call in (
        lambda u: gaussian(u, 1.3, ndim),
        fields.exponential,
        fields.jacobian_determinant,
        lambda u: fields.invert(u / 4).field,
    ):
        np.testing.assert_allclose(to_device(call(there[3]), "cpu"), call(field), atol=100 * TOLERANCE)
