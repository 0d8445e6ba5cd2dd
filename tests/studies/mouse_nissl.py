"""660 serial Nissl sections of a mouse brain, without an MRI, or with that of another mouse.

``python tests/studies/mouse_nissl.py FOLDER [--first 200 --count 80] [--mri]``: ``FOLDER`` gets ``mouse_nissl.yaml`` and its
sheets, with absolute paths of the data; the pictures stay where they are. Its output is ``FOLDER/out``.
The sections that the data's own list calls absent are missing in the sheet.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
BESIDE = HERE.parents[1].parent / "shared" / "data"
STEP_MM = 0.02
PIXEL_MM = 0.05888
COLUMNS = ("section", "file", "position_mm", "status", "stain")


def write_study(folder: Path, data: Path, every: int = 1, first: int = 1, count: int = 668, **settings: dict[str, Any]) -> Path:
    """Write the study of every ``every``-th section from ``first`` to ``first + count - 1``, and return the path of its config.

    ``data`` is the folder of real data; ``settings`` are stages of the config.

    Raises
    ------
    FileNotFoundError
        Where the data are not in ``data``.
    """
    rows = [r for r in read_rows(data / "mouse_nissl" / "NisslDown") if first <= int(r["section"][-4:]) < first + count]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sections.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[::every])
    config = {"study": "mouse_nissl", "sections": "sections.tsv", "output": "out", "pixel_size_mm": PIXEL_MM, **settings}
    path = folder / "mouse_nissl.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def add_mri(config: Path, data: Path) -> None:
    """Give the study ``mouse_mri``, the MRI of another animal, to be placed in."""
    mri = data / "mouse_mri" / "CIVM_mouse.ISO.nii.gz"
    (config.parent / "blocks.tsv").write_text(f"block\tmri\tmirror\nblock\t{mri}\tauto\n")
    config.write_text(config.read_text() + "blocks: blocks.tsv\n")


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of the sheet, in order of their numbers along the brain."""
    with (folder / "samples.tsv").open(newline="") as file:
        names = {_number(row["sample_id"]): row for row in csv.DictReader(file, delimiter="\t")}
    return [_row(folder, number, names[number]) for number in sorted(names)]


def _number(name: str) -> int:
    found = re.search(r"(\d+)\.\w+$", name)
    if found is None:
        raise ValueError(f"samples.tsv: {name!r} does not end in a section's number")
    return int(found[1])


def _row(folder: Path, number: int, given: dict[str, str]) -> dict[str, str]:
    """One section; its place is that of its sidecar, which counts from the middle of the brain."""
    row = {"section": f"nissl_{number:04d}", "position_mm": f"{(number - 1) * STEP_MM:.2f}", "stain": "nissl"}
    if given["status"] != "present":
        return {**row, "file": "", "status": "missing"}
    picture = folder / given["sample_id"]
    sidecar = json.loads(picture.with_suffix(".json").read_text())
    spacing = [abs(v) for axis in sidecar["SpaceDirections"][1:] for v in axis if v]
    if [round(v, 2) for v in spacing] != [58.88, 58.88, 20.0]:
        raise ValueError(f"{picture.name}: its sidecar says {spacing} um, expected 58.88, 58.88 and 20")
    return {**row, "file": str(picture), "status": "ok"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="keep every n-th section")
    parser.add_argument("--first", type=int, default=1, help="number of the first section")
    parser.add_argument("--count", type=int, default=668, help="how many numbers from there on")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HISTOMRI_DATA", BESIDE)), help="folder of real data")
    parser.add_argument("--mri", action="store_true", help="with the MRI of another mouse")
    given = parser.parse_args()
    config = write_study(given.folder, given.data.absolute(), given.every, given.first, given.count)
    if given.mri:
        add_mri(config, given.data.absolute())
    print(config)


if __name__ == "__main__":
    main()
