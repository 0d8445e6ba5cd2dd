"""Sections that their neighbours could not place, found on their MRI planes from no initial guess.

Sections far apart resemble each other too little to be paired, and a badly stained one resembles none; the MRI still shows the
plane that each was cut from. Once the others have given the block's pose, every rotation and both faces are tried on that plane.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.kernels.interpolate import sample_3d
from histomri.registration.pair import PairResult, align, prepare, register_pair, structure_score
from histomri.registration.plane_bend import before_bend
from histomri.registration.volume import SectionPixels
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import DOUBTFUL, Placement

Float = NDArray[np.float64]
# below this lead over any other face or angle, what was found is a guess
CLEAR_MARGIN = 0.02
# an upright section wins a tie that is closer than this
FACE_TIE = 0.01
GUESS = 0.05
MOST_SCALE = 1.25
MARGIN_PX = 5
COARSER = 2.5
# what a placement said of itself before it was found here
OUTDATED = ("not placed", "no pair was accepted", "its neighbours could not place it")


@dataclass(frozen=True, eq=False)
class PlaneOfMri:
    """The MRI and its mask in one block plane, cut out around its tissue; ``search_mm`` and ``fine_mm`` are pixels to work at."""

    image: Image
    mask: Image
    search_mm: float
    fine_mm: float

    def find(self, pixels: SectionPixels, faces: tuple[bool, ...]) -> tuple[Float, float, float]:
        """The section on this plane: ``block_to_section`` (3, 3), its structure score, and its lead over other solutions."""
        fixed = prepare(self.image, self.mask, self.search_mm, self.fine_mm)
        moving = prepare(pixels.image, pixels.mask, self.search_mm, self.fine_mm)
        found = _upright_in_a_tie(register_pair(fixed, moving, faces, models=("rigid", "affine")))
        if is_believable(found[0]):
            return found
        # unlike tissue draws an affine fit out of all shape
        return _upright_in_a_tie(register_pair(fixed, moving, faces))

    def score(self, pixels: SectionPixels, matrix: Float) -> float:
        """The structure score of the section where ``matrix`` puts it."""
        fixed = prepare(self.image, self.mask, self.search_mm, self.fine_mm).channels
        moving = prepare(pixels.image, pixels.mask, self.search_mm, self.fine_mm)
        return structure_score(fixed, align(moving.image, moving.mask, matrix, fixed.grid)[1], np.eye(3))


def is_believable(matrix: Float) -> bool:
    """Whether the scales of a transform, and so its shear, are within ``MOST_SCALE`` of 1."""
    scales = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    return bool(scales[0] < MOST_SCALE and scales[-1] > 1 / MOST_SCALE)


def _upright_in_a_tie(found: PairResult) -> tuple[Float, float, float]:
    is_tie = found.score - found.other_face < FACE_TIE
    if found.mirrored and is_tie and np.isfinite(found.other_matrix).all():
        return found.other_matrix, found.other_face, 0.0
    return found.matrix, found.score, found.margin


class MriPlanes:
    """Planes of the MRI (image and mask) in a block; ``search_mm`` and ``fine_mm`` are the pixels to work at, ``bend`` the
    block's ``plane_bend``.
    """

    @classmethod
    def for_pixels(cls, mri: tuple[Image, Image], spacing_mm: float, bend: DisplacementField | None = None) -> MriPlanes:
        """Planes for sections whose pixels are ``spacing_mm`` wide, searched on pixels ``COARSER`` times as wide."""
        return cls(mri, COARSER * spacing_mm, spacing_mm, bend)

    def __init__(self, mri: tuple[Image, Image], search_mm: float, fine_mm: float, bend: DisplacementField | None = None):
        image, mask = mri
        self.bend = bend
        self.grid, self.search_mm, self.fine_mm = image.grid, search_mm, fine_mm
        self.data = np.stack([np.asarray(image.data, np.float32), np.asarray(mask.data, np.float32)], axis=-1)
        tissue = np.argwhere(mask.data[::4, ::4, ::4]) * 4
        self.tissue = image.grid.to_world(tissue)

    def at(self, position_mm: float, block_to_mri: Float) -> PlaneOfMri | None:
        """The block plane at ``position_mm``, or None where the MRI shows no tissue there."""
        if not len(self.tissue):
            return None
        back = np.linalg.inv(block_to_mri)
        places = self.tissue @ back[:3, :3].T + back[:3, 3]
        low, high = places[:, 1:].min(axis=0) - MARGIN_PX * self.fine_mm, places[:, 1:].max(axis=0) + MARGIN_PX * self.fine_mm
        shape = np.ceil((high - low) / self.fine_mm).astype(int) + 1
        plane = Grid((int(shape[0]), int(shape[1])), np.full(2, self.fine_mm), low)
        return _around_tissue(*self.on(plane, position_mm, block_to_mri), self.search_mm, self.fine_mm)

    def on(self, plane: Grid, position_mm: float, block_to_mri: Float) -> tuple[Image, Image]:
        """The MRI and its mask on a given grid of the block plane at ``position_mm``."""
        return mri_plane(self.data, self.grid.world_to_index @ block_to_mri, plane, position_mm, self.bend)


def mri_plane(
    data: NDArray[np.float32], block_to_index: Float, plane: Grid, position_mm: float, bend: DisplacementField | None = None
) -> tuple[Image, Image]:
    """The MRI and its mask, the channels of ``data`` (z, y, x, 2), on the block plane at ``position_mm``, bent by ``bend``."""
    yx = plane.points().reshape(-1, 2)
    points = np.concatenate([np.full((len(yx), 1), position_mm), yx], axis=1)
    out = sample_3d(data, block_to_index, before_bend(bend, points)).reshape(*plane.shape, 2)
    return Image(plane, out[..., 0]), Image(plane, out[..., 1] >= 0.5)


def _around_tissue(image: Image, mask: Image, search_mm: float, fine_mm: float) -> PlaneOfMri | None:
    rows, columns = np.flatnonzero(mask.data.any(axis=1)), np.flatnonzero(mask.data.any(axis=0))
    if not len(rows):
        return None
    box = tuple(slice(max(int(n[0]) - MARGIN_PX, 0), int(n[-1]) + MARGIN_PX + 1) for n in (rows, columns))
    corner = mask.grid.to_world(np.array([[b.start for b in box]], float))[0]
    data = mask.data[box]
    grid = Grid((data.shape[0], data.shape[1]), mask.grid.spacing_mm, corner)
    return PlaneOfMri(Image(grid, image.data[box]), Image(grid, data), search_mm, fine_mm)


def doubtful(placements: Mapping[str, Placement], pixels: Mapping[str, SectionPixels]) -> list[str]:
    """The sections with tissue that are not placed, or not surely."""
    return [k for k, p in placements.items() if k in pixels and p.is_doubtful]


def rescue(
    placements: Mapping[str, Placement],
    pixels: Mapping[str, SectionPixels],
    faces: Mapping[str, tuple[bool, ...]],
    plane_at: Callable[[float], PlaneOfMri | None],
    block: str,
) -> dict[str, Placement]:
    """The doubtful sections' placements after a search on their MRI planes; only those that it changed."""
    out = {}
    for key in doubtful(placements, pixels):
        old = placements[key]
        plane = plane_at(old.position_mm)
        if plane is None:
            continue
        matrix, score, margin = plane.find(pixels[key], faces[key])
        if old.affine is None or score > plane.score(pixels[key], old.affine.matrix):
            out[key] = _rescued(old, Affine(matrix, f"block:{block}", f"section:{key}"), score, margin)
    return out


def _rescued(old: Placement, affine: Affine, score: float, margin: float) -> Placement:
    quality = {**old.quality, "mri_search_score": round(score, 4), "mri_search_margin": round(margin, 4)}
    if margin >= CLEAR_MARGIN:
        flag, confidence = "its neighbours could not place it, found on its MRI plane", min(1.0, DOUBTFUL + 4 * margin)
    else:
        flag, confidence = "its neighbours could not place it, a guess on its MRI plane", GUESS
    flags = tuple(f for f in old.flags if not f.startswith(OUTDATED))
    return dataclasses.replace(
        old, affine=affine, field=None, flags=(*flags, flag), confidence=round(confidence, 4), quality=quality
    )
