"""Similarity metrics against their peers: ``python tests/benchmarks/kernels_metrics.py [--size 256] [--side 4096] [--output F]``.

Times are the least of several, peer and kernel in turns, so that a busy machine disturbs both. ``ratio`` is the peer's time over
ours. ``share`` is the larger of: bytes that must move over the measured copy rate, operations over the measured rate of
multiply-adds in the first cache (an operation counts 1; half of that rate for those in float64), each over the time it took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import SimpleITK
from numba import njit, prange
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from histomri.kernels.similarity import parzen
from histomri.kernels.similarity.local_correlation import lncc
from histomri.registration.metrics import METRICS

Array = NDArray[np.float32]
TARGETS = {"lncc": 12.0, "histogram linear": 60.0, "histogram cubic": 15.0}
BYTES = {"lncc": 16, "histogram linear": 12, "histogram cubic": 12}
OPERATIONS = {"lncc": 2 * 140, "histogram linear": 22, "histogram cubic": 26}  # as if in float32
WIDTH, BINS = 5, 32


def least(repeats: int, *calls: Callable[[], Any]) -> list[float]:
    """Least seconds of each call, taken in turns."""
    best = [float("inf")] * len(calls)
    for call in calls:
        call()  # compiles, warms up
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


@njit(parallel=True)
def _copy(source, target):  # type: ignore[no-untyped-def]
    for block in prange(source.size // 65536):
        target[block * 65536 : (block + 1) * 65536] = source[block * 65536 : (block + 1) * 65536]


@njit(parallel=True, fastmath={"contract"})
def _multiply_add(rows, rounds):  # type: ignore[no-untyped-def]
    for i in prange(rows.shape[0]):
        row = rows[i]
        for _ in range(rounds):
            for k in range(row.size):
                row[k] = row[k] * np.float32(0.5) + np.float32(1)


def limits() -> dict[str, float]:
    """The machine's copy rate (read and written bytes) in GB/s and its float32 operations in the first cache in G/s."""
    source, target = np.ones(1 << 26, np.float32), np.empty(1 << 26, np.float32)
    rows = np.ones((64, 2048), np.float32)
    copy, add = least(5, lambda: _copy(source, target), lambda: _multiply_add(rows, 2000))
    return {"copy_gb_s": 2 * source.nbytes / copy / 1e9, "operations_g_s": 2 * rows.size * 2000 / add / 1e9}


def images(shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Two related textures between 0 and 1 and a weight of ones."""
    noise = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    fixed = gaussian_filter(noise[0], 1.5)
    warped = fixed + 0.5 * gaussian_filter(noise[1], 1.5)
    scaled = [np.clip(0.5 + 0.2 * a / a.std(), 0, 1).astype(np.float32) for a in (fixed, warped)]
    return scaled[0], scaled[1], np.ones(shape, np.float32)


def filtered_lncc(f: Array, m: Array, w: Array, floor: float = 1e-3) -> tuple[float, Array]:
    """The same value and force by ``uniform_filter``, in float32, with nothing computed twice."""

    def box(image: Array) -> Array:
        filtered: Array = uniform_filter(image, WIDTH, mode="constant")
        return filtered

    wf, wm = w * f, w * m
    share = 1 / np.maximum(box(w), np.float32(1e-12))
    mean_f, mean_m = box(wf) * share, box(wm) * share
    var_f = box(wf * f) * share - mean_f * mean_f + np.float32(floor)
    var_m = box(wm * m) * share - mean_m * mean_m + np.float32(floor)
    cov = box(wf * m) * share - mean_f * mean_m
    part = cov / (var_f * var_m)
    a = 2 * w * share * part
    b = a * part * var_f
    total = w.sum(dtype=np.float64)
    value = 1 - float((w * cov * part).sum(dtype=np.float64) / total)
    return value, (-w / np.float32(total)) * (f * box(a) - m * box(b) + box(b * mean_m - a * mean_f))


def mattes(f: Array, m: Array) -> Callable[[], float]:
    """SimpleITK's evaluation of Mattes' mutual information over all voxels, the images already its own."""
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetInitialTransform(SimpleITK.Transform(f.ndim, SimpleITK.sitkIdentity))
    method.SetNumberOfThreads(numba.get_num_threads())
    fixed, moving = SimpleITK.GetImageFromArray(f), SimpleITK.GetImageFromArray(m)
    return lambda: float(method.MetricEvaluate(fixed, moving))


def row(name: str, ours: float, peer: float, size: int, machine: dict[str, float]) -> dict[str, Any]:
    """One line of the report."""
    moved, computed = BYTES[name] * size / machine["copy_gb_s"] / 1e9, OPERATIONS[name] * size / machine["operations_g_s"] / 1e9
    return {
        "ms": ours * 1e3,
        "mvox_s": size / ours / 1e6,
        "peer_ms": peer * 1e3,
        "ratio": peer / ours,
        "target": TARGETS[name],
        "share": max(moved, computed) / ours,
        "share_of_copy_rate": moved / ours,
    }


def compare(shape: tuple[int, ...], repeats: int, machine: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The kernels with targets on images of ``shape``."""
    f, m, w = images(shape)
    fixed, warped = f[..., None], m[..., None]
    agree = abs(lncc(fixed, warped, w)[0] - filtered_lncc(f, m, w)[0])
    assert agree < 1e-3, f"the kernel and the filters differ by {agree}"
    ours, peer = least(repeats, lambda: lncc(fixed, warped, w), lambda: filtered_lncc(f, m, w))
    found = {"lncc": row("lncc", ours, peer, f.size, machine)}
    evaluate = mattes(f, m)
    linear, cubic, peer = least(
        repeats,
        lambda: parzen.joint_histogram(f, m, w, BINS, "linear"),
        lambda: parzen.joint_histogram(f, m, w, BINS, "cubic"),
        evaluate,
    )
    for name, seconds in (("histogram linear", linear), ("histogram cubic", cubic)):
        found[name] = row(name, seconds, peer, f.size, machine)
    return found


def menu(shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Million voxels a second of value and force of every metric of the menu (``mind``: without its descriptor)."""
    f, m, w = images(shape)
    rates = {}
    for name, metric in METRICS.items():
        fixed, warped = metric.features(f, w > 0), metric.features(m, w > 0)
        (seconds,) = least(repeats, lambda a=fixed, b=warped, e=metric.evaluate: e(a, b, w))  # type: ignore[misc]
        rates[name] = f.size / seconds / 1e6
    return rates


def main() -> int:
    """Command line; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="voxels along each axis of the volume, 0 for none")
    parser.add_argument("--side", type=int, default=4096, help="pixels along each axis of the image, 0 for none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--menu", action="store_true", help="also the rate of every metric of the menu")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    given = parser.parse_args()
    shapes = [s for s in ((given.size,) * 3, (given.side,) * 2) if s[0]]
    machine = limits()
    found: dict[str, Any] = {"threads": numba.get_num_threads(), "machine": machine}
    print(json.dumps(found))
    for shape in shapes:
        figures = compare(shape, given.repeats, machine)
        found[str(shape)] = figures
        for name, r in figures.items():
            print(
                f"{shape!s:17} {name:17} {r['mvox_s']:7.1f} Mvox/s, "
                f"{r['ratio']:6.1f}x (target {r['target']:g}x), {r['share']:.2f} of the machine's limit"
            )
        if given.menu:
            found[f"menu {shape}"] = menu(shape, given.repeats)
            print({k: round(v, 1) for k, v in found[f"menu {shape}"].items()})
    if given.output:
        given.output.write_text(json.dumps(found, indent=1) + "\n")
    rows = [r for shape in shapes for r in found[str(shape)].values()]
    return 0 if all(r["ratio"] >= r["target"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
