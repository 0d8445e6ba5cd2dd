"""Pairs of stains, ours and the peers in one run: ``python tests/benchmarks/compare_pairs.py [--json FILE]``.

Every pair of ``stain_pairs`` is registered both ways. A landmark's error is its distance after mapping from the fixed to the
moving image, in pixels of the moving image as it was given; rTRE is that over the moving image's diagonal. Ours gets the pictures
and nothing else; with ``--variants`` also the moving picture turned, mirrored and shrunk, and its points are brought back before
they are measured. The peers get grey pictures, tissue bright on 0, and start from their own search or the images' centres.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from peers import harness
from peers.harness import Float, Inputs, Run

PAIRS = {"lesion": ("lesion_he", "lesion_prospc"), "kidney": ("kidney_he", "kidney_pancytokeratin")}
# the moving image given to ours: turn in degrees, mirrored, scale
VARIANTS = {
    "as given": (0, False, 1.0),
    "turned 137": (137, False, 1.0),
    "mirrored": (0, True, 1.0),
    "shrunk 0.7": (0, False, 0.7),
}


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving picture and their landmarks (n, 2) as x, y pixels."""

    name: str
    fixed: Path
    moving: Path
    fixed_points: Float
    moving_points: Float

    @property
    def diagonal(self) -> float:
        """Of the moving image, in pixels."""
        return float(np.hypot(*picture(self.moving).shape[:2]))


def picture(path: Path) -> NDArray[np.uint8]:
    """A picture as (y, x, 3) uint8."""
    return np.asarray(cv2.imread(str(path)), np.uint8)


def landmarks(path: Path) -> Float:
    """Landmarks (n, 2), x and y."""
    with path.open(newline="") as file:
        return np.array([[float(row["X"]), float(row["Y"])] for row in csv.DictReader(file)])


def pairs(folder: Path) -> Iterator[Pair]:
    """Each pair both ways; landmarks that only one picture has are left out."""
    for name, stems in PAIRS.items():
        for fixed, moving in (stems, stems[::-1]):
            points = [landmarks(folder / f"{stem}.csv") for stem in (fixed, moving)]
            n = min(map(len, points))
            title = f"{name}: {moving.partition('_')[2]} to {fixed.partition('_')[2]}"
            yield Pair(title, folder / f"{fixed}.jpg", folder / f"{moving}.jpg", points[0][:n], points[1][:n])


def background(image: NDArray[np.uint8]) -> Float:
    """Median colour of a picture's rim."""
    rim = np.concatenate(
        [image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3), image[:, :3].reshape(-1, 3), image[:, -3:].reshape(-1, 3)]
    )
    return np.median(rim, axis=0)


def grey(path: Path, out: Path) -> Path:
    """A picture for the peers: grey, tissue bright on a background of 0, float32, pixels of 1 mm."""
    image = picture(path)
    dark = np.maximum(background(image) - image, 0).mean(axis=2)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(dark.astype(np.float32)), str(out))
    return out


def errors(pair: Pair, mapped: Float) -> dict[str, float]:
    """Median and mean rTRE."""
    relative = np.linalg.norm(mapped - pair.moving_points, axis=1) / pair.diagonal
    return {"median_rtre": float(np.median(relative)), "mean_rtre": float(relative.mean()), "max_rtre": float(relative.max())}


def write_points(points: Float, out: Path) -> Path:
    """Points as ``histomri register --points`` takes them."""
    out.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in points))
    return out


def ours(pair: Pair, variant: tuple[float, bool, float], folder: Path, threads: int) -> tuple[Run, Float]:
    """``histomri register``, and the landmarks in the moving picture as it was before it was changed."""
    folder.mkdir(parents=True, exist_ok=True)
    moving, matrix = pair.moving, np.eye(3)
    if variant != VARIANTS["as given"]:
        moving = folder / "moving.png"
        image = picture(pair.moving)
        image, matrix = harness.changed_picture(image, *variant, border=background(image).tolist())
        cv2.imwrite(str(moving), image)
    points = write_points(pair.fixed_points, folder / "fixed_points.csv")
    run = harness.run_ours(pair.fixed, moving, folder / "out", threads, ["--points", str(points)])
    found = read_points(folder / "out" / "points.csv")
    back = np.linalg.inv(matrix)
    return run, found @ back[:2, :2].T + back[:2, 2]


def read_points(path: Path) -> Float:
    """The mapped points (n, 2) of ``points.csv``."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[key] or "nan") for key in ("x", "y")] for row in rows])


def theirs(peer: str, pair: Pair, folder: Path, threads: int) -> tuple[Run, Float]:
    """A peer on grey pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = Inputs("pairs", grey(pair.fixed, folder / "fixed.mha"), grey(pair.moving, folder / "moving.mha"))
    run = harness.run_peer(peer, [inputs], [folder], threads)
    return run, harness.map_by_field(run, pair.fixed_points)


Method = Callable[[Pair, Path, int], tuple[Run, Float]]


def methods(names: list[str], variants: bool) -> dict[str, Method]:
    """What is run on each pair, by the name in the table."""
    out: dict[str, Method] = {}
    for name in names:
        if name == "ours":
            for title, variant in VARIANTS.items() if variants else [("as given", VARIANTS["as given"])]:
                out[f"ours, {title}"] = lambda pair, folder, threads, variant=variant: ours(pair, variant, folder, threads)
        else:
            out[name] = lambda pair, folder, threads, name=name: theirs(name, pair, folder, threads)
    return out


def measure(name: str, method: Method, pair: Pair, threads: int) -> dict[str, Any]:
    """One run of one method as a row."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run, mapped = method(pair, Path(folder), threads)
        except (OSError, KeyError, RuntimeError) as error:
            return {"pair": pair.name, "method": name, "failed": f"{type(error).__name__}: {error}"}
        return {
            "pair": pair.name,
            "method": name,
            **errors(pair, mapped),
            "cpu_s": run.cpu_s,
            "peak_mb": run.peak_mb,
            "seconds": run.seconds,
        }


def fastest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of one method on one pair as one: the least of each time, the errors of the last."""
    good = [row for row in rows if "seconds" in row]
    if not good:
        return rows[-1]
    seconds = {key: min(row["seconds"][key] for row in good) for key in good[-1]["seconds"]}
    return good[-1] | {"seconds": seconds, "cpu_s": min(row["cpu_s"] for row in good), "repeats": len(good)}


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the table shows it."""
    seconds = row.get("seconds", {})
    keys = ("median_rtre", "mean_rtre", "max_rtre")
    return {
        "pair": row["pair"],
        "method": row["method"],
        **{key: row.get(key, row.get("failed")) for key in keys},
        "register s": seconds.get("register"),
        "command s": seconds.get("command"),
        "cpu s": row.get("cpu_s"),
        "peak MB": row.get("peak_mb"),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default=f"ours,{','.join(harness.PEERS)}", help="which of ours and the peers, with commas")
    parser.add_argument("--pairs", default="", help="only pairs whose name holds this")
    parser.add_argument("--variants", action="store_true", help="ours with the moving picture turned, mirrored and shrunk, too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chosen = methods(given.methods.split(","), given.variants)
    rows: list[dict[str, Any]] = []
    for pair in pairs(harness.data_folder() / "stain_pairs"):
        if given.pairs not in pair.name:
            continue
        # interleaved, so that a busy machine slows all alike
        runs = [measure(name, method, pair, given.threads) for _ in range(given.repeats) for name, method in chosen.items()]
        rows += [fastest([row for row in runs if row["method"] == name]) for name in chosen]
    print(harness.table([shown(row) for row in rows]))
    if given.json:
        given.json.write_text(json.dumps({"commit": harness.commit(), "threads": given.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
