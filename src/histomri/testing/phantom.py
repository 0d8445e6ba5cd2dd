"""The digital block: a folder of slides, photographs, MRI, sheets, landmarks and labels with their exact truth.

``python -m histomri.testing.phantom FOLDER --preset demo`` makes one; :func:`make` does it from Python.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.testing.photographs import make_photograph
from histomri.testing.scan import make_labels, make_mri
from histomri.testing.slides import label_image, make_slide
from histomri.testing.spec import DEMO, PRESETS, SMALL, TINY, PhantomSpec
from histomri.testing.truth import SectionTruth, Truth, draw_truth, load_truth, write_truth

__all__ = ["DEMO", "SMALL", "TINY", "PhantomSpec", "Truth", "load_truth", "make"]

LABEL_FACTOR = 16
N_LABEL_IMAGES = 4


def _write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write_sheets(truth: Truth, folder: Path, output: str) -> None:
    """The sheets and the config, which tell what a lab would know and nothing of the truth."""
    spec = truth.spec
    header = ["section", "file", "position_mm", "stain", "status"] + (["blockface"] if spec.blockface else [])
    rows = []
    for s in truth.sections.values():
        lost = s.bad == "lost"
        row = [s.id, "" if lost else f"slides/{s.id}.tif", f"{s.position_mm:.6g}", s.stain, "missing" if lost else "ok"]
        rows.append(row + ([f"blockface/{s.id}.png"] if spec.blockface else []))
    _write_table(folder / "sections.tsv", header, rows)
    pixel = f"{spec.blockface_pixel_mm:g}" if spec.blockface else ""
    _write_table(folder / "blocks.tsv", ["block", "mri", "blockface_pixel_size_mm"], [["block", "mri.nii.gz", pixel]])
    sheets = "sections: sections.tsv\nblocks: blocks.tsv\nlandmarks: landmarks.tsv\n"
    (folder / "config.yaml").write_text(f"study: {spec.study}\n{sheets}output: {output}\n")


def _pick_points(truth: Truth, section: SectionTruth, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """``n`` points (y, x) in mm of the block's plane that lie in tissue, with tissue 0.1 mm around them."""
    half = np.array(truth.spec.size_mm[1:]) / 2
    ring = np.array([(0, 0), (0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)])
    found = np.empty((0, 2))
    while len(found) < n:
        points = rng.uniform(-half, half, (64, 2))
        around = points[:, None] + ring
        block = np.concatenate([np.full((*around.shape[:-1], 1), section.position_mm), around], axis=-1)
        found = np.vstack([found, points[(truth.specimen.labels(block) > 0).all(axis=1)]])
    return found[:n]


def _write_landmarks(truth: Truth, folder: Path) -> None:
    """Landmarks on every section that was not lost, in level-0 pixels and RAS mm."""
    spec = truth.spec
    kept = [s for s in truth.sections.values() if s.bad != "lost"]
    shares = [len(part) for part in np.array_split(np.arange(spec.n_landmarks), len(kept))]
    rows: list[list[str]] = []
    for section, n in zip(kept, shares, strict=True):
        plane = _pick_points(truth, section, n, np.random.default_rng([spec.seed, 10, int(section.id[1:])]))
        pixels = truth.block_to_section(section.id, plane) / section.pixel_size_mm
        block = np.column_stack([np.full(n, section.position_mm), plane])
        mri = truth.mri_to_block.inverse().map(block)
        for (y, x), (z, my, mx) in zip(pixels, mri, strict=True):
            # LPS to RAS
            numbers = (x, y, -mx, -my, z)
            rows.append([f"L{len(rows) + 1:03d}", section.id, *(f"{v:.6f}" for v in numbers)])
    _write_table(folder / "landmarks.tsv", ["name", "section", "x", "y", "mri_x", "mri_y", "mri_z"], rows)


def _write_label_images(truth: Truth, folder: Path) -> None:
    """Exact label images of a few sections, ``LABEL_FACTOR`` times coarser than level 0."""
    folder.mkdir(parents=True)
    whole = [s for s in truth.sections.values() if s.bad is None]
    for i in np.unique(np.linspace(0, len(whole) - 1, min(N_LABEL_IMAGES, len(whole))).round().astype(int)):
        cv2.imwrite(str(folder / f"{whole[i].id}.png"), label_image(truth, whole[i], LABEL_FACTOR))


def _fill(folder: Path, truth: Truth, output: str, say: Callable[[str], None]) -> None:
    start = time.monotonic()
    for name in ("slides", "truth", *(["blockface"] if truth.spec.blockface else [])):
        (folder / name).mkdir()
    _write_sheets(truth, folder, output)
    _write_landmarks(truth, folder)
    make_mri(truth, folder / "mri.nii.gz")
    make_labels(truth, folder / "labels.nii.gz")
    say(f"MRI of {' x '.join(map(str, truth.mri_grid.shape))} voxels ({time.monotonic() - start:.0f} s)")
    for section in truth.sections.values():
        if truth.spec.blockface:
            make_photograph(truth, section, folder / "blockface" / f"{section.id}.png")
        if section.bad != "lost":
            make_slide(truth, section, folder / "slides" / f"{section.id}.tif")
        size = f"{section.shape[1]} x {section.shape[0]} px"
        say(f"section {section.id} of {len(truth.sections)}, {size} ({time.monotonic() - start:.0f} s)")
    _write_label_images(truth, folder / "truth" / "labels")
    write_truth(truth, folder / "truth" / "truth.json")


def _silent(text: str) -> None:
    """Say nothing."""


def make(folder: str | Path, spec: PhantomSpec = DEMO, output: str = "results", say: Callable[[str], None] = _silent) -> Truth:
    """Make a digital block in ``folder``, which must not exist yet, and return its truth.

    Everything is written beside it first and renamed at the end, so that a folder of that name is always whole. ``output`` goes
    into ``config.yaml``; ``say`` is told the progress. Raises ``FileExistsError`` when the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: remove it, or name a folder that does not exist.")
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        say(f"removing {partial}, left by a run that was interrupted")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    truth = draw_truth(spec)
    _fill(partial, truth, output, say)
    partial.rename(folder)
    return truth


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    description = "Make a digital block with known truth."
    parser = argparse.ArgumentParser(prog="python -m histomri.testing.phantom", description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-blockface", action="store_true", help="make no photographs of the block")
    parser.add_argument("--output", default="results", help="output folder to be named in config.yaml")
    given = parser.parse_args(arguments)
    spec = replace(PRESETS[given.preset], seed=given.seed, blockface=not given.no_blockface)
    try:
        make(given.folder, spec, given.output, lambda text: print(text, flush=True))
    except FileExistsError as error:
        parser.error(str(error))
    print(f"digital block in {given.folder}")


if __name__ == "__main__":
    main()
