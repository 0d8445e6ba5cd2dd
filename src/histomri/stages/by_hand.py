"""Parts of the stages ``stack`` and ``mri``: what a person gave to mend sections, as the registration takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from histomri.core import Block, Image, InputError, Section
from histomri.core.errors import Problem
from histomri.io.sheets import SectionGuide

if TYPE_CHECKING:
    from histomri.io.sections import SectionManifest
    from histomri.registration.by_hand import Given, MriGuides
    from histomri.registration.pair import Prepared
    from histomri.registration.section_graph import Edge
    from histomri.transforms.placement import Placement, Placements

Float = NDArray[np.float64]
ROUGH_POINTS = 200
POSE_MISS = 0.05  # of the extent of the guides: farther off, the sections that they are in do not lie right to each other
FLAT = 0.1  # of the guides' length: less wide, they tell no turn about their line


def to_mm(guides: Sequence[SectionGuide], section: str, manifest: SectionManifest, there: bool = False) -> Float:
    """The points (n, 2) of guides in mm of one of their sections (``there``: the one that they lead to).

    Raises :class:`InputError` for one outside of the section's pixels.
    """
    points = np.array([g.to_px if there else g.point_px for g in guides], float)
    shape = np.array(manifest.shape[:2], float)
    for y, x in points[((points < -0.5) | (points > shape - 0.5)).any(axis=1)]:
        what = f"x {x:g}, y {y:g} lies outside of section {section}, which has {shape[1]:g} x {shape[0]:g} pixels"
        raise InputError(Problem("guides", what, "give it in level-0 pixels from the top left of the section's region"))
    return np.asarray(points * np.array(manifest.pixel_size_mm, float))


def given_pairs(
    sections: Sequence[Section],
    manifests: Mapping[str, SectionManifest],
    masks: Mapping[str, Image],
    guides: Sequence[SectionGuide],
) -> list[Given]:
    """Pairs of sections with tissue that guides or a rough transform bring onto each other."""
    from histomri.registration.by_hand import Given

    groups: dict[tuple[str, str], list[SectionGuide]] = {}
    for guide in guides:
        if guide.to_section in masks and guide.section in masks:
            groups.setdefault((str(guide.to_section), guide.section), []).append(guide)
    found = [
        Given(a, b, to_mm(g, a, manifests[a], there=True), to_mm(g, b, manifests[b]), f"{len(g)} guides to section {a}")
        for (a, b), g in groups.items()
    ]
    rough = [s for s in sections if s.transform and s.id in masks and s.transform_from in masks]
    return found + [_rough_pair(s, masks[str(s.transform_from)]) for s in rough]


def _rough_pair(section: Section, mask: Image) -> Given:
    """Points spread over the tissue of the section that a rough transform comes from, and where it takes them."""
    from histomri.io.by_hand import read_rough
    from histomri.registration.by_hand import Given

    assert section.transform is not None
    assert section.transform_from is not None
    nodes = np.argwhere(mask.data)
    points = mask.grid.to_world(nodes[:: max(1, len(nodes) // ROUGH_POINTS)])
    there = np.asarray(read_rough(section.transform).map(points), float)
    return Given(section.transform_from, section.id, points, there, f"a transform from section {section.transform_from}")


def given_edges(given: Sequence[Given], sections: Sequence[Section], prepared: Mapping[str, Prepared]) -> list[Edge]:
    """Each given pair as an edge of the joint solve."""
    from histomri.registration.by_hand import FLAG, given_edge
    from histomri.stages.stack import faces_to_try

    known = {s.id: s for s in sections}
    out = []
    for pair in given:
        a, b = known[pair.fixed], known[pair.moving]
        faces = faces_to_try(a.flip, b.flip)
        out.append(given_edge(pair, prepared[a.id], prepared[b.id], faces, abs(a.position_mm - b.position_mm)))
        print(f"{FLAG}: {b.id}, by {pair.how}", flush=True)
    return out


def marked(placements: Mapping[str, Placement], given: Sequence[Given]) -> dict[str, Placement]:
    """The placements with those that were given by hand saying so."""
    from histomri.registration.by_hand import by_hand

    out = dict(placements)
    for pair in given:
        old = out[pair.moving]
        if old.is_placed:
            out[pair.moving] = by_hand(old, pair.how)
    return out


def locked_places(sections: Sequence[Section]) -> tuple[dict[str, Placement], Placements | None]:
    """The placements of locked sections that take part, and a record with the block's pose that goes with them, or None.

    Raises :class:`InputError` where a lock cannot be used, or locks come from runs with different poses.
    """
    from histomri.io.by_hand import read_lock
    from histomri.registration.by_hand import FLAG, LOCKED, by_hand

    places: dict[str, Placement] = {}
    poses: dict[str, Placements] = {}
    for section in sections:
        if section.lock is not None and section.is_used:
            place, record = read_lock(section)
            kept = dataclasses.replace(place, flags=tuple(f for f in place.flags if not f.startswith(FLAG)))
            places[section.id] = by_hand(kept, LOCKED)
            poses[section.id] = record
    return places, _one_pose({k: p for k, p in poses.items() if p.mri_to_block is not None})


def _one_pose(poses: Mapping[str, Placements]) -> Placements | None:
    first = next(iter(poses), None)
    for section, pose in poses.items():
        if not _same_pose(pose, poses[str(first)]):
            what = f"the block has another pose in the lock of {section} than in that of {first}"
            remedy = f"lock both from one run: histomri lock CONFIG {first} {section}"
            raise InputError(Problem("sections, column lock", what, remedy))
    return None if first is None else poses[first]


def _same_pose(a: Placements, b: Placements) -> bool:
    assert a.mri_to_block is not None
    assert b.mri_to_block is not None
    first, second = (np.zeros(0) if p.plane_bend is None else p.plane_bend.values for p in (a, b))
    return bool(np.array_equal(a.mri_to_block.matrix, b.mri_to_block.matrix) and np.array_equal(first, second))


def mri_guides(guides: Sequence[SectionGuide], manifests: Mapping[str, SectionManifest]) -> dict[str, MriGuides]:
    """The guides to the MRI by section, of the sections that take part."""
    from histomri.registration.by_hand import MriGuides

    groups: dict[str, list[SectionGuide]] = {}
    for guide in guides:
        if guide.mri_mm is not None and guide.section in manifests:
            groups.setdefault(guide.section, []).append(guide)
    return {k: MriGuides(to_mm(g, k, manifests[k]), np.array([x.mri_mm for x in g], float)) for k, g in groups.items()}


def given_pose(block: Block, placements: Placements, guides: Mapping[str, MriGuides]) -> tuple[Float, str] | None:
    """``block_to_mri`` (4, 4) as a person gave it by a lock, a file or guides, and by which; None where nothing says it."""
    from histomri.io.by_hand import read_pose
    from histomri.registration.by_hand import LOCKED

    if placements.mri_to_block is not None:
        return np.asarray(np.linalg.inv(placements.mri_to_block.matrix), np.float64), LOCKED
    if block.pose is not None:
        return np.asarray(np.linalg.inv(read_pose(block).matrix), np.float64), "the file in blocks.tsv"
    return pose_by_guides(block, placements, guides)


def pose_by_guides(block: Block, placements: Placements, guides: Mapping[str, MriGuides]) -> tuple[Float, str] | None:
    """The similarity that brings guided points of the stack onto those of the MRI.

    None with fewer than ``POSE_GUIDES`` in ``POSE_SECTIONS`` placed sections, on a line, or where they do not fit: then they mend
    sections that do not lie right in the stack, and the pose is another matter.
    """
    from histomri.io.by_hand import POSE_GUIDES, POSE_SECTIONS
    from histomri.registration.by_hand import similarity_fit
    from histomri.registration.pose import possible

    used = {k: g for k, g in guides.items() if k in placements.placed and not placements.sections[k].is_doubtful}
    if len(used) < POSE_SECTIONS or sum(len(g.mri_mm) for g in used.values()) < POSE_GUIDES:
        return None
    there = np.concatenate([g.mri_mm for g in used.values()])
    here = np.concatenate([_in_block(placements.sections[k], g.section_mm) for k, g in used.items()])
    spread = np.linalg.svd(here - here.mean(axis=0), compute_uv=False)
    if spread[1] < FLAT * spread[0]:
        return None
    matrix, missed = min((similarity_fit(here, there, hand) for hand in block.hands), key=lambda found: found[1])
    extent = float(np.linalg.norm(np.ptp(there, axis=0)))
    print(f"{len(there)} guides in {len(used)} sections miss the pose that they give by {missed:.2f} mm", flush=True)
    if missed > POSE_MISS * extent or not possible(matrix):
        return None
    return matrix, f"{len(there)} guides in {len(used)} sections"


def _in_block(placement: Placement, section_mm: Float) -> Float:
    """Points of a section (n, 2) in its block, (n, 3) as (z, y, x) mm."""
    plane = placement.block_to_section.inverse().map(section_mm)
    return np.concatenate([np.full((len(plane), 1), placement.position_mm), plane], axis=1)
