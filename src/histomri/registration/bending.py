"""One plane bent onto others that it resembles: coarse to fine, on nodes, without folds (see ``node_flow``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.registration.alignment import View
from histomri.registration.node_flow import Bending, Level, Pyramid, bend, finer, make_levels
from histomri.registration.planar import DEFAULTS, displacement, level_grids
from histomri.transforms.displacement import DisplacementField

Float = NDArray[np.float64]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """``bending`` of the finest level, ``stiffer`` times as stiff on each coarser one; ``stride`` in pixels between nodes;
    ``outline``: how much the tissue masks themselves count.
    """

    bending: Bending = field(default_factory=Bending)
    stiffer: float = 1.0
    stride: int = 4
    outline: float = 0.0

    def with_stiffness(self, alpha: float) -> Plan:
        """The same at another stiffness of the finest level."""
        return replace(self, bending=replace(self.bending, alpha=alpha))


# chosen on the digital block and on every tenth section of BigBrain: docs/decisions/registration.md
TO_PHOTOGRAPH = Plan(Bending(alpha=0.5, window=4.0))
TO_VOLUME = Plan(Bending(alpha=0.1, window=2.0), stiffer=3.0, stride=2, outline=1.5)


@dataclass(frozen=True, eq=False)
class Goal:
    """An image to bend onto, and how much it counts beside others."""

    plane: Pyramid
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Joint:
    """Levels of several fixed images and one moving one, as one: their sums, weighted."""

    levels: tuple[Level, ...]
    weights: tuple[float, ...]

    @property
    def nodes(self) -> tuple[int, int]:
        """How many nodes there are along y and x."""
        return self.levels[0].nodes

    @property
    def stride(self) -> int:
        """Pixels between nodes."""
        return self.levels[0].stride

    def terms(self, field: Array, gain: Sequence[Array]) -> Array:
        """The Gauss-Newton sums on the nodes."""
        parts = zip(self.levels, self.weights, gain, strict=True)
        total: Array = np.sum([np.float32(w) * level.terms(field, g) for level, w, g in parts], axis=0, dtype=np.float32)
        return total

    def tone_gain(self, field: Array, strength: float) -> tuple[Array, ...]:
        """How far the tones can be compared, for each of the fixed images."""
        return tuple(level.tone_gain(field, strength) for level in self.levels)


@dataclass(frozen=True, eq=False)
class Bent:
    """``field`` in mm on nodes over the fixed plane, before the affine; the cost of the last level; how it ended."""

    field: DisplacementField
    cost: float
    status: str


def masked_pyramid(image: Image, mask: Image) -> Pyramid:
    """A plane and its halves; what is not tissue is 0."""
    inside = np.asarray(mask.data, bool)
    return Pyramid.of(View(Image(image.grid, np.where(inside, image.data, 0).astype(np.float32)), Image(mask.grid, inside)))


def bend_onto(goals: Sequence[Goal], moving: Pyramid, matrix: Float, plane: Grid, plan: Plan) -> Bent:
    """The displacement u over ``plane`` such that moving(matrix(p + u(p))) looks like all goals at p; it never folds.

    ``matrix`` (3, 3) maps the goals' world (mm) to the moving image's.
    """
    grids = level_grids(plane, float(plane.spacing_mm.max()), DEFAULTS.coarsest_px, plan.stride)
    nodes, cost, status = None, np.inf, "stopped"
    for coarser, grid in zip(range(len(grids) - 1, -1, -1), grids, strict=True):
        levels = make_levels([g.plane for g in goals], moving, matrix, grid, plan.stride, DEFAULTS.robust, plan.outline)
        level = Joint(levels, tuple(g.weight for g in goals))
        nodes = np.zeros((*level.nodes, 2), np.float32) if nodes is None else finer(nodes, level.nodes)
        stiff = replace(plan.bending, alpha=plan.bending.alpha * plan.stiffer**coarser)
        nodes, cost, status = bend(level, nodes, stiff)
    assert nodes is not None
    return Bent(displacement(grids[-1], plan.stride, nodes), cost, status)
