"""The spaces of a study and the transforms that join them: whatever moves asks here for its way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histomri.core import Grid, InputError
from histomri.core.errors import Problem
from histomri.transforms.affine import Affine
from histomri.transforms.base import Float, Transform

Reasons = NDArray[np.object_]
Mapped = tuple[Float, Reasons]

# points on the very edge of an image belong to it, whatever the rounding
EDGE_SLACK_PX = 1e-6
INVERSE_RESIDUAL_MM = 1e-3


@dataclass(frozen=True)
class Space:
    """A space: ``section:<id>`` or ``slide:<id>`` (2D), ``block:<id>`` or ``mri`` (3D); mm, array order."""

    name: str

    @property
    def ndim(self) -> int:
        """Number of dimensions of its points."""
        return 2 if self.name.startswith(("section:", "slide:")) else 3


@dataclass(frozen=True, eq=False)
class SectionSpace(Space):
    """A section: its image (level-0 ``grid`` in its own mm, None for a section without pixels) and its plane in the block.

    ``plane_reach_mm`` is how far from its plane, on either side, it still stands for the tissue. ``error_mm`` is the error of
    its points in the MRI that is to be expected, NaN where nothing tells. ``flags`` say in words why it was not ``placed``.
    """

    block: str
    position_mm: float
    plane_reach_mm: float
    grid: Grid | None = None
    is_placed: bool = True
    flags: tuple[str, ...] = ()
    error_mm: float = float("nan")

    @property
    def id(self) -> str:
        """The section's id."""
        return self.name.partition(":")[2]

    def outside(self, points: Float) -> Reasons:
        """A reason for each point, (n, 2) in mm, that lies outside of the image; empty text for the others."""
        if self.grid is None:
            return _reasons(len(points))
        index, last = self.grid.to_index(points), np.asarray(self.grid.shape) - 0.5 + EDGE_SLACK_PX
        is_out = ~((index >= -0.5 - EDGE_SLACK_PX) & (index <= last)).all(-1)
        return _where(is_out, f"outside of the image of section {self.id}")

    @property
    def why_not_placed(self) -> str:
        """The reason that a point of this section gets when the section was not placed."""
        return f"section {self.id} was not placed" + (f": {'; '.join(self.flags)}" if self.flags else "")


def _reasons(n: int, text: str = "") -> Reasons:
    return np.full(n, text, dtype=object)


def _where(condition: ArrayLike, text: str) -> Reasons:
    return np.where(condition, text, "").astype(object)


class Edge:
    """One step between two neighbouring spaces, both ways. The transform is loaded when it is first used."""

    def __init__(self, from_space: str, to_space: str, load: Callable[[], Transform]):
        self.from_space, self.to_space, self._load = from_space, to_space, load

    @cached_property
    def transform(self) -> Transform:
        """The transform from ``from_space`` to ``to_space``."""
        return self._load()

    @cached_property
    def inverse(self) -> Transform:
        """The transform back."""
        return self.transform.inverse()

    def forward(self, points: Float) -> Mapped:
        """Points of ``from_space`` in ``to_space``, and the reasons."""
        return self.transform.map(points), _reasons(len(points))

    def backward(self, points: Float) -> Mapped:
        """Points of ``to_space`` in ``from_space``, and the reasons."""
        return self.inverse.map(points), _reasons(len(points))


class PlaneEdge(Edge):
    """From a block (3D) to the plane of one of its sections (2D) and back, by the section's 2D transform."""

    def __init__(self, section: SectionSpace, load: Callable[[], Transform]):
        super().__init__(section.block, section.name, load)
        self.section = section

    def forward(self, points: Float) -> Mapped:
        """Project onto the plane, which must be within ``plane_reach_mm``, and map to the section."""
        section = self.section
        if not section.is_placed:
            return np.full((len(points), 2), np.nan), _reasons(len(points), section.why_not_placed)
        distance = np.abs(points[:, 0] - section.position_mm)
        reasons = _reasons(len(points))
        for i in np.flatnonzero(distance > section.plane_reach_mm + 1e-9):
            reasons[i] = (
                f"{distance[i]:.3f} mm from the plane of section {section.id}, which reaches {section.plane_reach_mm:.3f} mm"
            )
        return self.transform.map(points[:, 1:]), reasons

    def backward(self, points: Float) -> Mapped:
        """Map to the block's plane at ``position_mm``."""
        section = self.section
        if not section.is_placed:
            return np.full((len(points), 3), np.nan), _reasons(len(points), section.why_not_placed)
        plane = self.inverse.map(points)
        residual = np.abs(self.transform.map(plane) - points).max(-1, initial=0.0)
        reasons = _where(residual > INVERSE_RESIDUAL_MM, f"the deformation of section {section.id} cannot be inverted there")
        return np.concatenate([np.full((len(points), 1), section.position_mm), plane], axis=1), reasons


class SpaceGraph:
    """The spaces of a study as nodes and the transforms between them as edges.

    ``spaces`` are all spaces, also those of sections that were not placed; ``edges`` join them.
    """

    def __init__(self, spaces: Iterable[Space], edges: Iterable[Edge]):
        self.spaces = {s.name: s for s in spaces}
        self.edges: dict[str, list[tuple[str, Edge]]] = {name: [] for name in self.spaces}
        for edge in edges:
            self.edges[edge.from_space].append((edge.to_space, edge))
            self.edges[edge.to_space].append((edge.from_space, edge))

    def space(self, name: str) -> Space:
        """The space of that name. Raises :class:`InputError` naming those that there are."""
        if name in self.spaces:
            return self.spaces[name]
        if name.partition(":")[0] not in ("section", "slide", "block", "mri"):
            remedy = "a space is section:<id>, slide:<id>, block:<id> or mri"
        else:
            alike = sorted(s for s in self.spaces if s.partition(":")[0] == name.partition(":")[0])
            remedy = f"choose one of {', '.join(alike[:8])}{', ...' if len(alike) > 8 else ''}" if alike else "the study has none"
        raise InputError(Problem(name, "there is no such space in this study", remedy))

    def path(self, from_space: str, to_space: str) -> list[tuple[str, Edge]]:
        """The shortest way as (space reached, edge) steps; empty where none is needed.

        Raises :class:`InputError` for an unknown space, ``LookupError`` where no way leads there.
        """
        self.space(from_space), self.space(to_space)
        came: dict[str, tuple[str, Edge] | None] = {from_space: None}
        queue = deque([from_space])
        while queue and to_space not in came:
            here = queue.popleft()
            for name, edge in self.edges[here]:
                if name not in came:
                    came[name] = (here, edge)
                    queue.append(name)
        if to_space not in came:
            raise LookupError(f"no transform leads from {from_space} to {to_space}")
        steps: list[tuple[str, Edge]] = []
        at, link = to_space, came[to_space]
        while link is not None:
            steps.append((at, link[1]))
            at, link = link[0], came[link[0]]
        return steps[::-1]

    def map(self, points: ArrayLike, from_space: str, to_space: str) -> Mapped:
        """Points, (n, ndim of ``from_space``) in mm and array order, in ``to_space``, and a reason for each that has none.

        Returns (n, ndim of ``to_space``) points, NaN where there is a reason, and (n,) texts, empty where mapped: no coordinates,
        outside of a section's image, too far from a section's plane, a section that was not placed, or no way at all.
        Raises :class:`InputError` for an unknown space, ``ValueError`` for points of the wrong number of dimensions.
        """
        start, end = self.space(from_space), self.space(to_space)
        points = np.asarray(points, float).reshape(-1, np.shape(points)[-1] if np.size(points) else start.ndim)
        if points.shape[1] != start.ndim:
            raise ValueError(f"Points of {from_space} have {start.ndim} coordinates, found {points.shape[1]}.")
        reasons = _where(~np.isfinite(points).all(-1), "no coordinates")
        try:
            steps = self.path(from_space, to_space)
        except LookupError as problem:
            return np.full((len(points), end.ndim), np.nan), _first(reasons, _reasons(len(points), str(problem)))
        points, reasons = self._walk(points, from_space, steps, reasons)
        points[reasons != ""] = np.nan
        return points, reasons

    def unchecked(self, points: ArrayLike, from_space: str, to_space: str) -> Float:
        """Points mapped as far as the transforms reach, beyond images and planes too; for lattices that cover a tile.

        Raises :class:`InputError` for an unknown space or a section that was not placed, ``LookupError`` without a way.
        """
        mapped = np.asarray(points, float)
        for name in (from_space, to_space):
            space = self.space(name)
            if isinstance(space, SectionSpace) and not space.is_placed:
                raise InputError(Problem(name, space.why_not_placed, "choose a section that was placed"))
        at = from_space
        for name, edge in self.path(from_space, to_space):
            mapped, _ = edge.forward(mapped) if edge.from_space == at else edge.backward(mapped)
            at = name
        return mapped

    def error_mm(self, from_space: str, to_space: str) -> float:
        """The error that is to be expected of a point mapped from one space to another; NaN where nothing tells.

        Sections err independently of each other, so the squares of those on the way add up. Between a section and its slide, and
        within one space, there is none.
        """
        way = [edge for _, edge in self.path(from_space, to_space)]
        errors = [edge.section.error_mm for edge in way if isinstance(edge, PlaneEdge)]
        if errors:
            return float(np.sqrt(np.square(errors).sum()))
        # what is left is a slide's offset, which is exact, or a block's pose alone, whose error nothing tells
        return float("nan") if any(self.space(e.to_space).ndim == 3 for e in way) else 0.0

    def _walk(self, points: Float, at: str, steps: list[tuple[str, Edge]], reasons: Reasons) -> Mapped:
        points = np.nan_to_num(points, nan=0.0, posinf=0.0, neginf=0.0)
        reasons = _first(reasons, self._outside(at, points))
        for name, edge in steps:
            points, said = edge.forward(points) if edge.from_space == at else edge.backward(points)
            reasons = _first(reasons, said)
            reasons = _first(reasons, _where(~np.isfinite(points).all(-1), f"the transform to {name} is not valid there"))
            points = np.nan_to_num(points, nan=0.0)
            reasons, at = _first(reasons, self._outside(name, points)), name
        return points.copy(), reasons

    def _outside(self, name: str, points: Float) -> Reasons:
        space = self.spaces[name]
        return space.outside(points) if isinstance(space, SectionSpace) else _reasons(len(points))


def _first(known: Reasons, said: Reasons) -> Reasons:
    """The reason found first stays."""
    return np.where(known != "", known, said).astype(object)


def slide_edge(section: SectionSpace, pixel_size_mm: Float, offset_px: Float) -> Edge:
    """From ``slide:<id>`` to its section: the region's top left pixel, (y, x) in level-0 pixels, becomes the origin."""
    shift = Affine.from_parts(np.eye(2), -np.asarray(offset_px, float) * pixel_size_mm, f"slide:{section.id}", section.name)
    return Edge(f"slide:{section.id}", section.name, lambda: shift)
