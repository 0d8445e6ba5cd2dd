"""The bend of the cutting planes: a smooth displacement along the cutting axis, from the depths of parts of the sections.

A block that was embedded, fixed or warmed bends, and its planes are then no planes of the MRI. Each section is held, in nine
parts, against MRI planes before and behind its own (``registration.depth``); a smooth field through what they say is the bend.
Smoothness is bought with second derivatives (a thin-plate spline on nodes, so that offset, scale and tilt cost nothing), and
how much of it is decided by sections that were left out: pairs of neighbours, since neighbours err alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, eye_array
from scipy.sparse.linalg import splu

from histomri.core import Grid
from histomri.kernels.displacement import inverted_along
from histomri.transforms.displacement import INVERSE_ITERATIONS, INVERSE_TOLERANCE_MM, DisplacementField

Float = NDArray[np.float64]
Ints = NDArray[np.int64]

PARTS = 3
NODES = (9, 5, 5)
# of the mean square second derivative over the block, with half its size as the unit of length
STIFFNESS = (0.1, 0.01, 1e-3, 3e-4, 1e-4)
STIFFEST = 1e6
FOLDS, RUN = 4, 2
LEAST_SECTIONS = 8
# a bend must bring the error at sections left out down to this share of what offset, scale and tilt leave
GAIN = 0.85
TUKEY = 4.685
ROUNDS = 8
# a steeper field along z could hardly be inverted
STEEPEST = 0.5


@dataclass(frozen=True, eq=False)
class Depths:
    """What parts of sections say: ``points`` (n, 3) by the affine pose alone (z, y, x mm), by how many mm ``along_mm`` (n,) their
    section's plane lies further on than that, and the number of each part's section in the stack, ``section`` (n,).
    """

    points: Float
    along_mm: Float
    section: Ints

    def chosen(self, which: NDArray[np.bool_]) -> Depths:
        """Some of them."""
        return Depths(self.points[which], self.along_mm[which], self.section[which])

    def folds(self) -> Ints:
        """Of which of ``FOLDS`` sets of sections each part is, (n,): every fourth run of ``RUN`` neighbours."""
        place = np.unique(self.section, return_inverse=True)[1]
        return np.asarray(place // RUN % FOLDS, np.int64)


@dataclass(frozen=True, eq=False)
class Lattice:
    """Values on the nodes of a (z, y, x) grid, linear between them."""

    grid: Grid

    @staticmethod
    def over(low: Float, high: Float) -> Lattice:
        """``NODES`` nodes over a box, (3,) and (3,) in mm."""
        return Lattice(Grid(NODES, (high - low) / (np.array(NODES) - 1), low))

    def weights(self, points: Float) -> csr_array:
        """How much each node counts at points, (n, 3) mm: (n, nodes). Beyond the nodes the nearest edge holds."""
        shape = np.array(self.grid.shape)
        index = np.clip(self.grid.to_index(points), 0, shape - 1)
        first = np.minimum(index.astype(int), shape - 2)
        share, corners = index - first, list(np.ndindex(2, 2, 2))
        nodes = [np.ravel_multi_index(tuple((first + corner).T), self.grid.shape) for corner in corners]
        values = [np.where(corner, share, 1 - share).prod(axis=1) for corner in corners]
        rows = np.tile(np.arange(len(points)), len(corners))
        return csr_array((np.concatenate(values), (rows, np.concatenate(nodes))), (len(points), int(shape.prod())))

    @cached_property
    def roughness(self) -> csr_array:
        """The matrix whose form is the mean square second derivative over the lattice, (nodes, nodes)."""
        nodes = np.eye(int(np.prod(self.grid.shape))).reshape(*self.grid.shape, -1)
        steps = [2 / (n - 1) for n in self.grid.shape]
        total = csr_array((nodes.shape[-1],) * 2)
        for a in range(3):
            for b in range(a, 3):
                second = np.diff(np.diff(nodes, axis=a), axis=b) / (steps[a] * steps[b])
                rows = csr_array(second.reshape(-1, nodes.shape[-1]))
                total = total + (1 if a == b else 2) * (rows.T @ rows) / rows.shape[0]
        return total

    def fit(self, depths: Depths, stiffness: float) -> Float:
        """Node values (nodes,) by least squares, re-weighted with Tukey's weights.

        Sparse, and so by one thread: sums of a dense solver depend on how many it has.
        """
        weights = self.weights(depths.points)
        stiff = stiffness * self.roughness + 1e-9 * eye_array(weights.shape[1])
        trust: Float = np.ones(len(depths.along_mm))
        values: Float = np.zeros(weights.shape[1])
        for _ in range(ROUNDS):
            share = trust / max(float(trust.sum()), 1.0)
            normal = weights.T @ diags_array(share) @ weights + stiff
            values = np.asarray(splu(normal.tocsc()).solve(weights.T @ (share * depths.along_mm)), np.float64)
            residual = depths.along_mm - weights @ values
            spread = 1.4826 * float(np.median(np.abs(residual))) + 1e-6
            trust = np.clip(1 - (residual / (TUKEY * spread)) ** 2, 0, None) ** 2
        return values

    def left_out_error(self, depths: Depths, stiffness: float) -> float:
        """Median absolute error in mm at sections that the fit did not see, one fold after another."""
        folds, error = depths.folds(), np.zeros(len(depths.along_mm))
        for fold in np.unique(folds):
            out = folds == fold
            values = self.fit(depths.chosen(~out), stiffness)
            error[out] = depths.along_mm[out] - self.weights(depths.points[out]) @ values
        return float(np.median(np.abs(error)))


@dataclass(frozen=True, eq=False)
class Bend:
    """A bend that was found: ``field`` as :class:`Placements` has it, the median error in mm at sections left out (without and
    with it), and its size in mm where the sections have tissue.
    """

    field: DisplacementField
    left_out_mm: tuple[float, float]
    rms_mm: float
    largest_mm: float

    def in_words(self) -> str:
        """For the log."""
        before, after = self.left_out_mm
        size = f"bent by {self.rms_mm:.3f} mm rms, {self.largest_mm:.3f} at most"
        return f"{size}; at sections left out {before:.3f} -> {after:.3f} mm"

    def record(self) -> dict[str, float]:
        """For the quality of the placements."""
        return {"plane_bend_rms_mm": round(self.rms_mm, 4), "plane_bend_largest_mm": round(self.largest_mm, 4)}


def before_bend(bend: DisplacementField | None, points: Float) -> Float:
    """The points (n, 3) that a bend takes to ``points``: what its inverse says, and much faster, since it moves along z alone."""
    if bend is None:
        return points
    grid = bend.grid
    along = np.ascontiguousarray(bend.values[..., 0] / grid.spacing_mm[0], np.float64)
    tolerance = INVERSE_TOLERANCE_MM / float(grid.spacing_mm[0])
    z = inverted_along(along, np.ascontiguousarray(grid.to_index(points)), tolerance, INVERSE_ITERATIONS)
    return np.column_stack([grid.origin_mm[0] + z * grid.spacing_mm[0], points[:, 1:]])


def bend_data(found: Sequence[tuple[int, Float, float]], bend: DisplacementField | None) -> Depths:
    """From section number, block point (z, y, x) and depth in mm of each part, measured under ``bend``."""
    here = np.array([p for _, p, _ in found], float).reshape(-1, 3)
    points = here + np.array([[d, 0.0, 0.0] for _, _, d in found]).reshape(-1, 3)
    points = before_bend(bend, points)
    return Depths(points, here[:, 0] - points[:, 0], np.array([i for i, _, _ in found], np.int64))


def find_bend(depths: Depths, box: tuple[Float, Float], now: DisplacementField | None = None) -> Bend | None:
    """The bend within ``box`` (ends (3,) and (3,) in mm) that explains sections left out best.

    None where there are too few sections, or the planes as they are (``now``), or with another offset, scale and tilt, explain
    them about as well. Once they are known to be bent, any gain counts.
    """
    if len(np.unique(depths.section)) < LEAST_SECTIONS or not (box[1] > box[0]).all():
        return None
    lattice = Lattice.over(*box)
    old = 0.0 if now is None else now.at(depths.points)[:, 0]
    before = min(float(np.median(np.abs(depths.along_mm - old))), lattice.left_out_error(depths, STIFFEST))
    errors = {s: lattice.left_out_error(depths, s) for s in STIFFNESS}
    best = min(errors, key=lambda s: errors[s])
    if errors[best] >= (GAIN if now is None else 1.0) * before:
        return None
    values = np.zeros((*NODES, 3))
    values[..., 0] = lattice.fit(depths, best).reshape(NODES)
    if np.abs(np.diff(values[..., 0], axis=0)).max() > STEEPEST * lattice.grid.spacing_mm[0]:
        return None
    field = DisplacementField(lattice.grid, values)
    size = field.at(depths.points)[:, 0]
    return Bend(field, (before, errors[best]), float(np.sqrt((size**2).mean())), float(np.abs(size).max()))
