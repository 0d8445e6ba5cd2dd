"""Transform models: what the parameters ``theta`` are, where they take a pixel, and what a force on the pixels is to them.

A linear model gives the matrix (ndim + 1, ndim + 1) from indices of the level's fixed grid to those of its moving grid, all
others a displacement u (*shape, ndim) in pixels of the level's fixed grid, applied before the matrix: ``q = A (p + u(p))``.
``pull_back`` takes the derivative of the objective by the displacement, or by the first ndim rows of the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm, expm_frechet

from histomri.backend import array_module
from histomri.core import Grid
from histomri.kernels.fields import compose, invert, jacobian_determinant, squarings
from histomri.kernels.folding import least_jacobian
from histomri.kernels.gaussian import gaussian
from histomri.kernels.splat import square_adjoint
from histomri.registration.engine.splines import SplineGrid
from histomri.registration.groups import generators

Float = NDArray[np.float64]
Theta = NDArray[Any]
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
LINEAR = ("translation", "rigid", "similarity", "affine")
DEFORMABLE = ("bspline", "diffeomorphic", "velocity")

# the least Jacobian determinant that a diffeomorphic step may leave behind, and how often it is halved to keep to it
LEAST_JACOBIAN = 0.1
HALVINGS = 6


class Model(Protocol):
    """A family of transforms on one level of the pyramid."""

    linear: bool
    flat: bool

    def start(self) -> Theta:
        """The parameters of the identity."""

    def displacement(self, theta: Theta) -> Theta:
        """The matrix of a linear model, the displacement of all others."""

    def pull_back(self, theta: Theta, force: Theta) -> Theta:
        """Derivative by a step from ``theta``, given the one by ``displacement``."""

    def advance(self, theta: Theta, step: Theta) -> Theta:
        """Where a step leads."""

    def shift(self, theta: Theta, step: Theta) -> Theta:
        """The same without any check, and adding up: for the chart."""

    def reach(self, step: Theta) -> float:
        """The longest displacement that a step makes, in pixels."""

    def chart(self) -> Model:
        """The same family with steps that add up."""

    def inverse(self, theta: Theta) -> Theta:
        """The inverse, as matrix or displacement."""

    def jacobian(self, theta: Theta) -> Float:
        """Determinant of ``d(p + u)/dp`` (*shape), or of the linear part."""


@dataclass(frozen=True)
class Bounds:
    """How far a linear model may go from its start: scale by a factor, stretch (one principal scale over another)."""

    scale: float = 2.0
    stretch: float = 2.0

    def allow(self, linear: Float) -> bool:
        """Whether a linear part, relative to the start, keeps to them and does not mirror."""
        scales = np.linalg.svd(linear, compute_uv=False)
        middle = float(np.prod(scales) ** (1 / len(scales)))
        inside = 1 / self.scale <= middle <= self.scale and scales[0] <= self.stretch * scales[-1]
        return bool(inside and np.linalg.det(linear) > 0)


@dataclass(frozen=True, eq=False)
class Linear:
    """``A0 F exp(sum theta_k B_k) F^-1`` in mm, with the generators B of the model and a frame F: centred, over a radius in mm.

    ``base`` (ndim + 1, ndim + 1) is A0, fixed mm to moving mm; ``fixed`` and ``moving`` are the level's grids.
    """

    name: str
    fixed: Grid
    moving: Grid
    base: Float
    frame: Float
    bounds: Bounds = Bounds()
    linear: bool = field(default=True, init=False)
    flat: bool = field(default=True, init=False)

    @cached_property
    def basis(self) -> list[Float]:
        """The generators."""
        return generators(self.name, self.fixed.ndim)

    def start(self) -> Theta:
        """Zeros: the base."""
        return np.zeros(len(self.basis))

    def _exponent(self, theta: Theta) -> Float:
        return np.asarray(sum(t * b for t, b in zip(theta, self.basis, strict=True)), np.float64)

    @cached_property
    def _unframe(self) -> Float:
        return np.asarray(np.linalg.inv(self.frame), np.float64)

    def framed(self, theta: Theta) -> Float:
        """From the frame to indices of the moving grid, (ndim, ndim + 1)."""
        return np.asarray(self.moving.world_to_index @ self.base @ self.frame @ expm(self._exponent(theta)), np.float64)[:-1]

    def framed_tangents(self, theta: Theta) -> Float:
        """Derivatives of :meth:`framed` by each parameter, (size, ndim, ndim + 1)."""
        before, exponent = self.moving.world_to_index @ self.base @ self.frame, self._exponent(theta)
        return np.stack([(before @ expm_frechet(exponent, b, compute_expm=False))[:-1] for b in self.basis])

    def matrix(self, theta: Theta) -> Float:
        """Fixed mm to moving mm, (ndim + 1, ndim + 1)."""
        return np.asarray(self.base @ self.frame @ expm(self._exponent(theta)) @ self._unframe, np.float64)

    def allowed(self, theta: Theta) -> bool:
        """Whether the parameters keep to the bounds."""
        return self.bounds.allow(np.asarray(expm(self._exponent(theta)), np.float64)[:-1, :-1])

    def displacement(self, theta: Theta) -> Float:
        """Fixed indices to moving indices, (ndim + 1, ndim + 1)."""
        return np.asarray(self.moving.world_to_index @ self.matrix(theta) @ self.fixed.index_to_world, np.float64)

    def pull_back(self, theta: Theta, force: Theta) -> Theta:
        """From the derivative by the matrix's entries, (ndim, ndim + 1)."""
        tangents = self.framed_tangents(theta) @ self._unframe @ self.fixed.index_to_world
        return np.asarray((tangents * force).sum(axis=(1, 2)), np.float64)

    def advance(self, theta: Theta, step: Theta) -> Theta:
        """The sum."""
        return theta + step

    def shift(self, theta: Theta, step: Theta) -> Theta:
        """The sum."""
        return theta + step

    def reach(self, step: Theta) -> float:
        """Over points at the radius along each axis of the frame, to first order, in pixels of the mean size."""
        generator = self.frame @ self._exponent(step)
        ends = np.concatenate([np.eye(self.fixed.ndim), -np.eye(self.fixed.ndim)])
        moved = ends @ generator[:-1, :-1].T + generator[:-1, -1]
        return float(np.linalg.norm(moved, axis=1).max() / np.prod(self.fixed.spacing_mm) ** (1 / self.fixed.ndim))

    def chart(self) -> Linear:
        """Itself."""
        return self

    def inverse(self, theta: Theta) -> Float:
        """Moving indices to fixed indices, (ndim + 1, ndim + 1)."""
        return np.asarray(np.linalg.inv(self.displacement(theta)), np.float64)

    def jacobian(self, theta: Theta) -> Float:
        """Determinant of the linear part in mm."""
        return np.asarray(np.linalg.det(self.matrix(theta)[:-1, :-1]), np.float64)


def frame_of(points: Float) -> Float:
    """Homogeneous frame of points (n, ndim) in mm: their mean, over their rms distance from it."""
    centre = points.mean(axis=0)
    out = np.eye(points.shape[1] + 1)
    out[:-1, :-1] *= float(np.sqrt(((points - centre) ** 2).sum(axis=1).mean())) or 1.0
    out[:-1, -1] = centre
    return out


@dataclass(frozen=True, eq=False)
class BSpline:
    """Free-form deformation (Rueckert et al. 1999): cubic B-splines on control points every ``knots_px`` pixels.

    ``theta`` (*control points, ndim) in pixels of the level.
    """

    shape: tuple[int, ...]
    knots_px: float = 8.0
    linear: bool = field(default=False, init=False)
    flat: bool = field(default=True, init=False)

    @cached_property
    def splines(self) -> SplineGrid:
        """The basis along each axis."""
        return SplineGrid(self.shape, self.knots_px)

    def start(self) -> Theta:
        """Zeros."""
        return np.zeros((*self.splines.size, len(self.shape)))

    def displacement(self, theta: Theta) -> Array:
        """Sums of splines."""
        return self.splines.values(theta).astype(np.float32)

    def pull_back(self, theta: Theta, force: Theta) -> Theta:
        """The transposed sums."""
        return self.splines.transposed(np.asarray(force, np.float64))

    def advance(self, theta: Theta, step: Theta) -> Theta:
        """The sum."""
        return theta + step

    def shift(self, theta: Theta, step: Theta) -> Theta:
        """The sum."""
        return theta + step

    def reach(self, step: Theta) -> float:
        """The longest control vector, which no displacement exceeds."""
        return _longest(step)

    def chart(self) -> BSpline:
        """Itself."""
        return self

    def nearest(self, values: Array) -> Theta:
        """The parameters whose displacement is the nearest to ``values`` (*shape, ndim)."""
        return self.splines.fitted(np.asarray(values, np.float64))

    def inverse(self, theta: Theta) -> Array:
        """By fixed point, (*shape, ndim)."""
        return invert(self.displacement(theta)).field

    def jacobian(self, theta: Theta) -> Float:
        """Analytic, from the splines' derivatives."""
        return np.asarray(np.linalg.det(self.splines.derivatives(theta) + np.eye(len(self.shape))), np.float64)


@dataclass(frozen=True, eq=False)
class Diffeomorphic:
    """Smooth small updates, composed (Christensen et al. 1996; Yushkevich's greedy): ``phi <- phi o (id + G d)``.

    ``theta`` is the displacement itself. ``window_px`` is the Gaussian G of each update, ``stiffness_px`` that of the whole field
    after it. A step is halved until every one-sided Jacobian determinant inside ``mask`` stays above ``LEAST_JACOBIAN``, or not
    taken at all: the map cannot fold there. ``composed`` False is the chart: ``u + G d``.
    """

    shape: tuple[int, ...]
    window_px: float = 3.0
    stiffness_px: float = 0.7
    mask: Mask | None = None
    composed: bool = True
    linear: bool = field(default=False, init=False)
    flat: bool = field(default=False, init=False)

    def start(self) -> Theta:
        """Zeros."""
        return np.zeros((*self.shape, len(self.shape)), np.float32)

    def displacement(self, theta: Theta) -> Array:
        """The parameters."""
        return theta.astype(np.float32, copy=False)

    def pull_back(self, theta: Theta, force: Theta) -> Theta:
        """``G (1 + Du)^T f``, in the chart ``G f``."""
        if self.composed:
            pulled = force.copy()
            # one axis at a time: all slopes at once would be as many fields as there are axes
            for axis in range(theta.shape[-1]):
                pulled[..., axis] += array_module(force).einsum("...k,...k->...", force, _slope(theta, axis))
            force = pulled
        return _smoothed(force, self.window_px)

    def advance(self, theta: Theta, step: Theta) -> Theta:
        """The composition that does not fold, the sum in the chart."""
        return self.take(theta, _smoothed(step, self.window_px))

    def take(self, theta: Theta, update: Theta) -> Theta:
        """The same for an update that is smooth already."""
        for _ in range(HALVINGS):
            moved = compose(update, theta) if self.composed else theta + update
            if self.composed and self.stiffness_px > 0:
                moved = _smoothed(moved, self.stiffness_px)
            if self.is_safe(moved):
                return moved
            update = update * np.float32(0.5)
        return theta

    def is_safe(self, displacement: Theta) -> bool:
        """Whether it is finite and folds nowhere inside the mask."""
        return bool(np.isfinite(displacement).all()) and least_jacobian(displacement, self.mask) > LEAST_JACOBIAN

    def shift(self, theta: Theta, step: Theta) -> Theta:
        """The smoothed step added."""
        return theta + _smoothed(step, self.window_px)

    def reach(self, step: Theta) -> float:
        """The longest vector of the smoothed step."""
        return _longest(_smoothed(step, self.window_px))

    def chart(self) -> Diffeomorphic:
        """With sums in place of compositions."""
        return replace(self, composed=False)

    def nearest(self, values: Array) -> Theta:
        """The displacement itself, smoothed until it is safe."""
        return unfolded(values, self.mask)

    def inverse(self, theta: Theta) -> Array:
        """By fixed point, (*shape, ndim)."""
        return invert(self.displacement(theta)).field

    def jacobian(self, theta: Theta) -> Float:
        """Central differences."""
        return np.asarray(jacobian_determinant(self.displacement(theta)), np.float64)


@dataclass(frozen=True, eq=False)
class Velocity:
    """A stationary velocity field (Arsigny et al. 2006): ``phi = exp(v)`` by scaling and squaring, with the inverse ``exp(-v)``.

    ``theta`` is v in pixels, a step is smoothed by ``window_px`` and added. The gradient is the exact transpose of the squarings.
    """

    shape: tuple[int, ...]
    window_px: float = 3.0
    mask: Mask | None = None
    linear: bool = field(default=False, init=False)
    flat: bool = field(default=False, init=False)
    _last: list[Any] = field(default_factory=list, init=False, repr=False)

    def start(self) -> Theta:
        """Zeros."""
        return np.zeros((*self.shape, len(self.shape)), np.float32)

    def _steps(self, theta: Theta) -> list[Array]:
        """The squarings; those of the velocity that was asked for last are kept, since every evaluation asks several times."""
        if not (self._last and self._last[0] is theta):
            self._last[:] = [theta, _squarings(theta)]
        return self._last[1]  # type: ignore[no-any-return]

    def displacement(self, theta: Theta) -> Array:
        """``exp(v) - id``."""
        return self._steps(theta)[-1]

    def pull_back(self, theta: Theta, force: Theta) -> Theta:
        """Back through every squaring, then smoothed."""
        steps = self._steps(theta)
        for half in reversed(steps[:-1]):
            force = square_adjoint(half, force)
        return _smoothed(force / 2 ** (len(steps) - 1), self.window_px)

    def advance(self, theta: Theta, step: Theta) -> Theta:
        """The smoothed step added, halved until the exponential does not fold on its grid."""
        update: Theta = _smoothed(step, self.window_px)
        for _ in range(HALVINGS):
            moved = theta + update
            if np.isfinite(moved).all() and least_jacobian(self.displacement(moved), self.mask) > LEAST_JACOBIAN:
                return moved
            update = update * np.float32(0.5)
        return theta

    def shift(self, theta: Theta, step: Theta) -> Theta:
        """The smoothed step added."""
        return theta + _smoothed(step, self.window_px)

    def reach(self, step: Theta) -> float:
        """The longest vector of the smoothed step."""
        return _longest(_smoothed(step, self.window_px))

    def chart(self) -> Velocity:
        """Itself: its steps add up."""
        return self

    def nearest(self, values: Array) -> Theta:
        """The logarithm of a displacement by ``v <- v + (u - (exp(v) - id))``, damped; exact for small ones."""
        goal = unfolded(values, self.mask)
        theta = goal.copy()
        for _ in range(5):
            theta = self.shift(theta, np.float32(0.7) * (goal - self.displacement(theta)))
        return theta

    def inverse(self, theta: Theta) -> Array:
        """``exp(-v) - id``."""
        return _squarings(-theta)[-1]

    def jacobian(self, theta: Theta) -> Float:
        """Central differences."""
        return np.asarray(jacobian_determinant(self.displacement(theta)), np.float64)


def _squarings(velocity: Theta) -> list[Array]:
    """The steps of the exponential: ``v / 2^n`` and its n squarings, as displacements."""
    count = squarings(velocity)
    fields = [(velocity * np.float32(0.5**count)).astype(np.float32, copy=False)]
    for _ in range(count):
        fields.append(compose(fields[-1], fields[-1]))
    return fields


def _smoothed(field: Theta, sigma_px: float) -> Array:
    return gaussian(field.astype(np.float32, copy=False), sigma_px, field.shape[-1])


def _slope(displacement: Theta, axis: int) -> Array:
    """``d u / d x_axis`` (*shape, ndim), central differences."""
    return array_module(displacement).gradient(displacement, axis=axis).astype(np.float32, copy=False)  # type: ignore[no-any-return]


def _longest(vectors: Theta) -> float:
    return float(np.sqrt(max(float((vectors**2).sum(axis=-1).max()), 0.0))) if vectors.size else 0.0


def unfolded(displacement: Array, mask: Mask | None) -> Array:
    """The displacement (*shape, ndim) in pixels, smoothed just as much as it takes for it not to fold inside the mask."""
    for _ in range(30):
        if least_jacobian(displacement, mask) > LEAST_JACOBIAN:
            return displacement
        displacement = _smoothed(displacement, 1.5)
    return array_module(displacement).zeros_like(displacement)  # type: ignore[no-any-return]
