"""A copy of the BigBrain study, for data elsewhere, of every n-th section, or of a part of the brain beside the whole MRI.

``python tests/studies/bigbrain_copy.py FOLDER --every 10``: ``FOLDER`` gets ``bigbrain.yaml`` and its sheets, with absolute paths
of the data; its output is ``FOLDER/out``. ``--part hemisphere`` keeps what lies left of the middle of each section's tissue (by
the truth's masks, which no stage reads), ``--part third`` the middle third of the sections.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

HERE = Path(__file__).resolve().parent
BESIDE = HERE.parents[1].parent / "shared" / "data"


def copy_study(folder: Path, data: Path, every: int = 1, **settings: dict[str, Any]) -> Path:
    """Write the study of every ``every``-th section into ``folder`` and return the path of its config.

    ``data`` is the folder of real data; ``settings`` are stages of the config, put over the study's own.
    """
    config = yaml.safe_load((HERE / "bigbrain.yaml").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for sheet, column, step in (("sections", "file", every), ("blocks", "mri", 1)):
        _copy_sheet(HERE / config[sheet], folder / f"{sheet}.tsv", column, data / "bigbrain", step)
        config[sheet] = f"{sheet}.tsv"
    for stage, values in settings.items():
        config[stage] = {**config.get(stage, {}), **values}
    path = folder / "bigbrain.yaml"
    path.write_text(yaml.safe_dump({**config, "output": "out"}, sort_keys=False))
    return path


def keep_part(folder: Path, data: Path, part: str) -> None:
    """Leave only a part of the brain in the study in ``folder``: ``hemisphere`` or ``third``."""
    rows = read_sheet(folder / "sections.tsv")
    if part == "third":
        rows = rows[len(rows) // 3 : 2 * len(rows) // 3]
    else:
        masks = data / "bigbrain" / "truth" / "section_masks"
        rows = [row | {"region": half} for row in rows if (half := _left_half(masks / Path(row["file"]).name))]
    write_sheet(folder / "sections.tsv", rows)


def _left_half(mask: Path) -> str | None:
    """The region ``x,y,width,height`` left of the middle of a mask; None where there is no mask, or hardly any tissue."""
    image = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) if mask.is_file() else None
    columns = np.zeros(0) if image is None else np.nonzero(image > 127)[1]
    return f"0,0,{round(float(columns.mean()))},{image.shape[0]}" if image is not None and len(columns) > 2000 else None


def _copy_sheet(source: Path, target: Path, column: str, data: Path, step: int) -> None:
    """Every ``step``-th row of a sheet, the paths in ``column`` moved from ``.../bigbrain/`` to ``data``."""
    rows = read_sheet(source)[::step]
    for row in rows:
        row[column] = str(data / row[column].partition("/bigbrain/")[2])
    write_sheet(target, rows)


def read_sheet(path: Path) -> list[dict[str, str]]:
    """The rows of a sheet."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def write_sheet(path: Path, rows: list[dict[str, str]]) -> None:
    """Write a sheet with the columns of its first row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="keep every n-th section")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HISTOMRI_DATA", BESIDE)), help="folder of real data")
    parser.add_argument("--part", choices=("hemisphere", "third"), help="keep a part of the brain only")
    given = parser.parse_args()
    print(copy_study(given.folder, given.data.absolute(), given.every))
    if given.part:
        keep_part(given.folder, given.data.absolute(), given.part)


if __name__ == "__main__":
    main()
