"""OME-Zarr 0.5: the multiscale images that histomri writes, and their levels opened by path.

On disk the axes are in the order that the specification asks for, (c, y, x) or (y, x); in memory channels are last. Every
level carries a scale and a translation in millimetres, the translation being the world position of the centre of its
first pixel. Level k + 1 is the 2 x 2 area average of level k, a ragged last pixel being repeated; averages are carried
up in float32 and rounded only when written, so that rounding does not add up over the levels.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from histomri.core import Grid

if TYPE_CHECKING:
    import zarr

VERSION = "0.5"
SPACE_AXES = ("z", "y", "x")
CODECS = ("zstd", "blosc-zstd", "blosc-lz4", "none")
COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF", "dapi": "0000FF", "fitc": "00FF00", "cy5": "FF0000"}

Pixels = NDArray[Any]
ReadTile = Callable[[int, int, int, int], Pixels]


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


def compressors(codec: str) -> list[Any]:
    """The zarr codecs of a codec name (one of ``CODECS``); all are lossless and deterministic."""
    from zarr.codecs import BloscCname, BloscCodec, BloscShuffle, ZstdCodec

    if codec == "none":
        return []
    if codec == "zstd":
        return [ZstdCodec(level=1)]
    return [BloscCodec(cname=BloscCname(codec.removeprefix("blosc-")), clevel=3, shuffle=BloscShuffle.bitshuffle)]


def create_level(group: zarr.Group, path: str, shape: tuple[int, ...], dtype: DTypeLike, storage: Storage) -> Any:
    """Create the array of one level, (c, y, x) or (y, x), of a group; a level of one chunk has no shards."""
    long_side = max(shape[-2:])
    chunk = min(storage.chunk_px, max(16, 1 << (long_side - 1).bit_length()))
    shards = (*shape[:-2], storage.shard_px, storage.shard_px) if long_side > storage.chunk_px < storage.shard_px else None
    names = ("c", *SPACE_AXES[-2:]) if len(shape) == 3 else SPACE_AXES[-2:]
    return group.create_array(
        path,
        shape=shape,
        dtype=np.dtype(dtype),
        chunks=(*shape[:-2], chunk, chunk),
        shards=shards,
        compressors=compressors(storage.codec),
        fill_value=0,
        dimension_names=names,
    )


def halve(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """2 x 2 area average of (c, y, x) float32, sizes rounded up; a ragged last row or column is repeated."""
    import cv2

    _, height, width = planes.shape
    if height % 2 or width % 2:
        planes = np.pad(planes, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    size = (planes.shape[2] // 2, planes.shape[1] // 2)
    return np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in planes])


def quantise(planes: NDArray[np.float32], dtype: DTypeLike) -> Pixels:
    """Float averages in the pixel type of the image, integers rounded half to even."""
    kind = np.dtype(dtype)
    return planes.astype(kind) if kind.kind == "f" else np.rint(planes).astype(kind)


class PyramidWriter:
    """Writes all levels of a 2D image in one pass over its level 0, depth first through the tree of its tiles.

    ``arrays`` are the zarr arrays (c, y, x) of the levels, ``read_tile(y, x, height, width)`` gives (height, width, c)
    level-0 pixels. The unit of reading and of writing is one whole shard, so no shard has two writers; what is held is
    one unit per level and ``threads`` units of level 0, however big the image. Threads change nothing in the result.
    """

    def __init__(self, arrays: Sequence[Any], read_tile: ReadTile, unit_px: int, threads: int = 1):
        self.arrays, self.read_tile, self.unit_px, self.threads = arrays, read_tile, unit_px, max(1, threads)

    def write(self) -> None:
        """Write every level. An exception of ``read_tile`` ends the pass and is raised here."""
        top = len(self.arrays) - 1
        with ThreadPoolExecutor(self.threads) as pool:
            leaves = self._leaves(pool, top)
            for row, column in self._nodes(top):
                self._node(top, row, column, leaves)

    def _box(self, level: int, row: int, column: int) -> tuple[int, int, int, int]:
        height, width = self.arrays[level].shape[1:]
        y, x = row * self.unit_px, column * self.unit_px
        return y, x, min(self.unit_px, height - y), min(self.unit_px, width - x)

    def _nodes(self, level: int) -> list[tuple[int, int]]:
        rows, columns = (-(-n // self.unit_px) for n in self.arrays[level].shape[1:])
        return list(itertools.product(range(rows), range(columns)))

    def _children(self, level: int, row: int, column: int) -> list[tuple[int, int]]:
        rows, columns = (-(-n // self.unit_px) for n in self.arrays[level - 1].shape[1:])
        pairs = itertools.product((2 * row, 2 * row + 1), (2 * column, 2 * column + 1))
        return [(r, c) for r, c in pairs if r < rows and c < columns]

    def _order(self, level: int, row: int, column: int) -> Iterator[tuple[int, int]]:
        if level == 0:
            yield row, column
            return
        for r, c in self._children(level, row, column):
            yield from self._order(level - 1, r, c)

    def _leaves(self, pool: ThreadPoolExecutor, top: int) -> Iterator[NDArray[np.float32]]:
        """Level-0 tiles in the order of the walk, read and written ahead by as many threads as granted."""
        order = (leaf for node in self._nodes(top) for leaf in self._order(top, *node))
        ahead: deque[Future[NDArray[np.float32]]] = deque()
        for leaf in order:
            ahead.append(pool.submit(self._leaf, *leaf))
            if len(ahead) > self.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _leaf(self, row: int, column: int) -> NDArray[np.float32]:
        y, x, height, width = self._box(0, row, column)
        planes = np.ascontiguousarray(np.moveaxis(self.read_tile(y, x, height, width), -1, 0))
        self.arrays[0][:, y : y + height, x : x + width] = planes
        return halve(planes.astype(np.float32)) if len(self.arrays) > 1 else np.empty((0, 0, 0), np.float32)

    def _node(self, level: int, row: int, column: int, leaves: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Write one tile of a level from its up to four children; returns its own average for the level above."""
        if level == 0:
            return next(leaves)
        array, half = self.arrays[level], self.unit_px // 2
        y, x, height, width = self._box(level, row, column)
        planes = np.empty((array.shape[0], height, width), np.float32)
        for r, c in self._children(level, row, column):
            part = self._node(level - 1, r, c, leaves)
            top, left = (r - 2 * row) * half, (c - 2 * column) * half
            planes[:, top : top + part.shape[1], left : left + part.shape[2]] = part
        array[:, y : y + height, x : x + width] = quantise(planes, array.dtype)
        return halve(planes) if level + 1 < len(self.arrays) else planes


@dataclass(frozen=True)
class PyramidSpec:
    """What a pyramid is to hold: its name, level-0 grid (2D), channel names, pixel type and number of levels."""

    name: str
    grid: Grid
    channels: tuple[str, ...]
    dtype: str
    levels: int


def write_pyramid(folder: Path, spec: PyramidSpec, read_tile: ReadTile, storage: Storage, threads: int = 1) -> None:
    """Write the OME-Zarr image ``folder`` (new or empty) from ``read_tile(y, x, height, width) -> (height, width, c)``."""
    import zarr

    grids = [level_grid(spec.grid, k) for k in range(spec.levels)]
    multiscale = multiscale_metadata(spec.name, grids, has_channels=True)
    ome = {"version": VERSION, "multiscales": [multiscale], "omero": channel_metadata(spec.channels, spec.dtype)}
    attributes: dict[str, Any] = {"ome": ome}
    group = zarr.open_group(str(folder), mode="w", zarr_format=3, attributes=attributes)
    count = len(spec.channels)
    arrays = [create_level(group, str(k), (count, *grid.shape), spec.dtype, storage) for k, grid in enumerate(grids)]
    # zarr's codecs run in threads of their own: no more of them than were granted
    with zarr.config.set({"threading.max_workers": max(1, threads)}):
        PyramidWriter(arrays, read_tile, storage.shard_px, threads).write()


def write_label(folder: Path, name: str, masks: Sequence[Pixels], grids: Sequence[Grid], storage: Storage) -> None:
    """Write ``masks``, boolean (y, x) on ``grids`` and finest first, as the label ``labels/<name>`` of the image ``folder``.

    A label may start at a coarser level than its image, its own scale and translation say where it lies; it has as many
    levels as its image, as readers expect.
    """
    import zarr

    labels = zarr.open_group(str(folder / "labels"), mode="a", zarr_format=3)
    known = list(labels.attrs.get("ome", {}).get("labels", []))  # type: ignore[union-attr, arg-type, call-overload]
    labels.attrs["ome"] = {"version": VERSION, "labels": sorted({*known, name})}
    colours: list[Any] = [{"label-value": 1, "rgba": [0, 255, 0, 128]}]
    ome: dict[str, Any] = {
        "version": VERSION,
        "multiscales": [multiscale_metadata(name, grids, has_channels=False)],
        "image-label": {"colors": colours, "source": {"image": "../../"}},
    }
    group = labels.create_group(name, attributes={"ome": ome})
    for level, mask in enumerate(masks):
        create_level(group, str(level), mask.shape, np.uint8, storage)[...] = mask.astype(np.uint8)


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

    return zarr.open_array(str(Path(store) / path), mode="r", zarr_format=3)


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
