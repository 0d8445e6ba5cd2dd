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

from histomri.kernels.normal_equations import normal_equations
from histomri.registration.engine.optimisers import Settings, levenberg_marquardt
from histomri.registration.groups import generators
from histomri.registration.samples import Channels, Samples

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearResult:
    """``matrix`` maps fixed points to moving points (mm); ``cost`` is the mean squared residual; ``status``: how it ended."""

    matrix: Float
    cost: float
    status: str


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
    frame = np.eye(moving.grid.ndim + 1)
    frame[:-1, :-1] *= samples.radius
    frame[:-1, -1] = samples.centre
    unframe = np.asarray(np.linalg.inv(frame), np.float64)

    problem = _Problem(samples, moving, _Group.of(model, moving.grid.ndim), prior, unframe)
    # the optimiser ends where a step brings a hundredth of its tolerance
    found = levenberg_marquardt(problem, initial @ frame, Settings(iterations, 100 * tolerance))
    return LinearResult(np.asarray(found.theta @ unframe, np.float64), found.value_after, found.status)


@dataclass(frozen=True, eq=False)
class _Problem:
    """What Levenberg-Marquardt needs to know: the terms at a matrix (samples' frame to moving mm), and where a step leads."""

    samples: Samples
    moving: Channels
    group: _Group
    prior: Prior | None
    unframe: Float

    def terms(self, matrix: Float) -> Terms:
        terms = _image_terms(self.samples, self.moving, self.group, matrix)
        return terms if self.prior is None else _plus(terms, _prior_terms(self.prior, self.group, matrix, self.unframe))

    def advance(self, matrix: Float, step: Float) -> Float:
        # a step beyond half the radius (or half a radian) leaves the region where the model is linear
        return self.group.advance(matrix, step * min(1.0, 0.5 / max(float(np.abs(step).max()), 1e-12)))


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
