"""How far a stack without a reference is from its truth: ``python tests/benchmarks/stack_truth.py FOLDER``.

``FOLDER`` was made by ``tests/studies/mouse_planes.py`` and run as far as ``stack_deform``. Points of the planes' tissue go
through the true distortion into the sections and from there, as the stack was placed, into the block.

What no stack without a reference can know is taken off, the same for whatever is measured: the rigid map (or its mirror image) of
the block as a whole, then the drift, a polynomial of degree ``ALONG`` along the stack and ``IN_PLANE`` in the plane. Both are
fitted by least absolute distances, so that sections that lie wrong do not pull them. The rest is the TRE.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))
from mouse_planes import BESIDE, BRIGHTEST, PIXEL_MM, STEP_MM, Cut, plane_points, read_plane

from histomri.io.placements import read_placements
from histomri.transforms.base import Transform

Float = NDArray[np.float64]
ALONG, IN_PLANE = 3, 4
EVERY_PX = 14
SWEEPS = 60
RADIUS_MM = 5.0
# a section that lies further off than this is wrong
WRONG_PX = 5.0


@dataclass(frozen=True, eq=False)
class Placed:
    """One section: ``true`` points (n, 2) of its plane in mm from the plane's middle, and where the stack has them (n, 2)."""

    number: int
    true: Float
    found: Float


def tissue_points(plane: NDArray[np.float32], cut: Cut) -> Float:
    """Points (n, 2) of the plane that lie in tissue of the section, a lattice of ``EVERY_PX``, in mm from the plane's middle."""
    smooth = cv2.GaussianBlur(np.minimum(plane, BRIGHTEST), (0, 0), 2.0)
    _level, mask = cv2.threshold(np.clip(smooth * 255 / BRIGHTEST, 0, 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8))
    largest = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    whole = cv2.morphologyEx(largest.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
    inside = cv2.erode(whole, np.ones((5, 5), np.uint8))
    rows, columns = np.nonzero(inside[::EVERY_PX, ::EVERY_PX])
    points = plane_points(plane.shape, np.column_stack([rows, columns]) * float(EVERY_PX))
    return points[cut.is_kept(points)]


def placed(cut: Cut, true: Float, block_to_section: Transform) -> Placed:
    """The points of one section where the stack put them."""
    return Placed(cut.number, true, np.asarray(block_to_section.inverse().map(cut.distortion.to_section(true))))


def rigid_map(source: Float, target: Float, weight: Float) -> tuple[Float, Float]:
    """The best rotation or reflection (2, 2) and shift of points (n, 2), by weighted least squares (Kabsch, either face)."""
    share = weight / weight.sum()
    middles = share @ source, share @ target
    u, _, vt = np.linalg.svd((source - middles[0]).T @ (share[:, None] * (target - middles[1])))
    linear = (u @ vt).T
    return linear, middles[1] - linear @ middles[0]


def without_pose(sections: Sequence[Placed]) -> list[Placed]:
    """The block as a whole laid onto the truth, as most of the sections want it."""
    true, found = (np.concatenate([getattr(s, k) for s in sections]) for k in ("true", "found"))
    best: tuple[float, Float, Float] | None = None
    for some in sections:
        linear, shift = rigid_map(some.found, some.true, np.ones(len(some.true)))
        for _ in range(10):
            away = np.linalg.norm(found @ linear.T + shift - true, axis=1)
            if best is None or away.mean() < best[0]:
                best = float(away.mean()), linear, shift
            linear, shift = rigid_map(found, true, 1 / np.maximum(away, PIXEL_MM))
    assert best is not None
    return [Placed(s.number, s.true, s.found @ best[1].T + best[2]) for s in sections]


def without_drift(sections: Sequence[Placed], along: int = ALONG, in_plane: int = IN_PLANE) -> list[Float]:
    """What is left of each section's displacements (n, 2) in mm without pose and drift."""
    laid = without_pose(sections)
    off = np.concatenate([s.found - s.true for s in laid])
    numbers = np.array([s.number for s in laid], float)
    span = max(float(np.ptp(numbers)), 1.0)
    design = np.concatenate([_terms(s.true, 2 * (s.number - numbers.min()) / span - 1, along, in_plane) for s in laid])
    left, weight = off, np.ones(len(off))
    for _ in range(SWEEPS):
        root = np.sqrt(weight)[:, None]
        left = off - design @ np.linalg.lstsq(design * root, off * root, rcond=None)[0]
        weight = 1 / np.maximum(np.linalg.norm(left, axis=1), 0.2 * PIXEL_MM)
    return np.split(left, np.cumsum([len(s.true) for s in laid])[:-1])


def _terms(points: Float, z: float, along: int, in_plane: int) -> Float:
    """Products of powers of z and of y and x, (n, terms)."""
    y, x = (points / RADIUS_MM).T
    plane = [y**i * x**j for i in range(in_plane + 1) for j in range(in_plane + 1 - i)]
    return np.stack([z**k * p for k in range(along + 1) for p in plane], axis=-1)


def errors_px(sections: Mapping[str, Placed], along: int = ALONG, in_plane: int = IN_PLANE) -> dict[str, float]:
    """Each section's TRE, the mean over its points, in pixels of the planes."""
    left = without_drift(list(sections.values()), along, in_plane)
    return {k: float(np.linalg.norm(v, axis=1).mean()) / PIXEL_MM for k, v in zip(sections, left, strict=True)}


def figures(errors: Mapping[str, float], cuts: Mapping[str, Cut]) -> dict[str, Any]:
    """Mean, median and 95 % of the sections, in pixels, the mean of those without damage, and the share that lies wrong."""
    values = np.array(list(errors.values()))
    sound = np.array([e for k, e in errors.items() if not cuts[k].fate.damage])
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "undamaged": float(sound.mean()),
        "wrong": float((values > WRONG_PX).mean()),
    }


def read_cuts(folder: Path) -> dict[str, Cut]:
    """The truth of a study."""
    record = json.loads((folder / "truth" / "truth.json").read_text())["sections"]
    return {k: Cut.from_dict(v) for k, v in record.items()}


def evaluate(folder: Path, data: Path, file: str = "deformed.json") -> tuple[dict[str, float], dict[str, Any]]:
    """Each placed section's error in pixels, and the :func:`figures`, of a study that has run."""
    cuts = read_cuts(folder)
    record = read_placements(folder / "out" / "stack" / "block" / file).placed
    points = {k: tissue_points(read_plane(data, cuts[k].number), cuts[k]) for k in record}
    errors = errors_px({k: placed(cuts[k], points[k], p.block_to_section) for k, p in record.items()})
    return errors, figures(errors, cuts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=BESIDE, help="folder of real data")
    given = parser.parse_args()
    for file in ("placements.json", "deformed.json"):
        errors, found = evaluate(given.folder, given.data, file)
        print(file, json.dumps(found))
    print(json.dumps(errors, indent=1))
    print(f"sections {STEP_MM} mm or more apart, pixels of {PIXEL_MM} mm")


if __name__ == "__main__":
    main()
