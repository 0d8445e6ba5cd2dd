"""Pairs of sections by greedy (picsl_greedy), as stack_greedy's ``recon`` measures them.

``python -m peers.stack_greedy JOB.json``, which holds
``{"images": [paths in order], "positions_mm": [...], "reach": 3, "dof": 6 or 12, "threads": n, "output": folder}``.
``output`` gets ``pairs.json``: for each pair of images (i, j) the matrix (3 x 3) from points (y, x) in mm of image i to image j,
and the NCC of the two; and the CPU seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from picsl_greedy import Greedy2D

from peers.job import read_image

SEARCH = "-dof 6 -m NCC 8x8 -n 100x40x10 -search 4000 180 1 -ia-image-centers"
AFFINE = "-dof 12 -m NCC 8x8 -n 100x40x10 -ia first"
PER_PIXEL = -1e4


def register(fixed: SimpleITK.Image, moving: SimpleITK.Image, dof: int, threads: int) -> tuple[NDArray[np.float64], float]:
    """The matrix (3, 3) on points (y, x) in mm, and the mean NCC, by greedy's search over all angles and its refinement."""
    greedy = Greedy2D()
    general = f"-a -i fixed moving -threads {threads} -V 0"
    greedy.execute(f"{general} {SEARCH} -o first", fixed=fixed, moving=moving, first=None)
    if dof == 12:
        greedy.execute(f"{general} {AFFINE} -o last", last=None)
    metric = np.asarray(greedy.metric_log()[-1]["TotalPerPixelMetric"]).ravel()[-1] / PER_PIXEL
    # greedy's matrices are RAS, on (x, y)
    turned = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(greedy["last" if dof == 12 else "first"]) @ np.diag([-1.0, -1.0, 1.0])
    swap = np.eye(3)[[1, 0, 2]]
    return swap @ turned @ swap, float(metric)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """All pairs within reach."""
    images = [read_image(Path(p)) for p in job["images"]]
    start, pairs = time.process_time(), []
    for i in range(len(images)):
        for j in range(i + 1, min(len(images), i + 1 + job["reach"])):
            matrix, ncc = register(images[i], images[j], job["dof"], job["threads"])
            away = abs(job["positions_mm"][j] - job["positions_mm"][i])
            pairs.append({"fixed": i, "moving": j, "matrix": matrix.tolist(), "ncc": ncc, "distance_mm": away})
    return {"pairs": pairs, "cpu_s": time.process_time() - start}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    (Path(given["output"]) / "pairs.json").write_text(json.dumps(run(given)))
