"""Evaluate: numbers, flags with reasons, the report and the provenance of a result."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Block, Section
from histomri.evaluation.acceptance import Evidence, Flag, Thresholds, flag_sections, pose_warning
from histomri.evaluation.block import BlockMeasurer, SectionMeasures, place_all
from histomri.evaluation.regularity import transform_parts
from histomri.evaluation.summary import summarise
from histomri.io.atomic import replacing, write_json
from histomri.io.graph import read_graph
from histomri.io.placements import at_placed_positions, read_placements
from histomri.io.records import read_pose_record
from histomri.io.sections import SectionManifest
from histomri.io.tables import read_table
from histomri.stages.cells import joined
from histomri.stages.evaluation_inputs import PlacedBlock, read_block, read_manifests
from histomri.stages.provenance import write_provenance
from histomri.stages.report import write_report
from histomri.transforms import Affine

__all__ = ["EvaluateSettings", "evaluate", "write_provenance", "write_report"]

LANDMARK_COLUMNS = ("name", "section", "x", "y", "mri_x", "mri_y", "mri_z")
NAN = float("nan")
LEAST_TRUSTED = 1 / 3  # where fewer sections are beyond suspicion, suspicion says little
Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluateSettings(Thresholds):
    """The config key ``evaluate``; ``config/schema/evaluate.yaml`` says what each field means and in which unit."""

    spacing_mm: float = 0.0
    max_pixels: int = 320
    reach: int = 2
    report_pixels: int = 320
    report_max_mb: float = 30.0


@dataclass(frozen=True, eq=False)
class _Judged:
    """A block's sections with their measures, evidence and flags, in order of position."""

    block: PlacedBlock
    sections: tuple[Section, ...]
    measures: Mapping[str, SectionMeasures]
    evidence: list[Evidence]
    flags: list[tuple[Flag, ...]]
    smoothness: Mapping[str, float]
    pose: Mapping[str, Any]


def evaluate(
    study: str,
    sections: tuple[Section, ...],
    manifests: Mapping[str, Path],
    blocks: tuple[Block, ...],
    placements: Mapping[str, Path],
    initial: Mapping[str, Path],
    poses: Mapping[str, Path],
    graph: Path,
    landmarks: Path | None,
    settings: EvaluateSettings,
    folder: Path,
    threads: int = 2,
) -> None:
    """Measure a finished study and write ``metrics.json``, ``sections.tsv`` and ``landmarks.tsv`` into ``folder``.

    ``manifests`` are those of ``ingest`` by section; ``placements`` the final ones, ``initial`` those of the stack and
    ``poses`` the blocks' poses, by block (no pose without an MRI). Sections that are missing or could not be placed get
    a row all the same. Results do not depend on ``threads``. Raises :class:`InputError` for a file that cannot be read.
    """
    known = read_manifests(manifests)
    judged = [
        _judge(block, sections, known, placements[block.id], (initial.get(block.id), poses.get(block.id)), settings, threads)
        for block in blocks
        if block.id in placements
    ]
    errors = None if landmarks is None else _landmark_errors(landmarks, graph, known)
    rows = [row for j in judged for row in _section_rows(j, known)]
    metrics = _metrics(study, judged, errors, settings.min_pose_confidence)
    _write_table(folder / "sections.tsv", rows, list(rows[0]) if rows else ["section"])
    _write_table(folder / "landmarks.tsv", errors or [], ["name", "section", "error_mm", "flagged", "reason", *"xyz"])
    write_json(folder / "metrics.json", metrics)


def _judge(
    block: Block,
    sections: tuple[Section, ...],
    manifests: Mapping[str, SectionManifest],
    placements: Path,
    earlier: tuple[Path | None, Path | None],
    settings: EvaluateSettings,
    threads: int,
) -> _Judged:
    """Measure and judge one block; ``earlier`` are the paths of its placements in the stack and of its pose."""
    placed = read_block(block, sections, manifests, placements, settings.spacing_mm, settings.max_pixels)
    here = at_placed_positions((s for s in sections if s.block == block.id), placed.placements)
    own = tuple(sorted(here, key=lambda s: (s.position_mm, s.id)))
    pose = read_pose_record(earlier[1]) if earlier[1] else {}
    measures: dict[str, SectionMeasures] = {}
    smoothness: dict[str, float] = {}
    if placed.grid is not None:
        measurer = _measurer(placed, earlier[0], pose, threads)
        measures = measurer.measure_all(settings.reach, threads)
        first = [_evidence(s, placed, manifests.get(s.id), measures.get(s.id)) for s in own]
        trusted = {e.section for e, f in zip(first, flag_sections(first, settings), strict=True) if not f}
        if len(trusted) >= LEAST_TRUSTED * len(measures):
            measures = measurer.compare_again(measures, trusted, settings.reach, threads)
        smoothness = measurer.smoothness(measures)
    evidence = [_evidence(s, placed, manifests.get(s.id), measures.get(s.id)) for s in own]
    return _Judged(placed, own, measures, evidence, flag_sections(evidence, settings), smoothness, pose)


def _measurer(placed: PlacedBlock, initial: Path | None, pose: Mapping[str, Any], threads: int) -> BlockMeasurer:
    assert placed.grid is not None
    before = {}
    pose_alone = Affine(np.array(pose["mri_to_block"])) if pose.get("mri_to_block") else None
    if initial is not None and pose_alone is not None:
        before = {s.id: s for s in place_all(placed.images, read_placements(initial), placed.grid, threads)}
    now = placed.mri(placed.placements.pose)
    return BlockMeasurer(placed.grid, placed.sections, placed.placements, now, before, placed.mri(pose_alone), placed.images)


def _background(manifest: SectionManifest) -> float:
    """Brightness of the glass as a share of the pixel type's range; NaN for fluorescence and float pixels."""
    kind = np.dtype(manifest.dtype)
    if manifest.inverted or kind.kind not in "ui" or not manifest.background:
        return NAN
    return float(np.mean(manifest.background)) / float(np.iinfo(kind).max)


def _known(value: float | None) -> float:
    """NaN for what could not be measured."""
    return NAN if value is None else value


def _evidence(s: Section, block: PlacedBlock, manifest: SectionManifest | None, measures: SectionMeasures | None) -> Evidence:
    placement = block.placements.sections.get(s.id)
    base = Evidence(s.id, s.stain, s.status, manifest.status if manifest else "ok", placed=False)
    if manifest is not None:
        base = dataclasses.replace(
            base,
            background=_background(manifest) if manifest.is_usable else NAN,
            sharpness=_known(manifest.sharpness),
            soft_share=_known(manifest.soft_share),
            saturation=_known(manifest.saturation),
        )
    if placement is None:
        return base
    base = dataclasses.replace(base, remarks=placement.suspicions, placed=placement.is_placed, confidence=placement.confidence)
    if placement.affine is not None:
        base = dataclasses.replace(base, parts=transform_parts(placement.affine))
    if measures is None:
        return base
    return dataclasses.replace(
        base,
        density=measures.density,
        mask_dice=measures.mask_dice,
        nmi_before=measures.nmi_before,
        nmi_after=measures.nmi_after,
        folding=measures.folding,
        strain=measures.deformation.strain,
        neighbours=measures.neighbours,
    )


def _section_rows(judged: _Judged, manifests: Mapping[str, SectionManifest]) -> list[Row]:
    return [
        _section_row(s, e, f, (*_by_hand(judged, s.id), *_ingest_notes(manifests.get(s.id))))
        for s, e, f in zip(judged.sections, judged.evidence, judged.flags, strict=True)
    ]


def _by_hand(judged: _Judged, section: str) -> tuple[str, ...]:
    placement = judged.block.placements.sections.get(section)
    return placement.notes if placement else ()


def _ingest_notes(manifest: SectionManifest | None) -> tuple[str, ...]:
    return manifest.flags if manifest else ()


def _section_row(s: Section, e: Evidence, flags: tuple[Flag, ...], notes: tuple[str, ...]) -> Row:
    near, parts = e.neighbours, e.parts
    return {
        "section": s.id,
        "block": s.block,
        "stain": s.stain,
        "position_mm": s.position_mm,
        "status": s.status if s.status != "ok" else e.ingest_status,
        "placed": "yes" if e.placed else "no",
        "mirrored": "" if parts is None else "yes" if parts.mirrored else "no",
        "confidence": e.confidence,
        "flags": joined(flags),
        "mask_dice": e.mask_dice,
        "nmi_before": e.nmi_before,
        "nmi_after": e.nmi_after,
        "folding": e.folding if e.placed else NAN,
        "strain": e.strain,
        "neighbour_similarity": near.similarity,
        "neighbour_overlap": near.overlap,
        "missing_tissue": near.missing,
        "extra_tissue": near.extra,
        "blotch": near.blotch,
        "density": e.density,
        "background": e.background,
        "sharpness": e.sharpness,
        "soft_share": e.soft_share,
        "saturation": e.saturation,
        "rotation_deg": parts.rotation_deg if parts else NAN,
        "scale_x": parts.scale_x if parts else NAN,
        "scale_y": parts.scale_y if parts else NAN,
        "shear": parts.shear if parts else NAN,
        "notes": joined(notes),
    }


def _landmark_errors(path: Path, graph: Path, manifests: Mapping[str, SectionManifest]) -> list[Row]:
    """One row per landmark: where its section's point came to lie in the MRI (x, y, z RAS mm), and how far off that is."""
    spaces = read_graph(graph)
    rows = [row.cells for row in read_table(path, LANDMARK_COLUMNS).rows]
    out: dict[int, Row] = {}
    for section in dict.fromkeys(r["section"] for r in rows):
        own = [i for i, r in enumerate(rows) if r["section"] == section]
        if section not in manifests:
            out |= {i: _landmark_row(rows[i], None, "the section was not ingested") for i in own}
            continue
        pixels = np.array([(float(rows[i]["y"]), float(rows[i]["x"])) for i in own])
        mapped, reasons = spaces.map(pixels * manifests[section].pixel_size_mm, f"section:{section}", "mri")
        out |= {i: _landmark_row(rows[i], p, r or "") for i, p, r in zip(own, mapped, reasons, strict=True)}
    return [out[i] for i in range(len(rows))]


def _landmark_row(row: Mapping[str, str], found_lps: NDArray[np.float64] | None, reason: str) -> Row:
    """``found_lps`` is (z, y, x) in LPS mm, the sheet's truth (x, y, z) in RAS mm."""
    truth = np.array([float(row[c]) for c in ("mri_x", "mri_y", "mri_z")])
    found = np.full(3, NAN) if found_lps is None or reason else np.asarray(found_lps)[::-1] * (-1, -1, 1)
    position = dict(zip("xyz", map(float, found), strict=True))
    return {
        "name": row["name"],
        "section": row["section"],
        "error_mm": float(np.linalg.norm(found - truth)),
        "reason": reason,
    } | position


def _tre(judged: Sequence[_Judged], errors: list[Row] | None) -> dict[str, Any]:
    """``tre_mm`` over all landmarks that could be mapped, the same over unflagged sections, and how many could not be."""
    if errors is None:
        return {"tre_mm": None}
    flagged = {e.section for j in judged for e, f in zip(j.evidence, j.flags, strict=True) if f}
    for row in errors:
        row["flagged"] = "yes" if row["section"] in flagged else "no"
    values = [row["error_mm"] for row in errors]
    kept = [row["error_mm"] for row in errors if row["flagged"] == "no"]
    unmapped = int(np.isnan(values).sum())
    return {"tre_mm": _without_p10(values), "tre_mm_unflagged": _without_p10(kept), "unmapped_landmarks": unmapped}


def _without_p10(values: Sequence[float]) -> dict[str, Any]:
    return {k: v for k, v in summarise(values).items() if k != "p10"}


def _metrics(study: str, judged: Sequence[_Judged], errors: list[Row] | None, sure_pose: float) -> dict[str, Any]:
    every = [m for j in judged for m in j.measures.values()]
    return {
        "study": study,
        **_tre(judged, errors),
        **_quality(every),
        "sections": _counts(judged),
        "smoothness": {j.block.block.id: dict(j.smoothness) for j in judged},
        "pose": {j.block.block.id: _pose_summary(j, sure_pose) for j in judged},
        "blocks": {j.block.block.id: {**_quality(list(j.measures.values())), "sections": _counts([j])} for j in judged},
    }


def _quality(measures: Sequence[SectionMeasures]) -> dict[str, Any]:
    """Overlap and NMI (None without an MRI), and the folded share of all tissue."""
    overlap = summarise([m.mask_dice for m in measures])
    before, after = (summarise([getattr(m, f"nmi_{when}") for m in measures])["median"] for when in ("before", "after"))
    tissue = sum(m.tissue_px for m in measures)
    return {
        "mask_dice": {k: overlap[k] for k in ("n", "median", "mean", "p10")} if overlap["n"] else None,
        "nmi": {"before": before, "after": after} if after is not None else None,
        "folding_fraction": sum(m.deformation.folded_px for m in measures) / tissue if tissue else 0.0,
    }


def _counts(judged: Sequence[_Judged]) -> dict[str, int]:
    pairs = [(e, f) for j in judged for e, f in zip(j.evidence, j.flags, strict=True)]
    return {
        "total": len(pairs),
        "placed": sum(e.placed for e, _ in pairs),
        "flagged": sum(bool(f) for _, f in pairs),
        "lost": sum(not e.placed and e.sheet_status != "excluded" for e, _ in pairs),
        "mirrored": sum(bool(e.parts and e.parts.mirrored) for e, _ in pairs),
    }


def _pose_summary(judged: _Judged, sure_pose: float) -> dict[str, Any] | None:
    if not judged.pose:
        return None
    summary = {key: judged.pose.get(key) for key in ("confidence", "metrics", "given_by")}
    bend = {k: v for k, v in judged.block.placements.quality.items() if k.startswith("plane_bend")}
    return summary | {"warning": pose_warning(summary["confidence"], sure_pose)} | bend


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if np.isfinite(value) else ""
    return str(value).replace("\t", " ").replace("\n", " ")


def _write_table(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(c, "")) for c in columns] for row in rows)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
