"""stack, where a block has no MRI: the sections onto their neighbours by affine maps and deformations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histomri.core import Section
from histomri.stages.stack import StackSettings

if TYPE_CHECKING:
    from histomri.registration.stack_refinement import StackRefinement
    from histomri.transforms.placement import Placement, Placements

NOTE = (
    "the shape along the stack that changes slowly (over more than about {sections:g} sections) cannot be known from sections "
    "alone and is as the rigid placement left it, while what jumps from section to section was taken out"
)


def deform(
    sections: Sequence[Section], manifests: Mapping[str, Path], placements_in: Path, placements_out: Path, settings: StackSettings
) -> None:
    """Take out what jumps from one section to the next; the placements of a block without an MRI.

    Sections that lie on their photographs, or were locked by hand, stay there.
    """
    from histomri.io.placements import read_placements, write_placements
    from histomri.registration.stack_refinement import Smoothing, StackRefinement
    from histomri.stages.mri import load_pixels, tissue_size_mm

    placements = read_placements(placements_in)
    if len(placements.placed) < 3 or settings.affine_sweeps + settings.deformable_sweeps == 0:
        write_placements(placements_out, placements)
        return
    shared = {f.name: getattr(settings, f.name) for f in dataclasses.fields(Smoothing) if hasattr(settings, f.name)}
    plan = Smoothing(spacing_mm=tissue_size_mm(sections, manifests) / settings.work_px, **shared)
    pixels = load_pixels(sections, manifests, placements, plan.spacing_mm)
    held = frozenset(k for k, p in placements.placed.items() if _is_known(p))
    work = StackRefinement({k: p for k, p in pixels.items() if p.mask.data.any()}, placements.sections, plan, held)
    work.run(progress=_say)
    write_placements(placements_out, _result(placements, work, settings))


def _is_known(placement: Placement) -> bool:
    from histomri.registration.by_hand import is_locked

    return placement.is_on_photograph or is_locked(placement)


def _say(text: str) -> None:
    print(text, flush=True)


def _result(placements: Placements, work: StackRefinement, settings: StackSettings) -> Placements:
    """The block's placements with what was found, in the order of the sheet."""
    seen = dict(zip(work.order, zip(work.likeness, work.trust, strict=True), strict=True))
    out = {k: _noted(p, *seen[k]) if k in seen else p for k, p in work.placements.items()}
    quality = {**placements.quality, "note": NOTE.format(sections=settings.shape_sections)}
    return dataclasses.replace(placements, sections=out, quality=quality)


def _noted(placement: Placement, score: float, trust: float) -> Placement:
    """A placement with how much its section resembles its neighbours, flagged where that is less than is usual there."""
    from histomri.registration.stack_refinement import TRUSTED

    flags = placement.flags
    if placement.is_doubtful:
        flags += ("its pairs leave its place in doubt, so that it was not fitted to its neighbours",)
    elif trust <= TRUSTED:
        flags += (
            f"resembles its neighbours less than is usual there (score {score:.2f}), so that it had no say in where they lie",
        )
    quality = {**placement.quality, "neighbour_score": round(float(score), 4)}
    return dataclasses.replace(placement, flags=flags, quality=quality)
