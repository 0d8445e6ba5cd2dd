"""The sections that ``region: auto`` finds on the slides of a study, listed and drawn before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.core import InputError, Section
from histomri.io import slides
from histomri.io.regions import SlideSections, sections_on
from histomri.kernels.glass import is_dark_slide
from histomri.kernels.tissue import full_range_of
from histomri.stages.contact_sheets import as_rgb
from histomri.stages.pictures import outline

COLOUR, OWN = (220, 30, 30), (0, 170, 60)


@dataclass(frozen=True, eq=False)
class FoundOnSlide:
    """A slide file, the rows of the sheet that lie on it as ``auto``, and what was found, or the reason why not."""

    file: Path
    rows: tuple[Section, ...]
    found: SlideSections | None = None
    problem: str = ""


def find_regions(sections: Sequence[Section], reading_order: str) -> Iterator[FoundOnSlide]:
    """The slides of sections whose region is ``auto``, in the order of the sheet, each looked at once."""
    by_slide: dict[tuple[Path, str | None], list[Section]] = {}
    for section in sections:
        if section.auto_region is not None and section.file is not None:
            by_slide.setdefault((section.file, section.channel), []).append(section)
    for (file, channel), rows in by_slide.items():
        count = max(row.auto_region[1] for row in rows if row.auto_region)
        try:
            with slides.open_slide(file, channel) as slide:
                yield FoundOnSlide(file, tuple(rows), sections_on(slide, count, reading_order))
        except InputError as error:
            yield FoundOnSlide(file, tuple(rows), None, "; ".join(problem.what for problem in error.problems))


def draw_regions(found: SlideSections) -> NDArray[np.uint8]:
    """The slide, RGB (y, x, 3), with the number and region of each section, and the outline of the tissue that is its own."""
    pixels = found.overview
    grey = pixels.mean(axis=-1, dtype=np.float32)
    full = full_range_of(pixels)
    rgb = as_rgb(pixels if full > 255 or is_dark_slide(grey, full) else pixels.astype(np.uint8), False)
    thick = max(1, round(max(rgb.shape) / 500))
    for number, section in enumerate(found.sections, start=1):
        x, y, width, height = (round(v / found.factor) for v in section.region)
        own = np.zeros(rgb.shape[:2], bool)
        part = own[y : y + section.own.shape[0], x : x + section.own.shape[1]]
        part[...] = section.own[: part.shape[0], : part.shape[1]]
        outline(rgb, own, OWN, thick)
        cv2.rectangle(rgb, (x, y), (x + width - 1, y + height - 1), COLOUR, thick)
        scale = thick * 0.6
        cv2.putText(rgb, str(number), (x + 4 * thick, y + round(26 * scale)), cv2.FONT_HERSHEY_SIMPLEX, scale, COLOUR, 2 * thick)
    return rgb
