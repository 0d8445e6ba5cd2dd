"""Sections placed by what a person gave: points found again elsewhere, or a rough transform.

What is given says on which face a section lies, at which angle and roughly where; the images then refine that as far as they
stay near the points. Measured pairs that contradict it are left out of the joint solve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histomri.core import Image
from histomri.registration.channels import match_contrast
from histomri.registration.linear import fit_linear
from histomri.registration.pair import Prepared, align, onto_fixed, structure_score
from histomri.registration.rescue import OUTDATED, MriPlanes
from histomri.registration.sanity import long_side_mm
from histomri.registration.section_graph import Edge, StackSolution, closes, inverse
from histomri.registration.volume import SectionPixels
from histomri.transforms import Affine, Transform
from histomri.transforms.affine import nearest_rotation
from histomri.transforms.placement import BY_HAND, Placement

Float = NDArray[np.float64]
NEAR = 0.02  # of a section's size: the images may lead this far away from the points
FACE_TOLD = 2.0  # a face whose points fit this many times worse is the wrong one
GIVEN_SCORE = 0.95  # what a pair given by hand counts as until it is known which measured pairs agree with it
ACCEPTED = 0.1  # above the score that a pair needs: accepted for sure, and no heavier than measured pairs are
OFF_PLANE = 0.1  # of a section's size: guides farther from its plane do not belong there
MISSED = 0.05  # of a section's size: points that the best rigid place misses by more contradict each other, or the face
AWAY = 0.1  # of a section's size: a place farther from its points is not the one that they tell
FLAG = BY_HAND
NO_FIT, ELSEWHERE, OFF = "no rigid place fits", "it lies elsewhere than", "its guides lie"  # how doubts of what was given begin
DOUBTS = (NO_FIT, ELSEWHERE, OFF)
LOCKED = "a lock"
SURE, UNSURE = 1.0, 0.5


@dataclass(frozen=True, eq=False)
class Given:
    """Points (n, 2) in mm of section ``fixed`` and the same in section ``moving``; ``how`` says in words where they come from.

    ``faces``: whether the two may lie on opposite faces (True), on one (False), or either.
    """

    fixed: str
    moving: str
    fixed_mm: Float
    moving_mm: Float
    how: str
    faces: tuple[bool, ...] = (False, True)

    @property
    def missed_mm(self) -> float:
        """Rms distance in mm by which the best rigid place misses the points."""
        return min(rigid_fit(self.fixed_mm, self.moving_mm, face)[1] for face in self.faces)

    @property
    def said(self) -> str:
        """``how``, with what the points miss each other by."""
        return f"{self.how} (rigidly {self.missed_mm:.2f} mm off)"

    def doubts(self, placed: Float | None, size_mm: float) -> tuple[str, ...]:
        """Why the points cannot be right, in words; ``placed`` (3, 3) is fixed mm to moving mm as the sections lie now."""
        if self.missed_mm > MISSED * size_mm:
            return (misfit(self.how, self.missed_mm, self.faces),)
        away = 0.0 if placed is None else missed_mm(placed, self.fixed_mm, self.moving_mm)
        return (f"{ELSEWHERE} {self.how} puts it, by {away:.2f} mm: look which is right",) if away > AWAY * size_mm else ()


def misfit(how: str, missed: float, faces: Sequence[bool]) -> str:
    """The flag of points that no rigid place on the allowed faces fits."""
    blame = "some of it, or flip, is wrong" if len(faces) == 1 else "some of it is wrong"
    return f"{NO_FIT} {how} better than {missed:.2f} mm: {blame}"


def rigid_fit(fixed: Float, moving: Float, mirrored: bool) -> tuple[Float, float]:
    """The rigid matrix from points (n, ndim) to points (n, ndim), turned over or not, and their rms distance."""
    middle, goal = fixed.mean(axis=0), moving.mean(axis=0)
    matrix = np.eye(fixed.shape[1] + 1)
    matrix[:-1, :-1], _ = nearest_rotation(fixed - middle, moving - goal, mirrored)
    matrix[:-1, -1] = goal - matrix[:-1, :-1] @ middle
    return matrix, missed_mm(matrix, fixed, moving)


def similarity_fit(fixed: Float, moving: Float, mirrored: bool) -> tuple[Float, float]:
    """As :func:`rigid_fit` with one scale for all axes, that of the points' spread about their mean."""
    middle, goal = fixed.mean(axis=0), moving.mean(axis=0)
    scale = float(np.linalg.norm(moving - goal) / max(float(np.linalg.norm(fixed - middle)), 1e-12))
    matrix, _ = rigid_fit(scale * fixed, moving, mirrored)
    matrix[:-1, :-1] *= scale
    return matrix, missed_mm(matrix, fixed, moving)


def missed_mm(matrix: Float, fixed: Float, moving: Float) -> float:
    """Rms distance in mm of points (n, ndim) from where ``matrix`` takes those of the other image."""
    return _rms(fixed @ matrix[:-1, :-1].T + matrix[:-1, -1] - moving)


def _rms(vectors: Float) -> float:
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))


def fits(fixed: Float, moving: Float, faces: Sequence[bool]) -> list[Float]:
    """The rigid matrices that the points allow, best first: one of each face that fits them about as well as the other."""
    found = sorted((rigid_fit(fixed, moving, face) for face in faces), key=lambda f: f[1])
    # two points, or points on a line, fit both faces alike
    spread = float(np.linalg.norm(fixed - fixed.mean(axis=0), axis=1).mean())
    limit = FACE_TOLD * found[0][1] + 1e-3 * spread
    return [matrix for matrix, missed in found if missed <= limit]


def reach_mm(mask: Image, missed: float) -> float:
    """How far the images may lead the points away: ``NEAR`` of the section's size, or as far as they miss each other anyway."""
    return max(NEAR * long_side_mm(mask), 1.5 * missed)


def given_edge(given: Given, fixed: Prepared, moving: Prepared, distance_mm: float) -> Edge:
    """The pair as the points have it, refined by the images while it stays near the points."""
    options = [_refined(given, fixed, moving, start) for start in fits(given.fixed_mm, given.moving_mm, given.faces)]
    score, matrix = max(options, key=lambda o: o[0])
    nowhere = np.full((3, 3), np.nan)
    return Edge(given.fixed, given.moving, matrix, score, 1.0, float("nan"), nowhere, distance_mm)


def _refined(given: Given, fixed: Prepared, moving: Prepared, start: Float) -> tuple[float, Float]:
    """Structure score and matrix after one rigid refinement; those of the start where it leads away or scores no better."""
    limit = reach_mm(moving.mask, missed_mm(start, given.fixed_mm, given.moving_mm))
    _, aligned = align(moving.image, moving.mask, start, fixed.channels.grid)
    before = structure_score(fixed.channels, aligned, np.eye(3))
    matched = match_contrast(fixed.channels, aligned, onto_fixed(aligned, fixed.channels.grid))
    step = fit_linear(fixed.samples, matched, np.eye(3), "rigid", iterations=25).matrix
    after = structure_score(fixed.channels, aligned, step)
    is_near = missed_mm(start @ step, given.fixed_mm, given.moving_mm) <= limit
    return (after, start @ step) if is_near and after > before else (before, start)


def solve_with_given(
    measured: list[Edge],
    given: list[Edge],
    sections: Mapping[str, tuple[Float, bool | None]],
    solve: Callable[[list[Edge]], StackSolution],
) -> StackSolution:
    """The joint solve with pairs given by hand; measured pairs of their sections count only where they agree with them."""
    if not given:
        return solve(measured)
    placed = {e.moving for e in given}
    others = [e for e in measured if not placed & {e.fixed, e.moving}]
    first = solve(others + [dataclasses.replace(e, score=GIVEN_SCORE) for e in given])
    own = [e for e in measured if placed & {e.fixed, e.moving}]
    agreeing = [e for e in own if _agrees(e, first.block_to_section, sections) and not _is_given(e, given)]
    return solve(others + agreeing + [dataclasses.replace(e, score=max(e.score, first.threshold + ACCEPTED)) for e in given])


def _is_given(edge: Edge, given: list[Edge]) -> bool:
    return any({edge.fixed, edge.moving} == {g.fixed, g.moving} for g in given)


def _agrees(edge: Edge, places: Mapping[str, Float], sections: Mapping[str, tuple[Float, bool | None]]) -> bool:
    """Whether a measured pair puts its sections where they are; one that joins a section not placed otherwise has no say."""
    if edge.fixed not in places or edge.moving not in places:
        return True
    loop = places[edge.fixed] @ inverse(places[edge.moving]) @ edge.matrix
    return closes(loop, sections[edge.fixed][0])


def by_hand(placement: Placement, how: str, doubts: Sequence[str] = ()) -> Placement:
    """A placement that says by what it was placed, in place of what it said of its search, and what speaks against that."""
    flags = tuple(f for f in placement.flags if not f.startswith((FLAG, *DOUBTS, *OUTDATED)))
    quality = {**placement.quality, "by_hand": how}
    confidence = UNSURE if doubts else SURE
    return dataclasses.replace(placement, flags=(*flags, f"{FLAG}, by {how}", *doubts), confidence=confidence, quality=quality)


def is_locked(placement: Placement) -> bool:
    """Whether a section keeps its place whatever the images say."""
    return placement.quality.get("by_hand") == LOCKED


@dataclass(frozen=True, eq=False)
class MriGuides:
    """Points (n, 2) of a section in mm and the same in the MRI, (n, 3) LPS mm."""

    section_mm: Float
    mri_mm: Float

    def block_mm(self, block_to_mri: Float) -> Float:
        """The points in the block (n, 3), (z, y, x) mm, by its pose."""
        back = np.linalg.inv(block_to_mri)
        return np.asarray(self.mri_mm @ back[:3, :3].T + back[:3, 3])

    def missed_mm(self, block_to_section: Transform, block_to_mri: Float) -> float:
        """Rms distance in mm of the section's points from where its placement has those of the MRI."""
        return _rms(block_to_section.map(self.block_mm(block_to_mri)[:, 1:]) - self.section_mm)


def place_guided(
    placements: Mapping[str, Placement],
    pixels: Mapping[str, SectionPixels],
    guides: Mapping[str, MriGuides],
    faces: Mapping[str, Sequence[bool]],
    planes: MriPlanes,
    block_to_mri: Float,
    block: str,
) -> dict[str, Placement]:
    """The guided sections' placements: rigid, by their points in the MRI; where both faces fit them, as the MRI plane has it."""
    out = {}
    for key, guide in guides.items():
        if key not in pixels or is_locked(placements[key]):
            continue
        points = guide.block_mm(block_to_mri)
        options = fits(points[:, 1:], guide.section_mm, faces[key])
        plane = planes.at(placements[key].position_mm, block_to_mri) if len(options) > 1 else None
        matrix = options[0] if plane is None else max(options, key=lambda m: plane.score(pixels[key], m))
        size = long_side_mm(pixels[key].mask)
        how = f"{len(points)} guides to the MRI"
        given = Given(block, key, points[:, 1:], guide.section_mm, how, tuple(faces[key]))
        away = float(np.abs(points[:, 0] - placements[key].position_mm).mean())
        placed = dataclasses.replace(placements[key], affine=Affine(matrix, f"block:{block}", f"section:{key}"), field=None)
        out[key] = by_hand(placed, given.said, (*given.doubts(None, size), *_off_plane(away, size)))
    return out


def _off_plane(away_mm: float, size_mm: float) -> tuple[str, ...]:
    if away_mm <= OFF_PLANE * size_mm:
        return ()
    return (f"{OFF} {away_mm:.1f} mm off its plane in the MRI: either they are wrong or the block's pose is",)
