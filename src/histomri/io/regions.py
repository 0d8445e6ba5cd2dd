"""Several sections on one slide: where each of them lies, from a small image of the whole slide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histomri.core import InputError
from histomri.core.errors import Problem
from histomri.io import slides

Region = tuple[int, int, int, int]
OVERVIEW_PX = 1024
STRIP_PX = 1 << 24  # pixels read at a time
MARGIN = 0.06  # around a section, as a share of its long side


@dataclass(frozen=True, eq=False)
class FoundSection:
    """One section on a slide: its region (x, y, width, height) in level-0 pixels, and which pixels of it are its own.

    ``own`` is bool (y, x) over the region, coarser than level 0: a neighbour's corner may lie in the region.
    """

    region: Region
    own: NDArray[np.bool_]


def overview(slide: slides.Slide, longest: int = OVERVIEW_PX) -> tuple[NDArray[np.float32], float]:
    """The whole slide, (y, x, c) float32, averaged over squares of the returned number of level-0 pixels, and that number.

    From the file's coarsest level that has as many pixels.
    """
    import cv2

    shapes = slide.info.levels or (slide.info.shape,)
    level = max((i for i, shape in enumerate(shapes) if max(shape) >= longest), default=0)
    height, width = shapes[level]
    factor = max(1, math.ceil(max(height, width) / longest))
    step = max(1, STRIP_PX // (width * factor)) * factor
    parts = []
    for top in range(0, height // factor * factor, step):
        rows = min(step, height // factor * factor - top)
        pixels = slide.read_region(top, 0, rows, width // factor * factor, level)
        size = (pixels.shape[1] // factor, rows // factor)
        planes = [cv2.resize(np.ascontiguousarray(p), size, interpolation=cv2.INTER_AREA) for p in np.moveaxis(pixels, -1, 0)]
        parts.append(np.stack(planes, axis=-1).astype(np.float32))
    # scanners drop what is left over of a pixel of a coarser level
    ratio = round(slide.info.shape[0] / height, 1)
    return np.concatenate(parts), factor * ratio


@dataclass(frozen=True, eq=False)
class SlideSections:
    """The ``sections`` of a slide in reading order, and the ``overview`` (y, x, c) that they were found on.

    ``factor`` is the side of one of its pixels in level-0 pixels.
    """

    sections: tuple[FoundSection, ...]
    overview: NDArray[np.float32]
    factor: float


def find_sections(
    path: Path, count: int | None = None, order: str = "row-major", channel: str | None = None
) -> tuple[FoundSection, ...]:
    """The sections on a slide file; see :func:`sections_on`. Raises ``InputError`` also where it cannot be read."""
    with slides.open_slide(path, channel) as slide:
        return sections_on(slide, count, order).sections


def sections_on(slide: slides.Slide, count: int | None = None, order: str = "row-major") -> SlideSections:
    """The sections on a slide in reading order (one of ``READING_ORDERS``); ``count`` says how many there are, None finds out.

    Raises ``InputError`` where it holds fewer pieces of tissue than ``count``.
    """
    from histomri.kernels.groups import box_of, reading_order, section_groups
    from histomri.kernels.tissue import find_tissue

    pixels, factor = overview(slide)
    kind = np.dtype(slide.info.dtype)
    mask = find_tissue(np.rint(pixels).astype(kind) if kind.kind in "ui" else pixels).mask
    groups = section_groups(mask, count)
    if count is not None and len(groups) != count:
        what = f"{count} sections were expected on the slide, {len(groups)} were found"
        remedy = "correct the number, or give each section its region as x,y,width,height"
        raise InputError(Problem(str(slide.info.path), what, remedy))
    boxes = [box_of(g) for g in groups]
    ordered = reading_order(boxes, order)
    margins = [margin_of(boxes, i) for i in range(len(boxes))]
    found = tuple(cut_out(groups[i], boxes[i], margins[i], factor, slide.info.shape) for i in ordered)
    return SlideSections(found, pixels, factor)


def margin_of(boxes: Sequence[tuple[int, int, int, int]], i: int) -> int:
    """How far box ``i`` (y, x, height, width) may grow: by ``MARGIN``, and by half the distance to the next box at most."""
    wanted = max(2, math.ceil(MARGIN * max(boxes[i][2:])))
    gaps = [
        max(
            other[k] - boxes[i][k] - boxes[i][k + 2] if other[k] > boxes[i][k] else boxes[i][k] - other[k] - other[k + 2]
            for k in (0, 1)
        )
        for j, other in enumerate(boxes)
        if j != i
    ]
    return max(0, min([wanted, *(gap // 2 for gap in gaps)]))


def cut_out(
    group: NDArray[np.bool_], box: tuple[int, int, int, int], margin: int, factor: float, shape: tuple[int, int]
) -> FoundSection:
    """A section's region in level-0 pixels of a slide of ``shape`` (y, x), from its box on the overview grown by ``margin``."""
    y, x = max(0, box[0] - margin), max(0, box[1] - margin)
    bottom, right = min(group.shape[0], box[0] + box[2] + margin), min(group.shape[1], box[1] + box[3] + margin)
    top, left = int(y * factor), int(x * factor)
    height, width = min(round(bottom * factor), shape[0]) - top, min(round(right * factor), shape[1]) - left
    return FoundSection((left, top, width, height), group[y:bottom, x:right])
