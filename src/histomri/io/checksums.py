"""Checksums of what files say, whatever their encoding: arrays of stores, volumes and transforms, numbers of JSON and tables.

Two files whose decoded arrays are equal hold the same result, even where a codec, a header or the layout of chunks differs.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
# longer arrays are known by the bytes of their store alone: decoding them again would take as long as writing them did
MOST_BYTES = 2 << 30
TRANSFORMS = (".tfm", ".h5")
TABLES = (".tsv", ".csv")


def decoded(path: str | Path) -> Iterator[tuple[str, Values]]:
    """The arrays of a file or store, by name, in a fixed order; nothing for a kind of file that holds none (HTML, PNG).

    A store gives its arrays by their paths; NIfTI ``voxels`` (z, y, x[, c]) as stored and ``affine``; an ITK transform its
    matrices and fields, step by step; JSON and tables ``numbers`` in the order in which they stand, and ``words`` (bytes) for
    the rest.
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
        yield "values", np.load(path, mmap_mode="r", allow_pickle=False)
    elif name.endswith(".json"):
        yield from _numbers_and_words(json.loads(path.read_text(encoding="utf-8")))
    elif name.endswith(TABLES):
        yield from _of_table(path)


def checksums(path: str | Path) -> dict[str, dict[str, Any]]:
    """Shape, type and SHA-256 (of the values in C order) of each array of :func:`decoded`, up to :data:`MOST_BYTES` each."""
    return {name: checksum(array) for name, array in decoded(path) if array.nbytes <= MOST_BYTES}


def checksum(array: Any) -> dict[str, Any]:
    """Shape, type and SHA-256 of an array's values in C order; a stored array is read a few planes or rows at a time."""
    digest = hashlib.sha256()
    for part in _parts(array):
        digest.update(np.ascontiguousarray(part).data if part.size else b"")
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest.hexdigest()}


def _parts(array: Any) -> Iterator[Values]:
    """The array in pieces along its first axis, of whole shards where it has some."""
    if array.ndim == 0 or isinstance(array, np.ndarray):
        yield np.asarray(array[()] if array.ndim == 0 else array)
        return
    step = int((getattr(array, "shards", None) or array.chunks)[0])
    for start in range(0, array.shape[0], step):
        yield np.asarray(array[start : start + step])


def _of_store(path: Path) -> Iterator[tuple[str, Any]]:
    import zarr

    group: Any = zarr.open_group(str(path), mode="r", zarr_format=3)
    found = {name: member for name, member in group.members(max_depth=None) if isinstance(member, zarr.Array)}
    yield from sorted(found.items())


def _of_nifti(path: Path) -> Iterator[tuple[str, Values]]:
    import nibabel

    image: Any = nibabel.load(path)  # type: ignore[attr-defined]
    # on disk x is fastest
    stored = np.asarray(image.dataobj.get_unscaled())
    yield "voxels", np.moveaxis(stored.T, 0, -1) if stored.ndim > 3 else stored.T
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


def difference(a: Values, b: Values) -> str:
    """How two arrays differ, in words: another shape or type, or how many values by how much; ``""`` where all bits are equal."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
    a, b = np.asarray(a), np.asarray(b)
    differ = np.ascontiguousarray(a).reshape(-1).view(np.uint8) != np.ascontiguousarray(b).reshape(-1).view(np.uint8)
    if not differ.any():
        return ""
    count = int(differ.reshape(-1, a.dtype.itemsize).any(axis=1).sum())
    largest = "" if a.dtype.names else f", by {np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64))):.3g} at most"
    return f"{count} of {a.size} values differ{largest}"
