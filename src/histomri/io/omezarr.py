"""OME-Zarr 0.5: the multiscale images that histomri writes, and their levels opened by path.

On disk the axes are in the order that the specification asks for, (c, y, x) or (y, x); in memory channels are last. Every
level carries a scale and a translation in millimetres, the translation being the world position of the centre of its
first pixel. Level k + 1 is the 2 x 2 area average of level k, a ragged last pixel being repeated; what is carried up are
exact sums, rounded only when written, so that rounding does not add up over the levels (``io.pyramid``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from histomri.core import Grid, InputError
from histomri.core.errors import Problem
from histomri.io.memory import available_memory_mb
from histomri.io.pyramid import PyramidWriter, Reading
from histomri.io.shards import ArrayFiles, StoredLevel, write_pixels
from histomri.io.zarr_layout import CODECS as CODECS
from histomri.io.zarr_layout import LOSSLESS as LOSSLESS
from histomri.io.zarr_layout import ArrayLayout, group_attributes, read_layout, write_array, write_group

VERSION = "0.5"
SPACE_AXES = ("z", "y", "x")
COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF", "dapi": "0000FF", "fitc": "00FF00", "cy5": "FF0000"}

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Storage:
    """How arrays are stored: chunk and shard side in pixels (shard a multiple of chunk), codec (one of ``CODECS``)."""

    chunk_px: int = 512
    shard_px: int = 2048
    codec: str = "zstd"

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"The codec must be one of {', '.join(CODECS)}, found {self.codec!r}.")
        if self.chunk_px < 2 or self.chunk_px % 2 or self.shard_px % self.chunk_px:
            raise ValueError(
                f"chunk_px must be even and shard_px a multiple of it, found {self.chunk_px} and {self.shard_px} pixels."
            )


def level_count(shape: Sequence[int], smallest_px: int) -> int:
    """Number of pyramid levels until the long side is at most ``smallest_px``; at least 1."""
    count = 1
    while -(-max(shape) // 2 ** (count - 1)) > smallest_px:
        count += 1
    return count


def level_grid(grid: Grid, level: int) -> Grid:
    """The grid of pyramid level ``level`` of an image whose level 0 lies on ``grid``."""
    return grid.downsample(2**level)


def multiscale_metadata(name: str, grids: Sequence[Grid], has_channels: bool, paths: Sequence[str] = ()) -> dict[str, Any]:
    """The ``multiscales`` entry of images on ``grids`` (2D or 3D, finest first), with an optional leading channel axis.

    The grids' directions are not stored: OME-Zarr 0.5 knows scale and translation only.
    """
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if has_channels else []
    axes += [{"name": n, "type": "space", "unit": "millimeter"} for n in SPACE_AXES[-grids[0].ndim :]]
    lead = int(has_channels)
    datasets = [
        {
            "path": path,
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0] * lead + [float(s) for s in grid.spacing_mm]},
                {"type": "translation", "translation": [0.0] * lead + [float(t) for t in grid.origin_mm]},
            ],
        }
        for path, grid in zip(paths or [str(i) for i in range(len(grids))], grids, strict=True)
    ]
    return {"name": name, "axes": axes, "datasets": datasets, "type": "mean"}


def channel_metadata(channels: Sequence[str], dtype: DTypeLike) -> dict[str, Any]:
    """The ``omero`` entry that viewers take channel names, colours and display ranges from."""
    kind = np.dtype(dtype)
    low, high = (0.0, 1.0) if kind.kind == "f" else (0, int(np.iinfo(kind).max))
    window = {"min": low, "max": high, "start": low, "end": high}
    entries = [
        {"label": name, "color": COLOURS.get(name.lower(), "FFFFFF"), "active": True, "window": window} for name in channels
    ]
    return {"channels": entries}


def fits_codec(codec: str, channels: int, dtype: DTypeLike) -> bool:
    """Whether a codec can hold such pixels: JPEG and JPEG XL hold one channel or three, of 8 bits, JPEG XL of 16 too."""
    kinds = {"jpeg": ("uint8",), "jpegxl": ("uint8", "uint16")}
    return codec in LOSSLESS or (channels in (1, 3) and np.dtype(dtype).name in kinds[codec])


def compressors(codec: str) -> list[Any]:
    """The zarr codecs of a codec name (one of ``LOSSLESS``), all deterministic."""
    from zarr.codecs import BloscCname, BloscCodec, BloscShuffle, ZstdCodec

    if codec == "none":
        return []
    if codec == "zstd":
        return [ZstdCodec(level=1)]
    return [BloscCodec(cname=BloscCname(codec.removeprefix("blosc-")), clevel=3, shuffle=BloscShuffle.bitshuffle)]


def create_level(folder: Path, shape: tuple[int, ...], dtype: DTypeLike, storage: Storage) -> ArrayLayout:
    """Create the array of one level, (c, y, x) or (y, x), as ``folder``; a level of one chunk has no shards."""
    long_side = max(shape[-2:])
    chunk = min(storage.chunk_px, max(16, 1 << (long_side - 1).bit_length()))
    unit = storage.shard_px if long_side > storage.chunk_px < storage.shard_px else chunk
    layout = ArrayLayout(tuple(shape), np.dtype(dtype).name, chunk, unit, storage.codec)
    write_array(folder, layout, ("c", *SPACE_AXES[-2:]) if len(shape) == 3 else SPACE_AXES[-2:])
    return layout


def halve(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """2 x 2 area average of (c, y, x) float32, sizes rounded up; a ragged last row or column is repeated."""
    import cv2

    _, height, width = planes.shape
    if height % 2 or width % 2:
        planes = np.pad(planes, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    size = (planes.shape[2] // 2, planes.shape[1] // 2)
    return np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in planes])


@dataclass(frozen=True)
class PyramidSpec:
    """What a pyramid is to hold: its name, level-0 grid (2D), channel names, pixel type and number of levels."""

    name: str
    grid: Grid
    channels: tuple[str, ...]
    dtype: str
    levels: int


def write_pyramid(folder: Path, spec: PyramidSpec, reading: Reading, storage: Storage) -> dict[str, str]:
    """Write the OME-Zarr image ``folder`` (new or empty) from level-0 pixels; returns the digests of the files with pixels.

    ``reading.read_tile(y, x, height, width)`` gives (height, width, c). What it raises is raised here.
    """
    grids = [level_grid(spec.grid, k) for k in range(spec.levels)]
    multiscale = multiscale_metadata(spec.name, grids, has_channels=True)
    ome = {"version": VERSION, "multiscales": [multiscale], "omero": channel_metadata(spec.channels, spec.dtype)}
    write_group(folder, {"ome": ome})
    shapes = [(len(spec.channels), *grid.shape) for grid in grids]
    layouts = [create_level(folder / str(k), shape, spec.dtype, storage) for k, shape in enumerate(shapes)]
    levels = [ArrayFiles(folder / str(k), layout) for k, layout in enumerate(layouts)]
    PyramidWriter(levels, storage.chunk_px, storage.shard_px, reading).write()
    return {name: digest for level in levels for name, digest in level.digests.items()}


def write_label(folder: Path, name: str, masks: Sequence[Pixels], grids: Sequence[Grid], storage: Storage) -> None:
    """Write ``masks``, boolean (y, x) on ``grids`` and finest first, as the label ``labels/<name>`` of the image ``folder``.

    A label may start at a coarser level than its image, its own scale and translation say where it lies; it has as many
    levels as its image, as readers expect.
    """
    lossless = storage if storage.codec in LOSSLESS else replace(storage, codec=LOSSLESS[0])
    labels = folder / "labels"
    known = group_attributes(labels).get("ome", {}).get("labels", [])
    write_group(labels, {"ome": {"version": VERSION, "labels": sorted({*known, name})}})
    colours: list[Any] = [{"label-value": 1, "rgba": [0, 255, 0, 128]}]
    ome: dict[str, Any] = {
        "version": VERSION,
        "multiscales": [multiscale_metadata(name, grids, has_channels=False)],
        "image-label": {"colors": colours, "source": {"image": "../../"}},
    }
    write_group(labels / name, {"ome": ome})
    for level, mask in enumerate(masks):
        array = labels / name / str(level)
        write_pixels(array, create_level(array, mask.shape, np.uint8, lossless), mask.astype(np.uint8))


def mask_pyramid(mask: NDArray[np.bool_], grid: Grid, levels: int) -> tuple[list[NDArray[np.bool_]], list[Grid]]:
    """A mask and its coarser levels (a pixel is set where at least half of it is), ``levels`` in all, with their grids."""
    masks, grids = [mask], [grid]
    share = mask[None].astype(np.float32)
    for level in range(1, levels):
        share = halve(share)
        masks.append(share[0] >= 0.5)
        grids.append(level_grid(grid, level))
    return masks, grids


def open_array(store: str | Path, path: str) -> Any:
    """The zarr array at ``path`` inside a store, read only. The folder is never enumerated (Snakemake's marks lie in it)."""
    import zarr

    import histomri.io.picture_codecs  # noqa: F401  (registers codecs)

    return zarr.open_array(str(Path(store) / path), mode="r", zarr_format=3)


def stored_level(store: str | Path, path: str) -> StoredLevel:
    """The array at ``path`` inside a store that histomri wrote. Raises ``ValueError`` for one of others."""
    folder = Path(store) / path
    layout = read_layout(folder)
    if layout is None:
        raise ValueError(f"{folder} is not stored as histomri stores arrays; read it through zarr.")
    return StoredLevel(folder, layout)


def read_pixels(store: str | Path, path: str) -> Pixels:
    """All pixels of the array at ``path`` inside a store, (c, y, x) or (y, x); without zarr where histomri wrote it.

    Raises :class:`InputError` where the store is damaged.
    """
    folder = Path(store) / path
    try:
        layout = read_layout(folder)
        if layout is None:
            array = open_array(store, path)
            _check_room(array.dtype, array.shape, array.chunks)
            found: Pixels = array[...]
            return found
        _check_room(np.dtype(layout.dtype), layout.shape, (layout.channels, layout.chunk_px, layout.chunk_px))
        return StoredLevel(folder, layout).whole()
    except MemoryError:
        raise
    except Exception as error:  # zarr and codecs raise whatever they like on a damaged store
        what = f"the stored pixels cannot be read ({type(error).__name__}: {error})"
        raise InputError(Problem(str(folder), what, "run the stage that makes them again")) from error


def _check_room(dtype: np.dtype[Any], *shapes: Sequence[int]) -> None:
    """Raise ``ValueError`` where an array of one of those shapes would not fit into memory."""
    needed, most = max(math.prod(map(int, s)) for s in shapes) * dtype.itemsize / 1e6, available_memory_mb()
    if needed > most:
        raise ValueError(f"{needed:.0f} MB are read whole, {most:.0f} MB of memory are free")


class ChannelsLast:
    """A lazy (y, x, c) or (y, x) view of a stored (c, y, x) array: pixels are read when it is indexed."""

    def __init__(self, array: Any):
        self.array = array
        self.has_channels = array.shape[0] > 1
        self.shape: tuple[int, ...] = (*array.shape[1:], array.shape[0]) if self.has_channels else tuple(array.shape[1:])
        self.dtype = np.dtype(array.dtype)
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> Pixels:
        """The pixels of a box, as NumPy: ``view[y0:y1, x0:x1]`` (slices, integers or ``...`` as in NumPy)."""
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys = keys[:at] + (slice(None),) * (self.ndim - len(keys) + 1) + keys[at + 1 :]
        keys += (slice(None),) * (self.ndim - len(keys))
        if not self.has_channels:
            return np.asarray(self.array[(0, *keys)])
        block = np.asarray(self.array[(slice(None), *keys[:2])])
        return np.moveaxis(block, 0, -1)[..., keys[2]]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Pixels:
        return self[...].astype(dtype or self.dtype, copy=False)

    def astype(self, dtype: DTypeLike) -> Pixels:
        """All pixels, read and converted."""
        return self[...].astype(dtype)
