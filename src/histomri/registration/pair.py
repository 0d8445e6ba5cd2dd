"""One section on another: search, refine the best few, score by what the optimiser did not minimise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.kernels.interpolate import warp_2d
from histomri.registration.bending import Goal, Plan, bend_plane, masked_pyramid
from histomri.registration.channels import make_channels, match_contrast, resample_to
from histomri.registration.linear import fit_linear
from histomri.registration.samples import Channels, Samples, draw_samples
from histomri.registration.search import Candidate, rigid_search
from histomri.registration.volume import field_pixels
from histomri.transforms.displacement import DisplacementField

Float = NDArray[np.float64]
Array = NDArray[np.float32]
PAIR_SAMPLES = 20_000
STEP_DEG = 6.0


@dataclass(frozen=True, eq=False)
class Prepared:
    """One section at the two resolutions of the pair registration, ready to be compared with many others."""

    edges: Channels
    image: Image
    mask: Image
    channels: Channels
    samples: Samples


@dataclass(frozen=True, eq=False)
class PairResult:
    """``matrix`` (3, 3) maps fixed mm to moving mm. ``score`` is the cosine of the structure channels over the union of both
    tissues (1 = identical); ``margin`` is its lead over the best candidate of the other face or a clearly different angle;
    ``other_face`` the best score with the other face up, ``other_matrix`` its transform (NaN where only one face was tried).
    """

    matrix: Float
    score: float
    margin: float
    mirrored: bool
    other_face: float
    other_matrix: Float


def prepare(image: Image, mask: Image, search_mm: float, fine_mm: float) -> Prepared:
    """Feature channels of one section at ``search_mm`` and ``fine_mm`` pixels.

    Raises ``RegistrationError`` when the mask is empty.
    """
    coarse, fine = at_spacing(image, mask, search_mm), at_spacing(image, mask, fine_mm)
    channels = make_channels(*fine, "structure")
    return Prepared(make_channels(*coarse, "edges"), *fine, channels, draw_samples(channels, PAIR_SAMPLES))


def at_spacing(image: Image, mask: Image, spacing_mm: float) -> tuple[Image, Image]:
    """Image and mask on an isotropic grid of ``spacing_mm`` over the same extent."""
    grid = image.grid.with_spacing(spacing_mm)
    return resample_to(image, grid), resample_to(mask, grid)


def scaled(image: Image, scale: float) -> Image:
    """The image as if its pixels were ``scale`` times as large."""
    grid = image.grid
    return Image(Grid(grid.shape, grid.spacing_mm * scale, grid.origin_mm * scale, grid.direction), image.data)


def register_pair(
    fixed: Prepared,
    moving: Prepared,
    mirrors: tuple[bool, ...] = (False, True),
    keep: int = 3,
    hints_deg: tuple[tuple[float, float], ...] = (),
    models: tuple[str, ...] = ("rigid",),
) -> PairResult:
    """Registration of two sections from no initial guess, over ``models`` in turn; stains may differ.

    ``hints_deg``, each (angle, tolerance), restrict the search where the rotation is roughly known; the angle is that of
    :func:`histomri.registration.search.rotation`.
    """
    angles = angles_to_try(hints_deg)
    candidates = rigid_search(fixed.edges, moving.edges, angles, mirrors, keep)
    for mirrored in mirrors:  # each face is tried, however clear the search was
        if not any(c.mirrored == mirrored for c in candidates):
            candidates += rigid_search(fixed.edges, moving.edges, angles, (mirrored,), 1)
    refined = sorted((_refine(c, fixed, moving, models) for c in candidates), key=lambda r: -r[0])
    score, matrix, best = refined[0]
    others = [r for r in refined[1:] if r[2].mirrored != best.mirrored or _apart(r[1], matrix)]
    faces = [r for r in refined if r[2].mirrored != best.mirrored]
    margin = score - others[0][0] if others else 1.0
    other_face, other_matrix = faces[0][:2] if faces else (-1.0, np.full((3, 3), np.nan))
    return PairResult(matrix, score, margin, best.mirrored, other_face, other_matrix)


def angles_to_try(hints_deg: tuple[tuple[float, float], ...] = ()) -> Float:
    """All angles in steps of ``STEP_DEG``, or those within each (angle, tolerance)."""
    if not hints_deg:
        return np.arange(0.0, 360.0, STEP_DEG)
    return np.concatenate([angle + np.arange(-limit, limit + 1e-6, STEP_DEG) for angle, limit in hints_deg])


def _refine(candidate: Candidate, fixed: Prepared, moving: Prepared, models: tuple[str, ...]) -> tuple[float, Float, Candidate]:
    matrix = candidate.matrix
    for model in models:
        start, aligned = align(moving.image, moving.mask, matrix, fixed.channels.grid)
        matched = match_contrast(fixed.channels, aligned, onto_fixed(aligned, fixed.channels.grid))
        step = fit_linear(fixed.samples, matched, np.eye(3), model, iterations=25).matrix
        matrix = start @ step
    return structure_score(fixed.channels, aligned, step), matrix, candidate


def onto_fixed(moving: Channels, grid: Grid) -> Array:
    """Aligned channels on the fixed grid as they lie now: (*grid.shape, c)."""
    return warp_2d(moving.data, moving.grid.world_to_index @ grid.index_to_world, (grid.shape[0], grid.shape[1]))


def deform_pair(fixed: Prepared, moving: Prepared, matrix: Float, plan: Plan) -> tuple[DisplacementField | None, float]:
    """The deformation over the fixed image, before ``matrix`` (fixed mm -> moving mm), and the structure score with it.

    None, and the score without it, where the deformation brings nothing.
    """
    grid = fixed.channels.grid
    _, aligned = align(moving.image, moving.mask, matrix, grid)
    before = structure_score(fixed.channels, aligned, np.eye(3))
    planes = masked_pyramid(fixed.image, fixed.mask), masked_pyramid(moving.image, moving.mask)
    field = bend_plane([Goal(planes[0])], planes[1], matrix, grid, plan)
    after = structure_score(fixed.channels, aligned, np.eye(3), field_pixels(field, grid))
    return (field, after) if after > before else (None, before)


def align(image: Image, mask: Image, matrix: Float, grid: Grid) -> tuple[Float, Channels]:
    """The moving image turned into the fixed frame by ``matrix`` (fixed mm -> moving mm), and its structure channels there.

    MIND looks along the axes of its image, so both images must be the same way up before it is computed. The returned grid has
    the fixed grid's spacing and covers all of the moving image. Returns ``matrix`` too, for composing: fixed, aligned, moving.
    """
    corners = np.linalg.solve(matrix[:2, :2], (mask.grid.corners() - matrix[:2, 2]).T).T
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = grid.spacing_mm
    shape = tuple(np.maximum(np.ceil((high - low) / spacing).astype(int) + 1, 4))
    frame = Grid(shape, spacing, low)
    both = np.stack([np.asarray(image.data, np.float32), np.asarray(mask.data, np.float32)], axis=-1)
    out = warp_2d(both, mask.grid.world_to_index @ matrix @ frame.index_to_world, (shape[0], shape[1]))
    return matrix, make_channels(Image(frame, out[..., 0]), Image(frame, out[..., 1] >= 0.5), "structure")


def structure_score(fixed: Channels, moving: Channels, matrix: Float, field: Array | None = None) -> float:
    """Cosine of the structure channels (the mask channel left out) over the union of both tissues, in -1 to 1.

    ``field`` (y, x, 2) in fixed pixels is added before ``matrix``.
    """
    onto = moving.grid.world_to_index @ matrix @ fixed.grid.index_to_world
    warped = warp_2d(moving.data, onto, (fixed.grid.shape[0], fixed.grid.shape[1]), field)[..., :-1]
    other = fixed.data[..., :-1]
    # tissue that falls outside the fixed grid stays in the norm, so losing it never helps
    pixels = float(np.prod(moving.grid.spacing_mm) / np.prod(fixed.grid.spacing_mm)) / abs(float(np.linalg.det(matrix)))
    energy = float((moving.data[..., :-1] ** 2).sum()) * pixels
    return float((warped * other).sum()) / (float(np.sqrt(float((other**2).sum()) * energy)) + 1e-12)


def _apart(a: Float, b: Float) -> bool:
    """Whether two refined results of one face are different solutions (more than 8 degrees apart)."""
    turn = a[:2, :2] @ np.linalg.inv(b[:2, :2])
    return abs(float(np.degrees(np.arctan2(turn[0, 1] - turn[1, 0], turn[0, 0] + turn[1, 1])))) > 8.0
