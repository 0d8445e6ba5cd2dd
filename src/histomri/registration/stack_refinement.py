"""Sections of a stack without an MRI onto their neighbours: what jumps from one section to the next is taken out, nothing else.

Each section is fitted to its neighbours on both sides, first by an affine map, then by a deformation that restarts from it in
every sweep. What all of them want is then solved at once: to follow a neighbour that moves itself, so that an error wider than
the neighbourhood goes in one sweep and does not diffuse away over many. After each sweep the part of all displacements that
changes slowly along the stack is taken off again, because neighbours cannot tell it from the shape of the specimen: a stack that
is curved stays curved, and a straight one stays straight. Sections that resemble their neighbours less than is usual there lose
their weight for the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid
from histomri.registration.along_stack import running_median, slow_part
from histomri.registration.bending import Goal, Plan, bend_plane, masked_pyramid
from histomri.registration.node_flow import Bending, folds
from histomri.registration.pair import structure_score
from histomri.registration.placed_sections import PlacedSections, with_much_tissue
from histomri.registration.samples import Channels
from histomri.registration.volume import SectionPixels, block_grid, plane_grid
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.affine import nearest_rotation
from histomri.transforms.placement import Placement

Float = NDArray[np.float64]
MARGIN_PX = 8
# of usual spacings: neighbours that are further away show other tissue
MAX_GAP = 8.0
# of the usual resemblance around it that a section must show to be believed by half, at least
USUAL_SPREAD = 0.03
TRUSTED = 0.2
LOCAL = 7
# what neighbours move is followed but for this share, which bounds what errors of the fits can add up to
DAMPING = 0.2

# chosen on a digital block and on 67 sections of a mouse: docs/decisions/registration.md
TO_NEIGHBOURS = Plan(Bending(alpha=1.0, window=1.0), stride=2)


@dataclass(frozen=True)
class Smoothing:
    """``spacing_mm`` is the working pixel, ``neighbours`` how many on each side; what changes along the stack more slowly than
    over about ``shape_sections`` sections (sigma of a Gaussian) is left as it is.
    """

    spacing_mm: float
    affine_sweeps: int = 3
    deformable_sweeps: int = 2
    neighbours: int = 2
    shape_sections: float = 5.0
    bending: Plan = TO_NEIGHBOURS


class StackRefinement:
    """The state of the refinement: sections' pixels and their placements. ``held`` sections serve the others and never move."""

    def __init__(
        self,
        pixels: Mapping[str, SectionPixels],
        placements: Mapping[str, Placement],
        settings: Smoothing,
        held: frozenset[str] = frozenset(),
    ):
        self.settings, self.held = settings, held
        placed = {k: p for k, p in placements.items() if p.is_placed and k in pixels}
        self.order = sorted(placed, key=lambda k: (placed[k].position_mm, k))
        self.placements = dict(placements)
        self.first = {k: _matrix(placed[k]) for k in self.order}
        self.position = np.array([placed[k].position_mm for k in self.order])
        steps = np.diff(np.unique(self.position))
        self.usual_mm = float(np.median(steps)) if len(steps) else 1.0
        self.large = with_much_tissue({k: pixels[k] for k in self.order})
        sure = {k: p for k, p in placed.items() if not p.is_doubtful} or placed
        plane = plane_grid(block_grid(pixels, sure, settings.spacing_mm, MARGIN_PX))
        self.shown = PlacedSections(pixels, plane)
        self.likeness, self.trust = np.zeros(len(self.order)), np.ones(len(self.order))

    def run(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Affine sweeps, then deformable ones."""
        kinds = [
            ("affine", self._affine, self.settings.affine_sweeps),
            ("deformable", self._deform, self.settings.deformable_sweeps),
        ]
        self.likeness, self.trust = self._look()
        for name, step, sweeps in kinds:
            for sweep in range(sweeps):
                self._follow(name, [step(i) for i in range(len(self.order))])
                self._keep_shape(name)
                self.likeness, self.trust = self._look()
                progress(f"{name} sweep {sweep + 1} of {sweeps}: mean score {np.mean(self.likeness):.4f}")

    @property
    def plane(self) -> Grid:
        """The block plane's grid."""
        return self.shown.plane

    def _channels(self, place: int) -> Channels:
        return self.shown.channels(self.placements[self.order[place]])

    def scores(self) -> Float:
        """How much each section resembles its neighbours: the median of its structure scores with each of them, (n,)."""
        pairs: dict[int, list[float]] = {i: [] for i in range(len(self.order))}
        for i in range(len(self.order)):
            for j in range(i + 1, min(len(self.order), i + 1 + self.settings.neighbours)):
                if self.position[j] - self.position[i] <= MAX_GAP * self.usual_mm:
                    score = structure_score(self._channels(i), self._channels(j), np.eye(3))
                    pairs[i].append(score)
                    pairs[j].append(score)
        return np.array([float(np.median(v)) if v else 0.0 for v in pairs.values()])

    def _look(self) -> tuple[Float, Float]:
        """The :meth:`scores`, and 1 for a section that resembles its neighbours as is usual around it, less (Cauchy) for one that
        does less.
        """
        scores = self.scores()
        usual = running_median(scores, LOCAL)
        lack = np.maximum(usual - scores, 0)
        spread = max(1.4826 * float(np.median(np.abs(usual - scores))) if len(scores) else 0.0, USUAL_SPREAD)
        sure = np.array([not self.placements[k].is_doubtful for k in self.order], float)
        return scores, np.asarray(sure / (1 + (lack / (2.385 * spread)) ** 2))

    def neighbours(self, place: int) -> tuple[list[tuple[int, float]], bool]:
        """The neighbours of a place with their weights, 1 together, and whether there are some on both sides.

        Each side weighs by how near it is, so that what changes evenly along the stack draws a section nowhere.
        """
        sides = [self._side(place, step) for step in (-1, 1)]
        sums = [sum(w for _, w in side) for side in sides]
        if not (sides[0] and sides[1]):
            return [(j, w / total) for side, total in zip(sides, sums, strict=True) for j, w in side], False
        away = [sum(w * self._gap(place, j) for j, w in side) / t for side, t in zip(sides, sums, strict=True)]
        share = (away[1] / sum(away), away[0] / sum(away))
        return [(j, s * w / t) for side, s, t in zip(sides, share, sums, strict=True) for j, w in side], True

    def _side(self, place: int, step: int) -> list[tuple[int, float]]:
        """The nearest believable places on one side, weighted by trust over distance."""
        out: list[tuple[int, float]] = []
        j = place + step
        while 0 <= j < len(self.order) and len(out) < self.settings.neighbours and self._gap(place, j) <= MAX_GAP * self.usual_mm:
            if self.trust[j] > TRUSTED:
                out.append((j, float(self.trust[j]) / self._gap(place, j)))
            j += step
        return out

    def _gap(self, a: int, b: int) -> float:
        return max(abs(float(self.position[a] - self.position[b])), 0.1 * self.usual_mm)

    def _target(self, near: list[tuple[int, float]]) -> Channels:
        """What a section should look like: its neighbours as they lie, weighted."""
        parts = [(self._channels(j), np.float32(w)) for j, w in near]
        data = np.sum([w * c.data for c, w in parts], axis=0, dtype=np.float32)
        return Channels(self.plane, np.ascontiguousarray(data), np.max([c.weight for c, _ in parts], axis=0))

    def _affine(self, place: int) -> Placement:
        """One affine step of one section, rigid where neighbours are on one side only: growth and jitter look alike there."""
        key = self.order[place]
        old = self.placements[key]
        near, both = self.neighbours(place)
        if key in self.held or not near or old.is_doubtful:
            return old
        step = self.shown.linear_step(old, self._target(near), "affine" if both and key in self.large else "rigid")
        if step is None:
            return old
        matrix, before, after = step
        return _moved(old, matrix) if after > before else old

    def _deform(self, place: int) -> Placement:
        """The deformation of one section from its affine; none where neighbours are on one side only, or unlike it."""
        key = self.order[place]
        if key in self.held:
            return self.placements[key]
        old = dataclasses.replace(self.placements[key], field=None)
        near, both = self.neighbours(place)
        if not both or key not in self.large or self.trust[place] <= TRUSTED:
            return old
        goals = [Goal(self.shown.pyramid(self.placements[self.order[j]]), w) for j, w in near]
        pixels, matrix = self.shown.pixels[key], _matrix(old)
        own = masked_pyramid(pixels.image, pixels.mask)
        # the score cannot tell a part of a pixel, which is what most of them are: kept by it alone, they made a stack rougher
        return dataclasses.replace(old, field=bend_plane(goals, own, matrix, self.plane, self.settings.bending))

    def _follow(self, kind: str, wanted: list[Placement]) -> None:
        """Move all sections at once, each by what it wants of its neighbours as they lay and by what these move themselves."""
        if kind == "affine":
            self._move_affines([_matrix(p) for p in wanted])
        else:
            self._move_fields(wanted)

    def _move_affines(self, wanted: list[Float]) -> None:
        frame = self._frame()
        now = [_matrix(self.placements[k]) for k in self.order]
        steps = np.linalg.inv(frame) @ np.array([np.linalg.solve(a, b) for a, b in zip(now, wanted, strict=True)]) @ frame
        free = np.array([not self._stays(k) for k in self.order])
        moves = self._solved(steps[:, :2] - np.eye(3)[:2], free)
        for i in np.flatnonzero(free).tolist():
            key, step = self.order[i], np.eye(3)
            step[:2] += moves[i]
            if not (self.neighbours(i)[1] and key in self.large):
                step[:2, :2], _ = nearest_rotation(np.eye(2), step[:2, :2].T)
            self.placements[key] = _moved(self.placements[key], now[i] @ frame @ step @ np.linalg.inv(frame))

    def _move_fields(self, wanted: list[Placement]) -> None:
        before, after = self._fields(self.placements[k] for k in self.order), self._fields(wanted)
        for i in set(range(len(wanted))) - set(after):
            self.placements[self.order[i]] = wanted[i]
        if not after:
            return
        grid = next(iter(after.values())).grid
        now = {i: before[i].values if i in before else 0.0 for i in after}
        steps = np.zeros((len(wanted), *next(iter(after.values())).values.shape))
        for i, field in after.items():
            steps[i] = field.values - now[i]
        moves = self._solved(steps, np.isin(np.arange(len(wanted)), list(after)))
        for i in after:
            moved = unfolded(DisplacementField(grid, now[i] + moves[i]))
            self.placements[self.order[i]] = dataclasses.replace(wanted[i], field=moved)

    def _fields(self, placements: Iterable[Placement]) -> dict[int, DisplacementField]:
        """The deformations of sections that may move, by place, of placements in the stack's order."""
        bent = zip(self.order, placements, strict=True)
        return {i: p.field for i, (k, p) in enumerate(bent) if p.field is not None and k not in self.held}

    def _frame(self) -> Float:
        """From coordinates about the middle of the block's plane to the plane's own, (3, 3)."""
        frame = np.eye(3)
        frame[:2, 2] = self.plane.centre_mm
        return frame

    def _stays(self, key: str) -> bool:
        return key in self.held or self.placements[key].is_doubtful

    def _solved(self, steps: Float, free: NDArray[np.bool_]) -> Float:
        """The moves (n, ...) of which each is its step (n, ...) and the mean of its neighbours' moves, those not ``free`` 0."""
        system = np.eye(len(steps))
        for i in np.flatnonzero(free).tolist():
            for j, w in self.neighbours(i)[0]:
                system[i, j] -= (1 - DAMPING) * w
        flat = np.where(free[:, None], steps.reshape(len(steps), -1), 0)
        return np.asarray(np.linalg.solve(system, flat).reshape(steps.shape))

    def _keep_shape(self, kind: str) -> None:
        """Take off what the last sweep changed slowly along the stack."""
        if len(self.order) > 2:
            self._level_matrices() if kind == "affine" else self._level_fields()

    def _level_matrices(self) -> None:
        """The slow part of how the affine maps changed since they came, as displacements of the block's plane."""
        frame = self._frame()
        changes = np.array([np.linalg.solve(self.first[k], _matrix(self.placements[k])) for k in self.order])
        change = np.linalg.inv(frame) @ changes @ frame - np.eye(3)
        radius = float(np.abs(self.plane.extent_mm).max()) / 2
        # columns as what they displace the rim of the plane by, so that turns and shifts have one unit
        moves = np.moveaxis(change[:, :2], 1, 2) * np.array([radius, radius, 1.0])[:, None]
        slow = self._slow(moves)
        for k, changed, d in zip(self.order, changes, slow / np.array([radius, radius, 1.0])[:, None], strict=True):
            if not self._stays(k):
                back = np.zeros((3, 3))
                back[:2] = d.T
                now = changed - frame @ back @ np.linalg.inv(frame)
                self.placements[k] = _moved(self.placements[k], self.first[k] @ now)

    def _level_fields(self) -> None:
        """The slow part of the deformations."""
        fields = self._fields(self.placements[k] for k in self.order)
        if not fields:
            return
        values = np.zeros((len(self.order), *next(iter(fields.values())).values.shape))
        for i, field in fields.items():
            values[i] = field.values
        slow = self._slow(values)
        for i, field in fields.items():
            straight = unfolded(DisplacementField(field.grid, values[i] - slow[i]))
            self.placements[self.order[i]] = dataclasses.replace(self.placements[self.order[i]], field=straight)

    def _slow(self, values: Float) -> Float:
        return slow_part(self.position, values, self.trust, self.settings.shape_sections * self.usual_mm)


def unfolded(field: DisplacementField) -> DisplacementField:
    """The displacement, halved until it does not fold."""
    while folds(field):
        field = DisplacementField(field.grid, field.values / 2)
    return field


def _matrix(placement: Placement) -> Float:
    assert placement.affine is not None
    return placement.affine.matrix


def _moved(placement: Placement, matrix: Float) -> Placement:
    assert placement.affine is not None
    return dataclasses.replace(placement, affine=Affine(matrix, placement.affine.from_space, placement.affine.to_space))
