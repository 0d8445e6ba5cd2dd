"""How far a digital block's run is from its truth: ``python tests/benchmarks/digital_block_truth.py FOLDER [--output OUTPUT]``.

``FOLDER`` was made by ``histomri.testing.phantom``. Points of each section follow the whole chain of ``transforms/graph.json``
into the MRI and the true pose from there into the block, where they are held against the points that the truth gives.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from histomri.io.graph import read_graph
from histomri.testing.phantom import Truth, load_truth
from histomri.testing.truth import SectionTruth
from histomri.transforms.graph import SpaceGraph

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """One section: in-plane turn against the truth, whether its face is right, its error in the MRI, and its flags."""

    section: str
    bad: str | None
    mirrored: bool
    placed: bool
    flags: str
    turn_deg: float = np.nan
    face_right: bool = False
    error_mm: float = np.nan
    mean_mm: float = np.nan
    plane_mm: float = np.nan


def points_of(section: SectionTruth, n: int = 24) -> Float:
    """A lattice of points (y, x) in mm over the slide."""
    axes = [np.linspace(0.15, 0.85, n) * size * section.pixel_size_mm for size in section.shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def compare(graph: SpaceGraph, truth: Truth, section: SectionTruth, row: dict[str, str]) -> Found:
    """Where the chain puts a section, against where it was cut."""
    given = {"section": section.id, "bad": section.bad, "mirrored": section.mirrored, "flags": row["flags"]}
    if row["placed"] != "yes":
        return Found(**given, placed=False)
    points = points_of(section)
    true = truth.section_to_block(section.id, points)
    in_tissue = (truth.specimen.labels(np.nan_to_num(true)) > 0) & np.isfinite(true).all(axis=-1)
    mapped, reasons = graph.map(points, f"section:{section.id}", "mri")
    known = in_tissue & np.array([not r for r in reasons])
    found, true = truth.mri_to_block.map(mapped[known]), true[known]
    design = np.column_stack([true[:, 1:], np.ones(len(true))])
    linear = np.linalg.lstsq(design, found[:, 1:], rcond=None)[0][:2].T
    turn = np.degrees(np.arctan2(linear[0, 1] - linear[1, 0], linear[0, 0] + linear[1, 1]))
    error = np.linalg.norm(found - true, axis=1)
    return Found(
        **given,
        placed=True,
        turn_deg=float(turn),
        face_right=bool(np.linalg.det(linear) > 0),
        error_mm=float(np.median(error)),
        mean_mm=float(error.mean()),
        plane_mm=float(np.median(found[:, 0] - true[:, 0])),
    )


def evaluate_run(folder: Path, output: Path | None = None) -> list[Found]:
    """Every section of the block in ``folder`` against its truth."""
    output = output or folder / yaml.safe_load((folder / "config.yaml").read_text())["output"]
    truth, graph = load_truth(folder), read_graph(output / "transforms" / "graph.json")
    with (output / "evaluation" / "sections.tsv").open(newline="") as file:
        rows = {row["section"]: row for row in csv.DictReader(file, delimiter="\t")}
    return [compare(graph, truth, section, rows[name]) for name, section in truth.sections.items()]


def summary(found: list[Found], metrics: dict[str, Any]) -> dict[str, Any]:
    """What the project's targets name, and the sections that miss them."""
    placed, mirrored = [f for f in found if f.placed], [f for f in found if f.mirrored]
    return {
        "tre_mm": metrics["tre_mm"],
        "mean_mm": {
            "all": float(np.mean([f.mean_mm for f in placed])),
            "good": float(np.mean([f.mean_mm for f in placed if not f.bad])),
        },
        "wrong_turn": [f.section for f in placed if abs(f.turn_deg) > 10],
        "wrong_face": [f.section for f in placed if not f.face_right],
        "not_placed": [f.section for f in found if not f.placed and f.bad != "lost"],
        "mirrored_found": f"{sum(f.face_right for f in mirrored)} of {len(mirrored)}",
        "bad_without_flag": [f"{f.section} {f.bad}" for f in found if f.bad and not f.flags],
        "good_with_flag": [f"{f.section}: {f.flags}" for f in found if not f.bad and f.flags],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the digital block")
    parser.add_argument("--output", type=Path, help="output folder of the run (default: as its config says)")
    given = parser.parse_args()
    output = given.output or given.folder / yaml.safe_load((given.folder / "config.yaml").read_text())["output"]
    found = evaluate_run(given.folder, output)
    for f in found:
        print(json.dumps(asdict(f)))
    print(json.dumps(summary(found, json.loads((output / "evaluation" / "metrics.json").read_text())), indent=1))


if __name__ == "__main__":
    main()
