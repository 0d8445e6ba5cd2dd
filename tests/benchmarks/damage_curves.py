"""The stack's error against the share of damaged, missing and mirrored sections: ours, a neighbour chain, and shortest paths.

``python tests/benchmarks/damage_curves.py WORK [--seeds 0 --count 30 --svg OUT.svg]``: planes of ``mouse_brain_planes``,
distorted as in ``tests/studies/mouse_planes.py``. All ways use the same measured pairs, so that what is
compared is what they make of them:

- ``chain``: each section's pair with the next one, accepted or not, composed;
- ``shortest paths``: as in stack_greedy, weight (1 - score)^4 dz 1.1^dz, from the section with the least sum of them;
- ``ours, rigid`` and ``ours``: the stages ``stack`` (joint solve) and ``stack_deform``.

Errors are those of ``stack_truth.py``: rigid pose of the block and drift (cubic along the stack, degree 4 in the plane)
taken off. Pictures, pairs and rows are kept in ``WORK``: a run goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from compare_stack import shortest_paths
from stack_truth import WRONG_PX, Placed, errors_px, figures, placed, tissue_points

# stack_truth puts the folder of studies on the path
from mouse_planes import BESIDE, PIXEL_MM, STEP_MM, Cut, Fate, Shares, draw_cut, draw_fates, picture_of, read_plane  # isort: skip

from histomri.core import Section
from histomri.io.placements import read_placements
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.stages.stack import StackSettings, measure_edges, plan_pairs, solve
from histomri.stages.stack_deform import deform
from histomri.transforms import Affine
from histomri.transforms.base import Transform
from histomri.transforms.placement import Placement

KINDS = ("damaged", "missing", "mirrored")
# the ends and the middle first
SHARES = (0.4, 0.2, 0.3, 0.1)
WAYS = {"chain": "#b5482f", "shortest paths": "#c9952b", "ours, rigid": "#6aa3c8", "ours": "#1b4f7a"}
Edges = list[dict[str, Any]]


@dataclass
class Pool:
    """Sections of every fate, made and measured once."""

    folder: Path
    data: Path
    seed: int
    settings: StackSettings = field(default_factory=StackSettings)
    cuts: dict[str, Cut] = field(default_factory=dict)

    def section(self, number: int, fate: Fate) -> Section:
        """One section, ingested."""
        name = f"p{number:03d}-{fate.name}"
        plane = read_plane(self.data, number)
        self.cuts[name] = draw_cut(number, fate, plane.shape, self.seed)
        out = Section(name, self.folder / f"{name}.png", number * STEP_MM, pixel_size_mm=PIXEL_MM)
        if not self.manifest(name).exists():
            assert out.file is not None
            cv2.imwrite(str(out.file), picture_of(plane, self.cuts[name]))
            ingest_section(out, self.folder / f"{name}.ome.zarr", self.manifest(name), IngestSettings())
        return out

    def manifest(self, name: str) -> Path:
        """Where a section's manifest lies."""
        return self.folder / name / "manifest.json"

    def edges(self, sections: Sequence[Section]) -> Edges:
        """The pairs of a study, those measured that were not yet."""
        kept = self.folder / "edges.json"
        known = {(e["fixed"], e["moving"]): e for e in json.loads(kept.read_text())} if kept.exists() else {}
        pairs = [p for batch in plan_pairs(sections, self.settings.reach, 16) for p in batch]
        if missing := [p for p in pairs if p not in known]:
            fresh = self.folder / "fresh.json"
            measure_edges(sections, {s.id: self.manifest(s.id) for s in sections}, missing, fresh, self.settings)
            known |= {(e["fixed"], e["moving"]): e for e in json.loads(fresh.read_text())["edges"]}
            kept.write_text(json.dumps(list(known.values())))
        return [known[p] for p in pairs if p in known]


def chain(names: Sequence[str], edges: Edges) -> dict[str, Transform]:
    """Each section by its pair with the one before it."""
    step = {(e["fixed"], e["moving"]): np.array(e["matrix"]) for e in edges}
    matrices = [np.eye(3)]
    for pair in pairwise(names):
        matrices.append(step[pair] @ matrices[-1])
    return _transforms(names, matrices)


def by_shortest_paths(names: Sequence[str], edges: Edges, spacing_mm: float) -> dict[str, Transform]:
    """Composed along the shortest paths over all pairs, accepted or not."""
    place = {n: i for i, n in enumerate(names)}
    pairs = [{**e, "fixed": place[e["fixed"]], "moving": place[e["moving"]], "ncc": e["score"]} for e in edges]
    return _transforms(names, shortest_paths(pairs, len(names), spacing_mm))


def _transforms(names: Sequence[str], matrices: Sequence[Any]) -> dict[str, Transform]:
    return {n: Affine(m, "block:block", f"section:{n}") for n, m in zip(names, matrices, strict=True)}


def ours(pool: Pool, sections: Sequence[Section], edges: Edges) -> tuple[dict[str, Placement], dict[str, Placement]]:
    """The placements of the stages, rigid and deformed."""
    file, rigid, bent = (pool.folder / f"{name}.json" for name in ("study", "rigid", "bent"))
    file.write_text(json.dumps({"edges": edges}))
    manifests = {s.id: pool.manifest(s.id) for s in sections}
    solve(sections, manifests, [file], rigid, pool.settings)
    deform(sections, manifests, rigid, bent, pool.settings)
    return read_placements(rigid).placed, read_placements(bent).placed


def measure(pool: Pool, planes: Sequence[int], shares: Shares) -> list[dict[str, Any]]:
    """One row for each way."""
    fates = draw_fates(len(planes), shares, pool.seed)
    sections = [pool.section(n, f) for n, f in zip(planes, fates, strict=True) if not f.missing]
    edges, names = pool.edges(sections), [s.id for s in sections]
    true = {n: tissue_points(read_plane(pool.data, pool.cuts[n].number), pool.cuts[n]) for n in names}
    rigid, bent = ours(pool, sections, edges)
    spacing_mm = float(np.median(np.diff(planes))) * STEP_MM
    found: dict[str, dict[str, Transform]] = {
        "chain": chain(names, edges),
        "shortest paths": by_shortest_paths(names, edges, spacing_mm),
        "ours, rigid": {k: p.block_to_section for k, p in rigid.items()},
        "ours": {k: p.block_to_section for k, p in bent.items()},
    }
    rows = []
    for way, transforms in found.items():
        laid: dict[str, Placed] = {k: placed(pool.cuts[k], true[k], t) for k, t in transforms.items()}
        errors = errors_px(laid)
        row = {"way": way, "sections": len(names), "placed": len(errors), **figures(errors, pool.cuts)}
        said = {k for k, p in {"ours, rigid": rigid, "ours": bent}.get(way, {}).items() if p.flags or p.is_doubtful}
        row["silent"] = sum(e > WRONG_PX for k, e in errors.items() if k not in said) / len(names)
        row["flagged though right"] = sum(e <= WRONG_PX for k, e in errors.items() if k in said) / len(names)
        row["errors"] = errors
        rows.append(row)
    return rows


def run(work: Path, data: Path, seeds: Sequence[int], planes: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All rows, kept in ``work/rows.json``."""
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "rows.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    done = {(r["seed"], r["kind"], r["share"]) for r in rows}
    wanted = [(seed, kind, share) for seed in seeds for kind, share in [("none", 0.0), *((k, s) for s in SHARES for k in KINDS)]]
    for seed, kind, share in wanted:
        if (seed, kind, share) in done:
            continue
        pool = Pool(work / f"seed{seed}", data, seed)
        pool.folder.mkdir(exist_ok=True)
        shares = Shares(**{kind: share}) if kind in KINDS else Shares()
        new = [{"seed": seed, "kind": kind, "share": share, **row} for row in measure(pool, planes, shares)]
        rows += new
        kept.write_text(json.dumps(rows))
        for row in new:
            say(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "errors"}))
    return rows


PANEL, LEFT, TOP, GAP = 220, 58, 70, 42
HIGH = 5.0


def place(panel: int, share: float, px: float) -> tuple[float, float]:
    """A point of a curve in the picture; what is beyond it lies on its rim."""
    return LEFT + panel * (PANEL + GAP) + PANEL * share / 0.4, TOP + PANEL * (1 - min(px, HIGH) / HIGH)


def curve(rows: Sequence[Mapping[str, Any]], kind: str, way: str, figure: str) -> list[tuple[float, float]]:
    """(share, mean over the seeds) of one way."""
    some = [r for r in rows if r["kind"] in (kind, "none") and r["way"] == way]
    shares = sorted({r["share"] for r in some})
    return [(s, float(np.mean([r[figure] for r in some if r["share"] == s]))) for s in shares]


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Three panels, one for each kind."""
    body = []
    for panel, kind in enumerate(KINDS):
        (x0, y1), (x1, y0) = place(panel, 0, HIGH), place(panel, 0.4, 0)
        body.append(f'<rect x="{x0}" y="{y1}" width="{PANEL}" height="{PANEL}" fill="none" stroke="#888"/>')
        body.append(f'<text x="{(x0 + x1) / 2}" y="{y0 + 38}" text-anchor="middle">share of sections {kind}</text>')
        body += [
            f'<text x="{place(panel, s, 1)[0]:.0f}" y="{y0 + 18}" text-anchor="middle">{s:.0%}</text>' for s in (0, 0.2, 0.4)
        ]
        for px in range(1, 5):
            y = place(panel, 0, px)[1]
            body.append(f'<path d="M{x0} {y:.1f}H{x1}" stroke="#ccc" stroke-dasharray="4 4"/>')
            if panel == 0:
                body.append(f'<text x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{px}</text>')
        for way, colour in WAYS.items():
            points = [place(panel, *p) for p in curve(rows, kind, way, "mean")]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    for k, (way, colour) in enumerate(WAYS.items()):
        x = LEFT + 150 * k
        body.append(f'<path d="M{x} 50h24" stroke="{colour}" stroke-width="2"/><text x="{x + 30}" y="54">{way}</text>')
    body.append(
        f'<text x="{LEFT - 44}" y="24">mean error of the placed sections without pose and drift, in pixels of 0.05 mm</text>'
    )
    width, height = LEFT + 3 * PANEL + 2 * GAP + 20, TOP + PANEL + 54
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    return "\n".join([f"{head} {style}>", f'<rect width="{width}" height="{height}" fill="#fff"/>', *body, "</svg>"]) + "\n"


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown: mean (median) error, and of ours what was placed, and wrong in silence."""
    lines = ["| | " + " | ".join(WAYS) + " | placed | wrong, in silence |", "|---" * (len(WAYS) + 3) + "|"]
    for kind, share in [("none", 0.0), *((k, s) for k in KINDS for s in sorted(SHARES))]:
        some = [r for r in rows if (r["kind"], r["share"]) == (kind, share)]
        if some:
            of = {w: [r for r in some if r["way"] == w] for w in WAYS}
            cells = [" ".join((_mean(of[w], "mean"), f"({_mean(of[w], 'median')})")) for w in WAYS]
            count = f"{sum(r['placed'] for r in of['ours'])} of {sum(r['sections'] for r in of['ours'])}"
            bad = f"{np.mean([r['wrong'] for r in of['ours']]):.0%}, {np.mean([r['silent'] for r in of['ours']]):.0%}"
            lines.append(f"| {kind} {share:.0%} | " + " | ".join([*cells, count, bad]) + " |")
    return "\n".join(lines)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{np.mean([r[key] for r in rows]):.2f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--first", type=int, default=100, help="number of the first plane")
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--count", type=int, default=30, help="how many planes")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--data", type=Path, default=BESIDE, help="folder of real data")
    given = parser.parse_args()
    planes = range(given.first, given.first + given.every * given.count, given.every)
    rows = run(given.work.absolute(), given.data, given.seeds, planes, lambda text: print(text, flush=True))
    print(summary(rows))
    if given.svg:
        given.svg.write_text(picture(rows))


if __name__ == "__main__":
    main()
