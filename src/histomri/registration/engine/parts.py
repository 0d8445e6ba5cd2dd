"""What the objective asks of a level's images under a transform, part by part, so that it keeps to a memory.

A level that fits is one part, which is looked at once. Of several parts one is held at a time, and each is made twice: for the
sums over the whole that a metric's force or a solve needs, and for the force or the solve. Images and fields stay where the
level has them; a part is computed on the level's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from histomri.backend import array_module, beside, to_device
from histomri.kernels.flow import flow_terms, solve
from histomri.kernels.flow_3d import flow_terms_3d, solve_3d
from histomri.kernels.gaussian import gaussian
from histomri.registration.metrics import Metric
from histomri.tiling.boxes import Box, grown, read, start_of
from histomri.tiling.similarity import in_parts
from histomri.tiling.smooth import reach
from histomri.tiling.warp import moved_to, source_part, warp_part

if TYPE_CHECKING:
    from histomri.registration.engine.objective import Level

Float = NDArray[np.float64]
Array = Any

# damping of the windowed Gauss-Newton update, relative to the mean structure
RIDGE = 0.3


def pixel_bytes(channels: int, ndim: int) -> int:
    """What a pixel of a part takes at most: its images, their gradients and forces, its field, the terms of a solve."""
    return 4 * (channels * (ndim + 5) + 2 * ndim + 24)


@dataclass(frozen=True, eq=False)
class Part:
    """A box of a level under a matrix and a displacement, of which ``core`` is what it answers for; made as it is asked for."""

    level: Level
    matrix: Float
    displacement: Array | None
    box: Box
    core: Box

    @cached_property
    def fixed(self) -> Array:
        """The fixed features."""
        return read(self.level.fixed_features, self.box, self.level.device)

    @cached_property
    def weight(self) -> Array:
        """The fixed weight times the moving one."""
        moved = warp_part(self.level.moving_weight, self.matrix, self.box, self.displacement, device=self.level.device)
        return read(self.level.weight, self.box, self.level.device) * moved

    @cached_property
    def _warp(self) -> tuple[Array, Array]:
        images = self.level.moving_features, self.matrix, self.box, self.displacement
        return warp_part(*images, outside="edge", gradient=True, device=self.level.device)  # type: ignore[no-any-return]

    @property
    def warped(self) -> Array:
        """The moving features."""
        return self._warp[0]

    @property
    def overlap(self) -> float:
        """The sum of the weight over the core."""
        return float(self.weight[self.core].sum(dtype=np.float64))

    def pulled(self, force: Array) -> Array:
        """``sum_c force_c d m_c / d u`` (*core, ndim) of a force (*core, c)."""
        return array_module(force).einsum("...c,...cn->...n", force, self._warp[1][self.core])

    def terms(self) -> Array:
        """The Gauss-Newton terms of the difference, (*box, 6 or 10): structure, force, cost."""
        own = read(self.displacement, self.box, self.level.device)
        moving, source = source_part(self.level.moving_features, self.matrix, self.box, own, device=self.level.device)
        images = self.fixed, moving, self.weight, moved_to(self.matrix, self.box, source), own
        return flow_terms(*images) if len(self.box) == 2 else flow_terms_3d(*images)


Parts = Callable[[], Iterable[Part]]


def parts_of(level: Level, matrix: Float, displacement: Array | None, halo: int) -> Parts:
    """The level's parts with a halo, in order; a single one is kept from one time to the next."""

    def made(box: Box) -> Part:
        return Part(level, matrix, displacement, *grown(box, halo, level.fixed.shape))

    if len(level.boxes) == 1:
        only = [made(level.boxes[0])]
        return lambda: only
    return lambda: (made(box) for box in level.boxes)


def overlap(level: Level, matrix: Float, displacement: Array | None = None) -> float:
    """The sum of the fixed weight times the moving one."""
    return sum(part.overlap for part in parts_of(level, matrix, displacement, 0)())


def dissimilarity(level: Level, metric: Metric, matrix: Float, displacement: Array | None) -> float:
    """The metric's value alone."""
    parts = parts_of(level, matrix, displacement, 0 if len(level.boxes) == 1 else metric.passes.halo)
    if len(level.boxes) == 1:
        (part,) = parts()
        return float(metric.value(part.fixed, part.warped, part.weight))
    return in_parts(metric.passes, lambda: (_seen(part) for part in parts()), lambda force: None)


def _seen(part: Part) -> tuple[Array, Array, Array, Box]:
    return part.fixed, part.warped, part.weight, part.core


def evaluate(level: Level, metric: Metric, matrix: Float, displacement: Array | None, least: float) -> tuple[float, Array]:
    """The metric's value and its derivative: by the displacement, (*shape, ndim), where it lies, or without one by ``A u``,
    as the sums :func:`matrix_force`. Infinite, and zeros, where the weights add up to no more than ``least``.
    """
    slope = _Field(level, displacement)
    several = len(level.boxes) > 1
    parts = parts_of(level, matrix, displacement, metric.passes.halo if several else 0)
    if not sum(part.overlap for part in parts()) > least:
        return np.inf, slope.total
    if not several:
        (part,) = parts()
        value, force = metric.evaluate(part.fixed, part.warped, part.weight)
        slope.take(level.boxes[0], part.pulled(force))
        return float(value), slope.total
    held: list[Part] = []

    def seen() -> Iterable[tuple[Array, Array, Array, Box]]:
        for part in parts():
            held[:] = [part]
            yield _seen(part)

    waiting = iter(level.boxes)
    found = in_parts(metric.passes, seen, lambda force: slope.take(next(waiting), held[0].pulled(force)))
    return float(found), slope.total


class _Field:
    """What parts find, put into a field like ``displacement``, or without one summed for a matrix."""

    def __init__(self, level: Level, displacement: Array | None) -> None:
        self.level, self.like = level, displacement
        self.made: Any = None

    @property
    def total(self) -> Array:
        """What was found, zeros so far without any."""
        if self.made is not None:
            return self.made
        ndim = self.level.fixed.ndim
        return np.zeros((ndim, ndim + 1)) if self.like is None else array_module(self.like).zeros_like(self.like)

    def take(self, box: Box, found: Array) -> None:
        """Add what a box has."""
        if self.like is None:
            self.made = self.total + matrix_force(found, start_of(box))
        elif len(self.level.boxes) == 1:
            self.made = beside(found, self.like)
        else:
            self.made = self.total
            self.made[box] = beside(found, self.like)


def newton(level: Level, matrix: Float, displacement: Array, window_px: float, least: float) -> tuple[float, Array]:
    """Value and windowed Gauss-Newton update of a displacement under a metric of residuals (Lucas and Kanade 1981).

    ``d = -(G * T + ridge)^-1 G * b`` with ``T = w sum_c g_c g_c^T`` and ``b = w sum_c r_c g_c``, at most one pixel; the ridge is
    ``RIDGE`` times the mean structure, so that what has none stays where it is.
    """
    ndim = level.fixed.ndim
    halo = max(reach(window_px, ndim)) if len(level.boxes) > 1 else 0
    looks = parts_of(level, matrix, displacement, halo)
    update = _Field(level, displacement)
    total = sum(part.overlap for part in looks())
    if not total > least:
        return np.inf, update.total
    diagonal = [0, 2] if ndim == 2 else [0, 3, 5]
    windowed = _windowed(looks, window_px, len(level.boxes) == 1)
    cost = structure = 0.0
    for smooth, residual in windowed():
        cost += residual
        structure += sum(float(smooth[..., k].sum(dtype=np.float64)) for k in diagonal)
    ridge = RIDGE * structure / (ndim * int(np.prod(level.fixed.shape))) + 1e-9
    for box, (smooth, _) in zip(level.boxes, windowed(), strict=True):
        update.take(box, solve(smooth, ridge) if ndim == 2 else solve_3d(smooth, ridge, 1.0))
    return cost / total, update.total


def _windowed(looks: Parts, window_px: float, single: bool) -> Callable[[], Iterable[tuple[Array, float]]]:
    """Each core's smoothed terms (*core, 5 or 9) and the sum of its costs; those of a single part are kept."""

    def made(part: Part) -> tuple[Array, float]:
        terms = part.terms()
        cost = float(terms[..., -1][part.core].sum(dtype=np.float64))
        smooth = gaussian(terms[..., :-1], window_px, len(part.box))[part.core]
        return array_module(smooth).ascontiguousarray(smooth), cost

    if single:
        only = [made(part) for part in looks()]
        return lambda: only
    return lambda: (made(part) for part in looks())


def matrix_force(force: Array, start: tuple[int, ...] | None = None) -> Float:
    """``sum_p force(p) (p, 1)^T`` (ndim, ndim + 1) of a force (*shape, ndim) on a box that begins at ``start``.

    Sums along the axes, in float64 and in order.
    """
    ndim = force.shape[-1]
    columns = []
    for axis in range(ndim):
        others = tuple(a for a in range(ndim) if a != axis)
        profile = to_device(force.sum(axis=others, dtype=np.float64), "cpu")
        index = np.arange(len(profile)) + (0 if start is None else start[axis])
        columns.append((profile * index[:, None]).sum(axis=0))
    return np.stack([*columns, profile.sum(axis=0)], axis=1)
