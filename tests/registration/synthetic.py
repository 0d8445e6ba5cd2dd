"""Synthetic tissue as a function of space, so that a moved image is exact and not interpolated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image

Float = NDArray[np.float64]


class Tissue:
    """An outline without symmetry and texture of several scales, about 10 mm across and centred on the origin, in 2D or 3D.

    ``symmetry`` True makes it a disc or an ellipsoid of even colour, ``detail`` scales the texture.
    """

    def __init__(self, ndim: int, seed: int = 0, symmetric: bool = False, detail: float = 1.0):
        random = np.random.default_rng(seed)
        self.ndim, self.symmetric, self.detail = ndim, symmetric, detail
        period = np.repeat([5.0, 2.5, 1.2], 8)
        direction = random.normal(size=(24, ndim))
        self.wave = 2 * np.pi * direction / np.linalg.norm(direction, axis=1, keepdims=True) / period[:, None]
        self.phase = random.uniform(0, 2 * np.pi, 24)
        self.height = np.repeat([1.0, 0.8, 0.6], 8) / 4

    def inside(self, points: Float) -> NDArray[np.bool_]:
        """Which points lie in the tissue: an ellipse with a bulge and a notch."""
        axes = np.array([3.2, 4.6]) if self.ndim == 2 else np.array([2.9, 3.6, 4.6])
        body = ((points / axes) ** 2).sum(axis=-1) < 1
        if self.symmetric:
            return np.asarray(body)
        at = {2: ([-2.4, 2.8], [2.6, -0.6]), 3: ([-1.8, -2.0, 2.8], [1.4, 2.9, -0.8])}[self.ndim]
        bulge = ((points - np.array(at[0])) ** 2).sum(axis=-1) < 1.6**2
        notch = ((points - np.array(at[1])) ** 2).sum(axis=-1) < 1.3**2
        return np.asarray((body | bulge) & ~notch)

    def texture(self, points: Float) -> Float:
        """About -1 to 1."""
        if self.symmetric:
            return np.zeros(points.shape[:-1])
        return np.asarray((np.cos(points @ self.wave.T + self.phase) * self.height).sum(axis=-1))

    def image(self, grid: Grid, to_tissue: Float | None = None, inverted: bool = False) -> tuple[Image, Image]:
        """Image and mask on a grid, whose points ``to_tissue`` (homogeneous, mm) takes to the tissue."""
        points = moved(np.eye(self.ndim + 1) if to_tissue is None else to_tissue, grid.points())
        inside = self.inside(points)
        colour = 1.5 + (-0.5 if inverted else 0.5) * self.detail * np.clip(self.texture(points), -2, 2)
        return Image(grid, np.where(inside, colour, 0).astype(np.float32)), Image(grid, inside)


def moved(matrix: Float, points: Float) -> Float:
    """Points (..., ndim) under a homogeneous matrix."""
    return np.asarray(points @ matrix[:-1, :-1].T + matrix[:-1, -1])


def rigid(angle_deg: float, mirrored: bool = False, shift: tuple[float, float] = (0.0, 0.0)) -> Float:
    """A rigid (3, 3) matrix in (y, x)."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    out = np.eye(3)
    out[:2, :2] = np.array([[c, s], [-s, c]])
    if mirrored:
        out[:2, :2] = np.diag([1.0, -1.0]) @ out[:2, :2]
    out[:2, 2] = shift
    return out


def centred(n: int, spacing: float, ndim: int = 2) -> Grid:
    """A cube of ``n`` nodes about the origin."""
    return Grid((n,) * ndim, np.full(ndim, spacing), np.full(ndim, -(n - 1) / 2 * spacing))


def apart(a: Float, b: Float, radius: float = 4.0) -> float:
    """Rms distance in mm between two maps over a ball of ``radius`` about the origin."""
    ndim = len(a) - 1
    points = np.random.default_rng(1).normal(size=(500, ndim))
    points *= (radius * np.random.default_rng(2).random(500) ** (1 / ndim) / np.linalg.norm(points, axis=1))[:, None]
    return float(np.sqrt(((moved(a, points) - moved(b, points)) ** 2).sum(axis=1).mean()))
