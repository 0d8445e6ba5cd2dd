"""Volumes of ``human_t1``, ours and the peers: ``python tests/benchmarks/compare_volumes.py [--cases plain,inverted]``.

The cases are those of ``volumes.py``: a brain against itself under a known smooth deformation, in the same and other contrasts.
TRE is the distance, over points of the fixed brain's mask, from where a program takes them to where they truly lie; folding the
share of the mask's voxels where the map's Jacobian determinant is not positive. No program is given the masks.

The case ``brains`` is the MNI brain, seen through a known deformation, and Colin27: ``regions`` is the mean Dice of the AAL
regions' own grey matter, ``grey`` and ``white`` that of the tissues. Its methods ``none`` and ``truth`` are the images as they
lie, and the known deformation undone, which leaves the brains in the templates' common space.
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
from histomri.kernels.fields import jacobian_determinant

BRAINS = "brains"
TO_LPS = np.array([-1.0, -1.0, 1.0])


def write_case(contrast: str, brain: str, seed: int, folder: Path) -> None:
    """The files of a case: see ``volumes.py``."""
    here = harness.data_folder() / "human_t1"
    if contrast == BRAINS:
        mni, colin, regions = (read_nifti(here / f"{name}.nii.gz") for name in ("mni", "ch2", "mnia"))
        volumes.two_brains(mni, colin, regions, volumes.Warp(seed=seed), folder)
    else:
        volume = read_nifti(here / f"{brain}.nii.gz")
        volumes.write_case(folder, volumes.known_case(volume, contrast, volumes.Warp(seed=seed)))


def points(path: Path) -> Float:
    """Points (n, 3) of ``x,y,z`` in RAS mm as ITK has them: x, y, z in LPS mm."""
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)[:, :3] * TO_LPS


def folding(field: SimpleITK.Image, mask: NDArray[np.bool_]) -> float:
    """Share of the mask where the Jacobian determinant of the map is not positive.

    In voxels of the field's own axes: SimpleITK's filter takes a world vector's components for these, which is wrong where an
    axis of the image runs against the world's.
    """
    direction = np.array(field.GetDirection()).reshape(3, 3)
    along = SimpleITK.GetArrayViewFromImage(field) @ direction / field.GetSpacing()
    return float((jacobian_determinant(along[..., ::-1])[mask] <= 0).mean())


def measure(method: str, case: Path, threads: int) -> dict[str, Any]:
    """Register a case with one method, and measure it."""
    if case.name == BRAINS and method in ("none", "truth"):
        return {"case": case.name, "method": method, **overlap(case, None if method == "none" else true_field(case))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = "volumes" if case.name in ("plain", "noisy", BRAINS) else "contrasts"
        job = Inputs(task, case / "fixed.nii.gz", case / "moving.nii.gz")
        run = harness.run_peer(method, [job], [folder], threads)
        row: dict[str, Any] = {"case": case.name, "method": method}
        if run.status:
            return row | {"failed": run.log[-400:]}
        row |= {"seconds": run.seconds, "cpu_s": run.cpu_s, "peak_mb": run.peak_mb}
        row["cpu"] = json.loads((folder / "result.json").read_text())["cpu"]
        field = SimpleITK.ReadImage(str(folder / "field.mha"))
        return row | (overlap(case, field) if case.name == BRAINS else score(case, field))


def true_field(case: Path) -> SimpleITK.Image:
    """The known displacement between two brains."""
    field = SimpleITK.GetImageFromArray(np.load(case / "truth.npy"), isVector=True)
    field.CopyInformation(SimpleITK.ReadImage(str(case / "fixed.nii.gz")))
    return field


def overlap(case: Path, field: SimpleITK.Image | None) -> dict[str, float]:
    """Overlap of the labels, and folding where the fixed image has any, of a displacement field on the fixed grid; None is 0."""
    fixed, moving = (SimpleITK.ReadImage(str(case / f"{name}_labels.nii.gz")) for name in ("fixed", "moving"))
    wide = SimpleITK.Transform(3, SimpleITK.sitkIdentity)
    if field is not None:
        wide = SimpleITK.DisplacementFieldTransform(SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64))
    brought = SimpleITK.Resample(moving, fixed, wide, SimpleITK.sitkNearestNeighbor)
    here = SimpleITK.GetArrayFromImage(fixed)
    found = volumes.label_overlap(here, SimpleITK.GetArrayFromImage(brought))
    return found | ({} if field is None else {"folding": folding(field, here > 0)})


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
    scores = ("regions", "grey", "white") if row["case"] == BRAINS else ("mean_tre", "median_tre", "p95_tre")
    keys = (*scores, "folding")
    busy = row.get("cpu", {})
    times = {"register s": seconds.get("register"), "register cpu s": busy.get("register")}
    if busy:
        times |= {"command s": seconds.get("command"), "command cpu s": row["cpu_s"] - busy["export"]}
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
    parser.add_argument("--methods", default="ours,greedy,ants", help="ours, peers, for brains none and truth")
    parser.add_argument("--cases", default=",".join(volumes.CONTRASTS), help="contrasts, with commas")
    parser.add_argument("--brain", default="ch2", help="a volume of human_t1")
    parser.add_argument("--seed", type=int, default=0, help="of the known deformation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for contrast in given.cases.split(","):
        with tempfile.TemporaryDirectory() as folder:
            case = Path(folder) / contrast
            write_case(contrast, given.brain, given.seed, case)
            rows += [measure(method, case, given.threads) for method in given.methods.split(",")]
    for brains in (False, True):
        chosen = [shown(row) for row in rows if (row["case"] == BRAINS) == brains]
        print(harness.table(chosen) + "\n" if chosen else "", end="")
    if given.json:
        given.json.write_text(json.dumps({"commit": harness.commit(), "threads": given.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
