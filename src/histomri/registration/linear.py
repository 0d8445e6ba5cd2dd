"""Linear registration by Gauss-Newton on multichannel images, coarse to fine.

One kernel gives the normal equations over all entries of the matrix (``kernels.normal_equations``); a model (rigid, similarity,
scaling, affine) enters through the derivative of the matrix by its parameters alone. Levenberg-Marquardt damping (Marquardt 1963).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """``matrix`` maps fixed points (mm) to moving points (mm); ``cost`` is the mean squared residual; ``status`` and why it ended."""

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


Prior = Callable[[Float], tuple[float, Float, Float]]


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
    rotation acts in the moving space, so that the scales stay along the fixed axes: ``A <- exp(turn) A exp(scales, shift)``. Ends when the relative fall of the cost is below ``tolerance``.
    """
    to_index = moving.grid.world_to_index
    ndim = moving.grid.ndim
    frame = np.eye(ndim + 1)
    frame[:-1, :-1] *= samples.radius
    frame[:-1, -1] = samples.centre
    basis = generators(model, ndim)
    left = [model == "scaling" and bool((b == -b.T).all()) for b in basis]
    state = initial @ frame

    def evaluate(matrix: Float) -> tuple[float, Float, Float]:
        cost, gradient, hessian = normal_equations(samples.points, samples.values, samples.weights, moving.data, to_index @ matrix)
        jacobian = np.stack([_direction(matrix, b, on_left)[:-1].ravel() for b, on_left in zip(basis, left, strict=True)], axis=1)
        chain = np.kron(to_index[:-1, :-1], np.eye(ndim + 1)) @ jacobian
        return cost, chain.T @ gradient, chain.T @ hessian @ chain

    def with_prior(matrix: Float) -> tuple[float, Float, Float]:
        cost, gradient, hessian = evaluate(matrix)
        if prior is None:
            return cost, gradient, hessian
        # the prior is a function of the whole matrix's entries; same chain rule
        value, slope, curve = prior(matrix @ np.linalg.inv(frame))
        lift = np.kron(np.eye(ndim), np.linalg.inv(frame).T)
        jacobian = np.stack([_direction(matrix, b, on_left)[:-1].ravel() for b, on_left in zip(basis, left, strict=True)], axis=1)
        chain = lift @ jacobian
        return cost + value, gradient + chain.T @ slope, hessian + chain.T @ curve @ chain

    return _levenberg(state, with_prior, basis, left, iterations, tolerance, frame)


def _direction(matrix: Float, generator: Float, on_left: bool) -> Float:
    if not on_left:
        return matrix @ generator
    out = generator @ matrix
    out[:-1, -1] = 0.0  # turn about the image of the centre
    return out


def _advance(matrix: Float, delta: Float, basis: list[Float], left: list[bool]) -> Float:
    right_sum = sum((d * b for d, b, on_left in zip(delta, basis, left, strict=True) if not on_left), np.zeros_like(matrix))
    left_sum = sum((d * b for d, b, on_left in zip(delta, basis, left, strict=True) if on_left), np.zeros_like(matrix))
    out = matrix @ expm(right_sum)
    centre = out[:-1, -1].copy()
    out = expm(left_sum) @ out
    if any(left):
        out[:-1, -1] = centre
    return out


def _levenberg(
    state: Float, evaluate: Any, basis: list[Float], left: list[bool], iterations: int, tolerance: float, frame: Float
) -> LinearResult:
    cost, gradient, hessian = evaluate(state)
    damping, status, done = 1e-3, "stopped", 0
    for done in range(1, iterations + 1):  # noqa: B007
        accepted = False
        for _ in range(8):
            scale = np.diag(hessian).copy()
            scale[scale <= 0] = max(float(scale.max(initial=0.0)), 1e-12)
            delta = -np.linalg.solve(hessian + np.diag(damping * scale), gradient)
            # a step beyond half the radius (or half a radian) leaves the region where the model is linear
            delta *= min(1.0, 0.5 / max(float(np.abs(delta).max()), 1e-12))
            trial = _advance(state, delta, basis, left)
            trial_cost, trial_gradient, trial_hessian = evaluate(trial)
            if trial_cost < cost:
                accepted = True
                break
            damping *= 4
        if not accepted:
            status = "converged"
            break
        fall = (cost - trial_cost) / max(cost, 1e-12)
        state, cost, gradient, hessian, damping = trial, trial_cost, trial_gradient, trial_hessian, damping / 3
        if fall < tolerance:
            status = "converged"
            break
    return LinearResult(state @ np.linalg.inv(frame), cost, status, done)
