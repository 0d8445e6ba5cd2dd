"""The metadata of Zarr 3 groups and arrays as histomri lays them out, written and read without zarr-python.

zarr takes 0.3 s of one core to import and milliseconds for each array and read, which each of hundreds of slides would pay.
What is written here is byte for byte what zarr writes; tests hold that. Arrays of others are left to zarr.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from histomri.core.errors import InputError, Problem

LOSSLESS = ("zstd", "blosc-zstd", "blosc-lz4", "none")
# pictures in place of arrays: only programs with the package imagecodecs-zarr open them (``io.picture_codecs``)
CODECS = (*LOSSLESS, "jpegxl", "jpeg")
METADATA = "zarr.json"


@dataclass(frozen=True)
class ArrayLayout:
    """An array (c, y, x) or (y, x): its shape, pixel type, side of a chunk and of a file in pixels, codec (one of ``CODECS``).

    Chunks and files hold all channels. Files larger than a chunk are shards.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk_px: int
    unit_px: int
    codec: str

    @property
    def is_sharded(self) -> bool:
        """Whether a file holds several chunks and their index."""
        return self.unit_px > self.chunk_px

    @property
    def channels(self) -> int:
        """Planes of a chunk."""
        return math.prod(self.shape[:-2])

    @cached_property
    def codecs(self) -> list[dict[str, Any]]:
        """What zarr.json says about a file's coding."""
        coded = chunk_codecs(self.codec, np.dtype(self.dtype).itemsize)
        if not self.is_sharded:
            return coded
        chunk = [*self.shape[:-2], self.chunk_px, self.chunk_px]
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": chunk, "codecs": coded, "index_codecs": index, "index_location": "end"}
        return [{"name": "sharding_indexed", "configuration": sharding}]

    def metadata(self, names: Sequence[str]) -> dict[str, Any]:
        """The content of zarr.json, with the names of the axes."""
        grid = {"chunk_shape": [*self.shape[:-2], self.unit_px, self.unit_px]}
        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": grid},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if np.dtype(self.dtype).kind == "f" else 0,
            "codecs": self.codecs,
            "attributes": {},
            "dimension_names": list(names),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }

    def file(self, folder: Path, row: int, column: int) -> Path:
        """The file of a unit of the array in ``folder``."""
        return folder.joinpath("c", *["0"] * (len(self.shape) - 2), str(row), str(column))


def chunk_codecs(codec: str, itemsize: int) -> list[dict[str, Any]]:
    """What zarr.json says about the coding of a chunk whose pixels have so many bytes."""
    if codec not in LOSSLESS:
        # brings zarr
        from histomri.io.picture_codecs import OPTIONS

        picture = {"name": f"imagecodecs_{codec}", "configuration": OPTIONS[codec]}
        return [{"name": "transpose", "configuration": {"order": [1, 2, 0]}}, picture]
    plain: dict[str, Any] = {"name": "bytes"}
    if itemsize > 1:
        plain["configuration"] = {"endian": "little"}
    if codec == "none":
        return [plain]
    if codec == "zstd":
        return [plain, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}]
    options = {"cname": codec.removeprefix("blosc-"), "clevel": 3, "shuffle": "bitshuffle", "blocksize": 0}
    return [plain, {"name": "blosc", "configuration": {"typesize": itemsize, **options}}]


def write_array(folder: Path, layout: ArrayLayout, names: Sequence[str]) -> None:
    """Make the array ``folder``, without pixels."""
    _write(folder, layout.metadata(names))


def write_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Make the group ``folder``, or give it other attributes."""
    _write(folder, {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"})


def group_attributes(folder: Path) -> dict[str, Any]:
    """The attributes of a group; none where there is no group. Raises :class:`InputError` for one that is damaged."""
    file = folder / METADATA
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))["attributes"] if file.exists() else {}
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"is not the metadata of a Zarr group ({type(error).__name__}: {error})"
        raise InputError(Problem(str(file), what, "run the stage that makes it again")) from error


def _write(folder: Path, metadata: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METADATA).write_text(json.dumps(metadata, indent=2), encoding="utf-8")


def read_layout(folder: Path) -> ArrayLayout | None:
    """The layout of the array in ``folder``; None where it is not one of those that are written here."""
    try:
        found = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        unit, codecs = found["chunk_grid"]["configuration"]["chunk_shape"], found["codecs"]
        chunk = codecs[0]["configuration"]["chunk_shape"] if codecs[0]["name"] == "sharding_indexed" else unit
        pictures = [c["name"] for c in (codecs[0]["configuration"]["codecs"] if chunk is not unit else codecs)]
        candidates = LOSSLESS if pictures[0] == "bytes" else CODECS[len(LOSSLESS) :]
        layouts = [ArrayLayout(tuple(found["shape"]), found["data_type"], chunk[-1], unit[-1], codec) for codec in candidates]
        same = {"attributes": found["attributes"], "dimension_names": found["dimension_names"]}
        return next((layout for layout in layouts if {**layout.metadata(()), **same} == found), None)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError):
        return None
