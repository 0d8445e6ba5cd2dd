"""Warps, Gaussian and fields against SimpleITK, scipy and OpenCV: ``python tests/benchmarks/kernels_warp.py [--output FILE]``.

All in one run, interleaved, the least time of several rounds, each with all the threads that it can use. Every kernel of ours is
also stated as a share of the measured copy rate: the bytes that it must read and write, over its time. First compilation (or
loading of compiled code) is timed apart. ``--voxels`` and ``--pixels`` are the sides of the cube and of the square.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numba
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

from histomri.kernels import fields
from histomri.kernels.gaussian import gaussian
from histomri.kernels.interpolate import CoarseField, warp, warp_with_gradient

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Race:
    """A task, ours and the peers' ways to do it, the bytes that must move, and the least ratio to a peer that is asked for."""

    name: str
    ways: dict[str, Callable[[], object]]
    bytes: int
    elements: int
    targets: dict[str, float]


@dataclass(frozen=True)
class Result:
    """Seconds per way, the first call's of ours, how many times faster than each peer, and the share of the copy rate."""

    name: str
    seconds: dict[str, float]
    first_call: float
    faster_than: dict[str, float]
    targets: dict[str, float]
    million_per_second: float
    share_of_copy: float


def timed(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run(race: Race, copy_rate: float, rounds: int) -> Result:
    """Every way once per round, in turn."""
    first = timed(race.ways["histomri"])
    times: dict[str, list[float]] = {name: [] for name in race.ways}
    for _ in range(rounds):
        for name, way in race.ways.items():
            times[name].append(timed(way))
    least = {name: min(values) for name, values in times.items()}
    own = least["histomri"]
    faster = {name: value / own for name, value in least.items() if name != "histomri"}
    share = race.bytes / own / copy_rate
    return Result(race.name, least, first, faster, race.targets, race.elements / own / 1e6, share)


@numba.njit(parallel=True, cache=True)
def _copy(values, out):  # type: ignore[no-untyped-def]
    for i in numba.prange(values.size):
        out[i] = values[i]


def copy_rate(megabytes: int, rounds: int) -> float:
    """Bytes read and written per second by a parallel copy of an array beyond the caches."""
    values = np.ones(megabytes * 2**18, np.float32)
    out = np.empty_like(values)
    _copy(values, out)
    return 2 * values.nbytes / min(timed(lambda: _copy(values, out)) for _ in range(rounds))


def smooth(shape: tuple[int, ...], sigma: float, largest: float) -> Array:
    """Smooth noise of at most ``largest``; all axes but the last are smoothed."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values = gaussian(values, sigma, len(shape) - 1)
    return np.asarray(values * (largest / np.abs(values).max()), np.float32)


def itk_field(field: Array) -> SimpleITK.Image:
    """The field as SimpleITK takes it, (x, y[, z])."""
    return SimpleITK.GetImageFromArray(np.ascontiguousarray(field[..., ::-1]), isVector=True)


def volume_races(side: int) -> list[Race]:
    """Tasks in 3D."""
    shape = (side, side, side)
    moving, field = smooth((*shape, 1), 1.0, 1.0)[..., 0], smooth((*shape, 3), 6.0, 8.0)
    image, bend, eye, n = SimpleITK.GetImageFromArray(moving), itk_field(field), np.eye(4), side**3
    vector_sigmas = (2.0, 2.0, 2.0, 0.0)
    return [
        Race(
            "3D linear warp, dense field",
            {"histomri": lambda: warp(moving, eye, shape, field), "SimpleITK": lambda: SimpleITK.Warp(image, bend)},
            20 * n,
            n,
            {"SimpleITK": 10.0},
        ),
        Race("3D linear warp and gradient", {"histomri": lambda: warp_with_gradient(moving, eye, shape, field)}, 32 * n, n, {}),
        Race("3D cubic warp", {"histomri": lambda: warp(moving, eye, shape, field, "cubic")}, 20 * n, n, {}),
        Race(
            "3D Gaussian of vectors, sigma 2",
            {
                "histomri": lambda: gaussian(field, 2.0, 3),
                "scipy": lambda: ndimage.gaussian_filter(field, vector_sigmas, mode="nearest", truncate=3.0),
                "SimpleITK": lambda: SimpleITK.SmoothingRecursiveGaussian(bend, [2.0] * 3),
            },
            24 * n,
            3 * n,
            {"scipy": 7.0, "SimpleITK": 7.0},
        ),
        Race("3D composition", {"histomri": lambda: fields.compose(field, field)}, 36 * n, n, {}),
        Race(
            "3D Jacobian determinant",
            {
                "histomri": lambda: fields.jacobian_determinant(field),
                "SimpleITK": lambda: SimpleITK.DisplacementFieldJacobianDeterminant(bend),
            },
            16 * n,
            n,
            {},
        ),
    ]


def plane_races(side: int) -> list[Race]:
    """Tasks in 2D."""
    shape = (side, side)
    moving, field = smooth((*shape, 1), 1.0, 1.0)[..., 0], smooth((*shape, 2), 12.0, 20.0)
    image, bend, eye, n = SimpleITK.GetImageFromArray(moving), itk_field(field), np.eye(3), side**2
    where = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32) + np.moveaxis(field, -1, 0)
    pairs = np.ascontiguousarray(np.moveaxis(where[::-1], 0, -1))
    colour = np.clip(np.repeat(moving[..., None], 3, -1) * 100 + 128, 0, 255).astype(np.uint8)
    coarse = CoarseField(np.ascontiguousarray(field[::16, ::16]), (1 / 16, 1 / 16), (0.0, 0.0))
    return [
        Race(
            "2D linear warp, dense field",
            {
                "histomri": lambda: warp(moving, eye, shape, field),
                "SimpleITK": lambda: SimpleITK.Warp(image, bend),
                "scipy": lambda: ndimage.map_coordinates(moving, where, order=1, mode="grid-constant"),
                "cv2": lambda: cv2.remap(moving, pairs, None, cv2.INTER_LINEAR),
            },
            16 * n,
            n,
            {"SimpleITK": 6.0, "scipy": 4.0, "cv2": 0.6},
        ),
        Race("2D linear warp, coarse field", {"histomri": lambda: warp(moving, eye, shape, coarse)}, 8 * n, n, {}),
        Race("2D linear warp and gradient", {"histomri": lambda: warp_with_gradient(moving, eye, shape, field)}, 24 * n, n, {}),
        Race(
            "2D linear warp of uint8 RGB",
            {
                "histomri": lambda: warp(colour, eye, shape, field),
                "cv2": lambda: cv2.remap(colour, pairs, None, cv2.INTER_LINEAR),
            },
            23 * n,
            n,
            {},
        ),
    ]


def main() -> None:
    """Print the table; write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=int, default=256)
    parser.add_argument("--pixels", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rate = copy_rate(256, arguments.rounds)
    print(f"copy rate {rate / 1e9:.1f} GB/s, {numba.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    results = []
    for race in volume_races(arguments.voxels) + plane_races(arguments.pixels):
        result = run(race, rate, arguments.rounds)
        results.append(result)
        peers = ", ".join(
            f"{value:.2f} x {name}" + (f" (target {result.targets[name]:g})" if name in result.targets else "")
            for name, value in result.faster_than.items()
        )
        own = f"{result.million_per_second:7.1f} M/s, {100 * result.share_of_copy:5.1f} % of copy"
        print(f"{result.name:32s} {own}, first call {result.first_call:5.2f} s  {peers}", flush=True)
    if arguments.output:
        load = os.getloadavg()
        text = {
            "copy_bytes_per_second": rate,
            "threads": numba.get_num_threads(),
            "load": load,
            "results": [*map(asdict, results)],
        }
        arguments.output.write_text(json.dumps(text, indent=1))


if __name__ == "__main__":
    main()
