"""``histomri transfer``: a volume in the MRI's world onto a section."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.cli.coordinates import study_graph
from histomri.core import Grid, Image, InputError
from histomri.core.errors import Problem
from histomri.io.config import load_study
from histomri.io.graph import read_record
from histomri.io.nifti import read_nifti
from histomri.io.raster import write_png, write_tiff
from histomri.kernels.plane import sample_plane
from histomri.transforms.graph import SectionSpace, SpaceGraph

Float = NDArray[np.float64]
ToIndex = Callable[[Float], Float]

HELP = "bring a volume in the MRI's world onto a section"
DESCRIPTION = """\
Brings LABELS, a volume on any grid in the MRI's world, onto a section's image: exactly as wide and high as the level, one
channel, integer values unchanged, 0 outside. OUT is a PNG (whole numbers from 0 to 65535) or a tiled TIFF."""
TILE_PX = 2048
STRIP_PX = 512
FIRST_STEP = 64
PNG_MAX = 65535
TIFFS = (".tif", ".tiff")
# in voxels, twice how far a point may lie from where the transform puts it: too little for a label's border to show
TOLERANCE = 0.02


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser of ``histomri``."""
    parser: argparse.ArgumentParser = subparsers.add_parser("transfer", help=HELP, description=DESCRIPTION)
    parser.add_argument("--config", type=Path, required=True, metavar="CONFIG", help="the study's config file")
    parser.add_argument("--to", dest="to_space", required=True, metavar="section:<id>", help="the section to bring it onto")
    parser.add_argument(
        "--level", type=int, default=0, metavar="N", help="level of the section's pyramid; 0, the finest, by default"
    )
    interpolation = "nearest keeps labels as they are (default); linear is for intensities"
    parser.add_argument("--interpolation", choices=("nearest", "linear"), default="nearest", help=interpolation)
    parser.add_argument("labels", type=Path, metavar="LABELS.nii.gz", help="3D volume in the world of the MRI")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="image to write, .png or .tif")
    parser.set_defaults(run=run)
    return parser


@dataclass(frozen=True)
class Transfer:
    """One transfer: the volume, the level's grid in ``section:`` mm, and the way from there to indices of the volume."""

    volume: NDArray[Any]
    grid: Grid
    to_index: ToIndex
    linear: bool
    dtype: np.dtype[Any]

    def strips(self) -> Iterator[NDArray[Any]]:
        """The output, (y, x), as strips of 512 rows: no more than one is held."""
        height, width = self.grid.shape
        for top in range(0, height, STRIP_PX):
            rows = min(STRIP_PX, height - top)
            tiles = [self._tile(top, left, rows, min(TILE_PX, width - left)) for left in range(0, width, TILE_PX)]
            yield np.concatenate(tiles, axis=1)

    def _tile(self, top: int, left: int, rows: int, columns: int) -> NDArray[Any]:
        lattice, step = self._lattice(top, left, rows, columns)
        values = sample_plane(self.volume, lattice, step, (rows, columns), self.linear)
        return np.rint(values).astype(self.dtype) if self.linear and self.dtype.kind in "ui" else values.astype(self.dtype)

    def _lattice(self, top: int, left: int, rows: int, columns: int) -> tuple[Float, int]:
        """Volume indices on every ``step``-th pixel of the tile, dense enough that what lies between is linear."""
        step = FIRST_STEP
        while True:
            y, x = (np.arange(-(-n // step) + 2) * step for n in (rows, columns))
            nodes = self.grid.to_world(np.stack(np.meshgrid(top + y, left + x, indexing="ij"), -1))
            lattice = self.to_index(nodes.reshape(-1, 2)).reshape(*nodes.shape[:2], 3)
            if step == 1 or self._error(lattice) <= TOLERANCE:
                return lattice, step
            step //= 2

    @staticmethod
    def _error(lattice: Float) -> float:
        """How far nodes lie from the middle of their neighbours, in voxels: at least twice what is lost between nodes."""
        found = 0.0
        for axis in (0, 1):
            moved = np.moveaxis(lattice, axis, 0)
            if len(moved) > 2:
                found = max(found, float(np.abs(moved[1:-1] - (moved[:-2] + moved[2:]) / 2).max()))
        return found


def run(args: argparse.Namespace) -> int:
    """Transfer and write."""
    if args.output.suffix.lower() not in (".png", *TIFFS):
        raise InputError(Problem(str(args.output), "is neither a PNG nor a TIFF by its name", "name it .png or .tif"))
    if not args.output.absolute().parent.is_dir():
        raise InputError(Problem(str(args.output), "lies in a folder that does not exist", "name a file in a folder that exists"))
    graph = study_graph(args.config)
    section = _section(graph, args.to_space)
    grid = _level_grid(args, section)
    image = _volume(args.labels)
    linear = args.interpolation == "linear"

    def to_index(points: Float) -> Float:
        return image.grid.to_index(graph.unchecked(points, section.name, "mri"))

    is_png = args.output.suffix.lower() == ".png"
    dtype = _png_type(args.output, image.data, linear) if is_png else _tiff_type(image.data)
    transfer = Transfer(image.data, grid, to_index, linear, dtype)
    if is_png:
        write_png(args.output, transfer.strips(), transfer.grid.shape[:2], dtype)  # type: ignore[arg-type]
    else:
        write_tiff(args.output, transfer.strips(), transfer.grid.shape[:2], dtype, grid.spacing_mm)  # type: ignore[arg-type]
    return 0


def _section(graph: SpaceGraph, name: str) -> SectionSpace:
    section = graph.space(name)
    if not isinstance(section, SectionSpace):
        raise InputError(Problem(f"--to {name}", "is not a section", "name a section:<id>"))
    if not section.is_placed or section.grid is None:
        raise InputError(Problem(f"--to {name}", section.why_not_placed, "choose a section that was placed"))
    try:
        graph.path(name, "mri")
    except LookupError as problem:
        raise InputError(
            Problem(f"--to {name}", str(problem), "name the block's MRI in blocks.tsv and run the study")
        ) from problem
    return section


def _level_grid(args: argparse.Namespace, section: SectionSpace) -> Grid:
    assert section.grid is not None
    record = read_record(load_study(args.config).output / "transforms" / "graph.json")
    levels = int(record.spaces[section.name]["levels"])
    if not 0 <= args.level < levels:
        what = f"{section.name} has levels 0 to {levels - 1}, asked for {args.level}"
        raise InputError(Problem("--level", what, "choose one of them"))
    return section.grid.downsample(2**args.level)


def _volume(path: Path) -> Image:
    image = read_nifti(path, may_be_empty=True)
    if image.channels:
        raise InputError(Problem(str(path), f"has {len(image.channels)} channels, expected one", "extract one channel"))
    return image


def _is_whole(data: NDArray[Any]) -> bool:
    return data.dtype.kind in "uib" or all(bool(np.isfinite(s).all() and (s == np.rint(s)).all()) for s in data)


def _png_type(output: Path, data: NDArray[Any], linear: bool) -> np.dtype[Any]:
    low, high = float(np.nanmin(data)), float(np.nanmax(data))
    if not _is_whole(data) or (linear and data.dtype.kind == "f"):
        what = "a PNG holds whole numbers, but the volume's values are not"
        raise InputError(Problem(str(output), what, "write a .tif"))
    if low < 0 or high > PNG_MAX:
        what = f"a PNG holds 0 to {PNG_MAX}, but the volume's values run from {low:g} to {high:g}"
        raise InputError(Problem(str(output), what, "write a .tif"))
    return np.dtype(np.uint8 if high <= 255 else np.uint16)


def _tiff_type(data: NDArray[Any]) -> np.dtype[Any]:
    """The volume's own type; 64-bit integers, which hardly a program opens in TIFF, in 32 bits where they fit."""
    if data.dtype.kind == "b":
        return np.dtype(np.uint8)
    if data.dtype.kind in "ui" and data.dtype.itemsize == 8:
        low, high = int(data.min()), int(data.max())
        for kind in (np.dtype(np.uint32), np.dtype(np.int32)):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return kind
    return data.dtype
