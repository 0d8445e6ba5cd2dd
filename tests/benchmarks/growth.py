"""Time and memory against size: ``python tests/benchmarks/growth.py [--json FILE] [--only 2D|3D] [--gigabytes 5]``.

``--sides 384,512 --tasks level --parts 1`` measures these sizes of these tasks alone, and evaluates levels in parts that keep to
a gigabyte, as the engine does where ``memory_bytes`` says so.

Kernels, and one iteration of a level of the engine, at growing sizes: CPU nanoseconds of all threads per pixel (the least of
the rounds, so that other work on the machine does not count), the slope of log seconds over log pixels (1 is linear), and bytes
per pixel, inputs and peak together. A size that would need more than ``--gigabytes``, by what smaller ones needed, is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numba
import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid
from histomri.kernels import fields
from histomri.kernels.gaussian import gaussian
from histomri.kernels.interpolate import warp, warp_with_gradient
from histomri.registration.engine.models import Diffeomorphic
from histomri.registration.engine.objective import Level, Objective
from histomri.registration.engine.parts import pixel_bytes
from histomri.registration.metrics import METRICS
from histomri.tiling.boxes import fitting

Array = NDArray[np.float32]
Call = Callable[[], object]
SIDES = {"3D": (128, 192, 256, 384, 512), "2D": (1000, 2000, 4000, 8000, 16000)}
# taken for the first size, when nothing is known yet
BYTES_PER_PIXEL = 200.0
# of a part: more than any metric's
HALO = 12


@dataclass(frozen=True)
class Point:
    """A task at one size."""

    side: int
    pixels: int
    cpu_seconds: float
    bytes_per_pixel: float


@dataclass(frozen=True)
class Growth:
    """A task over all sizes, and the slope of log seconds over log pixels."""

    task: str
    points: tuple[Point, ...]
    exponent: float


def image(shape: tuple[int, ...], seed: int) -> Array:
    """Noise of unit spread on waves, (*shape, 1)."""
    values = np.random.default_rng(seed).random((*shape, 1), np.float32)
    values[..., 0] += np.sin(np.arange(shape[-1], dtype=np.float32) / 9)
    return values


def field(shape: tuple[int, ...]) -> Array:
    """Waves of 2 pixels, which do not fold, (*shape, n)."""
    out = np.empty((*shape, len(shape)), np.float32)
    for axis, n in enumerate(shape):
        across = np.arange(n, dtype=np.float32).reshape([-1 if k == axis else 1 for k in range(len(shape))])
        out[..., axis] = 2 * np.sin(across / 23)
    return out


def objective(shape: tuple[int, ...], metric: str, part_bytes: float | None) -> Objective:
    """A level whose images are both on a grid of ``shape``, whole or in parts, under a dense diffeomorphic model."""
    grid, eye, ones = Grid(shape, np.ones(len(shape))), np.eye(len(shape) + 1), np.ones(shape, np.float32)
    tile = fitting(shape, pixel_bytes(1, len(shape)), part_bytes, HALO) if part_bytes else ()
    level = Level(grid, grid, image(shape, 0), image(shape, 1), ones, ones, eye, tile)
    return Objective(level, METRICS[metric], Diffeomorphic(shape), eye)


def gradient_step(problem: Objective, theta: Array) -> object:
    """Value, gradient and the composition that does not fold."""
    _, slope = problem.at(theta)
    slope *= np.float32(0.1 / max(float(slope.max()), -float(slope.min()), 1e-12))
    return problem.advance(theta, slope)


def newton_step(problem: Objective, theta: Array) -> object:
    """Value, windowed Gauss-Newton update and composition."""
    return problem.take(theta, problem.newton(theta)[1])


def kernel_tasks(ndim: int) -> dict[str, Callable[[tuple[int, ...]], Call]]:
    """Makers of calls, from a shape."""
    eye = np.eye(ndim + 1)

    def bent(call: Callable[[Array, Array], object]) -> Callable[[tuple[int, ...]], Call]:
        def make(shape: tuple[int, ...]) -> Call:
            moving, bend = image(shape, 0)[..., 0], field(shape)
            return lambda: call(moving, bend)

        return make

    def compared(name: str) -> Callable[[tuple[int, ...]], Call]:
        def make(shape: tuple[int, ...]) -> Call:
            fixed, warped, weight = image(shape, 0), image(shape, 1), np.ones(shape, np.float32)
            return lambda: METRICS[name].evaluate(fixed, warped, weight)

        return make

    return {
        "warp": bent(lambda m, u: warp(m, eye, m.shape, u)),
        "warp and gradient": bent(lambda m, u: warp_with_gradient(m, eye, m.shape, u)),
        "compose": bent(lambda m, u: fields.compose(u, u)),
        "Gaussian of a field, sigma 2": bent(lambda m, u: gaussian(u, 2.0, ndim)),
        **{f"{name}, value and force": compared(name) for name in ("ssd", "ncc", "lncc", "nmi")},
    }


def level_tasks(part_bytes: float | None) -> dict[str, Callable[[tuple[int, ...]], Call]]:
    """One iteration of a level: gradient descent on LNCC, Gauss-Newton on squared differences."""

    def iterated(step: Callable[[Objective, Array], object], metric: str) -> Callable[[tuple[int, ...]], Call]:
        def make(shape: tuple[int, ...]) -> Call:
            problem, theta = objective(shape, metric, part_bytes), field(shape)
            theta *= np.float32(0.1)
            return lambda: step(problem, theta)

        return make

    return {
        "level, gradient step on lncc": iterated(gradient_step, "lncc"),
        "level, Gauss-Newton step on ssd": iterated(newton_step, "ssd"),
    }


def measured(make: Callable[[tuple[int, ...]], Call], shape: tuple[int, ...], rounds: int) -> Point:
    """The least CPU time of the rounds; memory in a round of its own, since to trace it takes time."""
    pixels = math.prod(shape)
    tracemalloc.start()
    call = make(shape)
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return Point(shape[0], pixels, min(times), peak / pixels)


def grown(
    task: str, make: Callable[[tuple[int, ...]], Call], ndim: int, sides: Sequence[int], limits: tuple[int, float]
) -> Growth:
    """A task at all sizes that fit; ``limits`` are the rounds and the bytes."""
    rounds, most = limits
    make((16,) * ndim)()
    points: list[Point] = []
    for side in sides:
        need = (points[-1].bytes_per_pixel if points else BYTES_PER_PIXEL) * side**ndim
        if need <= most:
            points.append(measured(make, (side,) * ndim, rounds))
    sizes, seconds = ([math.log(v) for v in column] for column in zip(*((p.pixels, p.cpu_seconds) for p in points), strict=True))
    return Growth(f"{ndim}D {task}", tuple(points), float(np.polyfit(sizes, seconds, 1)[0]) if len(points) > 1 else math.nan)


def growths(given: argparse.Namespace) -> Iterator[Growth]:
    """All tasks that were asked for, in turn."""
    for name, sides in SIDES.items():
        ndim = int(name[0])
        for task, make in {**kernel_tasks(ndim), **level_tasks(given.parts and given.parts * 1e9)}.items():
            if given.only in (None, name) and task.startswith(given.tasks):
                yield grown(task, make, ndim, given.sides or sides, (given.rounds, given.gigabytes * 1e9))


def whole_numbers(text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    return tuple(int(n) for n in text.split(","))


def line(growth: Growth) -> str:
    """A row of the table."""
    per_million = "  ".join(f"{p.side}: {1e9 * p.cpu_seconds / p.pixels:6.2f}" for p in growth.points)
    memory = growth.points[-1].bytes_per_pixel
    return f"{growth.task:36s} exponent {growth.exponent:5.3f}  {memory:6.1f} bytes/pixel  ns/pixel {per_million}"


def main() -> None:
    """Print the table; write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(SIDES))
    parser.add_argument("--tasks", default="", help="only those whose name begins so")
    parser.add_argument("--sides", type=whole_numbers, help="sizes in place of all, with commas")
    parser.add_argument("--parts", type=float, help="gigabytes that the parts of a level keep to; a level is whole without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{numba.get_num_threads()} threads, CPU time, least of {arguments.rounds}", flush=True)
    found = []
    for growth in growths(arguments):
        found.append(growth)
        print(line(growth), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(g) for g in found], indent=1))


if __name__ == "__main__":
    main()
