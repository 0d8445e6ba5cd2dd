"""A study of sections whose truth is exact: planes of ``mouse_brain_planes``, each distorted by a transform drawn from a seed.

``python tests/studies/mouse_planes.py FOLDER [--seed 0 --damaged 0.1 --missing 0.1 --mirrored 0.1]``: every plane is turned by
any angle, shifted, sheared and bent; shares of the sections are damaged (torn, bent far more, or half lost, in turn), missing
in runs of up to five, or face down. ``FOLDER`` gets the study (``mouse_planes.yaml``, its sheet and pictures; output
``FOLDER/out``) and, where no stage looks, ``truth/truth.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from histomri.testing.distortion import Distortion
from histomri.testing.truth import draw_tear

Float = NDArray[np.float64]
Grey = NDArray[np.uint8]
HERE = Path(__file__).resolve().parent
BESIDE = HERE.parents[1].parent / "shared" / "data"
PIXEL_MM = STEP_MM = 0.05
WIDTH_MM = 9.0
DAMAGES = ("torn", "bent", "half")
LONGEST_RUN = 5
SHEAR, BEND_MM, MORE_BEND_MM = 0.03, 0.1, 0.35
BRIGHTEST = 600.0
COLUMNS = ("section", "file", "position_mm", "status", "stain")


@dataclass(frozen=True)
class Fate:
    """What becomes of a plane; ``damage`` is one of ``DAMAGES`` or empty."""

    missing: bool = False
    mirrored: bool = False
    damage: str = ""

    @property
    def name(self) -> str:
        """In words, of a section that is there."""
        return "-".join(word for word in ("mirrored" if self.mirrored else "", self.damage) if word) or "sound"


@dataclass(frozen=True)
class Shares:
    """How much of the stack is damaged, missing and mirrored, each 0 to 1."""

    damaged: float = 0.0
    missing: float = 0.0
    mirrored: float = 0.0


@dataclass(frozen=True, eq=False)
class Cut:
    """One section as it lies on its picture of ``shape`` (y, x) pixels: ``distortion`` maps mm from the centre of its top left
    pixel to mm from the plane's middle; of a half that is lost, tissue stays where ``kept`` (y, x) points, from the middle.
    """

    number: int
    fate: Fate
    distortion: Distortion
    shape: tuple[int, int]
    kept: tuple[float, float]

    def is_kept(self, plane_mm: Float) -> NDArray[np.bool_]:
        """Which points (..., 2) of the plane the section still holds."""
        whole = self.fate.damage != "half"
        return np.asarray((plane_mm @ np.array(self.kept) > 0) | whole)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        given = {"number": self.number, "fate": asdict(self.fate), "shape": self.shape, "kept": self.kept}
        return given | {"distortion": self.distortion.to_dict()}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Cut:
        """The inverse of :meth:`to_dict`."""
        return Cut(
            record["number"],
            Fate(**record["fate"]),
            Distortion.from_dict(record["distortion"]),
            tuple(record["shape"]),
            tuple(record["kept"]),
        )


def draw_fates(count: int, shares: Shares, seed: int) -> list[Fate]:
    """The fates of ``count`` sections. Of the same seed, what a smaller share strikes a larger one strikes too."""
    rng = np.random.default_rng([seed, 1])
    missing = set(_runs(count, rng)[: round(shares.missing * count)])
    order = [[int(i) for i in rng.permutation(count) if i not in missing] for _ in range(2)]
    mirrored, damaged = (
        set(some[: round(share * count)]) for some, share in zip(order, (shares.mirrored, shares.damaged), strict=True)
    )
    kind = {place: DAMAGES[k % len(DAMAGES)] for k, place in enumerate(order[1])}
    return [Fate(i in missing, i in mirrored, kind[i] if i in damaged else "") for i in range(count)]


def _runs(count: int, rng: np.random.Generator) -> list[int]:
    """Places in runs of up to ``LONGEST_RUN`` with others between them, run after run, never the ends of the stack."""
    out: list[int] = []
    for _ in range(20 * count):
        length, start = int(rng.integers(1, LONGEST_RUN + 1)), int(rng.integers(1, count - 1))
        run = list(range(start, start + length))
        if run[-1] < count - 1 and not set(out) & set(range(start - 1, run[-1] + 2)):
            out += run
    return out


def draw_cut(number: int, fate: Fate, shape: tuple[int, int], seed: int) -> Cut:
    """One plane of ``shape`` pixels, distorted as ``seed`` and its number say; its turn, shear and bend are those of any fate."""
    rng = np.random.default_rng([seed, 2, number])
    angle, shear = rng.uniform(0, 2 * np.pi), SHEAR * rng.normal(size=(2, 2))
    waves, margin, kept = _waves(BEND_MM, rng), rng.uniform(5, 25, 2), rng.normal(size=2)
    more, tear = _waves(MORE_BEND_MM, rng), draw_tear(WIDTH_MM, rng)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]]) @ np.diag([1.0, -1.0 if fate.mirrored else 1.0]) @ (np.eye(2) + shear)
    side = np.abs(turn) @ (np.array(shape) + 20)
    size = np.ceil(side + margin * 2).astype(int)
    linear = np.asarray(np.linalg.inv(turn), float)
    middle = ((size - 1) / 2 + margin * rng.uniform(-1, 1, 2)) * PIXEL_MM
    distortion = Distortion(
        linear,
        -linear @ middle,
        np.vstack([waves, more]) if fate.damage == "bent" else waves,
        tear if fate.damage == "torn" else None,
    )
    return Cut(number, fate, distortion, (int(size[0]), int(size[1])), (float(kept[0]), float(kept[1])))


def _waves(rms_mm: float, rng: np.random.Generator) -> Float:
    """Three plane waves about as long as the tissue: rows as :class:`Distortion` takes them."""
    waves = np.column_stack([rng.normal(size=(3, 2)), rng.uniform(0, 2 * np.pi, 3), rng.normal(size=(3, 2))])
    lengths = WIDTH_MM * rng.uniform(0.6, 1.3, (3, 1))
    waves[:, :2] *= 2 * np.pi / (lengths * np.linalg.norm(waves[:, :2], axis=1, keepdims=True))
    waves[:, 3:] *= rms_mm * np.sqrt(2 / 3) / np.linalg.norm(waves[:, 3:], axis=1, keepdims=True)
    return waves


def read_plane(data: Path, number: int) -> NDArray[np.float32]:
    """One plane (y, x), dark background.

    Raises
    ------
    FileNotFoundError
        Where the data are not in ``data``.
    """
    path = data / "mouse_brain_planes" / "stpt_brain_50um" / f"image_{number:04d}.tif"
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise FileNotFoundError(path)
    return np.asarray(image, np.float32)


def plane_points(shape: tuple[int, int], pixels: Float) -> Float:
    """Pixels (..., 2) of a plane in mm from its middle."""
    return np.asarray((pixels - (np.array(shape) - 1) / 2) * PIXEL_MM)


def picture_of(plane: NDArray[np.float32], cut: Cut) -> Grey:
    """What the cut section looks like."""
    pixels = np.stack(np.meshgrid(*map(np.arange, cut.shape), indexing="ij"), axis=-1) * PIXEL_MM
    points = cut.distortion.to_block(pixels)
    lost = np.isnan(points).any(axis=-1) | ~cut.is_kept(points)
    index = np.nan_to_num(points / PIXEL_MM + (np.array(plane.shape) - 1) / 2, nan=-9).astype(np.float32)
    glass = float(np.percentile(plane, 5))
    shown = cv2.remap(plane, index[..., 1], index[..., 0], cv2.INTER_CUBIC, borderValue=glass)
    shown[lost] = glass
    return np.clip(shown * (255 / BRIGHTEST) + 0.5, 0, 255).astype(np.uint8)


def write_study(
    folder: Path, data: Path, shares: Shares, planes: Sequence[int], seed: int = 0, **settings: dict[str, Any]
) -> Path:
    """Write the study of those ``planes`` and its truth, and return the path of its config; ``settings`` are its stages."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows, truth = [], {}
    for number, fate in zip(planes, draw_fates(len(planes), shares, seed), strict=True):
        name, at = f"plane_{number:03d}", f"{number * STEP_MM:.3f}"
        plane = read_plane(data, number)
        cut = draw_cut(number, fate, plane.shape, seed)
        truth[name] = cut.to_dict()
        if not fate.missing:
            cv2.imwrite(str(folder / "pictures" / f"{name}.png"), picture_of(plane, cut))
        file, status = ("", "missing") if fate.missing else (f"pictures/{name}.png", "ok")
        rows.append(dict(zip(COLUMNS, (name, file, at, status, "autofluorescence"), strict=True)))
    with (folder / "sections.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "truth").mkdir(exist_ok=True)
    (folder / "truth" / "truth.json").write_text(json.dumps({"seed": seed, "sections": truth}))
    path = folder / "mouse_planes.yaml"
    config = {"study": "mouse_planes", "sections": "sections.tsv", "output": "out", "pixel_size_mm": PIXEL_MM, **settings}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=90, help="number of the first plane, of 0 to 269")
    parser.add_argument("--every", type=int, default=2, help="keep every n-th plane")
    parser.add_argument("--count", type=int, default=48, help="how many sections")
    for share in ("damaged", "missing", "mirrored"):
        parser.add_argument(f"--{share}", type=float, default=0.1, help="share of the sections")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HISTOMRI_DATA", BESIDE)), help="folder of real data")
    given = parser.parse_args()
    shares = Shares(given.damaged, given.missing, given.mirrored)
    planes = range(given.first, given.first + given.every * given.count, given.every)
    print(write_study(given.folder, given.data.absolute(), shares, planes, given.seed))


if __name__ == "__main__":
    main()
