"""Thin-plate splines through landmarks, or near them: the smoothest map, in the sense of bending energy.

    T(p) = A p + t + sum_i w_i U(|p - p_i|),   U(r) = r^2 log r in 2D, -r in 3D
    [K + lambda n I   P] [w]   [q]
    [P^T              0] [A] = [0],   K_ij = U(|p_i - p_j|),  P = (1, p_i)

in points centred and over their rms radius, so that lambda is a pure number (Bookstein 1989; Rohr et al. 2001).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histomri.core import Grid, InputError
from histomri.core.errors import Problem
from histomri.registration.engine.models import frame_of
from histomri.transforms.base import Transform

Float = NDArray[np.float64]
CHUNK = 1 << 16
NEWTON_STEPS = 30


@dataclass(frozen=True, eq=False)
class ThinPlateSpline(Transform):
    """``q = T(p)`` in mm; ``inverted`` maps backwards, by Newton's method.

    ``frame`` takes normalised points to mm, ``nodes`` (n, ndim) are normalised, ``weights`` (n, ndim) and ``affine``
    (ndim + 1, ndim) the solution in normalised fixed points and mm of moving ones.
    """

    frame: Float
    nodes: Float
    weights: Float
    affine: Float
    from_space: str = ""
    to_space: str = ""
    inverted: bool = False

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return int(self.nodes.shape[1])

    def map(self, points: ArrayLike) -> Float:
        """The mapped points (..., ndim); NaN where the inverse was not found."""
        points = np.asarray(points, float)
        flat = points.reshape(-1, self.ndim)
        one = self._backward if self.inverted else self._forward
        parts = [one(flat[i : i + CHUNK]) for i in range(0, len(flat), CHUNK)]
        return np.concatenate(parts).reshape(points.shape) if parts else points.copy()

    def inverse(self) -> ThinPlateSpline:
        """The other way."""
        return replace(self, from_space=self.to_space, to_space=self.from_space, inverted=not self.inverted)

    def jacobian(self, points: ArrayLike) -> Float:
        """``dT/dp`` (..., ndim, ndim) of the forward map at points (..., ndim) in mm."""
        points = np.asarray(points, float)
        x = self._normalised(points.reshape(-1, self.ndim))
        off = x[:, None] - self.nodes
        distance = np.linalg.norm(off, axis=-1)
        slope = off * _slope_over_r(distance, self.ndim)[..., None]
        by_x = self.affine[1:].T + np.einsum("pnj,ni->pij", slope, self.weights)
        return np.asarray((by_x / self.frame[0, 0]).reshape(*points.shape, self.ndim), np.float64)

    def _normalised(self, points: Float) -> Float:
        return np.asarray((points - self.frame[:-1, -1]) / self.frame[0, 0], np.float64)

    def _forward(self, points: Float) -> Float:
        x = self._normalised(points)
        kernel = _kernel(np.linalg.norm(x[:, None] - self.nodes, axis=-1), self.ndim)
        bent = np.einsum("pn,ni->pi", kernel, self.weights)
        return np.asarray(bent + x @ self.affine[1:] + self.affine[0], np.float64)

    def _backward(self, goal: Float) -> Float:
        linear = self.affine[1:].T / self.frame[0, 0]
        at = np.linalg.solve(linear, (goal - self.affine[0]).T).T + self.frame[:-1, -1]
        scale = float(np.abs(self.frame[:-1, :-1]).max())
        for _ in range(NEWTON_STEPS):
            off = self._forward(at) - goal
            if float(np.abs(off).max(initial=0.0)) < 1e-9 * scale:
                return at
            at = at - np.linalg.solve(self.jacobian(at), off[..., None])[..., 0]
        lost = np.abs(self._forward(at) - goal).max(axis=1) > 1e-6 * scale
        return np.where(lost[:, None], np.nan, at)

    def jacobian_determinant(self, grid: Grid) -> Float:
        """Determinant of the forward map's Jacobian at every node, (*grid.shape). For small grids only."""
        return np.asarray(np.linalg.det(self.jacobian(grid.points())), np.float64)


def landmark_spline(fixed: ArrayLike, moving: ArrayLike, approximation: float = 0.0) -> ThinPlateSpline:
    """The spline that takes landmarks ``fixed`` (n, ndim) to ``moving`` (n, ndim), both in mm.

    ``approximation`` 0 goes through them all; larger values trade distance for smoothness, 1 is nearly affine.

    Raises ``InputError`` for fewer than ndim + 1 landmarks, for some that coincide, and where all lie on a line or in a plane.
    """
    p, q = np.asarray(fixed, float), np.asarray(moving, float)
    _check(p, q, approximation)
    ndim, n = p.shape[1], len(p)
    frame = frame_of(p)
    nodes = (p - frame[:-1, -1]) / frame[0, 0]
    kernel = _kernel(np.linalg.norm(nodes[:, None] - nodes, axis=-1), ndim)
    plane = np.concatenate([np.ones((n, 1)), nodes], axis=1)
    system = np.block([[kernel + approximation * n * np.eye(n), plane], [plane.T, np.zeros((ndim + 1, ndim + 1))]])
    solved = np.asarray(np.linalg.solve(system, np.concatenate([q, np.zeros((ndim + 1, ndim))])), np.float64)
    return ThinPlateSpline(frame, nodes, solved[:n], solved[n:])


def _check(fixed: Float, moving: Float, approximation: float) -> None:
    def refuse(what: str, remedy: str) -> InputError:
        return InputError(Problem("landmarks", what, remedy))

    if fixed.ndim != 2 or fixed.shape != moving.shape or fixed.shape[1] not in (2, 3):
        raise refuse(f"two lists (n, 2) or (n, 3) were expected, found {fixed.shape} and {moving.shape}", "pair them up")
    if not (np.isfinite(fixed).all() and np.isfinite(moving).all()) or not approximation >= 0:
        raise refuse("coordinates and approximation must be finite, and that at least 0", "correct them")
    ndim = fixed.shape[1]
    if len(fixed) <= ndim:
        raise refuse(f"at least {ndim + 1} are needed, found {len(fixed)}", "add some")
    spread = np.linalg.svd(fixed - fixed.mean(axis=0), compute_uv=False)
    if spread[-1] < 1e-3 * spread[0]:
        raise refuse("all lie on a line or in a plane", "add some away from it")
    gaps = np.linalg.norm(fixed[:, None] - fixed, axis=-1) + np.eye(len(fixed)) * spread[0]
    if approximation == 0 and float(gaps.min()) < 1e-9 * spread[0]:
        raise refuse("two are at the same fixed point", "leave one out, or approximate")


def _kernel(r: Float, ndim: int) -> Float:
    if ndim == 3:
        return -r
    return np.asarray(r**2 * np.log(np.maximum(r, 1e-300)), np.float64)


def _slope_over_r(r: Float, ndim: int) -> Float:
    """``U'(r) / r``; at r = 0, where only its product with the vanishing offset counts, finite."""
    safe = np.maximum(r, 1e-300)
    return np.asarray(np.where(r > 0, -1 / safe, 0.0) if ndim == 3 else 2 * np.log(safe) + 1, np.float64)
