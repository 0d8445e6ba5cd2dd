"""NIfTI volumes in and out. RAS, (x, y, z) order and units other than mm end here."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image, InputError
from histomri.core.errors import Problem
from histomri.io.atomic import replacing
from histomri.io.memory import available_memory_mb

nib: Any = nibabel  # half typed: its untyped functions would fail a strict check
Float = NDArray[np.float64]

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
REVERSED = np.eye(4)[[2, 1, 0, 3]]
MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
RGB = ("red", "green", "blue")
INTENT_VECTOR = 1007
GZIP_LEVEL = 4
# deflate codes at most 258 bytes in two bits
GZIP_MOST = 1032
NIFTI1_MAX = 32767


def _error(path: Path, what: str, remedy: str) -> InputError:
    return InputError(Problem(str(path), what, remedy))


def affine_to_grid(affine: Float, shape: tuple[int, ...]) -> Grid:
    """Grid in LPS mm and (z, y, x) order of a RAS mm voxel-to-world matrix, (4, 4), and (x, y, z) sizes.

    Raises ``ValueError`` when the matrix is singular.
    """
    lps = REVERSED @ RAS_TO_LPS @ affine @ REVERSED
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        direction = lps[:3, :3] / spacing
    if not np.isfinite(direction).all():
        raise ValueError("an axis of the volume has no length")
    return Grid(tuple(shape)[::-1], spacing, lps[:3, 3], direction)


def grid_to_affine(grid: Grid) -> Float:
    """The RAS mm voxel-to-world matrix, (4, 4), on (x, y, z) indices of a 3D grid."""
    affine: Float = RAS_TO_LPS @ REVERSED @ grid.index_to_world @ REVERSED
    return affine


def _load(path: Path) -> Any:
    if not path.is_file():
        raise _error(path, "no such file", "correct the path")
    try:
        return nib.Nifti1Image.load(path) if not _is_nifti2(path) else nib.Nifti2Image.load(path)
    except MemoryError:
        raise
    except Exception as problem:  # nibabel raises half a dozen types, some of them bare
        raise _error(path, f"not a readable NIfTI file ({problem})", "export the volume again as .nii or .nii.gz") from problem


def _is_nifti2(path: Path) -> bool:
    opener: Any = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            return bool(nib.Nifti2Header.may_contain_header(file.read(540)))
    except (OSError, EOFError, zlib.error):
        return False


def _quiet(get: Any) -> Float | None:
    """What ``get`` returns, None where the header does not state it or it is not invertible."""
    try:
        matrix, code = get(coded=True)
    except Exception:  # an invalid quaternion
        return None
    if not code or matrix is None or not np.isfinite(matrix).all():
        return None
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    return None if (lengths == 0).any() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6 else np.asarray(matrix, float)


def _unit(header: Any) -> str:
    """The unit of length that the header states; a code that the standard does not know states none."""
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _space_mm(header: Any) -> float:
    return MM_PER_UNIT.get(_unit(header), 1.0)


def _has_vectors(header: Any) -> bool:
    shape = header.get_data_shape()
    return len(shape) == 5 and shape[3] == 1 and shape[4] > 1


def _spatial_shape(path: Path, header: Any) -> tuple[int, ...]:
    shape = tuple(int(n) for n in header.get_data_shape())
    sizes = shape[:3] if _has_vectors(header) else shape
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    if len(sizes) != 3:
        raise _error(path, f"a single 3D volume is needed, found {len(shape)}D of size {shape}", "extract one 3D volume from it")
    if min(sizes) < 1:
        raise _error(path, f"the volume is empty, its size is {shape}", "export the volume again")
    return sizes


def _chosen_affine(path: Path, header: Any) -> tuple[Float, list[str]]:
    """The matrix in use and what is worth telling about the choice."""
    sform, qform = _quiet(header.get_sform), _quiet(header.get_qform)
    notes = []
    if _unit(header) == "unknown":
        notes.append("the file states no unit of length; millimetres are assumed")
    if sform is not None and qform is not None and not np.allclose(sform, qform, atol=1e-2, rtol=1e-3):
        notes.append("sform and qform disagree; the sform is used")
    if sform is not None:
        return sform, notes
    if qform is not None:
        if int(header["sform_code"]):
            notes.append("the sform is singular; the qform is used")
        return qform, notes
    if int(header["sform_code"]) or int(header["qform_code"]):
        raise _error(
            path,
            "the geometry is singular (an axis has no length, or two are parallel)",
            "export the volume again with its geometry",
        )
    raise _error(path, "neither sform nor qform is set, so nothing says where the volume lies", "export it with its geometry")


def _grid_and_notes(path: Path, header: Any) -> tuple[Grid, list[str]]:
    shape = _spatial_shape(path, header)
    affine, notes = _chosen_affine(path, header)
    scale = np.diag([_space_mm(header)] * 3 + [1.0])
    try:
        return affine_to_grid(scale @ affine, shape), notes
    except ValueError as problem:
        raise _error(path, f"the geometry is singular ({problem})", "export the volume again with its geometry") from problem


def read_geometry(path: Path) -> tuple[Grid, list[str]]:
    """The grid of a NIfTI file (LPS mm, z y x) without reading its voxels, and notes in words: an unstated unit, or
    which of sform and qform is used where they disagree. Raises :class:`InputError` as :func:`read_nifti` does."""
    path = Path(path)
    return _grid_and_notes(path, _load(path).header)


def _check_size(path: Path, image: Any) -> None:
    """Refuse a header that promises more than its file can hold, before memory is taken for it."""
    header = image.header
    needed = math.prod(int(n) for n in header.get_data_shape()) * int(header.get_data_dtype().itemsize)
    held = path.stat().st_size * (GZIP_MOST if path.name.lower().endswith(".gz") else 1)
    if needed > held:
        what = f"the header promises {needed / 1e6:.0f} MB of voxels, the file holds {held / 1e6:.0f} MB at most"
        raise _error(path, what, "the file is truncated or damaged: copy it again")
    if needed > (most := available_memory_mb() * 1e6):
        what = f"{needed / 1e9:.1f} GB of voxels are read whole, {most / 1e9:.1f} GB of memory are free"
        raise _error(path, what, "resample it to larger voxels, or use a machine with more memory")


def _voxels(path: Path, image: Any) -> NDArray[Any]:
    _check_size(path, image)
    proxy = image.dataobj
    try:
        raw = np.asarray(proxy.get_unscaled())
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as problem:
        raise _error(
            path, f"the voxels cannot be read ({problem})", "the file is truncated or damaged: copy it again"
        ) from problem
    slope, inter = float(proxy.slope), float(proxy.inter)
    if (slope, inter) != (1.0, 0.0):
        raw = (raw.astype(np.float64) * slope + inter).astype(np.float32)
    return raw


def read_nifti(path: Path, *, may_be_empty: bool = False) -> Image:
    """A NIfTI volume in LPS mm, array order (z, y, x), in its stored type (float32 where the header scales it).

    The voxels keep their storage order: the grid's direction says how they lie. The sform holds where it is valid, else
    the qform. RGB24 and vector volumes get a trailing channel axis. A unit of metres or microns is brought to mm.

    Raises
    ------
    InputError
        For a file that is missing, unreadable or truncated, not 3D (trailing axes of length 1 are dropped), singular, without
        sform and qform, or, unless ``may_be_empty``, without a single finite voxel that is not zero.
    """
    path = Path(path)
    image = _load(path)
    grid, _ = _grid_and_notes(path, image.header)
    raw = _voxels(path, image)
    if raw.dtype.fields:
        raw = raw.reshape(grid.shape[::-1], order="F")
        data = np.stack([raw[name] for name in "RGB"], axis=-1)
        return Image(grid, np.ascontiguousarray(data.transpose(2, 1, 0, 3)), RGB)
    if _has_vectors(image.header):
        data = raw.reshape(*grid.shape[::-1], raw.shape[4], order="F")
        names = RGB if data.shape[3] == 3 else tuple(f"channel {i}" for i in range(data.shape[3]))
        return Image(grid, np.ascontiguousarray(data.transpose(2, 1, 0, 3)), names)
    data = raw.reshape(grid.shape[::-1], order="F").T
    if not may_be_empty and not _has_content(data):
        raise _error(
            path, "the volume is empty: every voxel is zero or not a number", "choose the right file, or export it again"
        )
    return Image(grid, np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("=")))


def _has_content(data: NDArray[Any]) -> bool:
    # slab by slab: a large volume need not be copied to be looked at
    return any(bool(np.any(np.nan_to_num(slab, nan=0.0, posinf=0.0, neginf=0.0))) for slab in data)


def _is_rgb24(image: Image) -> bool:
    return len(image.channels) == 3 and np.dtype(image.data.dtype) == np.uint8


def _header(image: Image) -> Any:
    shape = image.grid.shape[::-1]
    header = nib.Nifti2Header() if max(shape) > NIFTI1_MAX else nib.Nifti1Header()
    dtype = np.dtype(image.data.dtype)
    if _is_rgb24(image):
        header.set_data_dtype("RGB")
        header.set_data_shape(shape)
    else:
        header.set_data_dtype(np.uint8 if dtype.kind == "b" else dtype.newbyteorder("="))
        header.set_data_shape((*shape, 1, len(image.channels)) if image.channels else shape)
        if image.channels:
            header["intent_code"] = INTENT_VECTOR
    affine = grid_to_affine(image.grid)
    header.set_qform(affine, code=1, strip_shears=True)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["vox_offset"] = header.single_vox_offset
    return header


def _slabs(image: Image) -> Iterator[NDArray[Any]]:
    """The voxels in file order, one z slab at a time: (z, y, x) in C order is (x, y, z) in Fortran order."""
    data, planes = image.data, range(image.grid.shape[0])
    if image.channels and not _is_rgb24(image):
        for c in range(len(image.channels)):
            yield from (np.asarray(data[z, :, :, c]) for z in planes)
    else:
        yield from (np.asarray(data[z]) for z in planes)


@contextmanager
def _opened(path: Path, zipped: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if not zipped:
            yield file
            return
        # no name and no time in the header: the same volume gives the same bytes
        with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as compressed:
            yield compressed  # type: ignore[misc]


def write_nifti(path: Path, image: Image) -> None:
    """Write a 3D image as ``.nii`` or ``.nii.gz``: atomically, with sform and qform, in mm, the same bytes each time.

    The data may be a NumPy or zarr array; it is streamed plane by plane. Three channels of uint8 become NIfTI's RGB24, which
    ITK-SNAP, 3D Slicer and nibabel show in colour; any other channels become a 5D vector volume (``dim[4] = 1``), which ITK
    reads as vectors. A boolean mask becomes uint8. Above 32,767 voxels along an axis the file is NIfTI-2.

    Raises ``ValueError`` for an image that is not 3D or whose type NIfTI does not know (float16).
    """
    path = Path(path)
    if image.grid.ndim != 3:
        raise ValueError(f"NIfTI needs a 3D image, found {image.grid.ndim}D.")
    try:
        header = _header(image)
    except nib.spatialimages.HeaderDataError as problem:
        raise ValueError(f"NIfTI cannot hold data of type {image.data.dtype}.") from problem
    with replacing(path) as temporary, _opened(temporary, path.name.lower().endswith(".gz")) as file:
        file.write(header.binaryblock)
        file.write(b"\0" * (header.single_vox_offset - len(header.binaryblock)))
        for slab in _slabs(image):
            file.write(
                np.ascontiguousarray(slab, dtype=np.uint8 if slab.dtype.kind == "b" else slab.dtype.newbyteorder("=")).tobytes()
            )
