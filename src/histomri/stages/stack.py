"""stack: pairs of neighbouring sections -> one consistent in-plane transform per section."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histomri.core import Section, Stack
from histomri.io.order import UNKNOWN

if TYPE_CHECKING:
    from histomri.io.sheets import SectionGuide
    from histomri.registration.pair import Prepared
    from histomri.registration.section_graph import Edge, StackSolution
    from histomri.transforms.placement import Placement

Pair = tuple[str, str]


@dataclass(frozen=True)
class StackSettings:
    """The ``stack`` key of the config; see ``config/README.md`` for each field."""

    reach: int = 3
    batch: int = 16
    alpha: float = 0.01
    search_px: int = 60
    fine_px: int = 150
    affine_sweeps: int = 3
    deformable_sweeps: int = 2
    work_px: int = 160
    shape_sections: float = 5.0
    min_tissue: float = 0.02
    hint_deg: float = 30.0
    strays: int = 12
    order: str = "sheet"


def plan_pairs(sections: Sequence[Section], reach: int, batch: int, order: str = "sheet") -> list[list[Pair]]:
    """Pairs (id, id) of each used section with the next ``reach`` ones, in batches of ``batch`` sections, by position.

    With ``order`` "unknown" each is paired with all others.
    """
    used = [s.id for s in Stack("", tuple(sections)).used]
    reach = len(used) if order == UNKNOWN else reach
    starts = range(0, len(used), max(batch, 1))
    out = [[(a, b) for i, a in enumerate(used) if k <= i < k + batch for b in used[i + 1 : i + 1 + reach]] for k in starts]
    return [pairs for pairs in out if pairs]


def measure_edges(
    sections: Sequence[Section], manifests: Mapping[str, Path], pairs: Sequence[Pair], edges: Path, settings: StackSettings
) -> None:
    """Register a batch of pairs, each from no initial guess, and write what was measured.

    Sections that are unreadable or empty have no pairs. ``edges`` is JSON: one record per pair.
    """
    from histomri.io.atomic import write_json

    by_id = {s.id: s for s in sections}
    prepared = Preparation(manifests, {i for pair in pairs for i in pair}, settings).all()
    records = []
    for number, (a, b) in enumerate(pairs, 1):
        if a in prepared and b in prepared:
            records.append(_measure(by_id[a], by_id[b], prepared, settings))
            print(f"pair {number} of {len(pairs)}: {a} - {b}: score {records[-1]['score']:.3f}", flush=True)
    write_json(edges, {"edges": records})


class Preparation:
    """Makes sections ready to be compared, one by one, at the pixels that suit them all; their manifests are read once."""

    def __init__(self, manifests: Mapping[str, Path], ids: set[str], settings: StackSettings):
        from histomri.io.sections import read_manifest

        read = {i: read_manifest(manifests[i]) for i in sorted(ids)}
        self.usable = {i: m for i, m in read.items() if m.is_usable and m.tissue_area_mm2 > 0}
        self.size_mm = typical_size_mm([m.tissue_area_mm2 for m in self.usable.values()]) if self.usable else 1.0
        self.settings = settings

    def of(self, section: str) -> Prepared | None:
        """One section; None where it holds no tissue."""
        from histomri.io.sections import registration_image
        from histomri.registration.pair import prepare

        if section not in self.usable:
            return None
        fine = self.size_mm / self.settings.fine_px
        image, mask = registration_image(self.usable[section], fine)
        if mask.data.sum() < 16:
            return None
        return prepare(image, mask, self.size_mm / self.settings.search_px, max(fine, float(image.grid.spacing_mm.max())))

    def all(self) -> dict[str, Prepared]:
        """Those of the sections that hold tissue."""
        found = {i: self.of(i) for i in self.usable}
        return {i: p for i, p in found.items() if p is not None}


def typical_size_mm(areas_mm2: Sequence[float]) -> float:
    """Length of a section's tissue: 1.6 times the root of the median area, about the long side of a compact shape."""
    ordered = sorted(areas_mm2)
    return 1.6 * math.sqrt(ordered[len(ordered) // 2])


def _measure(fixed: Section, moving: Section, prepared: Mapping[str, Prepared], settings: StackSettings) -> dict[str, Any]:
    from histomri.registration.pair import register_pair

    faces = faces_to_try(fixed, moving)
    hints = tuple((angle, settings.hint_deg) for angle in turns_hinted(fixed, moving))
    result = register_pair(prepared[fixed.id], prepared[moving.id], mirrors=faces, hints_deg=hints)
    return {
        "fixed": fixed.id,
        "moving": moving.id,
        "matrix": result.matrix.tolist(),
        "score": result.score,
        "margin": result.margin,
        "other_face": result.other_face,
        "other_matrix": result.other_matrix.tolist() if len(faces) > 1 else None,
        "distance_mm": abs(moving.position_mm - fixed.position_mm),
    }


def faces_to_try(fixed: Section, moving: Section) -> tuple[bool, ...]:
    """Whether the two may lie on the same face (False), on opposite faces (True) or either."""
    return tuple(sorted({a != b for a in fixed.faces for b in moving.faces}))


def turns_hinted(fixed: Section, moving: Section) -> tuple[float, ...]:
    """The angles in degrees at which ``rotation_deg`` of both has the pair, none where one of the two says nothing.

    Sections a and b lie at ``F R(a)`` and ``F R(b)``, F a flip of x where they are mirrored: the pair turns by b - a, and by
    a - b where the fixed one is mirrored, as ``R(b) R(-a) F = F R(a - b)``. Where its face is not known, either may be right.
    """
    if fixed.rotation_deg is None or moving.rotation_deg is None:
        return ()
    turn = moving.rotation_deg - fixed.rotation_deg
    return tuple(sorted({-turn if mirrored else turn for mirrored in fixed.faces}))


def solve(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    edges: Sequence[Path],
    placements: Path,
    settings: StackSettings,
    blockface_placements: Path | None = None,
    guides: Sequence[SectionGuide] = (),
    remarks: Path | None = None,
) -> None:
    """Place all sections of a block at once from all measured pairs, from blockface where there is one, and from what is given
    by hand: ``guides`` to other sections, and the sections' rough transforms and locks. ``remarks`` on the order become flags.
    """
    from histomri.io.placements import read_placements, write_placements
    from histomri.io.sections import read_manifest, registration_image
    from histomri.registration.by_hand import solve_with_given
    from histomri.registration.section_graph import solve_stack
    from histomri.stages.by_hand import given_edges, given_pairs, idle_flags, locked_places, marked, named_by_hand
    from histomri.stages.order import edges_within, read_remarks, with_positions

    sections = with_positions(sections, remarks)
    read = {s.id: read_manifest(manifests[s.id]) for s in sections if s.is_used and s.id in manifests}
    usable = {i: m for i, m in read.items() if m.is_usable and m.tissue_area_mm2 > 0}
    known = read_placements(blockface_placements).placed if blockface_placements else {}
    locked, pose = locked_places([s for s in sections if s.id in usable])
    size = typical_size_mm([m.tissue_area_mm2 for m in usable.values()]) if usable else 1.0
    masks = {i: registration_image(m, size / settings.search_px)[1] for i, m in usable.items()}
    centroids = {i: _centroid(mask) for i, mask in masks.items()}
    paired = Preparation(manifests, named_by_hand(sections, guides) & set(usable), settings).all()
    given = given_pairs(sections, usable, {i: masks[i] for i in paired}, guides)
    free = set(usable) - {g.moving for g in given}
    anchors = {i: p for i, p in known.items() if i in free and p.confidence >= 0.5} | locked
    declared = {s.id: None if s.flip == "auto" else s.flip == "horizontal" for s in sections}
    measured = [e for path in edges for e in read_edges(path) if e.fixed in usable and e.moving in usable]
    measured = edges_within(settings.reach, measured, sections) if settings.order == UNKNOWN else measured
    nodes = {i: (centroids[i], declared[i]) for i in usable}
    solve_all = partial(
        solve_stack,
        sections=nodes,
        spacing_mm=_spacing_mm([s.position_mm for s in sections if s.id in usable]),
        fixed={i: p.affine.matrix for i, p in anchors.items() if p.affine is not None},
        alpha=settings.alpha,
    )
    edges_by_hand = given_edges(given, sections, paired)
    solution = solve_with_given(measured, edges_by_hand, nodes, solve_all)
    areas = {i: m.tissue_area_mm2 for i, m in usable.items()}
    out = {s.id: _placement(s, solution, measured, anchors, areas, settings) for s in sections}
    out = marked(out, given, masks)
    for flags in (idle_flags(sections, paired, guides), read_remarks(remarks)):
        out = {i: dataclasses.replace(p, flags=(*p.flags, *flags.get(i, ()))) for i, p in out.items()}
    record = _as_placements(sections, out, solution)
    if pose is not None:
        record = dataclasses.replace(record, mri_to_block=pose.mri_to_block, plane_bend=pose.plane_bend)
    write_placements(placements, record)


def _centroid(mask: Any) -> Any:
    import numpy as np

    nodes = np.argwhere(mask.data)
    return mask.grid.to_world(nodes.mean(axis=0)) if len(nodes) else mask.grid.centre_mm


def _spacing_mm(positions: list[float]) -> float:
    gaps = sorted(b - a for a, b in zip(sorted(positions), sorted(positions)[1:], strict=False) if b > a)
    return gaps[len(gaps) // 2] if gaps else 1.0


def read_edges(path: Path) -> list[Edge]:
    """The pairs that :func:`measure_edges` wrote."""
    import numpy as np

    from histomri.registration.section_graph import Edge

    records = json.loads(Path(path).read_text(encoding="utf-8"))["edges"]
    for r in records:
        r["matrix"] = np.array(r["matrix"])
        r["other_matrix"] = np.full((3, 3), np.nan) if r["other_matrix"] is None else np.array(r["other_matrix"])
    return [Edge(**r) for r in records]


def _placement(
    section: Section,
    solution: StackSolution,
    edges: list[Edge],
    anchors: Mapping[str, Placement],
    areas: Mapping[str, float],
    settings: StackSettings,
) -> Placement:
    """One section's placement: from its photograph, from the joint solve, or as a flagged guess from its best neighbour."""
    from histomri.transforms import Affine
    from histomri.transforms.placement import Placement

    space = (f"block:{section.block}", f"section:{section.id}")
    if section.id in anchors:
        return dataclasses.replace(anchors[section.id], position_mm=section.position_mm)
    if section.id not in areas:
        reason = f"status {section.status}" if not section.is_used else "no tissue could be read"
        return Placement(section.id, section.position_mm, None, None, (f"not placed: {reason}",), 0.0)
    matrix = solution.block_to_section.get(section.id)
    flags: tuple[str, ...] = ()
    score = solution.score[section.id]
    sure = solution.sure[section.id]
    if matrix is None:
        guess = _best_guess(section.id, solution, edges)
        if guess is None:
            return Placement(section.id, section.position_mm, None, None, ("not placed: no neighbour resembles it",), 0.0)
        matrix, score = guess
        flags = (f"no pair was accepted (best score {score:.2f}, needed {solution.threshold:.2f}), placed by a guess",)
        sure = 0.05
    elif not score and edges:
        flags = (f"no pair was accepted (needed {solution.threshold:.2f}), so that it stands for the block alone",)
    if areas[section.id] < settings.min_tissue * sorted(areas.values())[len(areas) // 2]:
        flags += ("little tissue",)
    quality = {"pair_score": round(score, 4), "misfit_mm": round(solution.misfit_mm.get(section.id, 0.0), 4)}
    return Placement(section.id, section.position_mm, Affine(matrix, *space), None, flags, round(float(sure), 4), quality)


def _best_guess(section: str, solution: StackSolution, edges: list[Edge]) -> tuple[Any, float] | None:
    """From the best pair with a placed section, though it was not accepted; an upright guess wins a near tie."""
    import numpy as np

    options = []
    for e in edges:
        for matrix, score in ((e.matrix, e.score), (e.other_matrix, e.other_face)):
            if not np.isfinite(matrix).all():
                continue
            if e.moving == section and e.fixed in solution.block_to_section:
                options.append((score, matrix @ solution.block_to_section[e.fixed]))
            elif e.fixed == section and e.moving in solution.block_to_section:
                options.append((score, np.linalg.inv(matrix) @ solution.block_to_section[e.moving]))
    ranked = sorted(options, key=lambda o: -(o[0] + 0.03 * (np.linalg.det(o[1][:2, :2]) > 0)))
    return (ranked[0][1], ranked[0][0]) if ranked else None


def _as_placements(sections: Sequence[Section], out: dict[str, Placement], solution: StackSolution) -> Any:
    from histomri.transforms.placement import Placements

    ordered = dict(sorted(out.items(), key=lambda item: (item[1].position_mm, item[0])))
    quality = {
        "edges_accepted": solution.accepted,
        "score_threshold": round(solution.threshold, 4),
        "components": len(set(solution.component.values())),
        "note": "the low-frequency shape across the stack cannot be known from pairs of sections alone",
    }
    return Placements(sections[0].block if sections else "block", ordered, None, quality)
