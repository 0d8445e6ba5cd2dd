"""Two sections, whatever their stains and however they lie: the registration that needs no option."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image, RegistrationError
from histomri.registration.alignment import Alignment, Guide, Progress, View, part, silent
from histomri.registration.bending import COARSEST_PX, Plan, bend_both_ways, level_grids
from histomri.registration.channels import make_channels
from histomri.registration.node_flow import (
    SHAPES,
    SMOOTHLY,
    Bending,
    Level,
    Pyramid,
    Still,
    fit_matrix,
    folds,
    levels_onto,
    make_level,
    make_pins,
)
from histomri.registration.samples import Channels
from histomri.registration.search import similarity_search
from histomri.registration.together import together
from histomri.transforms import Affine, Chain, DisplacementField

Float = NDArray[np.float64]
Array = NDArray[np.float32]
SAME_SHARE = 0.03
AFFINE_LEVELS = slice(1, 3)
# of the start's levels, coarse to fine
MODELS = ("similarity", "affine", "affine")
# a start this much costlier than the best one never won: docs/decisions/engine.md
BEATEN = 0.2
LANDMARK_PULL = 10.0
FINER = 0.7
# of working_px: smaller images are bent as if they had as many pixels
LEAST_SIZE = 0.28


FOUND_MASKS = Plan(Bending(mended=True), outline=0.5)
# masks that were given end where the tissue does, so that they hold the colours, which alone would draw the rim in
GIVEN_MASKS = Plan(Bending(alpha=0.7, window=0.7, tolerance=1e-3, mended=True), outline=2.5, colour=0.65)


@dataclass(frozen=True)
class PlanarSettings:
    """Sizes are pixels along the longer side of the fixed image: ``working_px`` at most at the finest level, at least
    ``COARSEST_PX`` at the coarsest, ``search_px`` in the search over all angles (every ``step_deg``), both faces and ``scales``.
    ``candidates`` of it are refined, ``rivals`` of those that differ once more. ``plan``: how the deformation is sought,
    its stiffness that of an image of ``working_px``; ``given``: the same where the user gave both masks.
    """

    working_px: int = 1024
    search_px: int = 48
    step_deg: float = 10.0
    scales: tuple[float, ...] = tuple(float(1.12**k) for k in range(-6, 7))
    candidates: int = 8
    rivals: int = 4
    plan: Plan = FOUND_MASKS
    given: Plan = GIVEN_MASKS


DEFAULTS = PlanarSettings()


def register_planar(
    fixed: View, moving: View, guide: Guide, progress: Progress = silent, settings: PlanarSettings = DEFAULTS
) -> Alignment:
    """The moving section on the fixed one: search, affine, then a deformation that does not fold, sought both ways round.

    Landmarks take the place of the search and draw the deformation. Trust is for the caller to judge: this gives its best answer.

    Raises ``RegistrationError`` where an image holds no tissue.
    """
    planes = _pyramids(fixed, moving)
    progress(0.0, "searching")
    matrix = _start(fixed, moving, planes, guide, settings)
    grids = level_grids(fixed.image.grid, _finest_mm(planes, matrix, settings), COARSEST_PX, settings.plan.stride)
    for grid in grids[AFFINE_LEVELS]:
        level = make_level(*planes, matrix, grid, settings.plan.stride, settings.plan.robust)
        step, _ = fit_matrix(level, "affine", 15, settings.plan.bending.tone)
        matrix = matrix @ grid.index_to_world @ step @ grid.world_to_index
    plan = as_stiff_at(settings.given if guide.outlines else settings.plan, max(grids[-1].shape) / settings.working_px)
    # both in the fixed frame, so that it does not matter how the moving image lies on its slide
    seen = guide.seen_under(matrix)
    pins = partial(_pins, guide=seen), partial(_pins, guide=seen.turned_round())
    bent, back = bend_both_ways(planes, matrix, grids, plan, pins, part(progress, 0.3, 1.0))
    field = half_way(bent.field, back.field)
    reason = "the cost no longer falls" if bent.status == "converged" else "the iterations ran out while the cost still fell"
    transform = Chain((field, Affine(matrix)))
    return Alignment(transform, bent.status, reason, "mind", bent.costs[0], bent.costs[-1], bent.costs)


def _pyramids(fixed: View, moving: View) -> tuple[Pyramid, Pyramid]:
    still, other = together([partial(Pyramid.of, view, SMOOTHLY) for view in (fixed, moving)])
    return still, other


def as_stiff_at(plan: Plan, size: float) -> Plan:
    """The plan for an image of ``size`` times the pixels, bending over the same share of the image.

    A deformation bends over ``sqrt(alpha)`` nodes, which are that much more of a small image.
    """
    return plan.with_stiffness(plan.bending.alpha * max(size, LEAST_SIZE) ** 2)


def half_way(forward: DisplacementField, backward: DisplacementField) -> DisplacementField:
    """The mean of a displacement u and of what one sought the other way round, v, says of it: ``(u(p) + q - p) / 2``.

    q is where ``q + v(q) = p``. What chance decided differently in the two is halved, as is each one's bias to its own fixed
    image (Christensen and Johnson 2001). u itself where the mean would fold.
    """
    points = forward.grid.points()
    other = backward.inverse().map(points.reshape(-1, 2)).reshape(points.shape) - points
    other = np.where(np.isfinite(other).all(axis=-1, keepdims=True), other, forward.values)
    mean = DisplacementField(forward.grid, (forward.values + other) / 2)
    return forward if folds(mean) else mean


def find_start(fixed: View, moving: View, guide: Guide, settings: PlanarSettings = DEFAULTS) -> Affine:
    """The affine that ``register_planar`` begins with.

    Raises ``RegistrationError`` where an image holds no tissue.
    """
    return Affine(_start(fixed, moving, _pyramids(fixed, moving), guide, settings))


def _finest_mm(planes: tuple[Pyramid, Pyramid], matrix: Float, settings: PlanarSettings) -> float:
    """No finer than the fixed image nor than ``working_px``, and hardly finer than the moving image."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    longest = float(planes[0].grids[0].extent_mm.max())
    return max(planes[0].spacing_mm, FINER * planes[1].spacing_mm / scale, longest / settings.working_px)


def _start(fixed: View, moving: View, planes: tuple[Pyramid, Pyramid], guide: Guide, settings: PlanarSettings) -> Float:
    """The best of all refined starts, fixed mm to moving mm (3, 3)."""
    if not (np.asarray(fixed.mask.data).any() and np.asarray(moving.mask.data).any()):
        raise RegistrationError("An image holds no tissue: its mask is empty.")
    spacing = float(fixed.image.grid.extent_mm.max()) / settings.search_px
    grids = level_grids(fixed.image.grid, spacing / 4, settings.search_px, settings.plan.stride)
    found = _candidates(planes, spacing, settings) if guide.search else [np.eye(3)]
    found = [through_landmarks(*guide.landmarks)] if guide.landmarks else found
    still = [Still.of(planes[0], grid, SHAPES) for grid in grids[:3]]
    for place, (model, most) in enumerate(zip(MODELS, (len(found), settings.rivals, 1), strict=True)):
        refined = together([partial(_refined, m, planes[1], still[place], model, settings) for m in found])
        found = _promising(refined, most, fixed.image.grid)
    return found[0]


def _promising(refined: list[tuple[float, Float]], most: int, grid: Grid) -> list[Float]:
    """At most so many maps that differ, best first, without those whose cost is far above the best one's."""
    kept: list[Float] = []
    least = min(cost for cost, _ in refined)
    for cost, matrix in sorted(refined, key=lambda r: r[0]):
        if len(kept) < most and cost <= least + BEATEN and all(_apart(matrix, k, grid) > SAME_SHARE for k in kept):
            kept.append(matrix)
    return kept


def through_landmarks(fixed: Float, moving: Float) -> Float:
    """The similarity map (3, 3), mirrored or not, that takes points (n, 2) nearest to others; a shift for a single point.

    With points as complex numbers it is ``a z + b`` or ``a conj(z) + b``, by least squares; two points leave the face open, and
    it is then not mirrored.
    """
    best, least = np.eye(3), np.inf
    for flip in ([1.0, 1.0], [1.0, -1.0])[: 1 if len(fixed) < 3 else 2]:
        p, q = (fixed * flip - (fixed * flip).mean(axis=0)) @ [1, 1j], (moving - moving.mean(axis=0)) @ [1, 1j]
        a = complex(np.vdot(p, q) / np.vdot(p, p)) if len(fixed) > 1 else 1.0 + 0j
        matrix = np.eye(3)
        matrix[:2, :2] = np.array([[a.real, -a.imag], [a.imag, a.real]]) * flip
        matrix[:2, 2] = moving.mean(axis=0) - matrix[:2, :2] @ fixed.mean(axis=0)
        error = float(np.abs(a * p - q).max())
        if error < least - 1e-9:
            best, least = matrix, error
    return best


def _pins(level: Level, guide: Guide) -> Array | None:
    """The landmarks' pull, both images in one world."""
    return None if guide.landmarks is None else make_pins(level, *guide.landmarks, LANDMARK_PULL)


def _candidates(planes: tuple[Pyramid, Pyramid], spacing_mm: float, settings: PlanarSettings) -> list[Float]:
    """The best similarity maps of the search, best first."""
    still = _outline_and_edges(planes[0], spacing_mm)
    found = similarity_search(
        still, lambda s: _outline_and_edges(planes[1], spacing_mm * s), settings.scales, settings.step_deg, settings.candidates
    )
    return [c.matrix for c in found]


def _outline_and_edges(plane: Pyramid, spacing_mm: float) -> Channels:
    grid = plane.grids[0].with_spacing(spacing_mm)
    both = plane.on(grid, np.eye(3))
    return make_channels(Image(grid, both[..., 0]), Image(grid, both[..., 1] >= 0.5), "edges")


def _refined(matrix: Float, moving: Pyramid, still: Still, model: str, settings: PlanarSettings) -> tuple[float, Float]:
    """Cost and map after a linear fit to one level."""
    stride = 2 if model == "similarity" else settings.plan.stride
    (level,) = levels_onto((still,), moving, matrix, stride, settings.plan.robust)
    step, cost = fit_matrix(level, model, 15)
    return cost, matrix @ still.grid.index_to_world @ step @ still.grid.world_to_index


def _apart(a: Float, b: Float, grid: Grid) -> float:
    """How far two maps take the corners of a grid apart, rms, as a share of the grid's diagonal under ``b``."""
    corners = grid.corners()
    gap = corners @ (a - b)[:2, :2].T + (a - b)[:2, 2]
    size = float(np.linalg.norm(grid.extent_mm)) * float(np.sqrt(abs(np.linalg.det(b[:2, :2]))))
    return float(np.sqrt((gap**2).sum(axis=1).mean())) / size
