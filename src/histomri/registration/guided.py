"""The planar pipeline from the start that landmarks give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.registration.alignment import Alignment, Guide, Progress, View, silent
from histomri.registration.warp import warped
from histomri.transforms import Affine, Chain, Transform

Float = NDArray[np.float64]

# fewer points than that leave an affine map to the error of each
ENOUGH_FOR_AFFINE = 6
# how much worse than a plain fit of them, and how far over the moving image's diagonal, the landmarks may lie
WORSE = 2.0
FAR = 0.02


def register_guided(fixed: View, moving: View, guide: Guide, progress: Progress = silent) -> Alignment:
    """``register_planar``; with landmarks, of the moving image as they lay it, without a search."""
    from histomri.registration.planar import register_planar

    if guide.landmarks is None:
        return register_planar(fixed, moving, guide, progress)
    start = from_landmarks(*guide.landmarks)
    found = register_planar(fixed, laid(moving, start, fixed.image.grid), Guide(search=False), progress)
    *before, last = Chain.steps_of(found.transform)
    assert isinstance(last, Affine)
    affine = Affine(start.matrix @ last.matrix)
    return replace(found, transform=Chain((*before, affine)) if before else affine)


def from_landmarks(fixed: Float, moving: Float) -> Affine:
    """The map that takes fixed points, (n, ndim), nearest to moving ones: affine for 6 and more of them, else a similarity.

    The similarity is Umeyama's (1991), except that it may reflect: sections lie on either face.
    """
    middle = fixed.mean(axis=0), moving.mean(axis=0)
    a, b = fixed - middle[0], moving - middle[1]
    if len(fixed) >= ENOUGH_FOR_AFFINE:
        linear = np.linalg.lstsq(a, b, rcond=None)[0].T
    else:
        u, s, vt = np.linalg.svd(b.T @ a)
        linear = u @ vt * float(s.sum()) / float((a**2).sum())
    return Affine.from_parts(linear, middle[1] - linear @ middle[0])


def laid(moving: View, start: Affine, like: Grid) -> View:
    """The moving view where ``start`` (fixed mm to moving mm) lays it, on a grid of the fixed one's axes, as fine as it is."""
    corners = start.inverse().map(moving.image.grid.corners())
    index = (corners - like.origin_mm) @ np.linalg.inv(like.direction).T
    spacing = float(moving.image.grid.spacing_mm.max()) / abs(float(np.linalg.det(start.linear))) ** (1 / start.ndim)
    low = index.min(axis=0)
    shape = tuple(np.ceil((index.max(axis=0) - low) / spacing).astype(int) + 1)
    grid = Grid(shape, np.full(start.ndim, spacing), like.origin_mm + like.direction @ low, like.direction)
    image, mask = (warped(i, start, grid) for i in (moving.image, moving.mask))
    return View(Image(grid, image), Image(grid, mask))


def landmarks_missed(transform: Transform, landmarks: tuple[Float, Float], moving: Grid) -> str:
    """Why a transform contradicts the landmarks (median distance); empty where it does not."""
    fixed, goal = landmarks
    plain, found = (
        float(np.median(np.linalg.norm(t.map(fixed) - goal, axis=1))) for t in (from_landmarks(*landmarks), transform)
    )
    limit = max(WORSE * plain, FAR * float(np.linalg.norm(moving.extent_mm)))
    return (
        "" if found <= limit else f"the images led {found:.4g} away from the landmarks (limit {limit:.4g}), which contradict them"
    )
