"""How far a BigBrain run is from the truth: ``python tests/benchmarks/bigbrain_truth.py OUTPUT [--data FOLDER] [--json FILE]``.

``OUTPUT`` is the output folder of ``tests/studies/bigbrain.yaml`` (whole or every n-th section); the truth is
``<data>/bigbrain/truth``. Every measure follows the whole chain of ``transforms/graph.json``, from a section's pixels to the
MRI, then the true pose back to the true planes, whose points are (x = column, y = row, z = section) * 0.4 mm. With
``--perturbed TRUTH`` the run is of a study by ``studies/bigbrain_perturbed.py``.

The truth lies beside the images: where the published alignment puts the sections, their NMI with the MRI peaks some planes
further on (``truth_offset_mm``, measured here without any result of ours). ``plane_distance_mm`` is against the published truth,
``plane_from_images_mm`` against the planes that the images point to. A section is right where the latter is at most 1 mm and its
Dice at least 0.9.

Exit status 0 where every target of the project is met, 1 where one is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histomri.core import Image
from histomri.evaluation.overlap import nmi
from histomri.io.graph import read_graph
from histomri.io.sections import open_tissue, read_manifest
from histomri.registration.depth import peak
from histomri.transforms.graph import SpaceGraph

Float = NDArray[np.float64]
PLANE_MM = 0.4
POINTS = 400
SOUND = 0.85  # Dice of the published alignment where the section's truth mask is sound
RIGHT_MM, RIGHT_DICE = 1.0, 0.9
OFFSETS = range(-8, 9)
EDGES, SURE = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.01), 0.9  # of confidence
TARGETS = {  # measure: (limit, True where it must not be exceeded)
    "plane_distance_mm.median": (1.0, True),
    "tilt_deg": (2.0, True),
    "mask_dice.median": (0.92, False),
    "published_distance_mm.median": (3.0, True),
    "placed": (340, False),
}


@dataclass(frozen=True)
class BigBrainTruth:
    """The true planes: pose (4 x 4, plane points in mm to RAS), the MRI's mask on them, and the published linear alignment."""

    folder: Path
    pose: Float
    mask: NDArray[np.uint8]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path, perturbed: Path | None = None) -> BigBrainTruth:
        """Read ``truth/``, and what was done to the study's sections and MRI."""
        pose = np.array(json.loads((folder / "pose.json").read_text())["section_planes_to_mri"])
        mask: Any = nibabel.load(folder / "mri_mask_on_section_planes.nii.gz")
        change = json.loads(perturbed.read_text()) if perturbed else {"mri": np.eye(4).tolist(), "sections": {}}
        return BigBrainTruth(folder, np.array(change["mri"]) @ pose, np.asarray(mask.dataobj), change["sections"])

    def fate(self, section: str) -> str:
        """``sound``, ``mirrored``, ``missing`` or ``foreign``."""
        return str(self.done.get(section, {}).get("fate", "sound"))

    def from_lps(self, points: Float) -> Float:
        """Points (n, 3) of the MRI, (z, y, x) in LPS mm, as points (x, y, z) in mm of the true planes."""
        ras = points[:, ::-1] * (-1, -1, 1)
        back = np.linalg.inv(self.pose)
        return ras @ back[:3, :3].T + back[:3, 3]

    def to_lps(self, planes: Float) -> Float:
        """The inverse of :meth:`from_lps`."""
        ras = planes @ self.pose[:3, :3].T + self.pose[:3, 3]
        return (ras * (-1, -1, 1))[:, ::-1]

    def published(self, number: int) -> Float | None:
        """The published alignment of a section as the study has it, 3 x 3 on (x, y, 1): see :meth:`aligned`."""
        matrix, done = self.aligned(number), self.done.get(f"slice_{number:03d}")
        return matrix if matrix is None or done is None else np.asarray(np.array(done["matrix"]) @ matrix)

    def aligned(self, number: int) -> Float | None:
        """The published alignment of a section: from a pixel of the plane to the section's pixel.

        Which way it maps was found by trial: so, the sections' masks overlap the MRI's with a median Dice of 0.92; the other
        way round, or with the axes swapped, with less than 0.8.
        """
        path = self.folder / "affine" / f"slice_{number:03d}.txt"
        if not path.is_file():
            return None
        return np.asarray(np.loadtxt(path)[np.ix_([0, 1, 3], [0, 1, 3])], float)

    def offset_mm(self) -> float:
        """Median over every 15th section of how far beyond its true plane it resembles the MRI most, where it is as published."""
        volume: Any = nibabel.load(self.folder / "mri_on_section_planes.nii.gz")
        mri = np.asarray(volume.dataobj)
        peaks = []
        for number in range(20, 350, 15):
            matrix = self.aligned(number)
            if matrix is not None:
                section = cv2.imread(str(self.folder.parent / "sections" / f"slice_{number:03d}.png"), cv2.IMREAD_GRAYSCALE)
                peaks.append(_peak(255 - section, matrix, mri, self.mask, number - 1))
        return PLANE_MM * float(np.nanmedian(peaks))

    def mask_of_plane(self, number: int) -> NDArray[np.bool_]:
        """The MRI's brain mask on the true plane of a section, (row, column)."""
        return np.asarray(self.mask[:, :, number - 1].T > 0)


def _peak(section: NDArray[np.uint8], matrix: Float, mri: NDArray[Any], mask: NDArray[np.uint8], plane: int) -> float:
    """By how many planes the plane that a section's NMI is highest with lies beyond its own."""
    size = (mri.shape[0], mri.shape[1])
    here = cv2.warpAffine(section, matrix[:2], size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    inside = [(plane + d, mask[:, :, plane + d].T > 0) for d in OFFSETS if 0 <= plane + d < mri.shape[2]]
    scores = np.array([nmi(here, mri[:, :, k].T, tissue & (here > 0)) for k, tissue in inside])
    return peak(np.array([float(k - plane) for k, _ in inside]), scores)


@dataclass
class Measures:
    """What was measured, section by section."""

    plane_mm: list[float] = field(default_factory=list)
    section_mm: dict[str, float] = field(default_factory=dict)
    dice: dict[str, float] = field(default_factory=dict)
    published_dice: dict[str, float] = field(default_factory=dict)
    published_mm: list[float] = field(default_factory=list)
    published_section_mm: dict[str, float] = field(default_factory=dict)
    normals: list[Float] = field(default_factory=list)


def placed_sections(record: dict[str, Any]) -> Iterator[str]:
    """Ids of the placed sections in ``graph.json``."""
    for name, space in record["spaces"].items():
        if space["type"] == "section" and space["placed"]:
            yield name.partition(":")[2]


def number_of(section: str) -> int:
    """1 to 370, from ``slice_001`` or ``001``."""
    return int("".join(c for c in section if c.isdigit()))


def tissue_points(mask: Image, n: int = POINTS) -> Float:
    """About ``n`` points of the tissue, evenly spread over its pixels, (n, 2) as (y, x) in section mm."""
    index = np.argwhere(mask.data)
    return mask.grid.to_world(index[:: max(1, len(index) // n)])


def on_planes(graph: SpaceGraph, truth: BigBrainTruth, section: str, points: Float) -> tuple[Float, NDArray[np.bool_]]:
    """Section points (y, x) mm on the true planes, (x, y, z) mm, and which could be mapped."""
    mapped, reasons = graph.map(points, f"section:{section}", "mri")
    return truth.from_lps(mapped), np.array([not r for r in reasons])


def _plane_normal(planes: Float) -> Float:
    """Unit normal of the plane through points (n, 3), pointing to growing z."""
    normal = np.linalg.svd(planes - planes.mean(axis=0), full_matrices=False)[2][-1]
    return np.asarray(normal * np.sign(normal[2] or 1.0), float)


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / max(int(a.sum()) + int(b.sum()), 1))


def mask_on_true_plane(graph: SpaceGraph, truth: BigBrainTruth, section: str, mask: Image) -> NDArray[np.bool_]:
    """The section's tissue where the chain puts it, seen from straight above on its true plane, (row, column).

    The section is sampled twice as densely as the plane has pixels; a pixel is tissue where half of the samples on it are.
    """
    shape = truth.mask_of_plane(number_of(section)).shape
    step = 0.5 * PLANE_MM
    axes = [
        np.arange(-0.5 * g + step / 2, (n - 0.5) * g, step) for n, g in zip(mask.grid.shape, mask.grid.spacing_mm, strict=True)
    ]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    index = mask.grid.to_index(points)
    share = ndimage.map_coordinates(np.asarray(mask.data, np.float32), index.T, order=1, mode="nearest")
    planes, known = on_planes(graph, truth, section, points)
    pixels = np.round(planes[:, 1::-1] / PLANE_MM)
    known &= ((pixels >= 0) & (pixels < shape)).all(axis=1)
    flat = np.ravel_multi_index(pixels[known].astype(int).T, shape)
    count = np.bincount(flat, minlength=shape[0] * shape[1])
    tissue = np.bincount(flat, weights=share[known], minlength=len(count))
    return np.asarray((tissue >= 0.5 * np.maximum(count, 1)).reshape(shape))


def _published_mask(published: Float, mask: Image, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The section's tissue where the published alignment puts it, (row, column)."""
    data = np.asarray(mask.data, np.uint8)
    warped = cv2.warpAffine(data, published[:2], shape[::-1], flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    return np.asarray(warped > 0)


def measure_section(graph: SpaceGraph, truth: BigBrainTruth, section: str, mask: Image, measures: Measures) -> None:
    """Add the measures of one placed section."""
    number = number_of(section)
    points = tissue_points(mask)
    planes, known = on_planes(graph, truth, section, points)
    if known.sum() < 3:
        return
    points, planes = points[known], planes[known]
    beyond = planes[:, 2] - (number - 1) * PLANE_MM
    measures.plane_mm += beyond.tolist()
    measures.section_mm[section] = float(np.median(beyond))
    measures.normals.append(_plane_normal(planes))
    expected = truth.mask_of_plane(number)
    measures.dice[section] = _dice(mask_on_true_plane(graph, truth, section, mask), expected)
    published = truth.published(number)
    if published is None:
        return
    measures.published_dice[section] = _dice(_published_mask(published, mask, expected.shape), expected)
    back = np.linalg.inv(published)
    there = (points[:, ::-1] / PLANE_MM @ back[:2, :2].T + back[:2, 2]) * PLANE_MM
    distances = np.linalg.norm(planes[:, :2] - there, axis=1)
    measures.published_mm += distances.tolist()
    measures.published_section_mm[section] = float(np.median(distances))


def summary(measures: Measures, placed: int, total: int, offset_mm: float) -> dict[str, Any]:
    """The numbers that the project's targets name, and a few that explain them."""
    beyond, published = np.array(measures.plane_mm), np.array(measures.published_mm)
    plane, from_images = np.abs(beyond), np.abs(beyond - offset_mm)
    sound = np.array([d for k, d in measures.dice.items() if measures.published_dice.get(k, 0.0) >= SOUND])
    dice, theirs = np.array(list(measures.dice.values())), np.array(list(measures.published_dice.values()))
    normal = np.mean(measures.normals, axis=0)
    tilt = np.degrees(np.arccos(np.clip(normal[2] / np.linalg.norm(normal), -1, 1)))
    each = np.degrees(np.arccos(np.clip(np.array(measures.normals)[:, 2], -1, 1)))
    return {
        "placed": placed,
        "sections": total,
        "plane_distance_mm": {"median": float(np.median(plane)), "p95": float(np.percentile(plane, 95))},
        "truth_offset_mm": offset_mm,
        "plane_from_images_mm": {"median": float(np.median(from_images)), "p95": float(np.percentile(from_images, 95))},
        "tilt_deg": float(tilt),
        "tilt_of_sections_deg": {"median": float(np.median(each)), "max": float(each.max())},
        "mask_dice": {
            "median": float(np.median(dice)),
            "share_at_least_0.9": float((dice >= 0.9).mean()),
            "p10": float(np.percentile(dice, 10)),
            "sound": len(sound),
            "share_of_sound_at_least_0.9": float((sound >= 0.9).mean()) if len(sound) else None,
        },
        "mask_dice_of_published": {"n": len(theirs), "median": float(np.median(theirs)) if len(theirs) else None},
        "published_distance_mm": {
            "n": len(measures.published_section_mm),
            "median": float(np.median(published)) if len(published) else None,
            "p95": float(np.percentile(published, 95)) if len(published) else None,
        },
        "worst_by_published_mm": dict(sorted(measures.published_section_mm.items(), key=lambda i: -i[1])[:10]),
    }


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Which targets are met; the number of placed sections is scaled to the sections of the run."""
    out = {}
    for name, (limit, at_most) in TARGETS.items():
        value: Any = found
        for key in name.split("."):
            value = value[key]
        wanted = limit * found["sections"] / 370 if name == "placed" else limit
        out[name] = value is not None and (value <= wanted if at_most else value >= wanted)
    return out


def judged_sections(output: Path, truth: BigBrainTruth, measures: Measures, offset_mm: float) -> list[dict[str, Any]]:
    """One row per section of ``evaluation/sections.tsv``: what the run says of it, and whether it is right."""
    path = output / "evaluation" / "sections.tsv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        said = list(csv.DictReader(file, delimiter="\t"))
    out = []
    for row in said:
        name = row["section"]
        beyond, dice = measures.section_mm.get(name, np.nan) - offset_mm, measures.dice.get(name, np.nan)
        right = abs(beyond) <= RIGHT_MM and dice >= RIGHT_DICE and truth.fate(name) in ("sound", "mirrored")
        out.append(
            {
                "section": name,
                "fate": truth.fate(name),
                "placed": row["placed"] == "yes",
                "mirrored": row["mirrored"] == "yes",
                "confidence": float(row["confidence"] or 0),
                "flags": row["flags"],
                "beyond_mm": float(beyond),
                "dice": float(dice),
                "sound_truth": measures.published_dice.get(name, 0.0) >= SOUND,
                "right": bool(right),
            }
        )
    return out


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The placed sections that the truth can call right or wrong: it is sound, they are right anyway, or foreign."""
    return [r for r in rows if r["placed"] and (r["sound_truth"] or r["right"] or r["fate"] == "foreign")]


def by_confidence(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The sections of each range of confidence."""
    return [[r for r in rows if low <= r["confidence"] < high] for low, high in pairwise(EDGES)]


def of_confidence(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many of the sections of each confidence are right, and what became of mirrored and foreign ones.

    A section whose own truth is not sound cannot be called wrong by it, and is left out where it would be.
    """
    shown = judged(rows)
    bins = [[r["right"] for r in found] for found in by_confidence(shown)]
    sure = [r["right"] for r in shown if r["confidence"] >= SURE]
    upright = [r["mirrored"] for r in rows if r["placed"] and r["fate"] == "sound"]
    turned_over = sum(upright) > len(upright) / 2  # the block's own hand is the program's to choose
    flipped = [r for r in rows if r["fate"] == "mirrored"]
    foreign = [r for r in rows if r["fate"] == "foreign"]
    placed = [r for r in rows if r["placed"]]
    unseen = [r for r in flipped if not (r["placed"] and r["mirrored"] != turned_over)]
    return {
        "right": sum(r["right"] for r in rows),
        "sure": len(sure),
        "sure_and_right": float(np.mean(sure)) if sure else None,
        "right_by_confidence": {
            f"{low:g} to {min(high, 1):g}": [sum(b), len(b)] for (low, high), b in zip(pairwise(EDGES), bins, strict=True)
        },
        "mirrored": len(flipped),
        "mirrored_found": len(flipped) - len(unseen),
        "mirrored_not_found_but_sure": [r["section"] for r in unseen if r["placed"] and r["confidence"] >= SURE],
        "wrongly_mirrored": [r["section"] for r in placed if r["fate"] == "sound" and r["mirrored"] != turned_over],
        "foreign": len(foreign),
        "foreign_found": sum(bool(r["flags"]) or r["confidence"] < 0.5 or not r["placed"] for r in foreign),
        "foreign_but_sure": [r["section"] for r in foreign if r["placed"] and r["confidence"] >= SURE],
        "sound_and_flagged": sum(bool(r["flags"]) and r["right"] for r in rows),
    }


def evaluate_run(output: Path, data: Path, perturbed: Path | None = None) -> dict[str, Any]:
    """All measures of a run against ``data/bigbrain/truth``, and whether each target is met."""
    record = json.loads((output / "transforms" / "graph.json").read_text())
    graph, truth, measures = (
        read_graph(output / "transforms" / "graph.json"),
        BigBrainTruth.read(data / "bigbrain" / "truth", perturbed),
        Measures(),
    )
    placed = list(placed_sections(record))
    for section in placed:
        manifest = read_manifest(output / "ingest" / section / "manifest.json")
        if manifest.is_usable and truth.fate(section) != "foreign":
            measure_section(graph, truth, section, open_tissue(manifest), measures)
    if not measures.plane_mm:
        raise SystemExit(f"No section of {output} could be mapped to the MRI.")
    offset_mm = truth.offset_mm()
    total = sum(s["type"] == "section" for s in record["spaces"].values())
    found = summary(measures, len(placed), total, offset_mm)
    rows = judged_sections(output, truth, measures, offset_mm)
    return found | {"confidence": of_confidence(rows), "targets_met": verdicts(found), "rows": rows}


def main() -> int:
    """Command line: prints the measures and writes them as JSON."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="output folder of the run")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HISTOMRI_DATA", beside)), help="folder of real data")
    parser.add_argument("--json", type=Path, help="where to write the measures (default: OUTPUT/evaluation/bigbrain_truth.json)")
    parser.add_argument("--perturbed", type=Path, help="truth.json of studies/bigbrain_perturbed.py")
    given = parser.parse_args()
    found = evaluate_run(given.output, given.data, given.perturbed)
    path = given.json or given.output / "evaluation" / "bigbrain_truth.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k != "rows"}, indent=1))
    return 0 if all(found["targets_met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
