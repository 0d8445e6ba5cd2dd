"""What a person gave to mend a section: guides, rough transforms and locks, held against the study before it is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Block, InputError, Section
from histomri.core.errors import Problem, named
from histomri.io.order import UNKNOWN
from histomri.io.placements import fields_file, read_placements, write_placements
from histomri.io.sheets import Parsed, SectionGuide
from histomri.transforms import Affine, Chain, DisplacementField
from histomri.transforms.placement import Placement, Placements

Float = NDArray[np.float64]
LEAST_GUIDES = 2
POSE_GUIDES, POSE_SECTIONS = 3, 2
SCALES = (0.5, 2.0)  # of a transform between two sections: beyond it the units are wrong
SAME_PX = 1.0  # guides closer than this are one point
POSITION_MM = 1e-6


def guide_problems(
    guides: Parsed[SectionGuide], sections: Sequence[Section], blocks: Sequence[Block], sheet: Path
) -> Iterator[Problem]:
    """Guides that name what is not there or does not take part, or are too few to say how a section lies."""
    known, with_mri = {s.id: s for s in sections}, {b.id for b in blocks if b.mri}
    where = {id(g): f"{sheet}, row {row} (section {g.section})" for row, g in zip(guides.rows, guides.items, strict=True)}
    for guide in guides.items:
        yield from (Problem(f"{where[id(guide)]}, column {c}", *text) for c, *text in _guide_problems(guide, known, with_mri))
    groups: dict[tuple[str, str | None], list[SectionGuide]] = {}
    for guide in guides.items:
        groups.setdefault((guide.section, guide.to_section), []).append(guide)
    for (section, other), group in groups.items():
        onto = f"section {other}" if other else "the MRI"
        if len(group) < LEAST_GUIDES:
            what = f"section {section} has one guide to {onto}, at least {LEAST_GUIDES} are needed (three tell its face too)"
            yield Problem(where[id(group[0])], what, "add points, or remove the row")
        elif float(np.ptp([g.point_px for g in group], axis=0).max()) < SAME_PX:
            what = f"all guides of section {section} to {onto} are at one place"
            yield Problem(where[id(group[0])], what, "give points that lie far apart")


def tell_pose(guides: Sequence[SectionGuide]) -> bool:
    """Whether the guides to the MRI of a block are enough to say its pose."""
    to_mri = [g.section for g in guides if g.mri_mm is not None]
    return len(to_mri) >= POSE_GUIDES and len(set(to_mri)) >= POSE_SECTIONS


def _guide_problems(guide: SectionGuide, known: Mapping[str, Section], with_mri: set[str]) -> Iterator[tuple[str, str, str]]:
    for column, name in (("section", guide.section), ("to_section", guide.to_section)):
        if name and name not in known:
            yield column, f"there is no section {name!r}", "correct the name, or remove the row"
        elif name and not known[name].is_used:
            what = f"section {name} is {known[name].status}, so this guide would do nothing"
            yield column, what, "name a section that takes part, or remove the row"
    if guide.section not in known:
        return
    own = known[guide.section]
    if guide.to_section == guide.section:
        yield "to_section", "a section cannot guide itself", "name the section that it should lie on"
    elif guide.to_section and guide.to_section in known and known[guide.to_section].block != own.block:
        yield "to_section", f"{guide.to_section!r} belongs to another block than {own.id!r}", "name a section of the same block"
    if guide.mri_mm is not None and own.block not in with_mri:
        yield "mri_x", f"block {own.block!r} has no MRI", "fill in the column mri of blocks.tsv, or guide to another section"


def section_problems(
    sections: Sequence[Section], guides: Sequence[SectionGuide], sheet: Path, order: str = "sheet"
) -> Iterator[Problem]:
    """Rough transforms and locks that are not there, not what they should be, or of no use; ``order`` is ``stack.order``."""
    known, guided = {s.id: s for s in sections}, Counter(g.section for g in guides)
    locked = [s.id for s in sections if s.lock is not None]
    if order == UNKNOWN and locked:
        yield order_problem(sheet, locked)
    for section in sections:
        found = [*_idle_problems(section), *_transform_problems(section, known)]
        found += _lock_problems(section) if section.is_used and order != UNKNOWN else ()
        ways = [w for w, given in (("lock", section.lock), ("transform", section.transform)) if given]
        ways += ["guides"] if guided[section.id] else []
        if len(ways) > 1 and "lock" in ways:
            found.append(("lock", f"it is locked and has {' and '.join(ways[1:])} too", "remove one of them"))
        yield from (Problem(f"{sheet}, section {section.id}, column {c}", what, remedy) for c, what, remedy in found)


def order_problem(sheet: Path, locked: Sequence[str]) -> Problem:
    """That locks and an unknown order do not go together, said once for all locks."""
    what = f"section {', '.join(locked)}: a lock holds for one position, and stack.order is unknown"
    remedy = (
        "empty the column; to lock, take the positions found (evaluation/sections.tsv) into the sheet, write order: sheet, run"
    )
    return Problem(f"{sheet}, column lock", what, remedy)


def hint_problems(sections: Sequence[Section], sheet: Path) -> Iterator[Problem]:
    """Warnings of hints of an angle that nothing is compared with: no other section of the block has one, nor a photograph."""
    hinted = [s for s in sections if s.is_used and s.rotation_deg is not None]
    count = Counter(s.block for s in hinted)
    for section in hinted:
        if count[section.block] == 1 and section.blockface is None:
            what = "it is the only one of its block, and counts between two sections that both have one, or against a photograph"
            remedy = "fill it in for the sections beside it too, or give guides"
            yield Problem(f"{sheet}, section {section.id}, column rotation_deg", what, remedy, "warning")


def _idle_problems(section: Section) -> Iterator[tuple[str, str, str]]:
    if section.is_used:
        return
    for column, given in (("transform", section.transform), ("lock", section.lock)):
        if given is not None:
            what = f"the section is {section.status}, so its {column} would do nothing"
            yield column, what, "empty the cell, or let the section take part"


def _transform_problems(section: Section, known: Mapping[str, Section]) -> Iterator[tuple[str, str, str]]:
    other = section.transform_from
    if (section.transform is None) != (other is None):
        column = "transform" if section.transform is None else "transform_from"
        yield column, "transform and transform_from go together, this one is empty", "fill in both, or neither"
        return
    if section.transform is None or other is None:
        return
    if other not in known:
        yield "transform_from", f"there is no section {other!r}", "correct the name"
    elif other == section.id or known[other].block != section.block:
        yield "transform_from", f"another section of block {section.block!r} was expected, found {other!r}", "correct the name"
    elif not known[other].is_used:
        what = f"section {other} is {known[other].status}, so this transform would do nothing"
        yield "transform_from", what, "give a transform from a section that takes part, or empty both cells"
    try:
        read_rough(section.transform)
    except InputError as error:
        yield from (("transform", p.what, p.remedy) for p in named(error, ""))


def _lock_problems(section: Section) -> Iterator[tuple[str, str, str]]:
    if section.lock is None:
        return
    try:
        read_lock(section)
    except InputError as error:
        yield from (("lock", p.what, p.remedy) for p in named(error, ""))


def read_rough(path: Path) -> Any:
    """The 2D transform of an ITK file, in (y, x) mm.

    Raises :class:`InputError` where it cannot be read, is not 2D, or shrinks or stretches by more than half.
    """
    remedy = "give a 2D transform in mm from transform_from to this section, fixed_to_moving of `histomri register` for one"
    transform = _read_given(path, remedy)
    if transform.ndim != 2:
        raise InputError(Problem(str(path), f"a 2D transform was expected, this one has {transform.ndim} dimensions", remedy))
    linear = _linear_part(transform)
    scales = np.linalg.svd(linear, compute_uv=False) if np.isfinite(linear).all() else np.full(2, np.nan)
    if not (SCALES[0] < scales[-1] and scales[0] < SCALES[1]):
        what = f"it scales by {scales[-1]:.3g} to {scales[0]:.3g}; between sections {SCALES[0]:g} to {SCALES[1]:g} is possible"
        raise InputError(Problem(str(path), what, remedy))
    return transform


def _read_given(path: Path, remedy: str) -> Any:
    from histomri.io.transform_files import fails_in_itk, read_transform

    if not path.is_file():
        raise InputError(Problem(str(path), "there is no such file", "correct the path"))
    if fails_in_itk(path):
        raise InputError(Problem(str(path), "cannot be read as an ITK transform (the file is damaged)", remedy))
    try:
        return read_transform(path)
    except InputError as error:
        raise InputError(*(Problem(p.where, p.what, remedy) for p in error.problems)) from error


def _linear_part(transform: Any) -> Float:
    ends = np.asarray(transform.map(np.eye(transform.ndim + 1)[:, 1:]), float)
    return np.asarray((ends[1:] - ends[0]).T)


def block_problems(blocks: Sequence[Block], sheet: Path) -> Iterator[Problem]:
    """Rough poses that are not there or not what they should be."""
    for block in blocks:
        where = f"{sheet}, block {block.id}, column pose"
        if block.pose is None:
            continue
        if block.mri is None:
            yield Problem(where, "a pose is given without an MRI", "fill in the column mri, or empty pose")
        try:
            read_pose(block)
        except InputError as error:
            yield from named(error, where)


def read_pose(block: Block) -> Affine:
    """The rough ``mri_to_block`` of a block, (z, y, x) mm.

    Raises :class:`InputError` where its file cannot be read, is no 3D affine, has scales that no tissue has, or a hand that the
    column ``mirror`` excludes.
    """
    assert block.pose is not None
    remedy = "give a 3D affine (ITK, mm) from the MRI to the block, such as transforms/BLOCK/mri_to_block.tfm of a finished run"
    pose = _read_given(block.pose, remedy)
    if isinstance(pose, Chain) and [type(step) for step in pose.steps] == [Affine, DisplacementField]:
        # of a block with bent planes (``mri_to_block.h5``): how they are bent is found anew
        pose = pose.steps[0]
    if pose.ndim != 3 or not isinstance(pose, Affine):
        raise InputError(Problem(str(block.pose), "a 3D affine was expected, it holds another transform", remedy))
    scales = np.linalg.svd(pose.linear, compute_uv=False)
    if not (SCALES[0] < scales[-1] and scales[0] < SCALES[1]):
        what = f"it scales by {scales[-1]:.3g} to {scales[0]:.3g}; {SCALES[0]:g} to {SCALES[1]:g} is possible for tissue"
        raise InputError(Problem(str(block.pose), what, remedy))
    mirrored = bool(np.linalg.det(pose.linear) < 0)
    if mirrored not in block.hands:
        hand = "a mirror image" if mirrored else "no mirror image"
        what = f"it makes the block {hand} of its MRI, and the column mirror says {block.mirror!r}"
        raise InputError(Problem(str(block.pose), what, "correct one of the two"))
    return pose


def write_lock(path: Path, placements: Placements, section: Section) -> None:
    """Write the place of one section, and the block's pose, as ``placements.json`` has them.

    Raises :class:`InputError` where the section is not placed, or was at another position than in the sheet.
    """
    where, placement = f"section {section.id}", placements.sections.get(section.id)
    if placement is None or not placement.is_placed:
        raise InputError(Problem(where, "it has no place that could be kept", "lock sections that are placed"))
    if abs(placement.position_mm - section.position_mm) > POSITION_MM:
        what = f"the last run had it at {placement.position_mm:g} mm, the sheet has it at {section.position_mm:g} mm"
        raise InputError(Problem(where, what, "run the study first, or put back the position"))
    pose, bend = placements.mri_to_block, placements.plane_bend
    write_placements(path, Placements(placements.block, {section.id: placement}, pose, {"lock": section.id}, bend))


def read_lock(section: Section) -> tuple[Placement, Placements]:
    """The place that a section is locked to, and the record that it stands in.

    Raises :class:`InputError` where the file is not there, cannot be read, or is of another section, block or position.
    """
    assert section.lock is not None
    # a study does not load with a lock that it refuses, for `histomri lock` neither
    remedy = f"empty this cell, then write it again: histomri lock CONFIG {section.id}"
    gone = [f for f in (section.lock, fields_file(section.lock)) if not f.is_file()]
    if gone:
        raise InputError(Problem(str(gone[0]), "there is no such file", f"correct the path; or {remedy}"))
    try:
        record = read_placements(section.lock)
    except InputError as error:
        raise InputError(*(Problem(p.where, f"a lock was expected, this {p.what}", remedy) for p in error.problems)) from error
    placement = record.sections.get(section.id)
    if placement is None or not placement.is_placed:
        held = ", ".join(record.sections) or "nothing"
        raise InputError(Problem(str(section.lock), f"the place of {section.id} was expected, it holds {held}", remedy))
    if record.block != section.block or abs(placement.position_mm - section.position_mm) > POSITION_MM:
        was = f"it was locked in block {record.block} at {placement.position_mm:g} mm"
        what = f"{was}, the sheet has it in {section.block} at {section.position_mm:g} mm"
        remedy = f"put back {placement.position_mm:g} mm in block {record.block}; or empty this cell, run, then lock it again"
        raise InputError(Problem(str(section.lock), what, remedy))
    return placement, record
