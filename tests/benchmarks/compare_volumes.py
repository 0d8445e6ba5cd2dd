"""Volumes of ``human_t1``, ours and the peers: ``python tests/benchmarks/compare_volumes.py [--cases plain,inverted]``.

The cases are those of ``volumes.py``: a brain against itself under a known smooth deformation, in the same and other contrasts.
TRE is the distance, over points of the fixed brain's mask, from where a program takes them to where they truly lie; folding the
share of the mask's voxels where the map's Jacobian determinant is not positive. No program is given the masks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import volumes
from numpy.typing import NDArray
from peers import harness
from peers.harness import Float, Inputs

from histomri.io.nifti import read_nifti

TO_LPS = np.array([-1.0, -1.0, 1.0])


def write_case(contrast: str, brain: str, folder: Path) -> None:
    """The files of a case: see ``volumes.py``."""
    volume = read_nifti(harness.data_folder() / "human_t1" / f"{brain}.nii.gz")
    volumes.write_case(folder, volumes.known_case(volume, contrast, volumes.Warp()))


def points(path: Path) -> Float:
    """Points (n, 3) of ``x,y,z`` in RAS mm as ITK has them: x, y, z in LPS mm."""
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)[:, :3] * TO_LPS


def folding(field: SimpleITK.Image, mask: NDArray[np.bool_]) -> float:
    """Share of the mask where the Jacobian determinant of the map is not positive."""
    determinant = SimpleITK.GetArrayFromImage(SimpleITK.DisplacementFieldJacobianDeterminant(field))
    return float((determinant[mask] <= 0).mean())


def measure(method: str, case: Path, threads: int) -> dict[str, Any]:
    """Register a case with one method, and measure it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = Inputs("volumes", case / "fixed.nii.gz", case / "moving.nii.gz")
        run = harness.run_peer(method, [job], [folder], threads)
        row: dict[str, Any] = {"case": case.name, "method": method}
        if run.status:
            return row | {"failed": run.log[-400:]}
        row |= {"seconds": run.seconds, "cpu_s": run.cpu_s, "peak_mb": run.peak_mb}
        return row | score(case, SimpleITK.ReadImage(str(folder / "field.mha")))


def score(case: Path, field: SimpleITK.Image) -> dict[str, float]:
    """TRE in mm and folding of a displacement field on the fixed grid."""
    start, truth = points(case / "points.csv"), points(case / "truth.csv")
    tre = np.linalg.norm(start + harness.displacement_at(field, start) - truth, axis=1)
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case / "fixed_mask.nii.gz"))) > 0
    return {
        "mean_tre": float(tre.mean()),
        "median_tre": float(np.median(tre)),
        "p95_tre": float(np.percentile(tre, 95)),
        "folding": folding(field, mask),
    }


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the table shows it."""
    seconds = row.get("seconds", {})
    keys = ("mean_tre", "median_tre", "p95_tre", "folding")
    times = {"register s": seconds.get("register"), "command s": seconds.get("command"), "cpu s": row.get("cpu_s")}
    return {
        "case": row["case"],
        "method": row["method"],
        **{key: row.get(key, "failed") for key in keys},
        **times,
        "peak MB": row.get("peak_mb"),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="ours,greedy,ants", help="which of ours and the peers, with commas")
    parser.add_argument("--cases", default=",".join(volumes.CONTRASTS), help="contrasts, with commas")
    parser.add_argument("--brain", default="ch2", help="a volume of human_t1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for contrast in given.cases.split(","):
        with tempfile.TemporaryDirectory() as folder:
            case = Path(folder) / contrast
            write_case(contrast, given.brain, case)
            rows += [measure(method, case, given.threads) for method in given.methods.split(",")]
    print(harness.table([shown(row) for row in rows]))
    if given.json:
        given.json.write_text(json.dumps({"commit": harness.commit(), "threads": given.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
