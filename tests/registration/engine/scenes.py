"""Pairs of images whose transform is known: one procedural texture, evaluated where the truth says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from histomri.core import Grid, Image
from histomri.registration.engine import Fit

Float = NDArray[np.float64]
SIZE = {2: 60, 3: 26}
SPACING = {2: 0.2, 3: 0.5}
# metrics that see through an inverted contrast
BLIND = ("lncc", "cr", "mi", "nmi", "ngf", "mind")


@dataclass(frozen=True, eq=False)
class Scene:
    """Two images and the map (fixed mm to moving mm) that was put between them."""

    fixed: Image
    moving: Image
    matrix: Float
    bend: Float

    def truth(self, points: Float) -> Float:
        """Where points are in the moving image."""
        bent = points + displacement(points, self.bend, self.reach) if self.bend.size else points
        return np.asarray(bent @ self.matrix[:-1, :-1].T + self.matrix[:-1, -1])

    @property
    def reach(self) -> float:
        return float(self.fixed.grid.extent_mm.min()) / 2

    def error_px(self, found: Fit | None = None) -> float:
        """Mean distance to the truth over the inner part, in pixels; of the identity without a fit."""
        points = self.fixed.grid.points().reshape(-1, self.fixed.grid.ndim)
        points = points[(np.abs(points) < 0.75 * self.reach).all(axis=1)]
        mapped = points if found is None else found.transform.map(points)
        return float(np.linalg.norm(mapped - self.truth(points), axis=1).mean() / self.fixed.grid.spacing_mm[0])


def centred(n: int, spacing: float, ndim: int) -> Grid:
    """A cube of nodes about the origin."""
    return Grid((n,) * ndim, np.full(ndim, spacing), np.full(ndim, -(n - 1) / 2 * spacing))


def texture(points: Float, inverted: bool = False, seed: int = 2) -> NDArray[np.float32]:
    """Blobs of several sizes with soft edges, 8 to 20 pixels of the scene's grid across, about -1 to 1."""
    ndim = points.shape[-1]
    random = np.random.default_rng(seed)
    direction = random.normal(size=(16, ndim))
    period = SPACING[ndim] * np.repeat([20.0, 11.0], 8) * {2: 1.0, 3: 0.8}[ndim]
    waves = 2 * np.pi * direction / np.linalg.norm(direction, axis=1, keepdims=True) / period[:, None]
    values = np.tanh(1.2 * np.cos(points @ waves.T + random.uniform(0, 2 * np.pi, 16)).sum(axis=-1) / 2)
    return np.asarray(-values if inverted else values, np.float32)


def displacement(points: Float, bend: Float, reach: float) -> Float:
    """A smooth displacement in mm that dies away towards the border."""
    ndim = points.shape[-1]
    envelope = np.exp(-0.5 * (np.linalg.norm(points, axis=-1, keepdims=True) / (0.75 * reach)) ** 4)
    phase = np.sin(points[..., [*range(1, ndim), 0]] * (1.1 * np.pi / reach) + 0.7)
    return np.asarray(bend * phase * envelope)


def linear_truth(model: str, ndim: int) -> Float:
    """A transform of the model, one to three pixels from the identity."""
    out = np.eye(ndim + 1)
    if model != "translation":
        skew = np.triu(np.array([[0, 0.08, -0.06], [0, 0, 0.07], [0, 0, 0]])[:ndim, :ndim])
        out[:-1, :-1] = expm(skew - skew.T)
    out[:-1, :-1] *= 1.05 if model == "similarity" else 1.0
    if model == "affine":
        out[:-1, :-1] = out[:-1, :-1] @ np.diag([0.95, 1.05, 1.02][:ndim])
        out[0, 1] += 0.04
    out[:-1, -1] = SPACING[ndim] * np.array([1.2, -0.9, 0.8])[:ndim]
    return out


def linear_scene(model: str, ndim: int, inverted: bool = False) -> Scene:
    """The moving image has other pixels than the fixed one."""
    fixed = centred(SIZE[ndim], SPACING[ndim], ndim)
    moving = centred(int(SIZE[ndim] * 1.2), SPACING[ndim] * 0.97, ndim)
    matrix = linear_truth(model, ndim)
    back = np.linalg.inv(matrix)
    points = moving.points() @ back[:-1, :-1].T + back[:-1, -1]
    return Scene(Image(fixed, texture(fixed.points())), Image(moving, texture(points, inverted)), matrix, np.zeros(0))


def bent_scene(ndim: int, inverted: bool = False, pixels: float = 1.5) -> Scene:
    """A displacement of up to ``pixels``."""
    grid = centred(SIZE[ndim], SPACING[ndim], ndim)
    bend = pixels * SPACING[ndim] * np.array([1.0, -0.8, 0.9])[:ndim]
    points = grid.points()
    there = points + displacement(points, bend, float(grid.extent_mm.min()) / 2)
    return Scene(Image(grid, texture(there)), Image(grid, texture(points, inverted)), np.eye(ndim + 1), bend)
