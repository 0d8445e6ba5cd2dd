"""Linear registration by Gauss-Newton on multichannel images, coarse to fine.

One kernel gives the normal equations over all entries of the matrix (``kernels.normal_equations``); a model (rigid, similarity,
scaling, affine) enters through the derivative of the matrix by its parameters alone.
Levenberg-Marquardt damping (Marquardt, 1963).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from histomri.core import Grid, RegistrationError
from histomri.kernels.normal_equations import normal_equations

Float = NDArray[np.float64]
MODELS = ("translation", "rigid", "similarity", "scaling", "affine")
MAX_SAMPLES = 60_000


@dataclass(frozen=True, eq=False)
class Channels:
    """Feature channels (*grid.shape, c) float32 of one image, and a weight (*grid.shape) for its samples when it is fixed."""

    grid: Grid
    data: NDArray[np.float32]
    weight: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LinearResult:
    """``matrix`` maps fixed points to moving points (mm); ``cost`` is the mean squared residual; ``status``: why it ended."""

    matrix: Float
    cost: float
    status: str
    iterations: int


def generators(model: str, ndim: int) -> list[Float]:
    """Lie algebra basis of a model as (ndim + 1, ndim + 1) matrices. ``scaling`` is rigid plus one scale per axis.

    Raises ``ValueError`` for an unknown model.
    """
    if model not in MODELS:
        raise ValueError(f"Unknown model {model!r}; expected one of {', '.join(MODELS)}.")

    def unit(i: int, j: int) -> Float:
        out = np.zeros((ndim + 1, ndim + 1))
        out[i, j] = 1.0
        return out

    basis = [unit(i, ndim) for i in range(ndim)]
    if model == "affine":
        return basis + [unit(i, j) for i in range(ndim) for j in range(ndim)]
    if model != "translation":
        basis += [unit(i, j) - unit(j, i) for i in range(ndim) for j in range(i + 1, ndim)]
    if model == "similarity":
        basis.append(sum((unit(i, i) for i in range(ndim)), np.zeros((ndim + 1, ndim + 1))))
    if model == "scaling":
        basis += [unit(i, i) for i in range(ndim)]
    return basis


@dataclass(frozen=True, eq=False)
class Samples:
    """Fixed points (n, ndim) relative to ``centre`` over ``radius`` mm, their values (n, c) and weights (n,)."""

    points: Float
    values: NDArray[np.float32]
    weights: NDArray[np.float32]
    centre: Float
    radius: float


def draw_samples(fixed: Channels, limit: int = MAX_SAMPLES) -> Samples:
    """All weighted nodes of the fixed grid, or an even, deterministic choice of ``limit`` of them.

    Raises ``RegistrationError`` when no node has weight.
    """
    index = np.flatnonzero(fixed.weight.ravel() > 0)
    if not len(index):
        raise RegistrationError("The fixed image has no sample with weight: its mask is empty.")
    if len(index) > limit:
        # a golden-ratio low-discrepancy choice has no stripes, unlike every k-th node
        order = np.argsort((np.arange(len(index)) * 0.6180339887498949) % 1.0, kind="stable")
        index = np.sort(index[order[:limit]])
    nodes = np.stack(np.unravel_index(index, fixed.grid.shape), axis=-1)
    world = fixed.grid.to_world(nodes)
    centre = world.mean(axis=0)
    radius = float(np.sqrt(((world - centre) ** 2).sum(axis=1).mean())) or 1.0
    values = fixed.data.reshape(-1, fixed.data.shape[-1])[index]
    weights = fixed.weight.ravel()[index].astype(np.float32)
    return Samples((world - centre) / radius, np.ascontiguousarray(values), weights, centre, radius)


Terms = tuple[float, Float, Float]
Prior = Callable[[Float], Terms]


def fit_linear(
    samples: Samples,
    moving: Channels,
    initial: Float,
    model: str,
    iterations: int = 30,
    prior: Prior | None = None,
    tolerance: float = 1e-5,
) -> LinearResult:
    """Levenberg-Marquardt from ``initial`` (ndim + 1, ndim + 1; fixed mm -> moving mm) within the group of the model.

    The step is ``A <- A exp(sum d_k B_k)`` in centred fixed coordinates over the samples' radius, except that for ``scaling`` the
    rotation acts in the moving space, so that the scales stay along the fixed axes: ``A <- exp(turn) A exp(scales, shift)``. Ends
    when the relative fall of the cost is below ``tolerance``.
    """
    group = _Group.of(model, moving.grid.ndim)
    frame = np.eye(moving.grid.ndim + 1)
    frame[:-1, :-1] *= samples.radius
    frame[:-1, -1] = samples.centre
    unframe = np.asarray(np.linalg.inv(frame), np.float64)

    def evaluate(matrix: Float) -> Terms:
        terms = _image_terms(samples, moving, group, matrix)
        return terms if prior is None else _plus(terms, _prior_terms(prior, group, matrix, unframe))

    state, cost, status, done = _levenberg(initial @ frame, evaluate, group, iterations, tolerance)
    return LinearResult(state @ unframe, cost, status, done)


@dataclass(frozen=True, eq=False)
class _Group:
    """The generators of a model, and which of them act in the moving space."""

    basis: list[Float]
    on_left: list[bool]

    @staticmethod
    def of(model: str, ndim: int) -> _Group:
        basis = generators(model, ndim)
        return _Group(basis, [model == "scaling" and bool((b == -b.T).all()) for b in basis])

    def jacobian(self, matrix: Float) -> Float:
        """Derivative of the matrix's entries, row by row and without the last row, by the parameters."""
        columns = [_direction(matrix, b, left)[:-1].ravel() for b, left in zip(self.basis, self.on_left, strict=True)]
        return np.stack(columns, axis=1)

    def advance(self, matrix: Float, delta: Float) -> Float:
        """The matrix moved along the group by ``delta``."""
        right, left = np.zeros_like(matrix), np.zeros_like(matrix)
        for d, b, on_left in zip(delta, self.basis, self.on_left, strict=True):
            if on_left:
                left += d * b
            else:
                right += d * b
        out = np.asarray(matrix @ expm(right), np.float64)
        if any(self.on_left):
            centre = out[:-1, -1].copy()
            out = np.asarray(expm(left) @ out, np.float64)
            out[:-1, -1] = centre
        return out


def _direction(matrix: Float, generator: Float, on_left: bool) -> Float:
    if not on_left:
        return np.asarray(matrix @ generator, np.float64)
    out = np.asarray(generator @ matrix, np.float64)
    out[:-1, -1] = 0.0  # turn about the image of the centre
    return out


def _image_terms(samples: Samples, moving: Channels, group: _Group, matrix: Float) -> Terms:
    """Cost, gradient and Gauss-Newton matrix by the model's parameters, at ``matrix`` (samples' frame -> moving mm)."""
    to_index = moving.grid.world_to_index
    cost, gradient, hessian = normal_equations(samples.points, samples.values, samples.weights, moving.data, to_index @ matrix)
    chain = np.kron(to_index[:-1, :-1], np.eye(moving.grid.ndim + 1)) @ group.jacobian(matrix)
    return cost, chain.T @ gradient, chain.T @ hessian @ chain


def _prior_terms(prior: Prior, group: _Group, matrix: Float, unframe: Float) -> Terms:
    """The same of a prior, which is a function of the entries of the whole matrix (fixed mm -> moving mm)."""
    value, slope, curve = prior(matrix @ unframe)
    chain = np.kron(np.eye(len(matrix) - 1), unframe.T) @ group.jacobian(matrix)
    return value, chain.T @ slope, chain.T @ curve @ chain


def _plus(a: Terms, b: Terms) -> Terms:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _levenberg(
    state: Float, evaluate: Callable[[Float], Terms], group: _Group, iterations: int, tolerance: float
) -> tuple[Float, float, str, int]:
    """State, cost, how it ended, and after how many iterations."""
    terms = evaluate(state)
    damping = 1e-3
    for done in range(1, iterations + 1):
        step = _better(state, terms, evaluate, group, damping)
        if step is None:
            return state, terms[0], "converged", done
        fall = (terms[0] - step[1][0]) / max(terms[0], 1e-12)
        state, terms, damping = step[0], step[1], step[2] / 3
        if fall < tolerance:
            return state, terms[0], "converged", done
    return state, terms[0], "stopped", iterations


def _better(
    state: Float, terms: Terms, evaluate: Callable[[Float], Terms], group: _Group, damping: float
) -> tuple[Float, Terms, float] | None:
    """The first step that lowers the cost, damped ever more, and its damping; None after eight that do not."""
    cost, gradient, hessian = terms
    for _ in range(8):
        scale = np.diag(hessian).copy()
        scale[scale <= 0] = max(float(scale.max(initial=0.0)), 1e-12)
        delta = -np.asarray(np.linalg.solve(hessian + np.diag(damping * scale), gradient), np.float64)
        # a step beyond half the radius (or half a radian) leaves the region where the model is linear
        delta *= min(1.0, 0.5 / max(float(np.abs(delta).max()), 1e-12))
        trial = group.advance(state, delta)
        found = evaluate(trial)
        if found[0] < cost:
            return trial, found, damping
        damping *= 4
    return None
