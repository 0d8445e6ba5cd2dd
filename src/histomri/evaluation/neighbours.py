"""What each section looks like next to its neighbours: the evidence for tears, blotches and misplacement.

Sections on one grid are compared with the median of their nearest neighbours of the same stain. The median of four
survives a bad neighbour, and what all neighbours show and one section lacks is a fault of that section, not anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.evaluation.overlap import dice, local_ncc

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

LOST_SHARE = 0.15  # a pixel this much fainter than the section's tissue is none: a crack, a hole, a torn-off piece
TOLERANCE = 2  # pixels of misplacement that are forgiven along outlines
DEPTH = 0.035  # of the square root of the tissue's area: what is missing less deep than this may be a sulcus that opened
BLOTCH, BLOTCH_END = 0.3, 0.6  # natural logarithm of the staining ratio that makes a blotch, inside a stack and at its ends
NOT_COMPARED = float("nan")
Trusted = AbstractSet[str] | None


@dataclass(frozen=True, eq=False)
class PlacedSection:
    """A section on the grid of its block's plane: image and tissue mask of one shape, stain and position in mm."""

    id: str
    stain: str
    position_mm: float
    image: Float32
    mask: Mask


@dataclass(frozen=True, eq=False)
class Undeformed:
    """A section before its deformation: image and tissue mask on its plane's grid under the affine alone, and ``lies_at``,
    the index (y, x) of the place on that grid to which the deformation takes each pixel (None where there is none).

    A deformation closes a crack, as it should, so that next to its neighbours the section looks whole. Here it is open.
    """

    image: Float32
    mask: Mask
    lies_at: Float32 | None = None

    def sees(self, mask: Mask) -> Mask:
        """A mask of the plane, as it looks from the undeformed section."""
        if self.lies_at is None:
            return mask
        y, x = np.ascontiguousarray(self.lies_at[..., 0]), np.ascontiguousarray(self.lies_at[..., 1])
        return np.asarray(cv2.remap(mask.astype(np.float32), x, y, cv2.INTER_LINEAR) >= 0.5)


@dataclass(frozen=True)
class NeighbourEvidence:
    """How a section differs from its neighbours; NaN where it has none to be compared with.

    ``similarity``: squared local correlation, median over the neighbours. ``overlap``: Dice with their common tissue.
    ``missing``: the largest piece of the tissue they have and it lacks before its deformation, as a share of theirs.
    ``extra``: share of its tissue that none of them has. ``blotch``: share of its tissue stained otherwise than theirs, but
    for the overall difference. ``stain_ratio``: its staining over theirs. At the ends of a stack all neighbours are on one
    side; what they say is an extrapolation then, and ``similarity`` and ``overlap`` are lower for good sections too
    (``one_sided``).
    """

    similarity: float = NOT_COMPARED
    overlap: float = NOT_COMPARED
    missing: float = NOT_COMPARED
    extra: float = NOT_COMPARED
    blotch: float = NOT_COMPARED
    stain_ratio: float = NOT_COMPARED
    one_sided: bool = False


def nearest(sections: Sequence[PlacedSection], i: int, reach: int, same_stain: bool, trusted: Trusted = None) -> list[int]:
    """The indices of up to ``reach`` sections on either side of section ``i`` among the ``trusted`` ids (None means all).

    Sections are in order of position. With ``same_stain`` only those of its stain, unless there are fewer than two.
    """

    def pick(own_stain: bool) -> list[int]:
        near = [
            j
            for j, s in enumerate(sections)
            if j != i and (s.stain == sections[i].stain or not own_stain) and (trusted is None or s.id in trusted)
        ]
        return [j for j in near if j < i][-reach:] + [j for j in near if j > i][:reach]

    found = pick(same_stain)
    return found if len(found) >= 2 else pick(False)


def _is_one_sided(i: int, near: Sequence[int]) -> bool:
    return all(j > i for j in near) or all(j < i for j in near)


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
    trusted: Trusted = None,
    mri_tissue: Mask | None = None,
    undeformed: Undeformed | None = None,
) -> NeighbourEvidence:
    """Section ``i`` of sections in order of position against its ``trusted`` neighbours (see :func:`nearest`).

    Staining is compared with neighbours of its stain, outlines with the nearest of any stain, and with ``mri_tissue``, the
    MRI's mask on its plane, where there is one: only what neighbours and MRI agree on is missing, or extra. What is missing is
    sought in the ``undeformed`` section where that is given.
    """
    here = sections[i]
    near = nearest(sections, i, reach, True, trusted)
    if not near or not here.mask.any():
        return NeighbourEvidence()
    around = [sections[j] for j in nearest(sections, i, reach, False, trusted)]
    others = [sections[j] for j in near]
    share = np.mean([o.mask for o in around], axis=0)
    common = here.mask & (share >= 0.5)
    if not common.any():
        return NeighbourEvidence(similarity=0.0, overlap=0.0, missing=1.0, extra=1.0, one_sided=_is_one_sided(i, near))
    staining = _Staining(here, others, common)
    return NeighbourEvidence(
        similarity=float(np.median([local_ncc(here.image, o.image, here.mask & o.mask) for o in others])),
        overlap=dice(here.mask, share >= 0.5),
        missing=_missing_share(undeformed or Undeformed(here.image, here.mask), share, mri_tissue),
        extra=_extra_share(here, share, mri_tissue),
        blotch=staining.blotch_share(BLOTCH_END if _is_one_sided(i, near) else BLOTCH),
        stain_ratio=staining.ratio if staining.comparable else NOT_COMPARED,
        one_sided=_is_one_sided(i, near),
    )


def _missing_share(here: Undeformed, share: NDArray[np.float64], mri_tissue: Mask | None) -> float:
    """Share of the tissue that is surely to be expected, well inside of the outlines, that is missing in one piece.

    Vessels and sulci that shift between sections miss in many small pieces or near the outlines; a crack or a torn-off part
    is a large piece and goes deep.
    """
    expected = share >= 0.75 if mri_tissue is None else (share >= 0.75) & mri_tissue
    sure = here.sees(_shrink(expected, max(TOLERANCE, round(DEPTH * float(expected.sum()) ** 0.5))))
    if not sure.any() or not here.mask.any():
        return NOT_COMPARED
    lost = ~here.mask | (here.image < LOST_SHARE * np.median(here.image[here.mask]))
    pieces = cv2.morphologyEx((sure & lost).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    # a crack that tissue bridges here and there is one crack
    _, labels = cv2.connectedComponents(_grow(pieces > 0, TOLERANCE).astype(np.uint8), connectivity=8)
    areas = np.bincount(labels[pieces > 0], minlength=2)
    return float(areas.max() / int(sure.sum()))


def _extra_share(here: PlacedSection, share: NDArray[np.float64], mri_tissue: Mask | None) -> float:
    """Share of the tissue that lies well outside of what neighbours and MRI show."""
    known = share > 0 if mri_tissue is None else (share > 0) | mri_tissue
    return float((here.mask & ~_grow(known, TOLERANCE)).sum() / here.mask.sum())


@dataclass(frozen=True, eq=False)
class _Staining:
    """A section's staining beside the median of its neighbours', over the tissue that they have in common."""

    here: PlacedSection
    others: Sequence[PlacedSection]
    common: Mask

    @property
    def comparable(self) -> bool:
        """Whether the neighbours are of its stain."""
        return all(o.stain == self.here.stain for o in self.others)

    @cached_property
    def model(self) -> Float32:
        """What the section is expected to look like, but for the overall strength of its staining."""
        return np.median([o.image for o in self.others], axis=0).astype(np.float32)

    @cached_property
    def ratio(self) -> float:
        """The section's staining over its neighbours'."""
        usual = float(np.median(self.model[self.common]))
        return float(np.median(self.here.image[self.common])) / max(usual, 1e-12)

    def blotch_share(self, limit: float) -> float:
        """Share of the tissue whose staining is off by more than ``limit`` (natural logarithm); NaN without a model."""
        inside = _shrink(self.common, TOLERANCE)
        if not self.comparable or not inside.any():
            return NOT_COMPARED
        window = 2 * max(2, round(max(inside.shape) / 50)) + 1
        ratios = log_stain_map(self.here, self.model, inside, window)
        return float((np.abs(ratios - np.median(ratios)) > limit).mean())
