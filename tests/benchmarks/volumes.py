"""The volumes that 3D registration is measured on: a brain of ``human_t1`` under a known deformation, and two different brains.

``compare_volumes.py`` runs ours and the peers on them. :func:`write_case` makes one folder per case, which any program reads:

    fixed.nii.gz moving.nii.gz fixed_mask.nii.gz moving_mask.nii.gz   uint8 masks, float32 images
    points.csv    points of the fixed brain, x,y,z in RAS mm
    truth.csv     where they lie in the moving image, x,y,z in RAS mm

The fixed image is the volume seen through the true map, ``fixed(p) = volume(A (p + u(p)))``, so that the truth is exact at every
point; the moving image is the volume itself with its contrast changed.

Between two brains (:func:`class_overlap`) it is the overlap of grey and white matter that is measured: ``human_t1`` has the AAL
labels of one brain only, and in the common space of the templates they lie on every other brain about as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from histomri.core import Grid, Image
from histomri.io.nifti import write_nifti

Float = NDArray[np.float64]
CONTRASTS = ("plain", "inverted", "mapped", "noisy", "hard")
POINTS = 20_000
RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Warp:
    """A smooth random deformation of ``rms_mm`` root mean square length and ``width_mm`` (sigma of the smoothed noise), and an
    affine of ``turn_deg`` about an oblique axis, ``shift_mm`` along each axis and ``stretch`` along x."""

    rms_mm: float = 5.0
    width_mm: float = 16.0
    turn_deg: float = 8.0
    shift_mm: float = 5.0
    stretch: float = 1.03
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Case:
    """Two images and masks and where ``points`` (n, 3; LPS mm, z y x) of the fixed brain truly lie in the moving image."""

    fixed: Image
    moving: Image
    fixed_mask: Image
    moving_mask: Image
    points: Float
    truth: Float


def smooth_field(grid: Grid, warp: Warp) -> NDArray[np.float32]:
    """The displacement (z, y, x, 3) in mm: Gaussian-smoothed white noise, scaled to the stated root mean square length."""
    random = np.random.default_rng(warp.seed)
    step = 4
    coarse = grid.downsample(step)
    noise = random.normal(size=(3, *(n + 40 for n in coarse.shape)))
    parts = [ndimage.gaussian_filter(n, warp.width_mm / coarse.spacing_mm)[20:-20, 20:-20, 20:-20] for n in noise]
    at = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")).astype(np.float32)
    at = (at - (step - 1) / 2) / step
    field = np.stack([ndimage.map_coordinates(p, at, order=3, mode="nearest", output=np.float32) for p in parts], axis=-1)
    return np.asarray(field * (warp.rms_mm / np.sqrt((field**2).sum(axis=-1).mean())), np.float32)


def true_matrix(centre_mm: Float, warp: Warp) -> Float:
    """The affine (4, 4) of a warp about a point, fixed mm -> moving mm."""
    axis = np.array([1.0, 0.7, -0.5]) / np.linalg.norm([1.0, 0.7, -0.5])
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(warp.turn_deg) * axis).as_matrix() @ np.diag([1, 1, warp.stretch])
    matrix[:3, 3] = centre_mm - matrix[:3, :3] @ centre_mm + warp.shift_mm * np.array([1.0, -1.0, 0.6])
    return matrix


def known_case(volume: Image, contrast: str, warp: Warp) -> Case:
    """A brain (0 outside) seen through a known map, against itself in another contrast; both have room around."""
    volume = padded(volume)
    grid = volume.grid
    data = np.asarray(volume.data, np.float32)
    data = data / np.float32(np.percentile(data[data > 0], 99.5))
    field, matrix = smooth_field(grid, warp), true_matrix(grid.centre_mm, warp)
    to_index = grid.world_to_index @ matrix
    there = (grid.points() + field) @ to_index[:3, :3].T + to_index[:3, 3]
    at = np.moveaxis(there, -1, 0).astype(np.float32)
    inside = ndimage.map_coordinates((data > 0).astype(np.float32), at, order=1) >= 0.5
    seen = np.where(inside, np.maximum(ndimage.map_coordinates(data, at, order=3), 1e-3), 0).astype(np.float32)
    random = np.random.default_rng(warp.seed + 100)
    noisy = contrast in ("noisy", "hard")
    fixed = _spoiled(seen, random) if noisy else seen
    moving = recoloured(data, contrast)
    moving = _spoiled(moving, random) if noisy else moving
    nodes = np.argwhere(inside)
    chosen = nodes[np.sort(random.choice(len(nodes), POINTS, replace=False))]
    points = grid.to_world(chosen)
    truth = (points + field[tuple(chosen.T)]) @ matrix[:3, :3].T + matrix[:3, 3]
    return Case(Image(grid, fixed), Image(grid, moving), Image(grid, inside), Image(grid, data > 0), points, truth)


def padded(volume: Image, margin: int = 14) -> Image:
    """The volume cropped to what is not 0, with a margin of so many voxels of 0."""
    nodes = np.argwhere(volume.data)
    start, stop = nodes.min(axis=0) - margin, nodes.max(axis=0) + 1 + margin
    whole = np.pad(np.asarray(volume.data, np.float32), margin)
    part = whole[tuple(slice(a + margin, b + margin) for a, b in zip(start, stop, strict=True))]
    return Image(volume.grid.crop(start, stop), np.ascontiguousarray(part))


def recoloured(data: NDArray[np.float32], contrast: str) -> NDArray[np.float32]:
    """The volume in another contrast; 0 stays outside. ``mapped`` is not monotone: grey matter is the brightest."""
    level = np.clip(data, 0, 1.2)
    if contrast == "inverted":
        out = 1.3 - level
    elif contrast in ("mapped", "hard"):
        out = 0.25 + np.exp(-(((level - 0.62) / 0.17) ** 2)) + 0.3 * (1.2 - level)
    else:
        out = level
    return np.where(data > 0, np.maximum(out, 1e-3), 0).astype(np.float32)


def _spoiled(data: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """A bias field of about 30 % and noise of 5 % of the brightest, inside the brain."""
    coarse = ndimage.gaussian_filter(random.normal(size=tuple(n // 8 + 8 for n in data.shape)), 5)
    bias = ndimage.zoom(coarse, 8, order=1)[tuple(slice(20, 20 + n) for n in data.shape)]
    bias = 1 + 0.3 * bias / np.abs(bias).max()
    noise = 0.05 * data.max() * random.normal(size=data.shape)
    return np.where(data > 0, np.maximum(data * bias + noise, 1e-3), 0).astype(np.float32)


def write_case(folder: Path, case: Case) -> None:
    """Write a case as the files that the top of this module lists."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("fixed", "moving"):
        write_nifti(folder / f"{name}.nii.gz", getattr(case, name))
        mask: Image = getattr(case, f"{name}_mask")
        write_nifti(folder / f"{name}_mask.nii.gz", mask.with_data(np.asarray(mask.data, np.uint8)))
    write_points(folder / "points.csv", case.points)
    write_points(folder / "truth.csv", case.truth)


def write_points(path: Path, points: Float) -> None:
    """Points (n, 3; LPS mm, z y x) as ``x,y,z`` in RAS mm."""
    np.savetxt(path, points[:, ::-1] * RAS, fmt="%.5f", delimiter=",", header="x,y,z", comments="")


def read_points(path: Path) -> Float:
    """The inverse of :func:`write_points`."""
    return np.asarray((np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2) * RAS)[:, ::-1], np.float64)


CLASSES = ("fluid", "grey", "white")


def tissue_classes(volume: Image) -> NDArray[np.int8]:
    """Fluid 0, grey 1 and white matter 2 of an extracted T1 brain, -1 outside: three means of intensity (Lloyd)."""
    data = np.asarray(volume.data, np.float32)
    unit = data / np.percentile(data[data > 0], 99)
    sample, means = unit[data > 0][::5], np.array([0.3, 0.6, 0.9])
    for _ in range(30):
        nearest = np.abs(sample[:, None] - means).argmin(axis=1)
        means = np.array([sample[nearest == k].mean() for k in range(3)])
    found = np.digitize(unit, (means[:-1] + means[1:]) / 2)
    return np.where(data > 0, found, -1).astype(np.int8)


def class_overlap(fixed: Image, moving: Image, mapped: Float) -> dict[str, float]:
    """Dice of each class; ``mapped`` (*fixed.grid.shape, 3) is where the fixed voxels lie in the moving volume, LPS mm, z y x."""
    here, there = tissue_classes(fixed), tissue_classes(moving)
    index = np.moveaxis(moving.grid.to_index(mapped), -1, 0)
    brought = ndimage.map_coordinates(there, index, order=0, mode="constant", cval=-1)
    both = {name: ((here == k), (brought == k)) for k, name in enumerate(CLASSES)}
    return {name: 2 * float((a & b).sum()) / max(float(a.sum() + b.sum()), 1.0) for name, (a, b) in both.items()}
