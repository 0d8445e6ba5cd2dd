"""The ex vivo MRI of a digital block and its label volume, as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid
from histomri.testing.specimen import CHANNELS, N_CHANNELS
from histomri.testing.truth import Truth

Float = NDArray[np.float64]

# grey matter brighter than white, fluid-filled spaces dark: unlike either stain
_SIGNAL = {
    "cortex": 0.78, "white": 0.47, "caudate": 0.70, "putamen": 0.63, "pallidum": 0.36, "upper_layers": 0.05, "stripe": -0.06,
    "texture": 0.035, "fibres": 0.02, "vessel": 0.12,
}  # fmt: skip
_FLUID = 0.05
_SCALE = 2400.0
_SLAB = 8


def _samples(grid: Grid, start: int, stop: int, per_axis: int) -> Float:
    """Points, (n, y, x, per_axis**3, 3), spread evenly over each voxel of slices ``start`` to ``stop``."""
    part = grid.crop((start, 0, 0), (stop, *grid.shape[1:]))
    offsets = (np.arange(per_axis) + 0.5) / per_axis - 0.5
    inside = np.stack(np.meshgrid(offsets, offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 3)
    steps = inside * grid.spacing_mm @ grid.direction.T
    return part.points()[..., None, :] + steps


def _signal(truth: Truth, per_axis: int = 2) -> Float:
    """Noise-free signal, area-averaged over each voxel, (z, y, x)."""
    table = np.array([[_SIGNAL.get(name, 0.0)] for name in CHANNELS])
    cover = np.zeros((N_CHANNELS, 1))
    cover[[*range(5), CHANNELS.index("vessel")]] = 1.0
    # what the tissue does not cover is fluid
    grid, finest = truth.mri_grid, truth.spec.mri_spacing_mm / per_axis
    out = np.empty(grid.shape)
    for start in range(0, grid.shape[0], _SLAB):
        stop = min(grid.shape[0], start + _SLAB)
        points = truth.mri_to_block.map(_samples(grid, start, stop, per_axis))
        out[start:stop] = truth.specimen.mix(points, table - _FLUID * cover, finest)[..., 0].mean(axis=-1) + _FLUID
    return out


def _bias(shape: tuple[int, ...], rng: np.random.Generator) -> Float:
    """A smooth gain of about 0.75 to 1.3: a quadratic polynomial of the position."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    slope, curve = rng.uniform(-0.2, 0.2, 3), rng.uniform(-0.15, 0.1, 3)
    exponent = np.zeros(shape)
    for s, c, a in zip(slope, curve, axes, strict=True):
        exponent += s * a + c * a * a
    return np.asarray(np.exp(exponent), float)


def nifti_affine(grid: Grid) -> Float:
    """Index (i, j, k) to RAS mm, (4, 4), of a grid in LPS and (z, y, x) order."""
    matrix = grid.index_to_world
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix[2::-1, 2::-1], matrix[2::-1, 3]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _write(path: Path, values: NDArray[np.generic], grid: Grid) -> None:
    affine = nifti_affine(grid)
    image: Any = nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, path)


def make_mri(truth: Truth, path: Path) -> None:
    """Write the MRI, int16: the specimen unshrunk, with a smooth bias field and Rician noise of 3 % of the white matter."""
    rng = np.random.default_rng([truth.spec.seed, 9])
    signal = _signal(truth) * _bias(truth.mri_grid.shape, rng)
    noise = rng.normal(scale=0.014, size=(2, *signal.shape))
    magnitude = np.hypot(signal + noise[0], noise[1])
    _write(path, np.round(np.clip(magnitude, 0, 10) * _SCALE).astype(np.int16), truth.mri_grid)


def make_labels(truth: Truth, path: Path) -> None:
    """Write the labels at the voxel centres, uint8."""
    grid = truth.mri_grid
    labels = np.empty(grid.shape, np.uint8)
    for start in range(0, grid.shape[0], _SLAB):
        part = grid.crop((start, 0, 0), (min(grid.shape[0], start + _SLAB), *grid.shape[1:]))
        labels[start : start + _SLAB] = truth.specimen.labels(truth.mri_to_block.map(part.points()))
    _write(path, labels, grid)
