"""OME-Zarr 0.4 and 0.5 as slides: any order of t, c, z, y, x; the first time, one focal plane, all channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from histomri.io.slides.base import RGB, Pixels, Slide, SlideInfo, channel_indices, checked_plane, problem

FILES = ("zarr.json", ".zgroup", ".zattrs")
MM_PER_UNIT = {"nanometer": 1e-6, "micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "meter": 1000.0, "angstrom": 1e-7}


def is_store(path: Path) -> bool:
    """Whether a folder looks like a Zarr group."""
    return path.is_dir() and any((path / name).is_file() for name in FILES)


def metadata_of(path: Path) -> tuple[Any, dict[str, Any]]:
    """The group, and its OME metadata with ``multiscales``. Raises ``InputError``."""
    import zarr

    import histomri.io.picture_codecs  # noqa: F401  (registers codecs)

    remedy = "name the folder of an OME-Zarr image (0.4 or 0.5)"
    try:
        group = zarr.open_group(str(path), mode="r")
        attributes = dict(group.attrs)
    except MemoryError:
        raise
    except Exception as error:  # zarr raises whatever it likes on a damaged store
        raise problem(path, f"is not a Zarr group that can be read ({type(error).__name__}: {error})", remedy) from error
    ome: Any = attributes.get("ome", attributes)
    if not (isinstance(ome, dict) and ome.get("multiscales")):
        raise problem(path, "is a Zarr group without OME's multiscales", remedy)
    return group, ome


def pixel_size_of(scales: dict[str, Any], axes: list[str]) -> tuple[float, float] | None:
    """(y, x) in mm of level 0; None where its axes have no unit of length."""
    units = [next((a.get("unit") for a in scales["axes"] if a["name"] == axis), None) for axis in "yx"]
    if any(unit not in MM_PER_UNIT for unit in units):
        return None
    total = np.ones(len(axes))
    for part in (*scales["datasets"][0].get("coordinateTransformations", []), *scales.get("coordinateTransformations", [])):
        total *= np.asarray(part["scale"], float) if part["type"] == "scale" else 1.0
    sizes = [float(total[axes.index(a)] * MM_PER_UNIT[str(u)]) for a, u in zip("yx", units, strict=True)]
    return (sizes[0], sizes[1]) if min(sizes) > 0 else None


def channel_names(ome: dict[str, Any], count: int, dtype: np.dtype[Any]) -> tuple[str, ...]:
    """Names from ``omero`` where they are unique, red, green and blue for three of 8 bits, else numbers."""
    labels = [str(c.get("label", "")) for c in ome.get("omero", {}).get("channels", [])]
    if len(set(labels)) == count and all(labels):
        return tuple(labels)
    if count == 3 and dtype == np.uint8:
        return RGB
    return ("intensity",) if count == 1 else tuple(f"channel_{i}" for i in range(count))


def _bound(path: Path, arrays: list[Any]) -> None:
    """Keep the codecs of some arrays to the size of their chunks. Raises ``InputError`` where that cannot be done."""
    from histomri.io.bounded_zarr import UnboundedError, bounded

    try:
        for array in arrays:
            bounded(array)
    except UnboundedError as error:
        remedy = "store it again with smaller chunks, coded by zstd, blosc or gzip"
        raise problem(path, f"cannot be read safely: {error}", remedy) from error


class ZarrSlide(Slide):
    """An OME-Zarr image. A chunk that cannot be decoded is filled with zeros and counted; ``tiles`` are chunks (or shards)."""

    def __init__(self, path: Path, channel: str | None = None, plane: int = 0):
        super().__init__()
        group, ome = metadata_of(path)
        scales = ome["multiscales"][0]
        self._axes = [str(a["name"] if isinstance(a, dict) else a) for a in scales.get("axes", "tczyx")]
        if self._axes[-2:] != ["y", "x"]:
            raise problem(path, f"has axes {', '.join(self._axes)}", "store it with y and x last, as OME-Zarr asks for")
        try:
            self._arrays = [group[str(d["path"])] for d in scales["datasets"]]
        except MemoryError:
            raise
        except Exception as error:
            raise problem(path, f"lacks a level ({type(error).__name__}: {error})", "copy the whole folder again") from error
        _bound(path, self._arrays)
        sizes = dict(zip(self._axes, self._arrays[0].shape, strict=True))
        self._plane = checked_plane(path, plane, sizes.get("z", 1))
        dtype = np.dtype(self._arrays[0].dtype)
        names = channel_names(ome, sizes.get("c", 1), dtype)
        self._chosen = channel_indices(path, names, channel)
        unit = self._arrays[0].shards or self._arrays[0].chunks
        self.block_px = max(unit[-2:])
        self.tiles = int(np.prod([-(-n // side) for n, side in zip(self._arrays[0].shape, unit, strict=True)]))
        notes = [f"{sizes['z']} focal planes, number {plane} is used"] if sizes.get("z", 1) > 1 else []
        notes += [f"{sizes['t']} times, the first is used"] if sizes.get("t", 1) > 1 else []
        shapes = tuple((int(a.shape[-2]), int(a.shape[-1])) for a in self._arrays)
        version = ome.get("version") or scales.get("version", "0.4")
        self.info = SlideInfo(
            path,
            shapes[0],
            pixel_size_of(scales, self._axes),
            tuple(names[i] for i in self._chosen),
            dtype.newbyteorder("=").name,
            f"OME-Zarr {version}",
            notes=tuple(notes),
            levels=shapes,
            planes=int(sizes.get("z", 1)),
        )

    def read_region(self, y: int, x: int, height: int, width: int, level: int = 0) -> Pixels:
        """Pixels (height, width, c) of a box inside a level."""
        place: dict[str, Any] = {"z": self._plane, "c": slice(None), "y": slice(y, y + height), "x": slice(x, x + width)}
        key = tuple(place.get(axis, 0) for axis in self._axes)
        try:
            block = np.asarray(self._arrays[level][key])
        except MemoryError:
            raise
        except Exception:  # codecs raise whatever they like on bad bytes
            self._bad.add((level, y // max(1, self.block_px), x // max(1, self.block_px)))
            return np.zeros((height, width, len(self._chosen)), self.info.dtype)
        planes = block if "c" in self._axes else block[None]
        return np.ascontiguousarray(np.moveaxis(planes[self._chosen], 0, -1)).astype(self.info.dtype, copy=False)
