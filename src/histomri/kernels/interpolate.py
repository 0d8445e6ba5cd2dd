"""Images on another grid: each pixel of the fixed grid pulls its value from the moving image, in 2D and in 3D.

    out(p) = sum_k w(q - k) m(k),   q = A (p + u(p))

with p an index of the fixed grid, u a displacement in pixels of the fixed grid, A (n + 1, n + 1) the map of fixed to moving
indices, and w the product over the axes of the weights of the order:

    nearest   1 for the k nearest to q (the upper one halfway)
    linear    1 - |t| for |t| < 1
    cubic     Keys' convolution with a = -1/2 (Keys 1981, third order, no prefilter, so local)

m is 0 outside its array, so that the image fades to 0 over one pixel (two with cubic weights); a NaN in A or u gives 0. With
``outside="edge"`` m keeps the value of its edge, and q is moved between the outermost centres (a NaN to the first).
``A p`` is float64; its fraction within a pixel, ``A u``, weights and sums are float32. A pixel's value depends on nothing but p,
so that it is the same bit for bit for any number of threads and any tiling, and the identity gives the image back bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from histomri.backend import array_module
from histomri.kernels import cuda, runs
from histomri.kernels.run_vectors import DOUBLES, INTEGERS, REALS, RUN, WEIGHT, WHOLE, Scratch, ahead, pointer
from histomri.kernels.vectors import LANES

Array = NDArray[np.float32]
Order = Literal["nearest", "linear", "cubic"]
Outside = Literal["zero", "edge"]
TAPS: dict[str, int] = {"nearest": 1, "linear": 2, "cubic": 4}
# what the kernels read; the rest becomes float32 first
READ_AS_THEY_ARE = (np.uint8, np.uint16, np.float32)
# pixels of the output that are about one unit of a thread's work
BLOCK = 2**15


class CoarseField(NamedTuple):
    """A displacement on a coarser grid: ``values`` (*nodes, ndim) float32, in pixels of the fixed grid like any field.

    The index p of the fixed grid lies at the node ``scale * p + offset``, per axis. Between nodes the field is linear, beyond
    the outermost ones it keeps their value. It is evaluated where it is needed and never written out.
    """

    values: Array
    scale: tuple[float, ...]
    offset: tuple[float, ...]


class Tile(NamedTuple):
    """A part of a larger warp, whose ``shape`` and dense ``field`` are the tile's own.

    ``start`` is its first index on the fixed grid, ``origin`` the first index of the box of the moving image that ``moving``
    holds. A box that holds all that the tile asks for gives the same as the whole image, bit for bit.
    """

    start: tuple[int, ...]
    origin: tuple[int, ...]


Field = Array | CoarseField


@njit(cache=True)
def _place(job, taps, row, begin, s):  # type: ignore[no-untyped-def]
    """Displacements and cells of the run that begins at column ``begin`` of a row; its length."""
    source, target, bend = job
    height, width = target.shape[1], target.shape[2]
    count = min(RUN, width - begin)
    first = (target.start[0] + row // height, target.start[1] + row % height)
    if begin == 0:
        runs.aim(target, source, taps, first, s)
    if begin == 0 and bend.kind == 2:
        runs.blend_nodes(bend, target.ndim, first[0], first[1], s.line)
    runs.displace(bend, target.ndim, row * width + begin, target.start[2] + begin, count, s)
    runs.place(target.ndim, target.start[2] + begin, count, s)
    following = ahead(bend.dense, (row * width + begin + count) * target.ndim if bend.kind == 1 else 0)
    runs.find_cells(target.ndim, source.edge, count, following, s)
    return count


@njit(cache=True)
def _nearest_run(source, count, s, out):  # type: ignore[no-untyped-def]
    depth, height, width = source.size
    for i in range(count):
        z, y, x = s.cell[i], s.cell[RUN + i], s.cell[2 * RUN + i]
        inside = 0 <= z < depth and 0 <= y < height and 0 <= x < width
        for c in range(source.channels):
            out[i * source.channels + c] = source.values[s.offset[i] + c] if inside else 0


@njit(cache=True, forceinline=True)
def _sum_lines(source, taps, with_slopes, at, s):  # type: ignore[no-untyped-def]
    """Value, and if asked for derivatives by q, of a channel over a vector into ``s.total``; ``at`` = (channel, broken)."""
    for row in range(4 if with_slopes else 1):
        for i in range(LANES):
            s.total[row * RUN + i] = 0
    for z in range(taps[0]):
        for y in range(taps[1]):
            runs.fetch_line(source, taps, (z, y, at[0]), at[1], s)
            if with_slopes:
                runs.add_line_with_slopes(taps, (z, y), s.real, s.total)
            else:
                runs.add_line(taps, (z, y), s.real, s.total)


@njit(cache=True)
def _by_displacement(target, count, total):  # type: ignore[no-untyped-def]
    """``A^T grad m``: the derivatives by u, from those by q in the rows after the first, into the rows after these."""
    n, m = target.ndim, target.matrix
    for k in range(n):
        a = np.float32(m[k]) if n == 3 else np.float32(0)
        b, c = np.float32(m[(n - 2) * (n + 1) + k]), np.float32(m[(n - 1) * (n + 1) + k])
        turned = ahead(total, (4 + k) * RUN)
        for i in range(count):
            turned[i] = a * total[RUN + i] + b * total[2 * RUN + i] + c * total[3 * RUN + i]


@njit(cache=True)
def _put(job, count, channel, s, out, slopes, with_slopes):  # type: ignore[no-untyped-def]
    """The value of one of the channels and, if asked for, its gradient."""
    (source, target, _), ndim = job, job[1].ndim
    for i in range(count):
        out[i * source.channels + channel] = s.total[i]
    if with_slopes:
        _by_displacement(target, count, s.total)
        for k in range(ndim):
            for i in range(count):
                slopes[(i * source.channels + channel) * ndim + k] = s.total[(4 + k) * RUN + i]


@njit(cache=True, forceinline=True)
def _general(job, taps, count, whole, s, out, slopes, with_slopes):  # type: ignore[no-untyped-def]
    """A vector with any number of taps, wherever it lies."""
    source, target, _ = job
    channels, ndim = source.channels, target.ndim
    broken, outside = (0, False) if whole else runs.list_broken(source, taps, count, s)
    if outside:
        for i in range(count * channels):
            out[i] = 0
        for i in range(count * channels * ndim if with_slopes else 0):
            slopes[i] = 0
        return
    runs.weigh(taps, with_slopes, s)
    for c in range(channels):
        _sum_lines(source, taps, with_slopes, (c, broken), s)
        _put(job, count, c, s, out, slopes, with_slopes)


@njit(cache=True)
def _linear_values(source, ndim, held, count, s, out):  # type: ignore[no-untyped-def]
    """The vectors of a run that are wholly inside and, if they are ``held``, the others; up to three channels at once."""
    channels = source.channels
    direct = channels == 1 and count % LANES == 0
    for c in range(channels):
        row = out if direct else ahead(s.total, c * RUN if channels <= 3 else 0)
        runs.sum_linear(source, ndim, c, held, count, runs.into(s, row))
        for i in range(count if channels > 3 else 0):
            out[i * channels + c] = row[i]
    if channels <= 3 and not direct:
        runs.interleave(s.total, channels, count, out)


@njit(cache=True)
def _linear_gradients(job, held, count, s, out, slopes, with_slopes):  # type: ignore[no-untyped-def]
    """The same with their gradients."""
    (source, target, _), ndim = job, job[1].ndim
    for c in range(source.channels):
        runs.sum_linear_with_slopes(source, ndim, c, held, count, s)
        if source.channels > 1:
            _put(job, count, c, s, out, slopes, with_slopes)
    if source.channels == 1:
        _by_displacement(target, count, s.total)
        runs.interleave(s.total, source.channels, count, out)
        runs.interleave(ahead(s.total, 4 * RUN), ndim, count, slopes)


@njit(cache=True)
def _run(job, taps, count, s, out, slopes, with_slopes):  # type: ignore[no-untyped-def]
    source, ndim, channels, linear = job[0], job[1].ndim, job[0].channels, taps[2] == 2
    held = runs.can_be_held(source, taps)
    if linear and with_slopes:
        _linear_gradients(job, held, count, s, out, slopes, with_slopes)
    elif linear:
        _linear_values(source, ndim, held, count, s, out)
    for at in range(0, 0 if held else count, LANES):
        whole = s.integer[WHOLE + at] != 0
        if not linear or not whole:
            part, derivative = ahead(out, at * channels), ahead(slopes, at * channels * ndim)
            _general(job, taps, min(LANES, count - at), whole, runs.at_vector(s, at), part, derivative, with_slopes)


@njit(cache=True, inline="always")
def _three(numbers, row):  # type: ignore[no-untyped-def]
    return numbers[row, 0], numbers[row, 1], numbers[row, 2]


@njit(cache=True)
def _job(values, whole, real, matrix, dense, coarse):  # type: ignore[no-untyped-def]
    """The named arguments of the runs, from what can be passed into a parallel loop (see :class:`_Job`)."""
    channels, edge, kind = _three(whole, 3)
    source = runs.Source(pointer(values), _three(whole, 0), channels, _three(real, 0), edge != 0)
    target = runs.Target(_three(real, 1), _three(whole, 1), pointer(matrix), whole[5, 0])
    bend = runs.Bend(kind, pointer(dense), pointer(coarse), _three(whole, 4), _three(real, 2), _three(real, 3))
    return (source, target, bend), _three(whole, 2)


@njit(cache=True)
def _buffers(coarse):  # type: ignore[no-untyped-def]
    """Buffers for runs: no displacement yet, the z axis of one plane has the weight 1."""
    reals = np.zeros(13 * RUN + REALS + coarse.shape[2] * coarse.shape[3], np.float32)
    reals[13 * RUN + WEIGHT : 13 * RUN + WEIGHT + LANES] = 1
    return reals, np.zeros(3 * RUN + INTEGERS, np.int32), np.zeros(DOUBLES), np.zeros(RUN, np.int64)


@njit(cache=True)
def _scratch(reals, integers, doubles, offsets):  # type: ignore[no-untyped-def]
    moved, cell = pointer(reals), pointer(integers)
    real = ahead(moved, 13 * RUN)
    return Scratch(
        moved,
        ahead(moved, 3 * RUN),
        cell,
        pointer(offsets),
        ahead(moved, 6 * RUN),
        real,
        ahead(cell, 3 * RUN),
        pointer(doubles),
        ahead(real, REALS),
    )


@njit(cache=True)
def _keep(reals, integers, doubles, offsets):  # type: ignore[no-untyped-def]
    """Called last, so that the buffers to which pointers were taken live until then."""
    reals[0] = integers[0] = doubles[0] = offsets[0] = 0


@njit(parallel=True, cache=True, nogil=True)
def _warp_nearest(values, whole, real, matrix, dense, coarse, out):  # type: ignore[no-untyped-def]
    rows, width, channels = whole[1, 0] * whole[1, 1], whole[1, 2], whole[3, 0]
    together = max(1, BLOCK // max(width, 1))
    for block in prange((rows + together - 1) // together):
        job, taps = _job(values, whole, real, matrix, dense, coarse)
        reals, integers, doubles, offsets = _buffers(coarse)
        s = _scratch(reals, integers, doubles, offsets)
        for row in range(block * together, min(block * together + together, rows)):
            for begin in range(0, width, RUN):
                count = _place(job, taps, row, begin, s)
                part = ahead(pointer(out), (row * width + begin) * channels)
                _nearest_run(job[0], count, s, part)
        _keep(reals, integers, doubles, offsets)


@njit(parallel=True, cache=True, nogil=True)
def _warp(values, whole, real, matrix, dense, coarse, out, slopes):  # type: ignore[no-untyped-def]
    rows, width, channels, ndim = whole[1, 0] * whole[1, 1], whole[1, 2], whole[3, 0], whole[5, 0]
    together = max(1, BLOCK // max(width, 1))
    for block in prange((rows + together - 1) // together):
        job, taps = _job(values, whole, real, matrix, dense, coarse)
        reals, integers, doubles, offsets = _buffers(coarse)
        s = _scratch(reals, integers, doubles, offsets)
        for row in range(block * together, min(block * together + together, rows)):
            for begin in range(0, width, RUN):
                count = _place(job, taps, row, begin, s)
                at = (row * width + begin) * channels
                part, derivative = ahead(pointer(out), at), ahead(pointer(slopes), at * ndim)
                _run(job, taps, count, s, part, derivative, slopes.size > 1)
        _keep(reals, integers, doubles, offsets)


class _Job(NamedTuple):
    """A warp's arguments as the compiled code takes them.

    ``whole`` (6, 3): the moving array's size, the output's shape, the taps per axis, (channels, edge, kind of field), the
    coarse field's nodes, (ndim, ndim, ndim); ``real`` (4, 3): the moving array's origin, the output's start, the coarse field's
    scale and its offset. Axes are (z, y, x); ``dense`` (pixels, n) and ``coarse`` (z, y, n, x), empty where unused.
    """

    values: NDArray[Any]
    whole: NDArray[np.int64]
    real: NDArray[np.float64]
    matrix: NDArray[np.float64]
    dense: Array
    coarse: Array


def _axes(numbers: Sequence[float] | None, ndim: int, default: float) -> list[float]:
    """Numbers for the axes (z, y, x); those that are missing, as z is in 2D, have the default."""
    given = [default] * ndim if numbers is None else list(numbers)
    return [default] * (3 - ndim) + given


def _dense(field: Any, shape: Sequence[int], xp: ModuleType) -> Any:
    ndim = len(shape)
    if field is None:
        return xp.empty((0, ndim), np.float32)
    if field.shape != (*shape, ndim):
        raise ValueError(f"a displacement field for a grid of {tuple(shape)} has the shape {(*shape, ndim)}; got {field.shape}.")
    return xp.ascontiguousarray(field, np.float32).reshape(-1, ndim)


def _coarse(field: CoarseField | None, ndim: int, xp: ModuleType) -> Any:
    """The nodes as (z, y, n, x), at least two along x."""
    if field is None:
        return xp.empty((0, 1, ndim, 2), np.float32)
    values = xp.asarray(field.values, np.float32)
    if values.ndim != ndim + 1 or values.shape[-1] != ndim or len(field.scale) != ndim or len(field.offset) != ndim:
        raise ValueError(
            f"a coarse field for {ndim}D has values (*nodes, {ndim}), {ndim} scales and offsets; got {values.shape}."
        )
    values = xp.repeat(values, 2, axis=-2) if values.shape[-2] == 1 else values
    nodes = values.reshape([1] * (3 - ndim) + list(values.shape))
    return xp.ascontiguousarray(xp.moveaxis(nodes, -1, 2))


def _checked(moving: Any, matrix: Any, shape: Sequence[int], order: str) -> int:
    """The number of dimensions; refuses arguments that do not fit one another."""
    ndim = len(shape)
    if ndim not in (2, 3):
        raise ValueError(f"warps are 2D or 3D; the shape asked for is {tuple(shape)}.")
    if matrix.shape != (ndim + 1, ndim + 1):
        raise ValueError(f"a {ndim}D warp takes a matrix of {(ndim + 1, ndim + 1)}; got {matrix.shape}.")
    if moving.ndim not in (ndim, ndim + 1):
        raise ValueError(f"the moving image of a {ndim}D warp has {ndim} axes, or {ndim + 1} with channels; got {moving.shape}.")
    if order not in TAPS:
        raise ValueError(f"order is one of {', '.join(TAPS)}; got {order!r}.")
    return ndim


def _jobs(moving: Any, matrix: Any, asked: tuple[Any, Any, str, str, Tile | None]) -> _Job:
    """A warp's arguments from the caller's; ``asked`` is (shape, field, order, outside, tile)."""
    shape, field, order, outside, tile = asked
    ndim = len(shape)
    xp = array_module(moving)
    coarse = field if isinstance(field, CoarseField) else None
    values = xp.ascontiguousarray(moving, None if order == "nearest" or moving.dtype in READ_AS_THEY_ARE else np.float32)
    channels = 1 if values.ndim == ndim else values.shape[-1]
    nodes = _coarse(coarse, ndim, xp)
    kind = 0 if field is None else 1 if coarse is None else 2
    whole = [_axes(n, ndim, 1) for n in (values.shape[:ndim], shape, [TAPS[order]] * ndim)]
    whole += [[channels, outside == "edge", kind], [*nodes.shape[:2], nodes.shape[3]], [ndim] * 3]
    start, origin = (None, None) if tile is None else tile
    scale, offset = (None, None) if coarse is None else (coarse.scale, coarse.offset)
    real = [_axes(n, ndim, default) for n, default in ((origin, 0), (start, 0), (scale, 1), (offset, 0))]
    return _Job(
        values.reshape(-1),
        xp.asarray(np.array(whole, np.int64)),
        xp.asarray(np.array(real, np.float64)),
        xp.ascontiguousarray(xp.asarray(matrix, np.float64)),
        _dense(None if isinstance(field, CoarseField) else field, shape, xp),
        nodes,
    )


def _launch(job: _Job, nearest: bool, out: Any, slopes: Any) -> None:
    """The compiled kernel for the CPU or, where the arrays are on one, for the GPU; ``slopes`` may be None."""
    if array_module(out) is not np:
        outputs = (out,) if nearest else (out, np.int64(0) if slopes is None else slopes)
        cuda.launch("warp", f"{'nearest' if nearest else 'warp'}_{job.values.dtype}", out.shape[0], (*job, *outputs))
    elif nearest:
        _warp_nearest(*job, out)
    else:
        _warp(*job, out, np.empty((1, 1, 1), np.float32) if slopes is None else slopes)


def warp(
    moving: NDArray[Any],
    matrix: NDArray[np.float64],
    shape: Sequence[int],
    field: Field | None = None,
    order: Order = "linear",
    *,
    outside: Outside = "zero",
    tile: Tile | None = None,
) -> NDArray[Any]:
    """The moving image on a fixed grid of ``shape``, 2D or 3D: ``(*shape, c)``, or ``shape`` for an image without channels.

    ``moving`` is (y, x), (y, x, c), (z, y, x) or (z, y, x, c) of any real type; linear and cubic give float32, nearest keeps the
    type. ``matrix`` (n + 1, n + 1) takes indices of the fixed grid to indices of the moving image, after ``field`` is added:
    (*shape, n) float32 in pixels of the fixed grid, or a :class:`CoarseField`.

    ``outside`` says what lies beyond the moving image; for a part of the fixed grid give its ``tile``. CuPy arrays are warped on
    their GPU. Raises ``ValueError`` where the arguments do not fit one another.
    """
    ndim = _checked(moving, matrix, shape, order)
    job = _jobs(moving, matrix, (shape, field, order, outside, tile))
    nearest, channels = order == "nearest", 1 if moving.ndim == ndim else moving.shape[-1]
    out: NDArray[Any] = array_module(moving).empty((math.prod(shape), channels), job.values.dtype if nearest else np.float32)
    _launch(job, nearest, out, None)
    return out.reshape(*shape, *moving.shape[ndim:])


def warp_with_gradient(
    moving: NDArray[Any],
    matrix: NDArray[np.float64],
    shape: Sequence[int],
    field: Field | None = None,
    order: Literal["linear", "cubic"] = "linear",
    *,
    outside: Outside = "zero",
    tile: Tile | None = None,
) -> tuple[Array, Array]:
    """What :func:`warp` gives, and its derivative by the displacement: ``(*shape, c)`` and ``(*shape, c, n)``, float32.

    ``gradient = d out(p) / d u(p) = A^T grad m(q)``, the derivative of the interpolated image itself (it jumps at the pixel
    centres with linear weights), per pixel of the fixed grid. Where the image fades to 0 beyond its outermost centres, it is
    the slope of that fading; with ``outside="edge"`` it is that of the nearest point inside. An image without channels gives
    ``shape`` and ``(*shape, n)``. Arguments and errors as for :func:`warp`.
    """
    ndim = _checked(moving, matrix, shape, order)
    if TAPS[order] == 1:
        raise ValueError("the nearest pixel has no gradient; order is linear or cubic.")
    job = _jobs(moving, matrix, (shape, field, order, outside, tile))
    xp, numbers = array_module(moving), 1 if moving.ndim == ndim else moving.shape[-1]
    out = xp.empty((math.prod(shape), numbers), np.float32)
    slopes = xp.empty((*out.shape, ndim), np.float32)
    _launch(job, False, out, slopes)
    channels = moving.shape[ndim:]
    return out.reshape(*shape, *channels), slopes.reshape(*shape, *channels, ndim)


def field_reference(field: CoarseField, shape: Sequence[int], start: Sequence[int] | None = None) -> Any:
    """A coarse field written out on a grid of ``shape`` that begins at index ``start``: (*shape, n), linear per axis."""
    xp = array_module(field.values)
    values = field.values
    for axis, (n, scale, offset, first) in enumerate(
        zip(shape, field.scale, field.offset, start or [0] * len(shape), strict=True)
    ):
        nodes = values.shape[axis]
        place = xp.clip((xp.arange(n) + first) * scale + offset, 0, nodes - 1)
        before = xp.minimum(place.astype(int), max(nodes - 2, 0))
        part = (place - before).reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        after = xp.minimum(before + 1, nodes - 1)
        values = xp.take(values, before, axis) * (1 - part) + xp.take(values, after, axis) * part
    return values


def _weights(order: str) -> list[tuple[int, Callable[[Any], Any], Callable[[Any], Any]]]:
    """Per tap: its distance from the cell, its weight at the fraction f, and the derivative of that by f."""
    if order == "linear":
        return [(0, lambda f: 1 - f, lambda f: -1 + 0 * f), (1, lambda f: f, lambda f: 1 + 0 * f)]
    if order == "cubic":
        return [
            (-1, lambda f: (-f + 2 * f**2 - f**3) / 2, lambda f: (-1 + 4 * f - 3 * f**2) / 2),
            (0, lambda f: (2 - 5 * f**2 + 3 * f**3) / 2, lambda f: (-10 * f + 9 * f**2) / 2),
            (1, lambda f: (f + 4 * f**2 - 3 * f**3) / 2, lambda f: (1 + 8 * f - 9 * f**2) / 2),
            (2, lambda f: (-(f**2) + f**3) / 2, lambda f: (-2 * f + 3 * f**2) / 2),
        ]
    return [(0, lambda f: 1 + 0 * f, lambda f: 0 * f)]


def _mapped_reference(matrix: Any, shape: Sequence[int], field: Any, start: Sequence[int] | None) -> Any:
    """``q = A (p + u(p))``, (*shape, n) float64."""
    xp = array_module(matrix)
    axes = [xp.arange(n, dtype=float) + first for n, first in zip(shape, start or [0] * len(shape), strict=True)]
    points = xp.stack(xp.meshgrid(*axes, indexing="ij"), axis=-1)
    if isinstance(field, CoarseField):
        field = field_reference(field, shape, start)
    points = points if field is None else points + field
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def _held(moving: Any, index: Any, outside: str) -> Any:
    """Pixels (..., c) at whole indices (..., n), 0 or the edge outside."""
    xp = array_module(moving)
    size = xp.asarray(moving.shape[:-1])
    inside = ((index >= 0) & (index < size)).all(axis=-1) | (outside == "edge")
    where = tuple(xp.moveaxis(xp.clip(index, 0, size - 1), -1, 0))
    return xp.where(inside[..., None], moving[where], 0)


def warp_reference(
    moving: Any,
    matrix: Any,
    shape: Sequence[int],
    field: Any = None,
    order: str = "linear",
    *,
    outside: Outside = "zero",
    tile: Tile | None = None,
) -> tuple[Any, Any]:
    """The formula at the top of this module, readable, on NumPy or CuPy: values (*shape, c) and gradient (*shape, c, n), float64.

    ``moving`` has channels. With ``nearest`` the gradient is 0.
    """
    xp = array_module(moving)
    ndim = len(shape)
    start, origin = tile or Tile((0,) * ndim, (0,) * ndim)
    q = xp.nan_to_num(_mapped_reference(matrix, shape, field, start), nan=-1e6)
    if outside == "edge":
        # just below the last centre, so that the gradient is that of the last interval
        last = np.nextafter(np.asarray(origin) + moving.shape[:-1] - 1.0, -np.inf)
        q = xp.clip(q, xp.asarray(origin), xp.asarray(last))
    q = q + (0.5 if order == "nearest" else 0.0)
    cell = xp.floor(q)
    fraction = q - cell
    cell = cell.astype(int) - xp.asarray(origin)
    values, slopes = 0.0, [0.0] * ndim
    for taps in product(_weights(order), repeat=ndim):
        pixels = _held(moving, cell + xp.asarray([tap[0] for tap in taps]), outside)
        weight = [tap[1](fraction[..., k, None]) for k, tap in enumerate(taps)]
        values = values + _product(weight) * pixels
        for axis in range(ndim):
            slope = taps[axis][2](fraction[..., axis, None])
            slopes[axis] = slopes[axis] + _product([slope if k == axis else weight[k] for k in range(ndim)]) * pixels
    return values, xp.stack(slopes, axis=-1) @ matrix[:-1, :-1]


def _product(factors: Sequence[Any]) -> Any:
    whole = factors[0]
    for factor in factors[1:]:
        whole = whole * factor
    return whole


@njit(parallel=True, cache=True, nogil=True)
def _warp_2d(moving, matrix, field, use_field, out):  # type: ignore[no-untyped-def]
    height, width = moving.shape[0], moving.shape[1]
    for r in prange(out.shape[0]):
        for c in range(out.shape[1]):
            py, px = float(r), float(c)
            if use_field:
                py += field[r, c, 0]
                px += field[r, c, 1]
            y = matrix[0, 0] * py + matrix[0, 1] * px + matrix[0, 2]
            x = matrix[1, 0] * py + matrix[1, 1] * px + matrix[1, 2]
            if not (-1.0 < y < height and -1.0 < x < width):
                for k in range(out.shape[2]):
                    out[r, c, k] = 0.0
                continue
            iy, ix = int(np.floor(y)), int(np.floor(x))
            fy, fx = y - iy, x - ix
            y0, y1, x0, x1 = max(iy, 0), min(iy + 1, height - 1), max(ix, 0), min(ix + 1, width - 1)
            a, b = (1 - fy) * (1 - fx), (1 - fy) * fx
            d, e = fy * (1 - fx), fy * fx
            if iy < 0 or ix < 0 or iy + 1 > height - 1 or ix + 1 > width - 1:
                # beyond the outermost centres the image fades to 0 over one pixel, as if padded with zeros
                a = a if iy >= 0 and ix >= 0 else 0.0
                b = b if iy >= 0 and ix + 1 <= width - 1 else 0.0
                d = d if iy + 1 <= height - 1 and ix >= 0 else 0.0
                e = e if iy + 1 <= height - 1 and ix + 1 <= width - 1 else 0.0
            for k in range(out.shape[2]):
                out[r, c, k] = a * moving[y0, x0, k] + b * moving[y0, x1, k] + d * moving[y1, x0, k] + e * moving[y1, x1, k]


@njit(parallel=True, cache=True, nogil=True)
def _sample_3d(moving, matrix, points, out):  # type: ignore[no-untyped-def]
    depth, height, width = moving.shape[0], moving.shape[1], moving.shape[2]
    for i in prange(points.shape[0]):
        p0, p1, p2 = points[i, 0], points[i, 1], points[i, 2]
        z = matrix[0, 0] * p0 + matrix[0, 1] * p1 + matrix[0, 2] * p2 + matrix[0, 3]
        y = matrix[1, 0] * p0 + matrix[1, 1] * p1 + matrix[1, 2] * p2 + matrix[1, 3]
        x = matrix[2, 0] * p0 + matrix[2, 1] * p1 + matrix[2, 2] * p2 + matrix[2, 3]
        for k in range(out.shape[1]):
            out[i, k] = 0.0
        if not (-1.0 < z < depth and -1.0 < y < height and -1.0 < x < width):
            continue
        iz, iy, ix = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
        fz, fy, fx = z - iz, y - iy, x - ix
        for a in range(2):
            jz = iz + a
            if jz < 0 or jz >= depth:
                continue
            wz = fz if a else 1 - fz
            for b in range(2):
                jy = iy + b
                if jy < 0 or jy >= height:
                    continue
                wy = wz * (fy if b else 1 - fy)
                for c in range(2):
                    jx = ix + c
                    if jx < 0 or jx >= width:
                        continue
                    w = wy * (fx if c else 1 - fx)
                    for k in range(out.shape[1]):
                        out[i, k] += w * moving[jz, jy, jx, k]


def warp_2d(moving: Array, matrix: NDArray[np.float64], shape: tuple[int, int], field: Array | None = None) -> Array:
    """Moving channels (y, x, c) on a fixed grid of ``shape``: (*shape, c).

    ``matrix`` (3, 3) maps fixed indices to moving indices after ``field`` (*shape, 2), a displacement in fixed pixels, is added.
    """
    out = np.empty((*shape, moving.shape[2]), np.float32)
    unused = np.zeros((1, 1, 2), np.float32)
    _warp_2d(np.ascontiguousarray(moving, np.float32), matrix, unused if field is None else field, field is not None, out)
    return out


def sample_3d(moving: Array, matrix: NDArray[np.float64], points: NDArray[np.float64]) -> Array:
    """Moving channels (z, y, x, c) at ``points`` (n, 3), which ``matrix`` (4, 4) maps to moving indices: (n, c)."""
    out = np.empty((len(points), moving.shape[3]), np.float32)
    _sample_3d(np.ascontiguousarray(moving, np.float32), matrix, np.ascontiguousarray(points, np.float64), out)
    return out
