"""Part of the stage ``mri``: how sure each section's place is, and how far off it may be, from evidence of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histomri.core import Block, Section
from histomri.stages.mri import MOUNTED_FLAG, MriSettings, load_mri, load_pixels, tissue_size_mm

if TYPE_CHECKING:
    from histomri.registration.verification import Verdict
    from histomri.transforms.placement import Placement


def verify(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    block: Block,
    placements_in: Path,
    placements_out: Path,
    settings: MriSettings,
) -> None:
    """The refined placements with a confidence, an expected error and, where the evidence speaks against a place, the reason.

    What a section said of its start ("no neighbour resembles it") becomes a note where the evidence has settled it. Sections that
    cannot be compared, mostly because the MRI does not show their plane, say so and are given ``UNSEEN`` at most.
    """
    import numpy as np

    from histomri.io.placements import read_placements, write_placements
    from histomri.registration.verification import Verifier, verdicts

    placements = read_placements(placements_in)
    assert placements.mri_to_block is not None
    spacing = tissue_size_mm(sections, manifests) / settings.work_px
    pixels = load_pixels(sections, manifests, placements, spacing)
    to_mri = np.asarray(np.linalg.inv(placements.mri_to_block.matrix), np.float64)
    verifier = Verifier(pixels, load_mri(block, spacing), to_mri, spacing, placements.plane_bend)
    evidence = verifier.all(placements.placed)
    found = verdicts(evidence, {k: p.position_mm for k, p in placements.placed.items()}, spacing)
    changed = {k: judged(p, found[k]) if k in found else unseen(p, verifier.missing(p)) for k, p in placements.placed.items()}
    sure = sum(v.confidence >= 0.9 for v in found.values())
    print(f"{len(found)} of {len(placements.placed)} placed sections compared with the MRI; {sure} sure (0.9 or more)")
    write_placements(placements_out, dataclasses.replace(placements, sections={**placements.sections, **changed}))


def judged(placement: Placement, verdict: Verdict) -> Placement:
    """A placement with the verdict on it."""
    from histomri.registration.rescue import OUTDATED
    from histomri.registration.verification import SETTLED

    quality = {**placement.quality, **verdict.record, "error_mm": round(verdict.error_mm, 4)}
    flags = placement.flags
    if verdict.confidence >= SETTLED:
        # how it came to its place no longer matters: such flags say that, not that anything is wrong with it
        origin = [f for f in flags if f.startswith((MOUNTED_FLAG, *OUTDATED))]
        flags = tuple(f for f in flags if f not in origin)
        quality |= {"origin": "; ".join(origin)} if origin else {}
    return dataclasses.replace(
        placement, confidence=round(verdict.confidence, 4), flags=(*flags, *verdict.reasons), quality=quality
    )


def unseen(placement: Placement, reason: str) -> Placement:
    """A placement for which there is no evidence, and what evidence of an earlier run (of a lock's, say) left out."""
    from histomri.registration.verification import UNSEEN

    quality = {k: v for k, v in placement.quality.items() if k != "error_mm" and not k.startswith("verified_")}
    sure = min(placement.confidence, UNSEEN)
    return dataclasses.replace(placement, confidence=sure, flags=(*placement.flags, reason), quality=quality)
