"""The transform files of a results folder: written with their checksums beside them, and not read by ITK when those differ.

A damaged HDF5 file can end the process that reads it. The checksums stand in a file of their own in the format of ``sha256sum``
(``cd transforms && sha256sum -c SHA256SUMS``), not in ``graph.json``: HDF5 files carry the time of writing, and the graph is
the same for the same study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from histomri.core import InputError
from histomri.core.errors import Problem
from histomri.io.atomic import replacing
from histomri.io.transform_files import fails_in_itk, read_transform
from histomri.transforms import Transform

SUMS = "SHA256SUMS"
REMEDY = (
    "copy the folder of results again, or run the study again; a transform of your own goes into the sheet's column transform"
)


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write ``SHA256SUMS`` of files below ``folder``, by their relative POSIX paths, atomically."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(names)]
    with replacing(folder / SUMS) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_published(path: Path, from_space: str = "", to_space: str = "") -> Transform:
    """The transform ``<folder>/<block>/<name>`` of a study; the spaces name its two ends.

    One whose checksum is on record in ``<folder>/SHA256SUMS`` is read at once. One that is not (older results have none) is
    tried in a process of its own first, as those given by hand.

    Raises
    ------
    InputError
        When it is not what the study wrote, or cannot be read.
    """
    known = _sums(path.parents[1]).get(f"{path.parent.name}/{path.name}") if len(path.parents) > 1 else None
    if known is not None and path.is_file() and _sha256(path) != known:
        what = f"is not what the study wrote (its SHA-256 is another than in {SUMS})"
        raise InputError(Problem(str(path), what, REMEDY))
    if known is None and path.is_file() and fails_in_itk(path):
        raise InputError(Problem(str(path), "cannot be read as an ITK transform (the file is damaged)", REMEDY))
    return read_transform(path, from_space, to_space)


def _sums(folder: Path) -> dict[str, str]:
    """The checksums on record in a folder, by name; none where there is no record."""
    file = folder / SUMS
    try:
        state = file.stat()
    except OSError:
        return {}
    return _read_sums(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _read_sums(file: Path, mtime_ns: int, size: int) -> dict[str, str]:
    """As long as the file is the same: a thousand sections ask for it a thousand times."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines)
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
