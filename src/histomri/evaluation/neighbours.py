"""What each section looks like next to its neighbours: the evidence for tears, blotches and misplacement.

Sections on one grid are compared with the median of their nearest neighbours of the same stain. The median of four
survives a bad neighbour, and what all neighbours show and one section lacks is a fault of that section, not anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.evaluation.overlap import dice, local_ncc

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

LOST_SHARE = 0.35  # a pixel this much fainter than the neighbours' is no tissue: a crack, a hole, a torn-off piece
NOT_COMPARED = float("nan")


@dataclass(frozen=True, eq=False)
class PlacedSection:
    """A section on the grid of its block's plane: image and tissue mask of one shape, stain and position in mm."""

    id: str
    stain: str
    position_mm: float
    image: Float32
    mask: Mask


@dataclass(frozen=True)
class NeighbourEvidence:
    """How a section differs from its neighbours; NaN where it has none to be compared with.

    ``similarity``: squared local correlation, median over the neighbours. ``overlap``: Dice with their common tissue.
    ``missing``: share of the tissue they have and it lacks. ``extra``: share of its tissue that none of them has.
    ``blotch``: share of its tissue stained otherwise than theirs, after the overall difference is taken out.
    ``stain_ratio``: its staining over theirs.
    """

    similarity: float = NOT_COMPARED
    overlap: float = NOT_COMPARED
    missing: float = NOT_COMPARED
    extra: float = NOT_COMPARED
    blotch: float = NOT_COMPARED
    stain_ratio: float = NOT_COMPARED


def nearest(sections: Sequence[PlacedSection], i: int, reach: int, trusted: AbstractSet[str] | None = None) -> list[int]:
    """The indices of up to ``reach`` sections on either side of section ``i``, of its stain and among the ``trusted`` ids.

    Sections are in order of position; no ``trusted`` means all. Where fewer than two are of its stain, any stain will do.
    """

    def pick(same_stain: bool) -> list[int]:
        near = [
            j
            for j, s in enumerate(sections)
            if j != i and (s.stain == sections[i].stain or not same_stain) and (trusted is None or s.id in trusted)
        ]
        return [j for j in near if j < i][-reach:] + [j for j in near if j > i][:reach]

    same = pick(True)
    return same if len(same) >= 2 else pick(False)


def _grow(mask: Mask, radius: int) -> Mask:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)


def _shrink(mask: Mask, radius: int) -> Mask:
    return ~_grow(~mask, radius)


def _smooth_within(values: Float32, mask: Mask, window: int) -> NDArray[np.float64]:
    """Mean of the values over the masked pixels of a square around each pixel; 0 where there is none."""
    w = mask.astype(np.float64)
    weight = cv2.blur(w, (window, window), borderType=cv2.BORDER_CONSTANT)
    total = cv2.blur(values * w, (window, window), borderType=cv2.BORDER_CONSTANT)
    return np.where(weight > 1e-9, total / np.maximum(weight, 1e-9), 0.0)


def log_stain_map(section: PlacedSection, model: Float32, common: Mask, window: int) -> NDArray[np.float64]:
    """Logarithm of the section's smoothed staining over its neighbours', (n,) over the common pixels."""
    here, there = (_smooth_within(v, common, window)[common] for v in (section.image, model))
    least = 0.05 * max(float(np.median(there)), 1e-12)
    return np.asarray(np.log(np.maximum(here, least) / np.maximum(there, least)), float)


def compare(
    sections: Sequence[PlacedSection],
    i: int,
    reach: int = 2,
    trusted: AbstractSet[str] | None = None,
    tolerance: int = 2,
    limit: float = 0.3,
) -> NeighbourEvidence:
    """Section ``i`` of sections in order of position against its ``trusted`` neighbours (see :func:`nearest`).

    ``tolerance`` is the misplacement in pixels that is forgiven along outlines; ``limit`` the natural logarithm of the
    staining ratio beyond which a region counts as a blotch.
    """
    here = sections[i]
    others = [sections[j] for j in nearest(sections, i, reach, trusted)]
    if not others or not here.mask.any():
        return NeighbourEvidence()
    model = np.median([o.image for o in others], axis=0).astype(np.float32)
    share = np.mean([o.mask for o in others], axis=0)
    expected = share >= 0.5
    same_stain = all(o.stain == here.stain for o in others)
    common = here.mask & expected
    if not common.any():
        return NeighbourEvidence(similarity=0.0, overlap=0.0, missing=1.0, extra=1.0)
    ratio = float(np.median(here.image[common]) / max(float(np.median(model[common])), 1e-12))
    lost = ~here.mask
    if same_stain:
        lost |= here.image < LOST_SHARE * ratio * model
    sure = _shrink(share >= 0.75, tolerance)
    return NeighbourEvidence(
        similarity=float(np.median([local_ncc(here.image, o.image, here.mask & o.mask) for o in others])),
        overlap=dice(here.mask, expected),
        missing=float((sure & lost).sum() / max(int(sure.sum()), 1)),
        extra=float((here.mask & ~_grow(share > 0, tolerance)).sum() / here.mask.sum()),
        blotch=_blotch_share(here, model, _shrink(common, tolerance), limit) if same_stain else NOT_COMPARED,
        stain_ratio=ratio if same_stain else NOT_COMPARED,
    )


def _blotch_share(here: PlacedSection, model: Float32, common: Mask, limit: float) -> float:
    if not common.any():
        return NOT_COMPARED
    window = 2 * max(2, round(max(common.shape) / 50)) + 1
    ratios = log_stain_map(here, model, common, window)
    return float((np.abs(ratios - np.median(ratios)) > limit).mean())
