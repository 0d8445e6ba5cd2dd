"""Coarse to fine: one loop for every model, and the entry :func:`fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from histomri.backend import device_of, free_memory, out_of_memory, resolve_device, to_device
from histomri.core import Grid, Image, InputError, RegistrationError
from histomri.core.errors import Problem
from histomri.kernels.folding import least_jacobian
from histomri.registration.alignment import Progress, part, silent
from histomri.registration.engine import checks
from histomri.registration.engine.models import (
    DEFORMABLE,
    LINEAR,
    Bounds,
    BSpline,
    Diffeomorphic,
    Linear,
    Velocity,
    frame_of,
    unfolded,
)
from histomri.registration.engine.objective import Guidance, Level, Objective
from histomri.registration.engine.optimisers import OPTIMISERS, Outcome, Settings
from histomri.registration.engine.parts import dissimilarity, overlap, pixel_bytes
from histomri.registration.engine.pyramid import ORIENTED, Source, factors, make_level
from histomri.registration.engine.splines import resampled
from histomri.registration.engine.thin_plate import landmark_spline
from histomri.registration.metrics import METRICS, Metric
from histomri.tiling.boxes import fitting
from histomri.tiling.smooth import reach
from histomri.transforms import Affine, Chain, DisplacementField, Transform

Float = NDArray[np.float64]
Array = NDArray[np.float32]

TRANSFORMS = (*LINEAR, "landmark_spline", *DEFORMABLE)
DEFAULT_PENALTIES: dict[str, dict[str, float]] = {"bspline": {"bending": 0.02}}
# share of the overlap at the start of a level that must stay
LEAST_OVERLAP = 0.5
LANDMARK_UNIT = 0.01
# shares of the GPU's free memory that parts may take, tried in turn
STREAMED = (0.5, 0.1)
# optimisers whose steps stay on the GPU
ON_DEVICE = ("gauss_newton", "gradient_descent", "adam")
# share of the dissimilarity by which a fit may end above its start for the start to count as right
NO_WORSE = 0.05


@dataclass(frozen=True)
class Options:
    """Settings of models and optimisers, with defaults that were not tuned on any one pair.

    ``window_px`` and ``stiffness_px``: Gaussians of the diffeomorphic models (pixels of the level); ``knots_px``: distance of the
    B-splines' control points; ``iterations`` per level, coarse to fine, the last value for all further ones; ``tolerance`` of
    ``optimisers``; ``step_px``: reach of the first step; ``bounds`` of linear models relative to their start;
    ``landmark_weight``: what a mean squared landmark distance of 1 % of the fixed image's diagonal adds to the objective;
    ``approximation`` of ``landmark_spline``; ``keep``: how many of several starts are refined; ``seed`` of optimisers that draw;
    ``memory_bytes``: what the evaluation of the images may take beside the level itself, None for no limit. A level that takes
    more is evaluated in parts, with the same result to rounding. ``device``: ``auto``, ``cpu`` or ``gpu``; where a GPU's memory
    runs out, the level stays in the CPU's and its parts go to the GPU one by one, which is said in the notes.
    """

    window_px: float = 3.0
    stiffness_px: float = 0.7
    knots_px: float = 8.0
    iterations: tuple[int, ...] = (100,)
    tolerance: float = 2e-3
    step_px: float = 1.0
    bounds: Bounds = field(default_factory=Bounds)
    landmark_weight: float = 0.1
    approximation: float = 0.001
    keep: int = 3
    seconds: float | None = None
    seed: int = 0
    memory_bytes: float | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Step:
    """How one level of one transform went; ``factor`` is its downsample factor."""

    transform: str
    factor: int
    optimiser: str
    outcome: Outcome


@dataclass(frozen=True, eq=False)
class Fit:
    """What :func:`fit` found: ``moving(matrix(p + field(p)))`` looks like ``fixed(p)``, all in mm.

    ``status`` converged, stopped or failed, for ``reason``; ``value_before`` and ``value_after`` are the metric at the finest
    level, at the start and at the end. ``least_jacobian`` is the smallest Jacobian determinant of the field inside the fixed
    mask, 1 without a field. ``margin`` is the lead of the start that won over the runner-up, NaN for a single start. ``notes``
    say what did not run as it was asked for.
    """

    matrix: Float
    field: DisplacementField | None
    status: str
    reason: str
    value_before: float
    value_after: float
    least_jacobian: float
    steps: tuple[Step, ...]
    margin: float = float("nan")
    notes: tuple[str, ...] = ()

    @property
    def transform(self) -> Transform:
        """Fixed mm to moving mm: an ``Affine``, or a ``Chain`` of a ``DisplacementField`` and an ``Affine``."""
        affine = Affine(self.matrix)
        return affine if self.field is None else Chain((self.field, affine))

    @property
    def trace(self) -> tuple[float, ...]:
        """The objective's values over all steps."""
        return tuple(v for s in self.steps for v in s.outcome.trace)


@dataclass(frozen=True, eq=False)
class _State:
    """Where a fit stands: the matrix (fixed mm to moving mm), and the displacement on a level's grid in its pixels."""

    matrix: Float
    grid: Grid | None = None
    displacement: Array | None = None

    def on(self, grid: Grid) -> Array | None:
        """The displacement on another grid of the same axes, in pixels of that."""
        if self.displacement is None or self.grid is None:
            return None
        ratio = grid.spacing_mm / self.grid.spacing_mm
        out = resampled(self.displacement, grid.shape, self.grid.to_index(grid.origin_mm), ratio)
        return np.ascontiguousarray(out / ratio, np.float32)

    def field(self) -> DisplacementField | None:
        """The displacement in mm."""
        if self.displacement is None or self.grid is None:
            return None
        to_mm = self.grid.index_to_world[:-1, :-1]
        return DisplacementField(self.grid, np.asarray(self.displacement @ to_mm.T, np.float32))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class _Plan:
    """All that stays the same during a fit."""

    fixed: Source
    moving: Source
    metric: Metric
    frame: Float
    penalties: Mapping[str, float] | None
    optimiser: str
    levels: tuple[int, ...] | None
    guidance: Guidance | None
    options: Options
    notes: list[str] = field(default_factory=list)

    @cached_property
    def device(self) -> str:
        """``cpu`` or ``gpu``."""
        return resolve_device(self.options.device)

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def points(self) -> tuple[Float, Float] | None:
        return None if self.guidance is None else (self.guidance.fixed, self.guidance.moving)

    def settings(self, index: int) -> Settings:
        o = self.options
        count = o.iterations[min(index, len(o.iterations) - 1)]
        return Settings(count, o.tolerance, step=o.step_px, seconds=o.seconds, seed=o.seed)

    def factors(self, name: str) -> tuple[int, ...]:
        return self.levels if self.levels is not None else factors(self.fixed.grid, name in LINEAR)

    def passes(self, name: str) -> tuple[int, ...]:
        """The factors, the finest twice where a better pose makes better features."""
        chain = self.factors(name)
        return (*chain, chain[-1]) if name in LINEAR and self.metric.name in ORIENTED else chain

    def level(self, state: _State, factor: int, device: str = "cpu") -> Level:
        """The level of a downsample factor in the memory of a device."""
        level = make_level(self.fixed, self.moving, state.matrix, factor, self.metric, device)
        return replace(level, tile=self.tile(level, self.options.memory_bytes))

    def within_memory(self, state: _State, factor: int, call: Callable[[Level], Any]) -> Any:
        """What ``call`` makes of a level, which goes where it fits: the GPU's memory, parts of it to the GPU, the CPU."""
        if self.device == "cpu":
            return call(self.level(state, factor))
        try:
            return call(self.level(state, factor, "gpu"))
        except out_of_memory():
            # what the exception holds is free only when it is over
            pass
        level = self.level(state, factor)
        for share in STREAMED:
            try:
                return call(self._streamed(level, share, factor))
            except out_of_memory():
                continue
        self.note(f"at 1/{factor} the GPU's memory ran out even for parts of the images: they were evaluated on the CPU")
        return call(level)

    def _streamed(self, level: Level, share: float, factor: int) -> Level:
        """A level of the CPU's memory, to be sent to the GPU in parts that take a share of what is free there."""
        tile = self.tile(level, min(share * free_memory(), self.options.memory_bytes or np.inf))
        shape = " x ".join(str(n) for n in tile)
        self.note(f"at 1/{factor} the GPU's memory ran out: the images were sent there in parts of {shape} pixels")
        return replace(level, tile=tile, device="gpu")

    def tile(self, level: Level, memory_bytes: float | None) -> tuple[int, ...]:
        """The shape of the parts in which a level is evaluated to keep to a memory; empty for the whole."""
        if memory_bytes is None:
            return ()
        ndim = level.fixed.ndim
        halo = max(self.metric.passes.halo, *reach(self.options.window_px, ndim))
        return fitting(level.fixed.shape, pixel_bytes(level.fixed_features.shape[-1], ndim), memory_bytes, halo)

    def chosen(self, name: str) -> str:
        """The optimiser that suits a model and the metric, unless one was asked for."""
        if self.optimiser != "auto":
            return self.optimiser
        if name in LINEAR:
            return "levenberg_marquardt" if self.metric.residual else "lbfgs"
        plain = not self.penalties and self.guidance is None
        if name == "diffeomorphic" and self.metric.residual and plain:
            return "gauss_newton"
        return "lbfgs" if name == "bspline" else "gradient_descent"


def fit(
    fixed: Image,
    moving: Image,
    transforms: Sequence[str] = ("rigid", "affine", "diffeomorphic"),
    metric: str | Metric = "mind",
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    initial: Any = None,
    regularisation: Mapping[str, float] | None = None,
    optimiser: str = "auto",
    levels: Sequence[int] | None = None,
    landmarks: tuple[ArrayLike, ArrayLike] | None = None,
    options: Options = Options(),
    progress: Progress = silent,
) -> Fit:
    """Find the transform under which ``moving`` looks like ``fixed``: each of ``transforms`` in turn, coarse to fine.

    >>> found = fit(fixed, moving, ("rigid", "affine"), "nmi")
    >>> found.status, found.transform.map(points)

    Parameters
    ----------
    fixed, moving
        Images of 2 or 3 dimensions, any channels; they lie about right in their world, or ``initial`` says how.
    transforms
        Names of ``TRANSFORMS``: linear ones first, each starting from the last; at most the deformable ones follow.
    metric
        A name of ``METRICS``, or a metric of your own settings.
    fixed_mask, moving_mask
        Where to look, on the grid of their image. Pixels that are not finite must lie outside.
    initial
        A matrix or ``Affine`` (fixed mm to moving mm), a former ``Fit``, ``"centres"`` (the middles of the masks meet), or a list
        of matrices, of which the best few are refined. By default the identity, or what the landmarks say.
    regularisation
        Weights of the terms of ``regularisation.TERMS`` for deformable models; lengths count in pixels of the fixed image.
    optimiser
        A name of ``OPTIMISERS``, by default the one that suits: Levenberg-Marquardt for residuals under a linear model, else
        L-BFGS for few parameters and gradient descent for fields.
    levels
        Downsample factors, coarse to fine, in place of those that suit the size.
    landmarks
        Corresponding points, fixed and moving, each (n, ndim) in mm and array order: a soft term of the objective.
    progress
        Called as ``progress(share, doing)``.

    Raises
    ------
    InputError
        For images or masks that are empty or constant, of different dimensions or with pixels inside the mask that are not
        finite, and for names that do not exist.
    RegistrationError
        Where the images do not overlap at the start, or the start is beyond the limits of ``sanity``.
    """
    plan = _planned((fixed, moving), (fixed_mask, moving_mask), metric, regularisation, optimiser, levels, landmarks, options)
    checks.names(transforms, TRANSFORMS, "transforms")
    checks.order(transforms, LINEAR, isinstance(initial, Fit) and initial.field is not None)
    starts = checks.starts(initial, plan.fixed, plan.moving, plan.points)
    state = _State(starts[0]) if not isinstance(initial, Fit) else _resumed(initial)
    margin = float("nan")
    if len(starts) > 1:
        state, margin = _best_start(plan, starts, transforms[0])
    checks.overlap(state.matrix, plan.fixed, plan.moving)
    steps, first = [], state
    for done, name in enumerate(transforms):
        report = part(progress, done / len(transforms), (done + 1) / len(transforms))
        state, more = _coarse_to_fine(plan, name, state, report)
        steps += more
    return _concluded(plan, first, state, tuple(steps), margin)


def _planned(
    images: tuple[Image, Image],
    masks: tuple[Image | None, Image | None],
    metric: str | Metric,
    regularisation: Mapping[str, float] | None,
    optimiser: str,
    levels: Sequence[int] | None,
    landmarks: tuple[ArrayLike, ArrayLike] | None,
    options: Options,
) -> _Plan:
    if isinstance(metric, str):
        checks.names([metric], tuple(METRICS), "metric")
        metric = METRICS[metric]
    checks.names([optimiser], ("auto", *OPTIMISERS), "optimiser")
    checks.penalties(regularisation)
    checks.geometry(images[0].grid, images[1].grid)
    fixed = checks.source(images[0], masks[0], "the fixed image")
    moving = checks.source(images[1], masks[1], "the moving image")
    fixed, moving = checks.at_unit_spread(fixed, moving)
    frame = frame_of(fixed.grid.to_world(np.argwhere(fixed.mask)))
    guidance = None
    if landmarks is not None:
        unit = LANDMARK_UNIT * float(np.linalg.norm(fixed.grid.extent_mm))
        guidance = Guidance(*checks.landmarks(landmarks, fixed.grid.ndim), options.landmark_weight, unit)
    chosen = None if levels is None else tuple(int(f) for f in levels)
    return _Plan(fixed, moving, metric, frame, regularisation, optimiser, chosen, guidance, options)


def _resumed(earlier: Fit) -> _State:
    if earlier.field is None:
        return _State(earlier.matrix)
    grid = earlier.field.grid
    return _State(earlier.matrix, grid, np.asarray(earlier.field.values @ grid.world_to_index[:-1, :-1].T, np.float32))


def _coarse_to_fine(plan: _Plan, name: str, state: _State, progress: Progress) -> tuple[_State, list[Step]]:
    """One transform over all its levels; what a level finds is where the next one starts."""
    if name == "landmark_spline":
        return _splined(plan, state)
    steps = []
    chain = plan.passes(name)
    theta = model = None
    for index, factor in enumerate(chain):
        progress(index / len(chain), f"{name}, 1/{factor}")
        before = state, (model, theta)
        level, model, outcome = plan.within_memory(state, factor, partial(_at_level, plan, name, before, plan.settings(index)))
        theta = outcome.theta
        steps.append(Step(name, factor, plan.chosen(name), outcome))
        if outcome.status == "failed" and not np.isfinite(outcome.value_before):
            raise RegistrationError(f"{name} at 1/{factor}: {outcome.reason}: the images hardly overlap, or do not vary there.")
        state = _placed(model, theta, state, level)
    progress(1.0, name)
    return state, steps


def _at_level(
    plan: _Plan, name: str, before: tuple[_State, tuple[Any, Any]], settings: Settings, level: Level
) -> tuple[Level, Any, Outcome]:
    """One transform on one level from where the level ``before`` left off: its model and outcome, in the CPU's memory."""
    state, coarser = before
    optimiser = plan.chosen(name)
    if plan.device == "gpu":
        _note_what_stays(plan, name, optimiser)
    resident = name in ("diffeomorphic", "velocity") and optimiser in ON_DEVICE and device_of(level.weight) == "gpu"
    model = _model(plan, name, state, level)
    start = to_device(_start(model, state, level, coarser), "gpu" if resident else "cpu")
    outcome = _run(optimiser, _objective(plan, name, state, level, model, start), start, settings)
    return level, model, replace(outcome, theta=to_device(outcome.theta, "cpu"))


def _note_what_stays(plan: _Plan, name: str, optimiser: str) -> None:
    """Say what the CPU computes although a GPU is used."""
    if optimiser == "levenberg_marquardt":
        plan.note("the normal equations of levenberg_marquardt are computed on the CPU")
    if name == "bspline" or (name in DEFORMABLE and optimiser not in ON_DEVICE):
        plan.note(f"the fields of {name} under {optimiser} are made on the CPU, only the images are compared on the GPU")
    if plan.guidance is not None or (name in DEFORMABLE and plan.penalties):
        plan.note("penalties and landmarks are computed on the CPU")


def _splined(plan: _Plan, state: _State) -> tuple[_State, list[Step]]:
    """The displacement that a thin-plate spline of the landmarks makes on top of the matrix, smoothed where it would fold."""
    if plan.guidance is None:
        raise InputError(Problem("transforms", "landmark_spline needs landmarks", "give landmarks, or leave it out"))
    spline = landmark_spline(plan.guidance.fixed, plan.guidance.moving, plan.options.approximation)
    level = plan.level(state, plan.factors("bspline")[0])
    points = level.fixed.points()
    back = Affine(state.matrix).inverse().map(spline.map(points))
    displacement = np.asarray((back - points) @ level.fixed.world_to_index[:-1, :-1].T, np.float32)
    return _State(state.matrix, level.fixed, unfolded(displacement, guarded(plan.fixed, level.fixed))), []


def _model(plan: _Plan, name: str, state: _State, level: Level) -> Any:
    o, shape = plan.options, level.fixed.shape
    mask = guarded(plan.fixed, level.fixed)
    if name in LINEAR:
        base = np.asarray(np.linalg.solve(level.outer, state.matrix), np.float64)
        return Linear(name, level.fixed, level.moving, base, plan.frame, o.bounds)
    if name == "bspline":
        return BSpline(shape, o.knots_px)
    if name == "diffeomorphic":
        return Diffeomorphic(shape, o.window_px, o.stiffness_px, mask)
    return Velocity(shape, o.window_px, mask)


def _start(model: Any, state: _State, level: Level, coarser: tuple[Any, Any]) -> Float:
    """The parameters of the state on this level. A velocity is taken over as it is; all others through the displacement."""
    if model.linear:
        return np.asarray(model.start(), np.float64)
    before, theta = coarser
    if isinstance(model, Velocity) and isinstance(before, Velocity) and theta is not None:
        velocity = replace(state, displacement=np.asarray(theta, np.float32)).on(level.fixed)
        return np.asarray(velocity)
    found = state.on(level.fixed)
    return np.asarray(model.start() if found is None else model.nearest(found))


def _objective(plan: _Plan, name: str, state: _State, level: Level, model: Any, start: Float) -> Objective:
    matrix = level.onto(state.matrix)
    penalties = DEFAULT_PENALTIES.get(name, {}) if plan.penalties is None else dict(plan.penalties)
    unit = float(np.prod(plan.fixed.grid.spacing_mm) ** (1 / plan.fixed.grid.ndim))
    displacement = None if model.linear else model.displacement(start)
    least = LEAST_OVERLAP * overlap(level, matrix, displacement)
    return Objective(level, plan.metric, model, matrix, penalties, unit, plan.guidance, least)


def _run(optimiser: str, objective: Objective, start: Float, settings: Settings) -> Outcome:
    kinds = {"levenberg_marquardt": Linear, "gauss_newton": Diffeomorphic}
    if optimiser in kinds and not (isinstance(objective.model, kinds[optimiser]) and objective.metric.residual):
        kind = kinds[optimiser].__name__.lower()
        what = f"{optimiser} needs a {kind} transform and a metric of residuals (ssd, mind), found {objective.metric.name}"
        raise InputError(Problem("optimiser", what, "use lbfgs or gradient_descent, or optimiser='auto'"))
    if optimiser == "gauss_newton" and (objective.penalties or objective.guidance):
        raise InputError(Problem("optimiser", "gauss_newton takes no regularisation or landmarks", "use gradient_descent"))
    return OPTIMISERS[optimiser](objective, start, settings)


def _placed(model: Any, theta: Float, state: _State, level: Level) -> _State:
    if model.linear:
        return replace(state, matrix=np.asarray(level.outer @ model.matrix(theta), np.float64))
    return _State(state.matrix, level.fixed, model.displacement(theta))


def _best_start(plan: _Plan, starts: list[Float], name: str) -> tuple[_State, float]:
    """All starts valued at the coarsest level, the best few refined there, the best of them, and its lead over the next."""
    factor = plan.factors(name)[0]
    refined: list[tuple[float, int, _State]] = []
    for matrix, _ in _valued(plan, starts, factor)[: plan.options.keep]:
        state = _State(matrix)
        begin = partial(_at_level, plan, name, (state, (None, None)), plan.settings(0))
        level, model, outcome = plan.within_memory(state, factor, begin)
        refined.append((outcome.value_after, len(refined), _placed(model, outcome.theta, state, level)))
    if not refined:
        raise RegistrationError("None of the starts brings the images to overlap.")
    refined.sort(key=lambda r: r[:2])
    margin = refined[1][0] - refined[0][0] if len(refined) > 1 else float("nan")
    return refined[0][2], margin


def _valued(plan: _Plan, starts: list[Float], factor: int) -> list[tuple[Float, float]]:
    """Starts and their dissimilarity, lowest first; those with less than half of the best one's overlap are left out."""
    found = []
    for matrix in starts:
        value, weight = plan.within_memory(_State(matrix), factor, partial(_value_of, plan, matrix))
        if weight > 0:
            found.append((matrix, value, weight))
    most = max((w for _, _, w in found), default=0.0)
    return sorted(((m, v) for m, v, w in found if w >= LEAST_OVERLAP * most), key=lambda f: f[1])


def _value_of(plan: _Plan, matrix: Float, level: Level) -> tuple[float, float]:
    """Dissimilarity and overlap under a matrix (fixed mm to moving mm)."""
    onto = level.onto(matrix)
    weight = overlap(level, onto)
    return dissimilarity(level, plan.metric, onto, None) if weight > 0 else np.inf, weight


def _concluded(plan: _Plan, first: _State, last: _State, steps: tuple[Step, ...], margin: float) -> Fit:
    """The result with its values at the finest level, refused where it is worse than the start or beyond the limits.

    Where it is hardly worse the start was right already, and is returned: coarse levels see no difference that small.
    """
    factor = min((s.factor for s in steps), default=plan.factors("bspline")[-1])
    before, after = (_dissimilarity(plan, state, factor) for state in (first, last))
    status, reason = _verdict(steps) if steps else ("converged", "the landmarks were met by a spline")
    if status != "failed" and 0 < after - before <= NO_WORSE * abs(before):
        last, after, reason = (
            first,
            before,
            f"the start could not be bettered (dissimilarity {before:.6g}, {after:.6g} when fitted)",
        )
    least = _least_jacobian(plan, last)
    bent = last.field()
    why = checks.refused(last.matrix, bent, first.matrix, plan.fixed)
    if not after <= before + 1e-6 * abs(before):
        status, reason = "failed", f"the dissimilarity rose from {before:.6g} to {after:.6g}"
    elif why:
        status, reason = "failed", f"refused: {why}"
    return Fit(last.matrix, bent, status, reason, before, after, least, steps, margin, tuple(plan.notes))


def _verdict(steps: tuple[Step, ...]) -> tuple[str, str]:
    """The worst word of any transform's finest level; a failure at any level."""
    ends = [s for s, after in zip(steps, (*steps[1:], None), strict=True) if after is None or after.transform != s.transform]
    failed = [s for s in steps if s.outcome.status == "failed"]
    stopped = [s for s in ends if s.outcome.status == "stopped"]
    said = (failed or stopped or ends)[-1]
    return said.outcome.status, f"{said.transform} at 1/{said.factor}: {said.outcome.reason}"


def _dissimilarity(plan: _Plan, state: _State, factor: int) -> float:
    def value(level: Level) -> float:
        return dissimilarity(level, plan.metric, level.onto(state.matrix), state.on(level.fixed))

    return float(plan.within_memory(state, factor, value))


def _least_jacobian(plan: _Plan, state: _State) -> float:
    if state.displacement is None or state.grid is None:
        return 1.0
    return least_jacobian(state.displacement, guarded(plan.fixed, state.grid))


def guarded(source: Source, grid: Grid) -> NDArray[np.bool_]:
    """The nodes of a level's grid within one node of a source's mask: the corners of every cell that the mask touches."""
    factor = np.rint(grid.spacing_mm / source.grid.spacing_mm).astype(int)
    mask = source.mask
    for axis, f in enumerate(factor):
        mask = np.maximum.reduceat(mask, np.arange(0, mask.shape[axis], f), axis=axis)
    return np.asarray(ndimage.binary_dilation(mask, np.ones((3,) * grid.ndim, bool)))
