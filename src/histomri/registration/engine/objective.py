"""The one objective: ``J(theta) = D(f, m o T(theta)) + alpha R(theta) + beta L(theta)``, with its derivative by the chain rule.

    q(p) = A (p + u(p)),   dJ/du = A^T sum_c force_c grad m_c(q) + alpha dR/du + beta dL/du

and, for a linear model, ``dJ/dA = sum_p sum_c force_c grad m_c(q) (p, 1)^T``. The metric knows nothing of transforms, the model
nothing of images. The weight is the fixed one times the moving one under the transform, and counts as constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from histomri.backend import beside, to_device
from histomri.core import Grid
from histomri.kernels.interpolate import warp
from histomri.kernels.normal_equations import normal_equations
from histomri.registration.engine.models import Diffeomorphic, Linear, Model
from histomri.registration.engine.parts import dissimilarity, evaluate, newton, overlap
from histomri.registration.engine.regularisation import landmark_distance, penalty
from histomri.registration.metrics import Metric
from histomri.registration.samples import Channels, draw_samples
from histomri.tiling.boxes import Box, boxes

Float = NDArray[np.float64]
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Level:
    """Both images at one level: features (*shape, c) and weights (*shape), each on its own grid.

    ``outer`` (ndim + 1, ndim + 1) takes the moving grid's mm to those of the moving image: the identity, or the pose in which the
    moving image was resampled before its features were made. ``tile`` is the shape of the parts that are evaluated one at a time,
    on ``device``; empty for the whole.
    """

    fixed: Grid
    moving: Grid
    fixed_features: Array
    moving_features: Array
    weight: Array
    moving_weight: Array
    outer: Float
    tile: tuple[int, ...] = ()
    device: str = "cpu"

    @cached_property
    def boxes(self) -> list[Box]:
        """The parts in which the fixed grid is evaluated."""
        return boxes(self.fixed.shape, self.tile or self.fixed.shape)

    def onto(self, matrix: Float) -> Float:
        """A matrix (fixed mm to moving mm) as one from indices to indices of the level."""
        inner = np.linalg.solve(self.outer, matrix)
        return np.asarray(self.moving.world_to_index @ inner @ self.fixed.index_to_world, np.float64)

    def overlap(self, matrix: Float, displacement: Array | None = None) -> Array:
        """The fixed weight times the moving one under a matrix of indices and a displacement."""
        moved: Array = warp(self.moving_weight, matrix, self.fixed.shape, displacement)
        return self.weight * moved


@dataclass(frozen=True, eq=False)
class Guidance:
    """Corresponding points, fixed and moving, (n, ndim) in mm; their distance counts in ``unit_mm`` and with ``weight``."""

    fixed: Float
    moving: Float
    weight: float
    unit_mm: float


@dataclass(frozen=True, eq=False)
class Objective:
    """A problem for the optimisers. ``matrix``, indices to indices, is what lies behind a deformable model.

    ``penalties`` are the weights of the terms of ``regularisation``, in which lengths count in ``unit_mm``; where less than
    ``least_weight`` of both masks meet, the value is infinite.
    """

    level: Level
    metric: Metric
    model: Model
    matrix: Float
    penalties: dict[str, float] = field(default_factory=dict)
    unit_mm: float = 1.0
    guidance: Guidance | None = None
    least_weight: float = 0.0

    @property
    def flat(self) -> bool:
        """Whether steps add up without a check."""
        return self.model.flat

    def advance(self, theta: Float, step: Float) -> Float:
        """Where a step leads."""
        return self.model.advance(theta, step)

    def shift(self, theta: Float, step: Float) -> Float:
        """The same without a check."""
        return self.model.shift(theta, step)

    def reach(self, step: Float) -> float:
        """The longest displacement of a step, in pixels."""
        return self.model.reach(step)

    def chart(self) -> Objective:
        """With steps that add up."""
        return replace(self, model=self.model.chart())

    def at(self, theta: Float) -> tuple[float, Float]:
        """Value and gradient; infinite where the transform is out of bounds or the images hardly meet."""
        if isinstance(self.model, Linear) and not self.model.allowed(theta):
            return np.inf, np.zeros_like(theta)
        placed = self.model.displacement(theta)
        matrix, displacement = (placed, None) if self.model.linear else (self.matrix, placed)
        value, force = evaluate(self.level, self.metric, matrix, displacement, self.least_weight)
        if not np.isfinite(value):
            return np.inf, np.zeros(self.model.start().shape)
        slope = np.linalg.solve(matrix[:-1, :-1].T, force) if displacement is None else force
        for part, more in self._others(matrix, displacement):
            value, slope = value + part, slope + beside(more, slope)
        return value, self.model.pull_back(theta, slope)

    def dissimilarity(self, theta: Float) -> float:
        """The metric's value alone."""
        placed = self.model.displacement(theta)
        matrix, displacement = (placed, None) if self.model.linear else (self.matrix, placed)
        if not overlap(self.level, matrix, displacement) > self.least_weight:
            return np.inf
        return dissimilarity(self.level, self.metric, matrix, displacement)

    def _others(self, matrix: Float, displacement: Array | None) -> list[tuple[float, Any]]:
        """Values of the penalties and the landmarks, and their derivatives by the displacement or the matrix, on the CPU."""
        out, displacement = [], None if displacement is None else to_device(displacement, "cpu")
        if displacement is not None and self.penalties:
            out.append(penalty(self.penalties, displacement, self.level.fixed.spacing_mm / self.unit_mm))
        if self.guidance is not None:
            out.append(self._landmarks(matrix, displacement))
        return out

    def _landmarks(self, matrix: Float, displacement: Array | None) -> tuple[float, Float]:
        index, to_mm = self.level.fixed.to_index(self.guidance.fixed), self._moving_mm[:, :-1]  # type: ignore[union-attr]
        if displacement is not None:
            index = index + self._landmark_weights @ displacement.reshape(-1, self.level.fixed.ndim).astype(np.float64)
        mapped = (index @ matrix[:-1, :-1].T + matrix[:-1, -1]) @ to_mm.T + self._moving_mm[:, -1]
        value, force = landmark_distance(mapped, self.guidance.moving, self.guidance.unit_mm)  # type: ignore[union-attr]
        beta = self.guidance.weight  # type: ignore[union-attr]
        pulled = beta * force @ to_mm
        if displacement is None:
            return beta * value, np.einsum("pi,pj->ij", pulled, _homogeneous(index))
        return beta * value, (self._landmark_weights.T @ (pulled @ matrix[:-1, :-1])).reshape(displacement.shape)

    @cached_property
    def _moving_mm(self) -> Float:
        """Indices of the level's moving grid to mm of the moving image, (ndim, ndim + 1)."""
        return np.asarray(self.level.outer @ self.level.moving.index_to_world, np.float64)[:-1]

    @cached_property
    def _landmark_weights(self) -> Any:
        """Linear interpolation of the nodes at the fixed landmarks, sparse (n, nodes)."""
        return node_weights(self.level.fixed.to_index(self.guidance.fixed), self.level.fixed.shape)  # type: ignore[union-attr]

    def terms(self, theta: Float) -> tuple[float, Float, Float]:
        """Value, half gradient and Gauss-Newton matrix of a linear model under a metric of residuals."""
        model = self.model
        assert isinstance(model, Linear)
        size = len(theta)
        if not model.allowed(theta):
            return np.inf, np.zeros(size), np.eye(size)
        weight = to_device(self.level.overlap(model.displacement(theta)), "cpu")
        if not float(weight.sum(dtype=np.float64)) > self.least_weight:
            return np.inf, np.zeros(size), np.eye(size)
        points, values, index = self._samples
        weights = weight.ravel()[index]
        if not weights.any():
            return np.inf, np.zeros(size), np.eye(size)
        value, slope, curve = normal_equations(points, values, weights, self._moving_features, model.framed(theta))
        chain = model.framed_tangents(theta).reshape(size, -1).T
        return self._with_landmarks(theta, (value, chain.T @ slope, chain.T @ curve @ chain))

    def newton(self, theta: Float) -> tuple[float, Array]:
        """Value and windowed Gauss-Newton update of a displacement under a metric of residuals (:func:`parts.newton`)."""
        assert isinstance(self.model, Diffeomorphic)
        placed = self.model.displacement(theta)
        return newton(self.level, self.matrix, placed, self.model.window_px, self.least_weight)

    def take(self, theta: Float, update: Array) -> Float:
        """Where an update leads."""
        assert isinstance(self.model, Diffeomorphic)
        return self.model.take(theta, update)

    def _with_landmarks(self, theta: Float, terms: tuple[float, Float, Float]) -> tuple[float, Float, Float]:
        guidance, model = self.guidance, self.model
        if guidance is None:
            return terms
        assert isinstance(model, Linear)
        to_mm = self._moving_mm[:, :-1]
        framed = _homogeneous((guidance.fixed - model.frame[:-1, -1]) / model.frame[0, 0])
        slopes = np.einsum("ij,kjl,pl->pik", to_mm, model.framed_tangents(theta), framed) / guidance.unit_mm
        off = (framed @ model.framed(theta).T @ to_mm.T + self._moving_mm[:, -1] - guidance.moving) / guidance.unit_mm
        scale = guidance.weight / len(off)
        gradient, curve = np.einsum("pik,pi->k", slopes, off), np.einsum("pik,pil->kl", slopes, slopes)
        return terms[0] + scale * float((off**2).sum()), terms[1] + scale * gradient, terms[2] + scale * curve

    @cached_property
    def _moving_features(self) -> Array:
        """Where the normal equations are computed, on the CPU."""
        return to_device(self.level.moving_features, "cpu")  # type: ignore[no-any-return]

    @cached_property
    def _samples(self) -> tuple[Float, Array, NDArray[np.intp]]:
        """Fixed points in the model's frame, their features, and their places in the flattened grid."""
        model, level = self.model, self.level
        assert isinstance(model, Linear)
        where = np.arange(level.weight.size, dtype=np.float64).reshape(*level.fixed.shape, 1)
        chosen = draw_samples(Channels(level.fixed, where, to_device(level.weight, "cpu")))  # type: ignore[arg-type]
        index = chosen.values[:, 0].astype(np.intp)
        world = chosen.points * chosen.radius + chosen.centre
        features = to_device(level.fixed_features, "cpu").reshape(-1, level.fixed_features.shape[-1])[index]
        return (world - model.frame[:-1, -1]) / model.frame[0, 0], np.ascontiguousarray(features), index


def _homogeneous(points: Float) -> Float:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def node_weights(index: Float, shape: tuple[int, ...]) -> Any:
    """Linear interpolation at indices (n, ndim), clamped to the grid, as a sparse matrix (n, nodes)."""
    last = np.asarray(shape) - 1
    at = np.clip(index, 0, last)
    first = np.minimum(at.astype(int), np.maximum(last - 1, 0))
    share = at - first
    rows, columns, weights = [], [], []
    for corner in np.ndindex(*(2,) * len(shape)):
        node = np.minimum(first + corner, last)
        rows.append(np.arange(len(index)))
        columns.append(np.ravel_multi_index(tuple(node.T), shape))
        weights.append(np.where(corner, share, 1 - share).prod(axis=1))
    joined = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array((np.concatenate(weights), joined), shape=(len(index), int(np.prod(shape))))
