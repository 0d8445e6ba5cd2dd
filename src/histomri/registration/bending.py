"""One plane bent onto others that it resembles: coarse to fine, on nodes, without folds (see ``node_flow``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.registration.alignment import Progress, View, silent
from histomri.registration.node_flow import Bending, Extras, Level, Pyramid, Seen, Still, bend, finer, levels_onto, make_both_ways
from histomri.registration.together import together
from histomri.transforms.displacement import DisplacementField

Float = NDArray[np.float64]
Array = NDArray[np.float32]

# pixels along the longer side of a plane at the coarsest level, at least
COARSEST_PX = 40


@dataclass(frozen=True)
class Plan:
    """``bending`` of the finest level, ``stiffer`` times as stiff on each coarser one; ``stride`` in pixels between nodes;
    ``outline``: how much the tissue masks themselves count; ``colour``: how much what the one image's brightness tells of the
    other's, everywhere alike; ``robust``: squared difference of the descriptors at which a pixel
    loses half of its say.
    """

    bending: Bending = field(default_factory=Bending)
    stiffer: float = 1.0
    stride: int = 4
    outline: float = 0.0
    robust: float = 1.0
    colour: float = 0.0

    @property
    def extras(self) -> Extras:
        """What counts beside descriptor and tone."""
        return Extras(self.outline, self.colour)

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

    def terms(self, field: Array, seen: Sequence[Seen]) -> Array:
        """The Gauss-Newton sums on the nodes."""
        if self.weights == (1.0,):
            return self.levels[0].terms(field, seen[0])
        parts = zip(self.levels, self.weights, seen, strict=True)
        total: Array = np.sum([np.float32(w) * level.terms(field, s) for level, w, s in parts], axis=0, dtype=np.float32)
        return total

    def seen(self, field: Array, tone: float) -> tuple[Seen, ...]:
        """What can be compared, and how, for each of the fixed images."""
        return tuple(level.seen(field, tone) for level in self.levels)


@dataclass(frozen=True, eq=False)
class Bent:
    """``field`` in mm on nodes over the fixed plane, before the affine; each level's cost at its end; how the last one ended."""

    field: DisplacementField
    costs: tuple[float, ...]
    status: str


def masked_pyramid(image: Image, mask: Image) -> Pyramid:
    """A plane and its halves; what is not tissue is 0."""
    inside = np.asarray(mask.data, bool)
    return Pyramid.of(View(Image(image.grid, np.where(inside, image.data, 0).astype(np.float32)), Image(mask.grid, inside)))


def level_grids(fixed: Grid, finest_mm: float, coarsest_px: int, stride: int) -> list[Grid]:
    """Grids over the fixed image from its corner on, each twice as fine as the one before, with whole nodes on each."""
    longest = float(fixed.extent_mm.max()) / finest_mm
    levels = max(0, int(np.floor(np.log2(longest / coarsest_px))))
    blocks = np.ceil(fixed.extent_mm / (finest_mm * 2**levels * stride) - 1e-6).astype(int)
    corner = fixed.to_world(np.full(2, -0.5))
    grids = []
    for level in range(levels + 1):
        spacing = np.full(2, finest_mm * 2 ** (levels - level))
        shape = blocks * stride * 2**level
        grids.append(Grid(tuple(shape), spacing, corner + fixed.direction @ (spacing / 2), fixed.direction))
    return grids


def bend_onto(
    goals: Sequence[Goal],
    moving: Pyramid,
    matrix: Float,
    grids: Sequence[Grid],
    plan: Plan,
    pins: Callable[[Level], Array | None] = lambda _: None,
    progress: Progress = silent,
) -> Bent:
    """The displacement u over ``grids``, coarse to fine, such that moving(matrix(p + u(p))) looks like all goals; it never folds.

    ``matrix`` (3, 3) maps the goals' world (mm) to the moving image's. ``pins`` of a level draw its nodes (``node_flow.bend``).
    """
    way = _Way(plan)
    for done, grid in enumerate(grids):
        coarser = len(grids) - 1 - done
        progress(0.25**coarser, f"deforming at {max(grid.shape)} px")
        still = [Still.of(g.plane, grid, plan.extras) for g in goals]
        levels = levels_onto(still, moving, matrix, plan.stride, plan.robust)
        way = way.along(Joint(levels, tuple(g.weight for g in goals)), coarser, pins(levels[0]))
    return way.ended(grids[-1])


def bend_both_ways(
    planes: tuple[Pyramid, Pyramid],
    matrix: Float,
    grids: Sequence[Grid],
    plan: Plan,
    pins: Sequence[Callable[[Level], Array | None]],
    progress: Progress = silent,
) -> tuple[Bent, Bent]:
    """:func:`bend_onto` of the second plane on the first, and of the first on the second as it lies in the first one's world.

    Both displacements are over ``grids``. ``pins``: of the one and of the other.
    """
    ways = [_Way(plan), _Way(plan)]
    for done, grid in enumerate(grids):
        coarser = len(grids) - 1 - done
        progress(0.25**coarser, f"deforming at {max(grid.shape)} px")
        levels = make_both_ways(planes, matrix, grid, plan.stride, plan.robust, plan.extras)
        parts = zip(ways, levels, pins, strict=True)
        ways = together([partial(way.along, Joint((level,), (1.0,)), coarser, pin(level)) for way, level, pin in parts])
    return ways[0].ended(grids[-1]), ways[1].ended(grids[-1])


@dataclass(frozen=True, eq=False)
class _Way:
    """How far a bending has come: its displacement on the last level's nodes, in pixels, and each level's cost."""

    plan: Plan
    nodes: Array | None = None
    costs: tuple[float, ...] = ()
    status: str = "stopped"

    def along(self, level: Joint, coarser: int, pins: Array | None) -> _Way:
        """After the next level, below which ``coarser`` ones are to come."""
        start = np.zeros((*level.nodes, 2), np.float32) if self.nodes is None else finer(self.nodes, level.nodes)
        stiff = replace(self.plan.bending, alpha=self.plan.bending.alpha * self.plan.stiffer**coarser)
        nodes, cost, status = bend(level, start, stiff, pins)
        return _Way(self.plan, nodes, (*self.costs, cost), status)

    def ended(self, grid: Grid) -> Bent:
        """The displacement on the nodes over the finest grid."""
        assert self.nodes is not None
        return Bent(displacement(grid, self.plan.stride, self.nodes), self.costs, self.status)


def bend_plane(goals: Sequence[Goal], moving: Pyramid, matrix: Float, plane: Grid, plan: Plan) -> DisplacementField:
    """The displacement of :func:`bend_onto` over a plane, down to its own spacing."""
    return bend_onto(
        goals, moving, matrix, level_grids(plane, float(plane.spacing_mm.max()), COARSEST_PX, plan.stride), plan
    ).field


def displacement(grid: Grid, stride: int, nodes: Array) -> DisplacementField:
    """A displacement on nodes, in pixels of ``grid``, as a field in mm."""
    origin = grid.to_world(np.full(2, 0.5 * stride - 0.5))
    on = Grid(nodes.shape[:2], grid.spacing_mm * stride, origin, grid.direction)
    return DisplacementField(on, (nodes * grid.spacing_mm) @ grid.direction.T)
