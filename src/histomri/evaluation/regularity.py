"""How regular the transforms of a stack are: folding, parts of the affine, roughness along the cutting axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid
from histomri.transforms import Affine
from histomri.transforms.placement import Placement

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TransformParts:
    """The parts of a section's affine ``L = [mirror x] R(rotation) [[scale_x, shear scale_y], [0, scale_y]]`` on (x, y).

    ``rotation_deg`` lies in -180 to 180 and turns x towards y, as the column of that name in the sheet of sections does; the
    scales are section mm per block mm and positive; ``shear`` is a ratio; ``stretch`` is the larger principal scale over the
    smaller one.
    """

    rotation_deg: float
    scale_x: float
    scale_y: float
    shear: float
    stretch: float
    mirrored: bool


def transform_parts(affine: Affine) -> TransformParts:
    """The parts of the linear part of a 2D affine from the block's plane to a section."""
    xy = affine.linear[::-1, ::-1]
    mirrored = bool(np.linalg.det(xy) < 0)
    q, r = np.linalg.qr(np.diag([-1.0, 1.0]) @ xy if mirrored else xy)
    signs = np.sign(np.diag(r))
    q, r = q * signs, signs[:, None] * r
    principal = np.linalg.svd(xy, compute_uv=False)
    return TransformParts(
        rotation_deg=float(np.degrees(np.arctan2(q[1, 0], q[0, 0]))),
        scale_x=float(r[0, 0]),
        scale_y=float(r[1, 1]),
        shear=float(r[0, 1] / r[1, 1]),
        stretch=float(principal[0] / principal[1]),
        mirrored=mirrored,
    )


@dataclass(frozen=True)
class Deformation:
    """What a section's deformation does to its tissue: pixels that it folds, and ``strain``, the 99th percentile of the
    absolute logarithm of its local change of area (0 for none)."""

    folded_px: int = 0
    strain: float = 0.0


def deformation(placement: Placement, grid: Grid, tissue: Mask) -> Deformation:
    """The deformation of a section over its tissue on the grid of its block's plane.

    A pixel folds where the triangle of its mapped centre and those of the next pixel in y and in x has no positive area:
    the sign of the Jacobian determinant of the map as it is applied, between the nodes of its field too.
    """
    inside = tissue[:-1, :-1]
    if placement.field is None or not inside.any():
        return Deformation()
    mapped = placement.field.map(grid.points())
    down, right = np.diff(mapped, axis=0)[:, :-1], np.diff(mapped, axis=1)[:-1]
    area = (down[..., 0] * right[..., 1] - down[..., 1] * right[..., 0])[inside] / np.prod(grid.spacing_mm)
    strain = np.abs(np.log(np.maximum(area, 1e-3)))
    return Deformation(int((area <= 0).sum()), float(np.percentile(strain, 99)))


def _perimeter(mask: Mask) -> float:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return float(sum(cv2.arcLength(outline, True) for outline in outlines))


def contour_roughness(masks: Sequence[Mask], spacing_mm: float) -> NDArray[np.float64]:
    """Mean second difference, in mm, of the tissue's outline along the cutting axis, one per inner section.

    Where a section's outline departs from the middle of its neighbours', area is covered that they do not share; that
    area, ``|T[i-1] - 2 T[i] + T[i+1]|``, divided by the outline's length is the mean distance by which it departs.
    """
    out = []
    for before, here, after in zip(masks, masks[1:], masks[2:], strict=False):
        area = np.abs(before.astype(int) - 2 * here + after).sum() * spacing_mm**2
        out.append(area / max(_perimeter(here) * spacing_mm, spacing_mm))
    return np.asarray(out, float)
