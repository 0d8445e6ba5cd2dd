"""BigBrain's sections against their own MRI planes: ``python tests/benchmarks/compare_bigbrain_planes.py [--every 10]``.

The fixed image is the MRI on a section's true plane (``truth/mri_on_section_planes.nii.gz``, 0.4 mm), the moving one the raw
section. Both programs get the section's mask and the MRI's (``ours, no masks`` gets none; ``ours, turned`` none, and the section
turned by an angle of its own). The section's mask is then brought onto the plane through the map that was found: its Dice with
the MRI's mask, and the NMI of MRI and section within the MRI's mask. Sections run in batches, one process for each batch and
program, turn and turn about.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from peers import harness
from peers.harness import Float, Inputs

from histomri.evaluation.overlap import dice, nmi

PLANE_MM = 0.4
BATCH = 12


@dataclass(frozen=True, eq=False)
class Plane:
    """One section (y, x), its tissue mask, and the MRI and its mask on the section's true plane."""

    number: int
    section: NDArray[np.uint8]
    section_mask: NDArray[np.bool_]
    mri: NDArray[np.uint8]
    mri_mask: NDArray[np.bool_]


def planes(folder: Path, every: int) -> Iterator[Plane]:
    """Every ``every``-th section that has a mask and whose plane meets the brain."""
    volume, masks = (nibabel.load(folder / "truth" / f"mri{name}_on_section_planes.nii.gz") for name in ("", "_mask"))
    mri, brain = np.asarray(volume.dataobj), np.asarray(masks.dataobj)
    for number in range(1, mri.shape[2] + 1, every):
        name = f"slice_{number:03d}.png"
        mask = cv2.imread(str(folder / "truth" / "section_masks" / name), cv2.IMREAD_GRAYSCALE)
        section = cv2.imread(str(folder / "sections" / name), cv2.IMREAD_GRAYSCALE)
        plane, on_plane = mri[:, :, number - 1].T, brain[:, :, number - 1].T > 0
        if mask is not None and mask.any() and on_plane.any():
            yield Plane(number, np.asarray(section, np.uint8), mask > 127, plane, on_plane)


def turned(plane: Plane) -> Plane:
    """The section turned by an angle of its own."""
    angle = np.random.default_rng(plane.number).uniform(0, 360)
    section, matrix = harness.changed_picture(plane.section, angle)
    mask = cv2.warpAffine(plane.section_mask.astype(np.uint8), matrix[:2], section.shape[::-1], flags=cv2.INTER_NEAREST)
    return Plane(plane.number, section, mask > 0, plane.mri, plane.mri_mask)


def write(data: NDArray[Any], path: Path) -> Path:
    """An image with pixels of 0.4 mm."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(data))
    image.SetSpacing((PLANE_MM, PLANE_MM))
    SimpleITK.WriteImage(image, str(path))
    return path


def inputs(plane: Plane, folder: Path, method: str) -> Inputs:
    """The files of one registration: ours gets the section as it is, a peer with its tissue bright."""
    folder.mkdir(parents=True, exist_ok=True)
    section = plane.section if method.startswith("ours") else 255 - plane.section
    pair = write(plane.mri, folder / "fixed.mha"), write(section, folder / "moving.mha")
    if method.startswith("ours,"):
        return Inputs("planes", *pair)
    masks = ("fixed_mask", plane.mri_mask), ("moving_mask", plane.section_mask)
    return Inputs("planes", *pair, *(write(mask.astype(np.uint8), folder / f"{name}.mha") for name, mask in masks))


def score(plane: Plane, folder: Path) -> dict[str, float]:
    """Dice of the masks and NMI of the images where the field in ``folder`` puts the section."""
    field = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "field.mha")))
    rows, columns = np.indices(plane.mri.shape, np.float32)
    there = np.stack([columns, rows], axis=-1) + field[..., :2].astype(np.float32) / np.float32(PLANE_MM)
    mask = cv2.remap(plane.section_mask.astype(np.float32), there, None, cv2.INTER_LINEAR) >= 0.5
    image = cv2.remap(255 - plane.section, there, None, cv2.INTER_LINEAR)
    determinant = jacobian(there)
    return {
        "dice": dice(mask, plane.mri_mask),
        "nmi": nmi(image, plane.mri, plane.mri_mask),
        "folds": float((determinant[plane.mri_mask] <= 0).mean()) if np.median(determinant) > 0 else float("nan"),
    }


def jacobian(there: NDArray[np.float32]) -> Float:
    """Determinant of a map (y, x, 2) of pixels to pixels (x, y), by central differences."""
    dy, dx = np.gradient(there.astype(float), axis=(0, 1))
    return np.asarray(dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0])


def run_batch(method: str, batch: list[Plane], folder: Path, threads: int) -> list[dict[str, Any]]:
    """Register a batch with one method, and measure it."""
    given = [turned(plane) if method == "ours, turned" else plane for plane in batch]
    jobs = [inputs(plane, folder / f"{plane.number}", method) for plane in given]
    run = harness.run_peer(method.partition(",")[0], jobs, [folder / f"{plane.number}" for plane in given], threads)
    rows = []
    for plane in given:
        out = folder / f"{plane.number}"
        row: dict[str, Any] = {"section": plane.number, "method": method, "cpu_s": run.cpu_s / len(given)}
        if (out / "field.mha").is_file():
            row |= score(plane, out) | {"register_s": harness.seconds_of(out)["register"]}
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]], method: str) -> dict[str, Any]:
    """Medians over the sections; a section that failed counts as a Dice of 0."""
    mine = [row for row in rows if row["method"] == method]
    values = {
        key: np.array([row.get(key, np.nan) for row in mine], float) for key in ("dice", "nmi", "folds", "register_s", "cpu_s")
    }
    scores = np.nan_to_num(values["dice"])
    return {
        "method": method,
        "sections": len(mine),
        "failed": int(np.isnan(values["dice"]).sum()),
        "median dice": float(np.median(scores)),
        "p10 dice": float(np.percentile(scores, 10)),
        "median nmi": float(np.nanmedian(values["nmi"])),
        "sections with folds": int((np.nan_to_num(values["folds"], nan=1.0) > 0).sum()),
        "median register s": float(np.nanmedian(values["register_s"])),
        "total register s": float(np.nansum(values["register_s"])),
        "total cpu s": float(values["cpu_s"].sum()),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["ours", "ours, no masks", "ours, turned", "greedy"])
    parser.add_argument("--every", type=int, default=1, help="keep every n-th section")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chosen = list(planes(harness.data_folder() / "bigbrain", given.every))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(chosen), BATCH):
        for method in given.methods:
            with tempfile.TemporaryDirectory() as folder:
                rows += run_batch(method, chosen[start : start + BATCH], Path(folder), given.threads)
    found = [summary(rows, method) for method in given.methods]
    print(harness.table(found))
    if given.json:
        record = {"commit": harness.commit(), "threads": given.threads, "every": given.every, "summary": found, "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
