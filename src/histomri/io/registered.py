"""The files that ``histomri register`` leaves in its folder: all of them, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.io.images import OpenImage
from histomri.io.nifti import write_nifti
from histomri.io.omezarr import PyramidSpec, Storage, level_count, write_pyramid
from histomri.io.publish import remove
from histomri.io.pyramid import Reading
from histomri.io.raster import write_png, write_tiff
from histomri.io.transform_files import Sampling, write_affine, write_chain
from histomri.registration.alignment import Progress, silent
from histomri.registration.warp import TILE_PX, boxes, warped_box
from histomri.transforms import Affine, Transform

Float = NDArray[np.float64]

REGISTERED = ("registered.png", "registered.tif", "registered.nii.gz", "registered.ome.zarr")
FORWARD, BACKWARD = "fixed_to_moving", "moving_to_fixed"
TRANSFORMS = tuple(f"{name}{suffix}" for name in (FORWARD, BACKWARD) for suffix in (".tfm", ".h5"))
RESULT, POINTS = "result.json", "points.csv"
OURS = (RESULT, POINTS, *TRANSFORMS, *REGISTERED)
PNG_MAX_PX = 1 << 26
COVER_NODES = 9
# of the image's longer side: 0.02 pixels of 1,000
INVERSE_TOLERANCE = 2e-5
INVERSE_NODES = 1_000_000


@contextmanager
def results(folder: Path) -> Iterator[Path]:
    """A folder to write results into; when the block ends well they move to ``folder``, where no earlier result stays.

    What else lies in ``folder`` is left alone. ``folder`` is made where it does not exist, and not made when the block fails.
    """
    made = [p for p in (folder, *folder.absolute().parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".partial-{os.getpid()}"
    remove(partial)
    partial.mkdir()
    try:
        yield partial
        for name in OURS:
            remove(folder / name)
        for file in sorted(partial.iterdir()):
            file.rename(folder / file.name)
    except BaseException:
        remove(partial)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise
    remove(partial)


def write_registered(
    folder: Path, fixed: OpenImage, moving: OpenImage, transform: Transform, progress: Progress = silent
) -> Path:
    """Write the moving image on the fixed grid as ``registered.*`` in a format like its own, tile by tile; returns the file.

    Interpolated linearly, its type and channels kept, 0 outside. PNG and JPEG become PNG where PNG can hold them, TIFF and slides
    TIFF, OME-Zarr OME-Zarr, volumes NIfTI.
    """
    grid, image = fixed.image.grid, moving.image
    if grid.ndim == 3:
        path = folder / "registered.nii.gz"
        write_nifti(path, Image(grid, _Warped(image, transform, grid, progress), image.channels))
        return path
    if moving.kind == "zarr":
        path = folder / "registered.ome.zarr"
        _write_zarr(path, image, transform, grid)
        return path
    shape = (*grid.shape, *((len(image.channels),) if image.channels else ()))
    if moving.path.suffix.lower() in (".png", ".jpg", ".jpeg") and _fits_png(image, grid):
        path = folder / "registered.png"
        write_png(path, _strips(image, transform, grid, progress), shape, image.data.dtype)
        return path
    path = folder / "registered.tif"
    spacing = None if fixed.unit == "px" else grid.spacing_mm
    write_tiff(path, _strips(image, transform, grid, progress), shape, _tiff_type(image), spacing)
    return path


def _fits_png(image: Image, grid: Grid) -> bool:
    is_small = int(np.prod(grid.shape)) <= PNG_MAX_PX
    return is_small and len(image.channels) in (0, 3) and np.dtype(image.data.dtype) in (np.dtype(np.uint8), np.dtype(np.uint16))


def _tiff_type(image: Image) -> np.dtype[Any]:
    kind = np.dtype(image.data.dtype)
    return np.dtype(np.uint8) if kind.kind == "b" else kind


def _strips(image: Image, transform: Transform, grid: Grid, progress: Progress) -> Iterator[NDArray[Any]]:
    """Rows of tiles, one held at a time."""
    row: list[NDArray[Any]] = []
    for box in boxes(grid.shape):
        row.append(warped_box(image, transform, grid, box).astype(_tiff_type(image), copy=False))
        if box[1].stop == grid.shape[1]:
            progress(box[0].stop / grid.shape[0], "writing")
            yield np.concatenate(row, axis=1)
            row = []


def _write_zarr(path: Path, image: Image, transform: Transform, grid: Grid) -> None:
    def tile(y: int, x: int, height: int, width: int) -> NDArray[Any]:
        pixels = warped_box(image, transform, grid, (slice(y, y + height), slice(x, x + width)))
        return pixels.reshape(height, width, -1).astype(_tiff_type(image), copy=False)

    spec = PyramidSpec("registered", grid, image.channels or ("intensity",), str(_tiff_type(image)), level_count(grid.shape, 512))
    write_pyramid(path, spec, Reading(tile, block_px=TILE_PX), Storage(shard_px=TILE_PX))


class _Warped:
    """The moving volume on the fixed grid, computed slab by slab as NIfTI asks for its planes, once for every channel."""

    def __init__(self, image: Image, transform: Transform, grid: Grid, progress: Progress):
        self._image, self._transform, self._grid, self._progress = image, transform, grid, progress
        self.shape = (*grid.shape, *((len(image.channels),) if image.channels else ()))
        self.dtype = _tiff_type(image)
        self._boxes = list(boxes(grid.shape))
        self._held: tuple[int, NDArray[Any]] | None = None

    def __getitem__(self, key: Any) -> NDArray[Any]:
        z, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        at = z // self._boxes[0][0].stop
        if self._held is None or self._held[0] != at:
            self._progress(at / len(self._boxes), "writing")
            slab = warped_box(self._image, self._transform, self._grid, self._boxes[at])
            self._held = (at, slab.astype(self.dtype, copy=False))
        plane: NDArray[Any] = self._held[1][z - self._boxes[at][0].start]
        return plane[rest] if rest else plane


def write_transforms(folder: Path, transform: Transform, fixed: Grid, moving: Grid) -> tuple[Path, Path]:
    """Write ``fixed_to_moving`` and ``moving_to_fixed`` for ITK: ``.tfm`` for an affine, else a composite ``.h5``.

    ITK transforms map points as ours do: ``fixed_to_moving`` is what ``SimpleITK.Resample(moving, fixed, transform)`` takes.
    Points are in the images' ITK world (x, y[, z]): mm (LPS), or pixels where an image has no spacing.
    """
    return _write(folder, FORWARD, transform, fixed), _write(folder, BACKWARD, transform.inverse(), moving)


def _write(folder: Path, name: str, transform: Transform, grid: Grid) -> Path:
    if isinstance(transform, Affine):
        path = folder / f"{name}.tfm"
        write_affine(path, transform)
        return path
    path = folder / f"{name}.h5"
    how = Sampling(INVERSE_TOLERANCE * float(grid.extent_mm.max()), INVERSE_NODES)
    write_chain(path, transform, cover=_outline(grid), how=how)
    return path


def _outline(grid: Grid) -> Float:
    """Points over the grid up to its outer faces, which a field that is written has to hold."""
    ends = [np.linspace(-0.5, n - 0.5, COVER_NODES) for n in grid.shape]
    return grid.to_world(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, grid.ndim))
