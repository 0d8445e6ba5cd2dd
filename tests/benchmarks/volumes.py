"""The volumes that 3D registration is measured on: a brain of ``human_t1`` under a known deformation, and two different brains.

``compare_volumes.py`` runs ours and the peers on them. :func:`write_case` makes one folder per case, which any program reads:

    fixed.nii.gz moving.nii.gz fixed_mask.nii.gz moving_mask.nii.gz   uint8 masks, float32 images
    points.csv    points of the fixed brain, x,y,z in RAS mm
    truth.csv     where they lie in the moving image, x,y,z in RAS mm

The fixed image is the volume seen through the true map, ``fixed(p) = volume(A (p + u(p)))``, so that the truth is exact at every
point; the moving image is the volume itself with its contrast changed.

Between two brains (:func:`two_brains`) labels are what is measured: ``labels.nii.gz`` beside each image. ``human_t1`` has the AAL
labels of one brain only, which in the templates' common space lie on every other brain as well, so that doing nothing would be
right. Two things are done about that: the fixed brain is seen through a known deformation, and a region counts only where the
brain's **own** intensities say grey matter, which is folded otherwise in every brain.
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


@dataclass(frozen=True, eq=False)
class TrueMap:
    """``matrix (p + field(p))`` on the points of a grid, mm to mm: (*shape, 3) and (4, 4)."""

    grid: Grid
    field: NDArray[np.float32]
    matrix: Float

    @staticmethod
    def of(grid: Grid, warp: Warp) -> TrueMap:
        return TrueMap(grid, smooth_field(grid, warp), true_matrix(grid.centre_mm, warp))

    def index(self) -> NDArray[np.float32]:
        """Where the grid's voxels go, in voxels of the same grid: (3, *shape)."""
        to_index = self.grid.world_to_index @ self.matrix
        there = (self.grid.points() + self.field) @ to_index[:3, :3].T + to_index[:3, 3]
        return np.moveaxis(there, -1, 0).astype(np.float32)

    def displacement(self) -> NDArray[np.float32]:
        """From the grid's points to where they go, in mm: (*shape, 3)."""
        points = self.grid.points()
        return np.asarray((points + self.field) @ self.matrix[:3, :3].T + self.matrix[:3, 3] - points, np.float32)


def known_case(volume: Image, contrast: str, warp: Warp) -> Case:
    """A brain (0 outside) seen through a known map, against itself in another contrast; both have room around."""
    volume = padded(volume)
    grid, data = volume.grid, unit(volume)
    true = TrueMap.of(grid, warp)
    field, matrix, at = true.field, true.matrix, true.index()
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


def unit(volume: Image) -> NDArray[np.float32]:
    """The data with the 99.5th percentile of what is not 0 at 1."""
    data = np.asarray(volume.data, np.float32)
    return np.asarray(data / np.float32(np.percentile(data[data > 0], 99.5)), np.float32)


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


GREY = 1


def tissue_classes(volume: Image) -> NDArray[np.int8]:
    """Fluid 0, grey 1 and white matter 2 of an extracted T1 brain, -1 outside: three means of intensity (Lloyd)."""
    data = np.asarray(volume.data, np.float32)
    level = data / np.percentile(data[data > 0], 99)
    sample, means = level[data > 0][::5], np.array([0.3, 0.6, 0.9])
    for _ in range(30):
        nearest = np.abs(sample[:, None] - means).argmin(axis=1)
        means = np.array([sample[nearest == k].mean() for k in range(3)])
    found = np.digitize(level, (means[:-1] + means[1:]) / 2)
    return np.where(data > 0, found, -1).astype(np.int8)


def own_labels(brain: Image, regions: Image) -> NDArray[np.int16]:
    """4 times the region (0 for none) plus 1, 2, 3 for fluid, grey and white matter, on the brain's grid; 0 outside the brain.

    ``regions`` is brought there by world mm; the tissue is told from the brain's own intensities alone.
    """
    index = np.moveaxis(regions.grid.to_index(brain.grid.points()), -1, 0)
    region = ndimage.map_coordinates(np.asarray(regions.data, np.int16), index, order=0, mode="constant")
    classes = tissue_classes(brain)
    return np.where(classes >= 0, 4 * region + classes + 1, 0).astype(np.int16)


def two_brains(fixed: Image, moving: Image, regions: Image, warp: Warp, folder: Path) -> None:
    """Write ``fixed``, seen through a known map, and ``moving`` as it is, with ``fixed_labels`` and ``moving_labels``.

    ``truth.npy`` is the known displacement (z, y, x, 3) at the fixed voxels, x, y, z in LPS mm, which leads to the common space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, brain in (("fixed", padded(fixed)), ("moving", padded(moving))):
        data, labels = unit(brain), own_labels(brain, regions)
        if name == "fixed":
            at = (true := TrueMap.of(brain.grid, warp)).index()
            np.save(folder / "truth.npy", true.displacement()[..., ::-1])
            labels = ndimage.map_coordinates(labels, at, order=0, mode="constant")
            data = np.where(labels > 0, np.maximum(ndimage.map_coordinates(data, at, order=3), 1e-3), 0).astype(np.float32)
        write_nifti(folder / f"{name}.nii.gz", brain.with_data(data))
        write_nifti(folder / f"{name}_labels.nii.gz", brain.with_data(labels))


def label_overlap(fixed: NDArray[np.int16], brought: NDArray[np.int16]) -> dict[str, float]:
    """Mean Dice of the regions' own grey matter, and Dice of grey and white matter, of two arrays of :func:`own_labels`."""
    regions = [r for r in np.unique(fixed // 4) if r > 0]
    grey = [np.where(a % 4 == GREY + 1, a // 4, 0) for a in (fixed, brought)]
    by_region = [dice(*(g == r for g in grey)) for r in regions]
    classes = {name: dice(*(a % 4 == k for a in (fixed, brought))) for name, k in (("grey", 2), ("white", 3))}
    return {"regions": float(np.mean(by_region)), **classes}


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """``2 |a and b| / (|a| + |b|)``."""
    return 2 * float((a & b).sum()) / max(float(a.sum() + b.sum()), 1.0)
