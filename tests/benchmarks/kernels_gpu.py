"""Kernels and the 3D registration on a GPU: ``python tests/benchmarks/kernels_gpu.py [--size 256] [--fits 256 512]``.

``share`` is the bytes that a kernel must at least move (each input read once, each output written once) over the measured rate
of a copy on the device, over the time it took. ``apart`` is the largest difference from the CPU, over the largest value. A
registration recovers a known smooth displacement; its seconds hold everything from two arrays to a transform, its bytes are the
most that the GPU's pool held, and the most that the process held, per voxel of the fixed image.

Without a GPU it says so and exits with 0. It needs numpy, scipy, numba, opencv, pyyaml and cupy, and none of the packages that
read files.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from histomri import backend
from histomri.backend import free_memory, has_gpu, to_device
from histomri.core import Grid, Image
from histomri.kernels import fields
from histomri.kernels.flow_3d import flow_terms_3d, solve_3d
from histomri.kernels.folding import least_jacobian
from histomri.kernels.gaussian import gaussian
from histomri.kernels.interpolate import CoarseField, warp, warp_with_gradient
from histomri.kernels.splat import square_adjoint
from histomri.registration.engine import Fit, Options, fit
from histomri.registration.metrics import METRICS

Array = NDArray[np.float32]
REPEATS = 20
MATRIX = np.array([[0.99, 0.05, 0.01, 1.2], [-0.04, 1.01, 0.03, -0.7], [0.02, 0.01, 0.98, 0.4], [0, 0, 0, 1.0]])


@dataclass(frozen=True)
class Kernel:
    """A call on (moving, fixed, weight, field) that gives an array, or several; ``bytes`` per voxel that it must move."""

    name: str
    call: Callable[..., Any]
    bytes: int


def metric_call(name: str) -> Callable[..., Any]:
    metric = METRICS[name]
    return lambda m, f, w, u: metric.evaluate(f[..., None], m[..., None], w)[1]


def kernels() -> list[Kernel]:
    """All that a registration runs on the device."""
    eye = np.eye(4)
    warps = [
        Kernel("warp linear, dense field", lambda m, f, w, u: warp(m, MATRIX, w.shape, u), 20),
        Kernel("warp linear, affine", lambda m, f, w, u: warp(m, MATRIX, w.shape), 8),
        Kernel("warp cubic, dense field", lambda m, f, w, u: warp(m, MATRIX, w.shape, u, "cubic"), 20),
        Kernel("warp and gradient", lambda m, f, w, u: warp_with_gradient(m, MATRIX, w.shape, u, outside="edge"), 32),
        Kernel("compose", lambda m, f, w, u: fields.compose(u, u), 36),
        Kernel("gaussian of a field, sigma 1.5", lambda m, f, w, u: gaussian(u, 1.5, 3), 24),
        Kernel("jacobian determinant", lambda m, f, w, u: fields.jacobian_determinant(u), 16),
        Kernel("least jacobian", lambda m, f, w, u: np.float64(least_jacobian(u)), 13),
        Kernel("gauss-newton terms", lambda m, f, w, u: flow_terms_3d(f[..., None], m[..., None], w, eye, u), 64),
        Kernel("transpose of a squaring", lambda m, f, w, u: square_adjoint(u, u.astype(np.float64)), 60),
        Kernel("gauss-newton solve", lambda m, f, w, u: solve_3d(_nine(f, m, w, u), 0.1, 1.0), 48),
    ]
    return warps + [Kernel(f"{name}, value and force", metric_call(name), 16) for name in METRICS if name != "mind"]


def _nine(f: Any, m: Any, w: Any, u: Any) -> Any:
    """Terms with a structure that is never negative, as views of what is there."""
    xp = backend.array_module(f)
    return xp.stack([w, 0 * w, 0 * w, w, 0 * w, w, u[..., 0], u[..., 1], u[..., 2]], axis=-1)


def images(size: int) -> tuple[Array, Array, Array, Array]:
    """Moving, fixed, weight, a displacement of a few voxels."""
    random = np.random.default_rng(0)
    small = gaussian_filter(random.normal(size=(max(size // 4, 4),) * 3), 1.0).astype(np.float32)
    scale = np.diag([small.shape[0] / size] * 3 + [1.0])
    moving = warp(small, scale, (size,) * 3, order="cubic", outside="edge")
    moving = np.clip(0.5 + 0.2 * moving / moving.std(), 0, 1).astype(np.float32)
    field = bend(size, 3.0)
    parts = [np.ascontiguousarray(field.values[..., k]) for k in range(3)]
    dense = np.stack([warp(part, _to_nodes(field), (size,) * 3, outside="edge") for part in parts], axis=-1)
    fixed = warp(moving, np.eye(4), (size,) * 3, dense, outside="edge")
    # rounding decides whether the outermost pixels lie in the moving image, which is why they have no weight
    margin = max(size // 16, 4)
    weight = np.pad(np.ones((size - 2 * margin,) * 3, np.float32), margin)
    return moving, fixed, weight, np.ascontiguousarray(dense)


def bend(size: int, pixels: float) -> CoarseField:
    """Smooth, of 7 nodes an axis, 0 at the border, at most about ``pixels``."""
    nodes = np.zeros((7, 7, 7, 3), np.float32)
    nodes[1:-1, 1:-1, 1:-1] = np.random.default_rng(1).uniform(-pixels, pixels, (5, 5, 5, 3))
    return CoarseField(nodes, (6 / (size - 1),) * 3, (0.0,) * 3)


def _to_nodes(field: CoarseField) -> NDArray[np.float64]:
    return np.diag([*field.scale, 1.0])


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Mean of several calls in a row, the least of three such means."""
    device = backend.cupy.cuda.Device()
    call()
    best = float("inf")
    for _ in range(3):
        device.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        device.synchronize()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def copy_rate(count: int, repeats: int) -> float:
    """Bytes read and written per second by a copy of ``count`` float32."""
    source, target = backend.cupy.ones(count, np.float32), backend.cupy.empty(count, np.float32)

    def copy() -> None:
        target[...] = source

    return 8 * count / seconds(copy, repeats)


def measured(kernel: Kernel, given: tuple[Array, ...], rate: float, repeats: int) -> dict[str, float]:
    """Seconds, share of the copy rate and distance from the CPU of a kernel."""
    there = [to_device(a, "gpu") for a in given]
    took = seconds(lambda: kernel.call(*there), repeats)
    found, expected = kernel.call(*there), kernel.call(*given)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    apart = max(float(np.abs(to_device(a, "cpu") - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)
    size = given[2].size
    return {"ms": 1e3 * took, "gvox_s": size / took / 1e9, "share": kernel.bytes * size / rate / took, "apart": apart}


def registered(size: int, metric: str, device: str, given: tuple[Array, ...]) -> tuple[Fit, dict[str, float]]:
    """A fit of affine and diffeomorphic over levels down to every voxel."""
    grid = Grid((size,) * 3, 1.0)
    factors = tuple(f for f in (8, 4, 2, 1) if size // f >= 12)
    if device == "gpu":
        free_memory()
    start = time.perf_counter()
    pair = Image(grid, given[1]), Image(grid, given[0])
    found = fit(*pair, ("affine", "diffeomorphic"), metric, levels=factors, options=Options(device=device, iterations=(50,)))
    took = time.perf_counter() - start
    points = np.random.default_rng(2).uniform(0.15 * size, 0.85 * size, (20_000, 3)).round()
    moved = given[3][tuple(points.astype(int).T)]
    error = np.linalg.norm(found.transform.map(points) - (points + moved), axis=1)
    figures = {"seconds": took, "error_px": float(error.mean()), "before_px": float(np.linalg.norm(moved, axis=1).mean())}
    figures["host_bytes_per_voxel"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / size**3
    if device == "gpu":
        figures["gpu_bytes_per_voxel"] = backend.cupy.get_default_memory_pool().total_bytes() / size**3
    return found, figures


def parity(size: int, metric: str) -> dict[str, float]:
    """Both devices on one pair: seconds, and how far apart their transforms are."""
    given = images(size)
    (there, on_gpu), (here, on_cpu) = (registered(size, metric, device, given) for device in ("gpu", "cpu"))
    points = np.random.default_rng(3).uniform(0.1 * size, 0.9 * size, (20_000, 3))
    apart = np.linalg.norm(there.transform.map(points) - here.transform.map(points), axis=1)
    times = {"gpu_seconds": on_gpu["seconds"], "cpu_seconds": on_cpu["seconds"]}
    errors = {"gpu_error_px": on_gpu["error_px"], "cpu_error_px": on_cpu["error_px"]}
    return {**times, **errors, "apart_px_mean": float(apart.mean()), "apart_px_most": float(apart.max())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="voxels along each axis for the kernels")
    parser.add_argument("--fits", type=int, nargs="*", default=[256, 512], help="sizes that are registered")
    parser.add_argument("--parity", type=int, default=96, help="size that is registered on the CPU as well, 0 for none")
    parser.add_argument("--metrics", nargs="*", default=["ssd", "lncc", "mind"], help="metrics of the registrations")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    given = parser.parse_args(arguments)
    if not has_gpu():
        print("no GPU that CuPy can use: nothing was measured")
        return 0
    rate = copy_rate(given.size**3, given.repeats)
    found: dict[str, Any] = {"copy_gb_s": rate / 1e9, "size": given.size, "kernels": {}, "fits": {}, "parity": {}}
    print(f"device copy {rate / 1e9:.0f} GB/s (read and written), kernels on {given.size}^3")
    arrays = images(given.size)
    for kernel in kernels():
        row = found["kernels"][kernel.name] = measured(kernel, arrays, rate, given.repeats)
        speed = f"{row['ms']:9.3f} ms {row['gvox_s']:8.2f} Gvox/s, {row['share']:.2f} of the copy rate"
        print(f"{kernel.name:32} {speed}, apart {row['apart']:.1e}", flush=True)
    for metric in given.metrics if given.parity else ():
        row = found["parity"][metric] = parity(given.parity, metric)
        print(f"{given.parity}^3 {metric}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    for size in given.fits:
        volumes = images(size)
        for metric in given.metrics:
            fitted, row = registered(size, metric, "gpu", volumes)
            found["fits"][f"{size} {metric}"] = {**row, "status": fitted.status, "notes": list(fitted.notes)}
            figures = ", ".join(f"{k} {v:.4g}" for k, v in row.items())
            print(f"{size}^3 {metric}: {fitted.status}, {figures}", *fitted.notes, flush=True)
    if given.output:
        given.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
