"""Values of a volume on a bent plane through it, one tile at a time."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def lattice_points(lattice: Float, step: int, shape: tuple[int, int]) -> Float:
    """Readable form of what the kernels do: coordinates, (*shape, n), bilinear between a lattice of every ``step``-th pixel.

    ``p(y, x) = sum over the 4 lattice nodes around (y, x) / step of weight * lattice[node]``.
    """
    y, x = (np.arange(n) / step for n in shape)
    i, j = (np.minimum(v.astype(int), n - 2) for v, n in zip((y, x), lattice.shape[:2], strict=True))
    fy, fx = (y - i)[:, None, None], (x - j)[None, :, None]
    i, j = i[:, None], j[None, :]
    top = lattice[i, j] * (1 - fx) + lattice[i, j + 1] * fx
    bottom = lattice[i + 1, j] * (1 - fx) + lattice[i + 1, j + 1] * fx
    points: Float = top * (1 - fy) + bottom * fy
    return points


@numba.njit(cache=True, inline="always")
def _at(lattice, step, y, x, c):  # type: ignore[no-untyped-def]  # pragma: no cover
    i, j = min(y // step, lattice.shape[0] - 2), min(x // step, lattice.shape[1] - 2)
    fy, fx = y / step - i, x / step - j
    top = lattice[i, j, c] * (1 - fx) + lattice[i, j + 1, c] * fx
    bottom = lattice[i + 1, j, c] * (1 - fx) + lattice[i + 1, j + 1, c] * fx
    return top * (1 - fy) + bottom * fy


@numba.njit(parallel=True, cache=True, nogil=True)
def _nearest(volume, lattice, step, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    nz, ny, nx = volume.shape
    for y in numba.prange(out.shape[0]):
        for x in range(out.shape[1]):
            k = int(np.floor(_at(lattice, step, y, x, 0) + 0.5))
            j = int(np.floor(_at(lattice, step, y, x, 1) + 0.5))
            i = int(np.floor(_at(lattice, step, y, x, 2) + 0.5))
            if 0 <= k < nz and 0 <= j < ny and 0 <= i < nx:
                out[y, x] = volume[k, j, i]


@numba.njit(parallel=True, cache=True, nogil=True)
def _linear(volume, lattice, step, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    nz, ny, nx = volume.shape
    for y in numba.prange(out.shape[0]):
        for x in range(out.shape[1]):
            pz, py, px = _at(lattice, step, y, x, 0), _at(lattice, step, y, x, 1), _at(lattice, step, y, x, 2)
            if not (-0.5 <= pz < nz - 0.5 and -0.5 <= py < ny - 0.5 and -0.5 <= px < nx - 0.5):
                continue
            pz, py, px = min(max(pz, 0.0), nz - 1.0), min(max(py, 0.0), ny - 1.0), min(max(px, 0.0), nx - 1.0)
            k, j, i = int(pz), int(py), int(px)
            fz, fy, fx = pz - k, py - j, px - i
            total = 0.0
            for dz in range(2):
                for dy in range(2):
                    for dx in range(2):
                        w = (fz if dz else 1 - fz) * (fy if dy else 1 - fy) * (fx if dx else 1 - fx)
                        if w > 0:
                            total += w * volume[k + dz, j + dy, i + dx]
            out[y, x] = total


def sample_plane(volume: NDArray[Any], lattice: Float, step: int, shape: tuple[int, int], linear: bool = False) -> NDArray[Any]:
    """``out(y, x) = volume(p(y, x))`` for a tile of ``shape``, ``p`` from :func:`lattice_points` in indices of ``volume``.

    Nearest keeps the type and the values of ``volume``; linear gives float64, the edge value within half a voxel of the volume.
    0 lies outside, and where the lattice is NaN. The result does not depend on the number of threads.
    """
    volume = np.ascontiguousarray(volume)
    lattice = np.nan_to_num(np.ascontiguousarray(lattice, np.float64), nan=-1e9)
    out = np.zeros(shape, np.float64 if linear else volume.dtype)
    (_linear if linear else _nearest)(volume, lattice, step, out)
    return out
