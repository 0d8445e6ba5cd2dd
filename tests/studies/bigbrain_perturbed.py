"""BigBrain made hard: ``python tests/studies/bigbrain_perturbed.py FOLDER --seed 1 [--every 10]``.

Every section is turned by a random angle, a tenth are mirrored, a tenth are missing, a twentieth are replaced by a section of
``mouse_nissl``, and the MRI lies in another pose. ``FOLDER`` gets the study (``bigbrain.yaml``, its sheets, pictures and MRI)
and, where no stage looks, ``truth.json``: what was done, for ``bigbrain_truth.py --perturbed``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
from bigbrain_copy import BESIDE, copy_study, read_sheet, write_sheet
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Float = NDArray[np.float64]
Grey = NDArray[np.uint8]
MIRRORED, MISSING, FOREIGN = 0.1, 0.1, 0.05


def perturb(folder: Path, data: Path, seed: int, every: int = 1) -> Path:
    """Write the study and its truth into ``folder`` and return the path of its config."""
    config = copy_study(folder, data, every)
    rng = np.random.default_rng(seed)
    rows = read_sheet(folder / "sections.tsv")
    fate = _fates(len(rows), rng)
    strangers = sorted((data / "mouse_nissl").rglob("*.jpg"))
    strangers = [p for p in strangers if p.stat().st_size > np.median([q.stat().st_size for q in strangers])]
    truth: dict[str, dict[str, Any]] = {}
    for row, what in zip(rows, fate, strict=True):
        angle, stranger = float(rng.uniform(0, 360)), strangers[int(rng.integers(len(strangers)))]
        source = stranger if what == "foreign" else Path(row["file"])
        picture, matrix = turned(_grey(source), angle, what == "mirrored")
        path = folder / "pictures" / f"{row['section']}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), picture)
        row["file"] = str(path)
        truth[row["section"]] = {"fate": what, "angle_deg": angle, "matrix": matrix.tolist()}
    write_sheet(folder / "sections.tsv", [row for row, what in zip(rows, fate, strict=True) if what != "missing"])
    move = _move_mri(folder, rng)
    (folder / "truth.json").write_text(json.dumps({"seed": seed, "mri": move.tolist(), "sections": truth}))
    return config


def _fates(count: int, rng: np.random.Generator) -> list[str]:
    """What becomes of each section; each is struck at most once."""
    out, order = ["sound"] * count, rng.permutation(count)
    start = 0
    for name, share in (("mirrored", MIRRORED), ("missing", MISSING), ("foreign", FOREIGN)):
        end = start + round(share * count)
        for i in order[start:end]:
            out[i] = name
        start = end
    return out


def _grey(path: Path) -> Grey:
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise FileNotFoundError(path)
    return np.asarray(picture, np.uint8)


def turned(picture: Grey, angle_deg: float, mirrored: bool) -> tuple[Grey, Float]:
    """The whole picture turned (mirrored first), on a larger canvas of glass; and (3, 3) from old to new pixels (x, y, 1)."""
    height, width = picture.shape
    flip = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]]) if mirrored else np.eye(3)
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    corners = turn @ np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1.0]])
    low, high = corners[:2].min(axis=1), corners[:2].max(axis=1)
    turn[:2, 2] = -low
    matrix = turn @ flip
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    size = (int(np.ceil(high[0] - low[0])) + 1, int(np.ceil(high[1] - low[1])) + 1)
    out = cv2.warpAffine(picture, matrix[:2], size, flags=cv2.INTER_CUBIC, borderValue=int(np.median(edge)))
    return np.asarray(out, np.uint8), matrix


def _move_mri(folder: Path, rng: np.random.Generator) -> Float:
    """Another pose of the MRI, its voxels in another order: (4, 4) from where it was to where it is, RAS mm."""
    rows = read_sheet(folder / "blocks.tsv")
    move = np.eye(4)
    move[:3, :3] = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    move[:3, 3] = rng.uniform(-50, 50, 3)
    image: Any = nibabel.load(rows[0]["mri"])
    axes = rng.permutation(3)
    order = nibabel.orientations.ornt_transform(
        np.array([[0, 1], [1, 1], [2, 1]]), np.column_stack([axes, rng.choice([-1, 1], 3)])
    )
    moved = image.as_reoriented(order)
    path = folder / "mri.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(moved.dataobj), move @ moved.affine), path)
    rows[0]["mri"] = str(path)
    write_sheet(folder / "blocks.tsv", rows)
    return move


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="keep every n-th section")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HISTOMRI_DATA", BESIDE)), help="folder of real data")
    given = parser.parse_args()
    print(perturb(given.folder, given.data.absolute(), given.seed, given.every))


if __name__ == "__main__":
    main()
