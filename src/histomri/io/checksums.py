"""Checksums of what files say, whatever their encoding: arrays of stores, volumes and transforms, numbers of JSON and tables.

Two files whose decoded arrays are equal hold the same result, even where a codec, a header or the layout of chunks differs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
# longer arrays are known by the bytes of their file or store alone: decoding them again would take as long as writing them did
MOST_BYTES = 2 << 30
# what is read at once of an array that is not in memory
PART_BYTES = 1 << 24
TRANSFORMS = (".tfm", ".h5")
TABLES = (".tsv", ".csv")


def decoded(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The arrays of a file or store, by name, in a fixed order; nothing for a kind of file that holds none (HTML, PNG).

    A store gives its arrays by their paths; NIfTI ``voxels`` (z, y, x[, c]) as stored and ``affine``; an ITK transform its
    matrices and fields, step by step; JSON and tables ``numbers`` in the order in which they stand, and ``words`` (bytes) for
    the rest. Arrays of stores, volumes and ``.npy`` are not in memory: what is indexed is read.
    Raises ``FileNotFoundError``, and what the readers raise for a file that is broken.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    name = path.name.lower()
    if path.is_dir():
        yield from _of_store(path)
    elif name.endswith((".nii", ".nii.gz")):
        yield from _of_nifti(path)
    elif name.endswith(TRANSFORMS):
        yield from _of_transform(path)
    elif name.endswith(".npy"):
        yield "values", _Npy(path)
    elif name.endswith(".json"):
        yield from _numbers_and_words(json.loads(path.read_text(encoding="utf-8")))
    elif name.endswith(TABLES):
        yield from _of_table(path)


def checksums(path: str | Path) -> dict[str, dict[str, Any]]:
    """:func:`checksum` of each array of :func:`decoded`; of those above :data:`MOST_BYTES` shape and type alone."""
    return {name: checksum(array) if array.nbytes <= MOST_BYTES else _form(array) for name, array in decoded(path)}


def checksum(array: Any) -> dict[str, Any]:
    """Shape, type and SHA-256 of an array's values in C order; of what is not in memory a part is read at a time."""
    digest = hashlib.sha256()
    for part in _parts(array):
        digest.update(np.ascontiguousarray(part).data if part.size else b"")
    return _form(array) | {"sha256": digest.hexdigest()}


def _form(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _parts(array: Any) -> Iterator[Values]:
    """The array in C order, in pieces of up to :data:`PART_BYTES`, or of a row of chunks of a plane where that is more."""
    return (np.asarray(array[index]) for index in _part_indices(array.shape, _units(array), array.dtype.itemsize))


def _units(array: Any) -> tuple[int, ...]:
    """How much of each axis one chunk holds, so that none is decoded more often than need be; a shard is read chunk by chunk."""
    return tuple(getattr(array, "chunks", None) or (1,) * array.ndim)


def _part_indices(shape: tuple[int, ...], units: tuple[int, ...], itemsize: int) -> Iterator[tuple[Any, ...]]:
    """Indices of pieces that follow each other in C order.

    Along the first axis in whole chunks where these fit, in fewer planes where they do not, and where not even one plane does,
    along the next axis of each. Of a plane it is a row of chunks however large, so that none is decoded row by row.
    """
    plane = math.prod(shape[1:]) * itemsize
    if len(shape) > 2 and plane > PART_BYTES:
        yield from ((i, *index) for i in range(shape[0]) for index in _part_indices(shape[1:], units[1:], itemsize))
    elif not shape:
        yield ()
    else:
        fit = PART_BYTES // max(plane, 1)
        step = fit // units[0] * units[0] or (units[0] if len(shape) <= 2 else max(fit, 1))
        yield from ((slice(i, min(i + step, shape[0])),) for i in range(0, shape[0], step))


class _Npy:
    """The array of a ``.npy`` file; what is indexed is copied, so that no more of the file stays mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._path, mapped = path, np.load(path, mmap_mode="r", allow_pickle=False)
        self.shape, self.dtype, self.ndim, self.nbytes = mapped.shape, mapped.dtype, mapped.ndim, mapped.nbytes

    def __getitem__(self, index: Any) -> Values:
        return np.array(np.load(self._path, mmap_mode="r", allow_pickle=False)[index])


class _Voxels:
    """The voxels of a NIfTI file as stored, (z, y, x[, c]); what is indexed (planes, or rows of one) is read.

    A file that is deflated can only be read forwards, and the channels of a vector volume stand one behind the other: each has a
    reader of its own, so that reading from the first plane to the last inflates none of it twice.
    """

    def __init__(self, path: Path, proxy: Any) -> None:
        from nibabel.openers import ImageOpener

        self._stored, self._offset, self.dtype = tuple(map(int, proxy.shape)), int(proxy.offset), np.dtype(proxy.dtype)
        self._channels = self._stored[-1] if len(self._stored) > 3 else 0
        # on disk x is fastest
        spatial = self._stored[:-1] if self._channels else self._stored
        self.shape = (*spatial[::-1], self._channels) if self._channels else spatial[::-1]
        self.ndim, self.nbytes = len(self.shape), math.prod(self.shape) * self.dtype.itemsize
        self._files = [ImageOpener(str(path)) for _ in range(max(self._channels, 1))]

    def __getitem__(self, index: Any) -> Values:
        given = () if index is Ellipsis else index if isinstance(index, tuple) else (index,)
        place = (*given, *(slice(None),) * (self.ndim - len(given)))
        if not self._channels:
            return self._read(0, place[::-1]).T
        *spatial, channels = place
        chosen = np.arange(self._channels)[channels]
        planes = [self._read(int(c), (*spatial[::-1], int(c))).T for c in np.atleast_1d(chosen)]
        return np.stack(planes, axis=-1) if np.ndim(chosen) else planes[0]

    def _read(self, file: int, place: tuple[Any, ...]) -> Values:
        from nibabel import fileslice

        read: Any = fileslice.fileslice
        found: Values = np.asarray(read(self._files[file], place, self._stored, self.dtype, self._offset, "F"))
        return found


def _of_store(path: Path) -> Iterator[tuple[str, Any]]:
    import zarr

    group: Any = zarr.open_group(str(path), mode="r", zarr_format=3)
    found = {name: member for name, member in group.members(max_depth=None) if isinstance(member, zarr.Array)}
    yield from sorted(found.items())


def _of_nifti(path: Path) -> Iterator[tuple[str, Any]]:
    import nibabel

    image: Any = nibabel.load(path)  # type: ignore[attr-defined]
    yield "voxels", _Voxels(path, image.dataobj)
    yield "affine", np.asarray(image.affine)


def _of_transform(path: Path) -> Iterator[tuple[str, Values]]:
    from histomri.io.transform_sums import read_published
    from histomri.transforms import Affine, Chain, DisplacementField

    for i, step in enumerate(Chain.steps_of(read_published(path))):
        if isinstance(step, Affine):
            yield f"{i}.matrix", step.matrix
        elif isinstance(step, DisplacementField):
            yield f"{i}.grid", step.grid.index_to_world
            yield f"{i}.displacements", np.asarray(step.values)


def _of_table(path: Path) -> Iterator[tuple[str, Values]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    return _numbers_and_words([[_number(cell) for cell in row] for row in rows])


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _numbers_and_words(content: Any) -> Iterator[tuple[str, Values]]:
    numbers: list[float] = []

    def without_numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_numbers(v) for key, v in value.items()}
        if isinstance(value, list):
            return [without_numbers(v) for v in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append(float(value))
            return 0
        return value

    words = json.dumps(without_numbers(content), sort_keys=True, ensure_ascii=False)
    yield "numbers", np.asarray(numbers, np.float64)
    yield "words", np.frombuffer(words.encode("utf-8"), np.uint8)


def difference(a: Any, b: Any) -> str:
    """How two arrays differ, in words: another shape or type, or how many values by how much; ``""`` where all bits are equal.

    What is not in memory is read a part at a time, as in :func:`checksum`.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
    units = tuple(map(max, _units(a), _units(b)))
    count, largest = 0, np.nan
    for index in _part_indices(a.shape, units, a.dtype.itemsize):
        own, other = np.ascontiguousarray(a[index]), np.ascontiguousarray(b[index])
        differ = _bits(own) != _bits(other)
        count += int(differ.any(axis=-1).sum())
        if differ.any() and not a.dtype.names:
            largest = np.fmax(largest, np.nanmax(np.abs(own.astype(np.float64) - other.astype(np.float64))))
    size = math.prod(a.shape)
    return f"{count} of {size} values differ{'' if a.dtype.names else f', by {largest:.3g} at most'}" if count else ""


def _bits(values: Values) -> Values:
    """The bytes of each value, (n, itemsize)."""
    return values.reshape(-1).view(np.uint8).reshape(-1, values.dtype.itemsize)
