"""Any image that ``histomri register`` takes, in 2D or 3D: opened, not read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image, InputError
from histomri.core.errors import Problem
from histomri.io.memory import available_memory_mb
from histomri.io.nifti import read_geometry, read_nifti
from histomri.io.slides import Slide, open_slide

NIFTI = (".nii", ".nii.gz")
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")
MM_PER_UNIT = {
    "nanometer": 1e-6, "micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "meter": 1000.0, "angstrom": 1e-7, "inch": 25.4,
}  # fmt: skip
RGB = ("red", "green", "blue")


@dataclass(frozen=True, eq=False)
class OpenImage:
    """An image file. ``image.data`` is read when it is indexed with slices (volumes are read whole).

    ``kind`` is ``raster`` (PNG, JPEG, TIFF, a slide), ``zarr`` or ``nifti``; ``unit`` says what its grid counts: ``mm``, or
    ``px`` where the file states no spacing, which then is 1. ``notes`` are remarks for the user.
    """

    path: Path
    image: Image
    kind: str
    unit: str
    notes: tuple[str, ...] = ()


def open_image(path: Path, in_pixels: bool = False) -> OpenImage:
    """Open PNG, JPEG, TIFF and what openslide reads, an OME-Zarr image (level 0) or one of its levels, or NIfTI.

    ``in_pixels`` takes no notice of the spacing that a file states. Raises ``InputError`` where it cannot be read.
    """
    path = Path(path)
    opened = _opener(path)(path)
    return counted_in_pixels(opened) if in_pixels else opened


def counted_in_pixels(opened: OpenImage) -> OpenImage:
    """The same image on a grid of spacing 1 from its first pixel, whatever spacing its file states."""
    if opened.unit == "px":
        return opened
    grid = Grid(opened.image.grid.shape, np.ones(opened.image.grid.ndim))
    return OpenImage(opened.path, Image(grid, opened.image.data, opened.image.channels), opened.kind, "px", opened.notes)


def _opener(path: Path) -> Callable[[Path], OpenImage]:
    if path.name.lower().endswith(NIFTI):
        return _open_nifti
    if path.is_dir() and any((path / name).exists() for name in ZARR_FILES):
        return _open_zarr
    return _open_slide


def _error(path: Path, what: str, remedy: str) -> InputError:
    return InputError(Problem(str(path), what, remedy))


class SlidePixels:
    """Level-0 pixels of an open slide, (y, x) or (y, x, c), as an array that reads what it is asked for."""

    def __init__(self, slide: Slide):
        self.slide = slide
        self._flat = len(slide.info.channels) == 1
        self.shape: tuple[int, ...] = slide.info.shape if self._flat else (*slide.info.shape, len(slide.info.channels))
        self.dtype = np.dtype(slide.info.dtype)
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """The pixels of a box of slices, ``view[y0:y1, x0:x1]``; missing ones mean all."""
        keys = key if isinstance(key, tuple) else (key,)
        keys = () if keys == (Ellipsis,) else keys
        keys += (slice(None),) * (2 - len(keys))
        (y0, y1, _), (x0, x1, _) = (k.indices(n) for k, n in zip(keys[:2], self.shape[:2], strict=True))
        pixels = self.slide.read_region(y0, x0, max(0, y1 - y0), max(0, x1 - x0))
        return pixels[..., 0] if self._flat else pixels[(..., *keys[2:])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[...].astype(dtype or self.dtype, copy=False)


def _open_slide(path: Path) -> OpenImage:
    slide = open_slide(path)
    info = slide.info
    grid = Grid(info.shape, np.ones(2) if info.pixel_size_mm is None else np.asarray(info.pixel_size_mm))
    channels = info.channels if len(info.channels) > 1 else ()
    return OpenImage(path, Image(grid, SlidePixels(slide), channels), "raster", "mm" if info.pixel_size_mm else "px", info.notes)


def _open_nifti(path: Path) -> OpenImage:
    image = read_nifti(path, may_be_empty=True)
    _, notes = read_geometry(path)
    if 1 in image.grid.shape:
        image, said = _one_slice(path, image)
        notes = [*notes, said]
    return OpenImage(path, image, "nifti", "mm", tuple(notes))


def _one_slice(path: Path, image: Image) -> tuple[Image, str]:
    """A volume of one slice as a 2D image, in mm from the centre of its first pixel."""
    flat = [i for i, n in enumerate(image.grid.shape) if n == 1]
    if len(flat) > 1:
        sizes = " x ".join(map(str, image.grid.shape[::-1]))
        raise _error(path, f"is a line of voxels ({sizes})", "choose an image or a volume")
    kept = [i for i in range(3) if i != flat[0]]
    grid = Grid(tuple(image.grid.shape[i] for i in kept), image.grid.spacing_mm[kept])
    said = "one slice, taken as a 2D image: x, y along its rows and columns, mm from the centre of its first pixel"
    return Image(grid, np.squeeze(image.data, axis=flat[0]), image.channels), said


def _open_zarr(path: Path) -> OpenImage:
    """A level by its path (``image.ome.zarr/1``), or level 0 of a whole image."""
    import zarr

    from histomri.io.bounded_zarr import bounded

    try:
        node: Any = zarr.open(str(path), mode="r")
        group: Any = node if isinstance(node, zarr.Group) else zarr.open_group(str(path.parent), mode="r")
        scales = dict(group.attrs).get("ome", dict(group.attrs))["multiscales"][0]
        levels = {str(d["path"]): d for d in scales["datasets"]}
        name = next(iter(levels)) if node is group else path.name
        return _zarr_level(path, bounded(group[name]), scales, levels[name])
    except (InputError, MemoryError):
        raise
    except Exception as error:  # zarr and its codecs raise whatever they like on a damaged store
        what = f"is not an OME-Zarr image or a level of one that can be read ({type(error).__name__}: {error})"
        raise _error(path, what, "name the image's folder, or one level in it, such as image.ome.zarr/0") from error


def _zarr_level(path: Path, array: Any, scales: dict[str, Any], dataset: dict[str, Any]) -> OpenImage:
    axes = [str(a["name"]) for a in scales["axes"]]
    sizes = dict(zip(axes, array.shape, strict=True))
    others = [f"{n} {a}" for a, n in sizes.items() if a not in "czyx" and n > 1]
    if others:
        raise _error(path, f"has {', '.join(others)} beside its pixels and channels", "extract one image from it")
    space = [a for a in axes if a in "zyx" and not (a == "z" and sizes[a] == 1)]
    grid, unit = _zarr_grid(scales, dataset, axes, space, sizes)
    count = sizes.get("c", 1)
    names = _zarr_channels(count)
    data = ZarrPixels(array, axes, space)
    needed, most = math.prod(data.shape) * data.dtype.itemsize, available_memory_mb() * 1e6
    if len(space) != 2 and needed > most:
        what = f"{needed / 1e9:.1f} GB of voxels are read whole, {most / 1e9:.1f} GB of memory are free"
        raise _error(path, what, "name a coarser level of it, such as image.ome.zarr/2")
    return OpenImage(path, Image(grid, data if len(space) == 2 else data[...], names), "zarr", unit)


def _zarr_channels(count: int) -> tuple[str, ...]:
    return () if count == 1 else RGB if count == 3 else tuple(f"channel_{i}" for i in range(count))


def _zarr_grid(
    scales: dict[str, Any], dataset: dict[str, Any], axes: list[str], space: list[str], sizes: dict[str, int]
) -> tuple[Grid, str]:
    """The grid in mm where the axes state a unit, else in pixels."""
    units = [next((a.get("unit") for a in scales["axes"] if a["name"] == s), None) for s in space]
    shape = tuple(sizes[s] for s in space)
    if any(u not in MM_PER_UNIT for u in units):
        return Grid(shape, np.ones(len(space))), "px"
    factor = np.array([MM_PER_UNIT[str(u)] for u in units])
    parts = {t["type"]: np.asarray(t[t["type"]], float) for t in dataset.get("coordinateTransformations", [])}
    at = [axes.index(s) for s in space]
    scale, shift = parts.get("scale", np.ones(len(axes))), parts.get("translation", np.zeros(len(axes)))
    return Grid(shape, scale[at] * factor, shift[at] * factor), "mm"


class ZarrPixels:
    """A stored array of any axes as (z, y, x) or (y, x), channels last; read when it is indexed with slices.

    Raises ``InputError`` where the pixels do not decode.
    """

    def __init__(self, array: Any, axes: list[str], space: list[str]):
        self._array, self._axes, self._space = array, axes, space
        sizes = dict(zip(axes, array.shape, strict=True))
        self._has_channels = sizes.get("c", 1) > 1
        self.shape: tuple[int, ...] = tuple(sizes[s] for s in space) + ((sizes["c"],) if self._has_channels else ())
        self.dtype, self.ndim = np.dtype(array.dtype), len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """The pixels of a box of slices; missing ones mean all."""
        keys = key if isinstance(key, tuple) else (key,)
        keys = tuple(k for k in keys if k is not Ellipsis)
        boxes = dict(zip(self._space, keys, strict=False))
        place = tuple(boxes.get(a, slice(None)) if a in [*self._space, "c"] else 0 for a in self._axes)
        try:
            block = np.asarray(self._array[place])
        except MemoryError:
            raise
        except Exception as error:  # codecs raise whatever they like on bad bytes
            what = f"its pixels cannot be read ({type(error).__name__}: {error})"
            raise _error(Path(str(self._array.store_path)), what, "copy the whole folder again") from error
        kept = [a for a in self._axes if a in [*self._space, "c"]]
        if "c" in kept:
            block = np.moveaxis(block, kept.index("c"), -1)
            block = block if self._has_channels else block[..., 0]
        return block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[...].astype(dtype or self.dtype, copy=False)
