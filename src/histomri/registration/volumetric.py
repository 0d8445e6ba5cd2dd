"""Two volumes, whatever their contrasts and however they lie: the registration that needs no option.

1. The tissue is found where no mask says where it is.
2. Every rotation is tried on coarse volumes, the best few are refined to an affine (``find_start``).
3. Coarse to fine, a diffeomorphic deformation lowers the squared difference of two channels: the locally normalised intensity
   (its squared difference is 2 (1 - LNCC)), one image's contrast first brought to the other's, and the tissue's soft outline.

Each step solves the windowed Gauss-Newton system ``(G*T + ridge) du = -G*b`` (Lucas and Kanade 1981), composes the update with
the field so far and smooths the whole; where a step would fold it is mended, and only there. At the finest level the field lives
on nodes two voxels apart, and where the anatomies differ at last on every voxel. ``docs/decisions/engine.md`` has the
measurements behind the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histomri.core import Grid, Image, RegistrationError
from histomri.kernels.fields import compose
from histomri.kernels.flow_3d import COST, flow_terms_3d, solve_3d
from histomri.kernels.gaussian import gaussian
from histomri.kernels.interpolate import CoarseField, Order, warp
from histomri.kernels.threshold import otsu
from histomri.registration.alignment import Alignment, Guide, Progress, View, part, silent
from histomri.registration.mending import unfolded
from histomri.registration.pose import PoseCandidate, Scaled, distinct_candidates, refine_pose, search_orientations
from histomri.registration.recolouring import Curve, conditional_mean
from histomri.registration.sanity import tissue_size
from histomri.registration.similarity import nmi
from histomri.tiling.boxes import boxes
from histomri.tiling.smooth import gaussian_part
from histomri.transforms import Affine, Chain, DisplacementField

Array = NDArray[np.float32]
Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
MIN_JACOBIAN = 0.1
# finer nodes between those of a coarser level have other corners: they begin with some room
START_JACOBIAN = 0.12
SMALLEST = 1e-3
LOWEST, HIGHEST = 0.1, 1.5
TRIAL_STEPS = 3
SLAB = 48


@dataclass(frozen=True)
class VolumetricSettings:
    """Of the deformation, per level and coarse to fine; lengths in voxels of the level.

    ``factors``: spacing of the level over the finest one's; ``nodes``: voxels per node of the field; ``window``: sigma of the
    update's Gaussian window; ``stiffness``: sigma of the smoothing of the whole field after each update; ``iterations``: at most
    so many; ``local``: sigma of the window of the local normalisation. For all levels, ``ridge``: damping relative to the mean
    structure tensor; ``tolerance``: relative fall of the cost that ends a level; ``most_voxels``: of the mask at the finest
    level, which is made coarser for more. ``loose``: window and stiffness of up to ``loose_iterations`` further steps at the
    finest level, taken where a trial lowers the cost of voxels that it did not see by a share ``worth`` or more; ``dense``: those
    of ``dense_iterations`` last ones, with a node in every voxel, where these were taken.
    """

    factors: tuple[int, ...] = (8, 4, 2, 1)
    nodes: tuple[int, ...] = (1, 1, 2, 2)
    window: tuple[float, ...] = (1.5, 1.5, 2.0, 4.0)
    stiffness: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0)
    iterations: tuple[int, ...] = (25, 20, 12, 8)
    local: tuple[float, ...] = (2.0, 2.0, 2.5, 5.0)
    ridge: float = 0.01
    tolerance: float = 2e-3
    most_voxels: float = 4e6
    loose: tuple[float, float] = (1.5, 1.0)
    loose_iterations: int = 3
    worth: float = 0.14
    dense: tuple[float, float] = (1.0, 1.0)
    dense_iterations: int = 3


DEFAULTS = VolumetricSettings()


@dataclass(frozen=True, eq=False)
class Soft:
    """A volume for registration: ``data`` is ``(I m, m)``, (z, y, x, 2) float32, m the mask as a share from 0 to 1."""

    grid: Grid
    data: Array

    @staticmethod
    def of(view: View) -> Soft:
        """The part of a view that its tissue fills, with a margin, its intensities brought to about 0 to 1."""
        inside = foreground(view)
        box, grid = _box(inside, view.image.grid, 6)
        mask = inside[box].astype(np.float32)
        values = np.asarray(view.image.data[box], np.float32)
        low, high = np.percentile(values[mask > 0][::7], (0.5, 99.5)) if inside.any() else (0.0, 1.0)
        unit = np.clip((values - low) / max(high - low, 1e-12) + 0.3, LOWEST, HIGHEST)
        return Soft(grid, np.stack([unit * mask, mask], axis=-1).astype(np.float32))

    def on(self, grid: Grid, matrix: Float) -> Array:
        """The volume on another grid, whose points ``matrix`` (4, 4) takes to this one's (mm), smoothed to its spacing."""
        if grid == self.grid and np.array_equal(matrix, np.eye(4)):
            return self.data
        scale = linear_scale(matrix)
        wanted = 0.6 * float(grid.spacing_mm.mean()) * scale
        sigma = np.sqrt(np.maximum(wanted**2 - (0.6 * self.grid.spacing_mm) ** 2, 0)) / self.grid.spacing_mm
        blurred = gaussian(self.data, [float(s) for s in sigma], 3) if sigma.max() > 0.2 else self.data
        order: Order = "cubic" if sigma.max() <= 0.2 else "linear"
        out = warp(blurred, self.grid.world_to_index @ matrix @ grid.index_to_world, grid.shape, order=order)
        np.clip(out[..., 1], 0, 1, out=out[..., 1])
        return np.asarray(out, np.float32)


def linear_scale(matrix: Float) -> float:
    """By how much a matrix (4, 4) scales lengths on average."""
    return float(np.cbrt(abs(np.linalg.det(matrix[:3, :3]))))


def _box(inside: Mask, grid: Grid, margin: int) -> tuple[tuple[slice, ...], Grid]:
    """The box around a mask with a margin, as slices and as a grid."""
    spans = [np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not all(len(s) for s in spans):
        raise RegistrationError("A volume has no tissue to register: its mask is empty.")
    start = [max(0, int(s[0]) - margin) for s in spans]
    stop = [min(n, int(s[-1]) + 1 + margin) for s, n in zip(spans, inside.shape, strict=True)]
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True)), grid.crop(start, stop)


def foreground(view: View) -> Mask:
    """The view's mask, or the tissue in it where the mask leaves next to nothing out.

    A background of exactly one value (an extracted brain) is not tissue; else what stands out from the border by half of
    what the tissue's tenth percentile does, its largest piece without holes.
    """
    mask = np.asarray(view.mask.data, bool)
    if mask.mean() < 0.98:
        return mask
    data = np.asarray(view.image.data)
    rim = np.concatenate([data[[0, -1]].ravel(), data[:, [0, -1]].ravel(), data[:, :, [0, -1]].ravel()])
    level = float(np.median(rim))
    outside = data == np.float32(level)
    if outside.mean() > 0.02:
        return np.asarray(mask & ~outside)
    contrast = np.abs(data - level)
    # a few voxels of bright fat or vessels would have a class of their own
    usual = contrast[mask & (contrast <= np.percentile(contrast[mask], 99.5))]
    rough = otsu(usual)
    # between two classes of very different width Otsu's threshold lies too close to the wider one, which is the tissue
    low, high = float(np.median(usual[usual <= rough])), float(np.percentile(usual[usual > rough], 10))
    return np.asarray(mask & _largest(contrast > (low + high) / 2))


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)
    if count < 2:
        return np.asarray(ndimage.binary_fill_holes(mask), bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(ndimage.binary_fill_holes(labels == sizes.argmax()), bool)


@dataclass(frozen=True, eq=False)
class Level:
    """Channels (z, y, x, c) of both volumes on one grid of the fixed volume, and the weight (z, y, x) of the fixed one."""

    grid: Grid
    fixed: Array
    moving: Array
    weight: Array


def make_level(fixed: Array, moving: Array, grid: Grid, field: CoarseField | None, local: float) -> Level:
    """A level of two soft volumes (z, y, x, 2) on one grid; ``field`` is the displacement so far."""
    # what is made of one image is let go of before the next: at the finest level this is the most that is held
    curves = _curves(fixed, moving if field is None else warp(moving, np.eye(4), grid.shape, field))
    channels = [
        local_channels(_intensity(soft) if curve is None else curve.apply(_intensity(soft)), soft[..., 1], local)
        for soft, curve in zip((fixed, moving), curves, strict=True)
    ]
    weight = ndimage.grey_dilation(fixed[..., 1], size=3)
    return Level(grid, channels[0], channels[1], np.where(weight > 0.02, weight, 0).astype(np.float32))


def _curves(fixed: Array, warped: Array) -> tuple[Curve | None, Curve | None]:
    """:func:`matching` of two soft volumes where both are tissue."""
    both = fixed[..., 1] * warped[..., 1] > 0.5
    return matching(*(_intensity(soft[both]) for soft in (fixed, warped)))


def _intensity(soft: Array) -> Array:
    # cubic weights overshoot at the mask's edge, where next to nothing is divided by next to nothing
    values = soft[..., 0] / np.maximum(soft[..., 1], np.float32(SMALLEST))
    return np.asarray(np.clip(values, LOWEST, HIGHEST), np.float32)


def local_channels(values: Array, mask: Array, sigma: float) -> Array:
    """``(m (I - mean) / sd, 2 m)`` with moments over a Gaussian window inside the mask, the first clipped at 3: (z, y, x, 2).

    ``sd`` is bounded below by a quarter of its median in the mask, so that flat regions do not turn noise into structure.
    """
    weight = np.maximum(gaussian(mask, sigma, 3), np.float32(SMALLEST))
    mean = gaussian(mask * values, sigma, 3) / weight
    sd = gaussian(mask * values * values, sigma, 3) / weight
    del weight
    sd -= mean * mean
    np.sqrt(np.maximum(sd, 0, out=sd), out=sd)
    inside = mask > 0.5
    floor = 0.25 * float(np.median(sd[inside])) if inside.any() else 1.0
    np.subtract(values, mean, out=mean)
    mean /= np.maximum(sd, np.float32(floor + 1e-6), out=sd)
    out = np.empty((*values.shape, 2), np.float32)
    np.multiply(mask, np.clip(mean, -3, 3, out=mean), out=out[..., 0])
    np.multiply(mask, np.float32(2), out=out[..., 1])
    return out


def matching(fixed: Array, warped: Array) -> tuple[Curve | None, Curve | None]:
    """The curve that brings the fixed or the moving image to the other's contrast (None: as it is), from values (n,).

    The one that is more nearly a function of the other is predicted from it by its conditional mean, ``E[f|m]`` or ``E[m|f]``:
    which one, the correlation ratio says (Roche et al. 1998).
    """
    if not len(fixed):
        return None, None
    of_fixed, of_moving = conditional_mean(warped, fixed), conditional_mean(fixed, warped)
    return (None, of_fixed) if of_fixed.ratio >= of_moving.ratio else (of_moving, None)


@dataclass(frozen=True, eq=False)
class Step:
    """The settings of one level."""

    nodes: int
    window: float
    stiffness: float
    iterations: int


def descend(level: Level, field: Array, step: Step, settings: VolumetricSettings) -> tuple[Array, str, list[float]]:
    """The field (Z, Y, X, 3), in voxels of the level at its nodes, after Gauss-Newton steps; how it ended; its costs."""
    best, costs, stale = field, [], 0
    total = max(float(level.weight.sum(dtype=np.float64)), 1e-9)
    for _ in range(step.iterations):
        terms = flow_terms_3d(level.fixed, level.moving, level.weight, np.eye(4), field, step.nodes)
        costs.append(float(terms[..., COST].sum(dtype=np.float64)) / total)
        better = costs[-1] < min(costs[:-1], default=np.inf) * (1 - settings.tolerance)
        best = field if costs[-1] <= min(costs) else best
        stale = 0 if better else stale + 1
        if stale >= 2:
            return best, "converged", costs
        field = advance(field, _update(terms, step, settings.ridge), step)
    return field, "stopped", costs


def loosened(level: Level, field: Array, step: Step, settings: VolumetricSettings) -> Array:
    """The field after a few steps with a smaller window and stiffness, or as it is where these are not worth it or not smaller.

    The half of the voxels that the trial does not see (blocks of two, as a chessboard) is the judge: noise fitted in one half
    does not lower the cost of the other, another anatomy does.
    """
    window, stiffness = settings.loose
    if stiffness >= step.stiffness:
        return field
    loose = replace(step, window=window, stiffness=stiffness, iterations=TRIAL_STEPS)
    seen, unseen = _halves(level)
    trial, _, _ = descend(seen, field, loose, settings)
    before, after = (_cost(unseen, f, step.nodes) for f in (field, trial))
    loose = replace(loose, iterations=settings.loose_iterations)
    return field if after > (1 - settings.worth) * before else descend(level, trial, loose, settings)[0]


def _halves(level: Level) -> tuple[Level, Level]:
    """The level with the weight of every other block of two voxels, and of the others."""
    even = [np.arange(n) // 2 % 2 == 0 for n in level.weight.shape]
    first = even[0][:, None, None] ^ even[1][:, None] ^ even[2]
    one, two = (replace(level, weight=np.where(half, level.weight, np.float32(0))) for half in (first, ~first))
    return one, two


def _cost(level: Level, field: Array, nodes: int) -> float:
    """The mean squared difference under a field."""
    terms = flow_terms_3d(level.fixed, level.moving, level.weight, np.eye(4), field, nodes)
    return float(terms[..., COST].sum(dtype=np.float64)) / max(float(level.weight.sum(dtype=np.float64)), 1e-9)


def _update(terms: Array, step: Step, ridge: float) -> Array:
    """``-(G*T + ridge I)^-1 G*b`` at every node, at most one node long, in voxels; slab by slab, which needs less memory."""
    sigma, out = step.window / step.nodes, np.empty((*terms.shape[:3], 3), np.float32)
    damping = ridge * sum(float(terms[..., k].mean(dtype=np.float64)) for k in (0, 3, 5)) / 3 + 1e-12
    for slab in boxes(terms.shape[:3], (SLAB, *terms.shape[1:3])):
        out[slab] = solve_3d(gaussian_part(terms, sigma, slab), damping, float(step.nodes))
    return out


def advance(field: Array, update: Array, step: Step) -> Array:
    """``du + u(p + du)``, smoothed; where that would fold, smoothed more and taken back, and left as it was if nothing helps."""
    scale = np.float32(1 / step.nodes)
    before = field * scale
    moved = stiffened(compose(update * scale, before), step.stiffness / step.nodes)
    mended = unfolded(moved, MIN_JACOBIAN, before)
    return field if mended is None else np.asarray(mended / scale, np.float32)


def stiffened(field: Array, sigma: float) -> Array:
    """``u - (1 - G)^2 u``: what a bending energy does, a Gaussian whose second-order bias is taken back (Tukey's twicing)."""
    rough = field - gaussian(field, sigma, 3)
    return np.asarray(field - (rough - gaussian(rough, sigma, 3)), np.float32)


def _mended(field: Array, limit: float) -> Array:
    """:func:`unfolded`, or no displacement at all."""
    mended = unfolded(field, limit)
    return np.zeros_like(field) if mended is None else mended


def nodes_of(grid: Grid, step: int) -> Grid:
    """A node for every ``step`` voxels of a grid along each axis."""
    return grid.downsample(step) if step > 1 else grid


@dataclass(frozen=True, eq=False)
class Nodes:
    """A displacement on a grid of nodes, mm along the grid's own axes."""

    grid: Grid
    values: Array

    @staticmethod
    def of(field: Array, level: Level, step: int) -> Nodes:
        """A field (Z, Y, X, 3) in voxels of a level, with a node for every ``step`` of them."""
        return Nodes(nodes_of(level.grid, step), field * level.grid.spacing_mm.astype(np.float32))

    def on(self, grid: Grid) -> Array:
        """The displacement on another grid with the same axes, in its voxels, edge values outside."""
        matrix = self.grid.world_to_index @ grid.index_to_world
        values = warp(self.values, matrix, grid.shape, outside="edge")
        return np.asarray(values / grid.spacing_mm.astype(np.float32), np.float32)

    def coarse_for(self, grid: Grid) -> CoarseField:
        """The same as :meth:`on`, without writing it out."""
        values = np.asarray(self.values / grid.spacing_mm.astype(np.float32), np.float32)
        scale = tuple(float(s) for s in grid.spacing_mm / self.grid.spacing_mm)
        return CoarseField(values, scale, tuple(float(i) for i in self.grid.to_index(grid.origin_mm)))

    def transform(self) -> DisplacementField:
        """The same as a displacement field in world mm."""
        return DisplacementField(self.grid, np.asarray(self.values @ self.grid.direction.T.astype(np.float32), np.float32))


def beginning(field: Nodes, grid: Grid, step: int) -> Array:
    """A field in voxels of a finer grid, with a node for every ``step`` of them, mended where it would begin folded there."""
    return np.asarray(_mended(field.on(nodes_of(grid, step)), START_JACOBIAN) * np.float32(step), np.float32)


def detailed(level: Level, field: Nodes, step: Step, settings: VolumetricSettings) -> Nodes:
    """The finest level's field after looser steps (:func:`loosened`) and then some with a node in every voxel, as folds of a
    cortex that differ need; as it is where looser steps are not worth it.
    """
    start = np.asarray(field.values / level.grid.spacing_mm.astype(np.float32), np.float32)
    loose = loosened(level, start, step, settings)
    if loose is start:
        return field
    window, stiffness = settings.dense
    dense = Step(1, window, stiffness, settings.dense_iterations)
    coarse = Nodes.of(loose, level, step.nodes)
    begun = unfolded(coarse.on(level.grid), START_JACOBIAN)
    if begun is None:
        return coarse
    found, _, _ = descend(level, begun, dense, settings)
    return Nodes.of(found, level, 1)


def finest_spacing(fixed: Soft, moving: Soft, matrix: Float, most_voxels: float) -> float:
    """Spacing (fixed mm, isotropic) of the finest level: the coarser volume's, or what keeps the tissue to ``most_voxels``."""
    cells = [float(np.prod(v.grid.spacing_mm)) for v in (fixed, moving)]
    volume = float(fixed.data[..., 1].sum(dtype=np.float64)) * cells[0]
    own, other = float(np.cbrt(cells[0])), float(np.cbrt(cells[1])) / linear_scale(matrix)
    # about the same: the fixed volume then stays on its own voxels
    native = other if other > 1.15 * own else own
    return max(native, float(np.cbrt(volume / most_voxels)))


def deform(
    fixed: Soft, moving: Soft, matrix: Float, settings: VolumetricSettings = DEFAULTS, progress: Progress = silent
) -> tuple[DisplacementField, str, list[float]]:
    """The deformation u on the fixed volume such that ``moving(matrix(p + u(p)))`` looks like ``fixed(p)``; the map never folds.

    Also how the last level ended, and the costs of every step.
    """
    finest = finest_spacing(fixed, moving, matrix, settings.most_voxels)
    field: Nodes | None = None
    status, trace = "stopped", []
    for k, factor in enumerate(settings.factors):
        grid = fixed.grid.with_spacing(finest * factor)
        step = Step(settings.nodes[k], settings.window[k], settings.stiffness[k], settings.iterations[k])
        so_far = None if field is None else field.coarse_for(grid)
        level = make_level(fixed.on(grid, np.eye(4)), moving.on(grid, matrix), grid, so_far, settings.local[k])
        start = (
            np.zeros((*nodes_of(grid, step.nodes).shape, 3), np.float32) if field is None else beginning(field, grid, step.nodes)
        )
        found, status, costs = descend(level, start, step, settings)
        trace += costs
        field = Nodes.of(found, level, step.nodes)
        if k == len(settings.factors) - 1:
            field = detailed(level, field, step, settings)
        progress((k + 1) / len(settings.factors), f"deformation at {finest * factor:.3g} mm")
    assert field is not None
    spacing = field.grid.spacing_mm.astype(np.float32)
    values = _mended(np.asarray(field.values / spacing, np.float32), MIN_JACOBIAN / 2) * spacing
    return Nodes(field.grid, np.asarray(values, np.float32)).transform(), status, trace


ROTATIONS = 600
KEPT = 6
REFINED = 3
COARSE_SHARE = 1 / 36
# up to this ratio of lengths, the smaller tissue may be a part of the larger: an eighth of it
PART = 2.0
SAME_SIZE = 0.1
LANDMARKS_FOR_AFFINE = 4
UNRELATED = -0.015
# two brains, either way round: -0.02 to 0.03; one brain and its own mirror image: 0.4 (docs/decisions/engine.md)
MIRROR_LEAD = 0.15


def register_volumes(
    fixed: View, moving: View, guide: Guide, progress: Progress = silent, settings: VolumetricSettings = DEFAULTS
) -> Alignment:
    """The moving volume on the fixed one: an affine from any orientation, then a deformation without folds (``docs/engine.md``).

    Judged by NMI, which none of the steps uses. Raises ``RegistrationError`` where a volume has no tissue or nothing is possible.
    """
    masked = _masked(fixed), _masked(moving)
    affine = find_start(*masked, guide, part(progress, 0.0, 0.3))
    if guide.search and guide.landmarks is None and (lead := mirror_lead(*masked, affine.matrix)) > MIRROR_LEAD:
        reason = f"a mirror image of the moving volume fits better, by {lead:.2f} (limit {MIRROR_LEAD:g}): is its left its right?"
        before, after = (dissimilarity(*masked, t) for t in (Affine.identity(3), affine))
        return Alignment(affine, "failed", reason, "nmi", before, after)
    field, status, trace = deform(Soft.of(masked[0]), Soft.of(masked[1]), affine.matrix, settings, part(progress, 0.3, 1.0))
    chain = Chain((field, affine))
    before, linear, after = (dissimilarity(*masked, t) for t in (Affine.identity(3), affine, chain))
    bettered = after <= linear
    kept, after = (chain, after) if bettered else (affine, linear)
    if after > UNRELATED:
        return Alignment(kept, "failed", "the images do not resemble each other", "nmi", before, after, tuple(trace))
    if not bettered:
        reason = "the affine alone fits better than with a deformation, which was left out"
        return Alignment(affine, "converged", reason, "nmi", before, after, tuple(trace))
    reason = "the cost fell by less than its tolerance" if status == "converged" else "the steps of the finest level ran out"
    return Alignment(kept, status, reason, "nmi", before, after, tuple(trace))


def _masked(view: View) -> View:
    return View(view.image, view.mask.with_data(foreground(view)))


def dissimilarity(fixed: View, moving: View, transform: Affine | Chain) -> float:
    """NMI (lower is better, see ``similarity.nmi``) at about 100,000 voxels of the fixed mask that lie in the moving one."""
    nodes = np.argwhere(fixed.mask.data)
    nodes = nodes[:: max(1, len(nodes) // 100_000)]
    there = moving.image.grid.to_index(transform.map(fixed.image.grid.to_world(nodes)))
    both = [np.asarray(v.data, np.float32) for v in (moving.image, moving.mask)]
    values, inside = (ndimage.map_coordinates(v, there.T, order=1, mode="constant") for v in both)
    hit = inside >= 0.5
    if int(hit.sum()) < 200:
        return 0.0
    return nmi(np.asarray(fixed.image.data, np.float32)[tuple(nodes[hit].T)], values[hit])


def mirror_lead(fixed: View, moving: View, matrix: Float) -> float:
    """By how much the quality of a mirrored pose is above that of ``matrix`` (fixed mm to moving mm), both refined alike.

    The mirrors are the three principal planes of the fixed tissue. Near 0 where a specimen is its own mirror image.
    """
    one, two = _cropped(fixed), _cropped(moving)
    coarse = COARSE_SHARE * float(max(one.mask.grid.extent_mm))
    points = one.mask.grid.to_world(np.argwhere(one.mask.data))
    middle = points.mean(axis=0)
    turned = [np.eye(4)]
    for axis in np.linalg.eigh(np.cov((points - middle).T))[1].T:
        mirror = np.eye(4)
        mirror[:3, :3] -= 2 * np.outer(axis, axis)
        mirror[:3, 3] = middle - mirror[:3, :3] @ middle
        turned.append(mirror)
    found = [refine_pose(one, two, matrix @ m, (coarse,), ("affine",)) for m in turned]
    proper, *others = (-np.inf if f is None else f.quality for f in found)
    return max(others) - proper if np.isfinite(proper) else 0.0


def find_start(fixed: View, moving: View, guide: Guide, progress: Progress = silent) -> Affine:
    """The affine (fixed mm to moving mm) to start from, whatever the orientation: masks and edges first, then structure.

    The moving volume is first scaled to the fixed one's size of tissue, and also not, where one may be a part of the other; the
    smaller tissue is placed on the larger. Rotations from an even cover of SO(3), each with its best
    shift, and the images as they lie are refined coarsely; the best different ones to an affine; the best of these at two finer
    spacings. Without ``guide.search`` only the images as they lie, with enough landmarks only these are refined.
    """
    fixed, moving = _masked(fixed), _masked(moving)
    if guide.search and tissue_size(moving.mask) < (1 - SAME_SIZE) * tissue_size(fixed.mask):
        # what of the larger tissue is not in the smaller one may not count against a match: the smaller is the fixed one
        return find_start(moving, fixed, guide.turned_round(), progress).inverse()
    found = [_start_at(fixed, moving, ratio, guide, progress) for ratio in _size_ratios(fixed, moving, guide)]
    progress(1.0, "start")
    return Affine(max(found, key=lambda f: f[0].quality)[1])


def _size_ratios(fixed: View, moving: View, guide: Guide) -> list[float]:
    """By how much the moving tissue may be larger: as the masks say, and not at all where one may be a part of the other."""
    ratio = tissue_size(moving.mask) / tissue_size(fixed.mask) if guide.search else 1.0
    if abs(ratio - 1) <= SAME_SIZE:
        return [1.0]
    return [ratio, 1.0] if 1 / PART < ratio < PART else [ratio]


def _start_at(fixed: View, moving: View, ratio: float, guide: Guide, progress: Progress) -> tuple[PoseCandidate, Float]:
    """The best start with the moving volume shrunk by ``ratio``, and its matrix without that."""
    back = np.diag([ratio, ratio, ratio, 1.0])
    one, two = _cropped(fixed), _cropped(_enlarged(moving, 1 / ratio))
    coarse = COARSE_SHARE * float(max(one.mask.grid.extent_mm))
    best = _best_start(one, two, _starts(one, two, guide, np.linalg.inv(back), coarse), coarse, progress)
    finer = refine_pose(one, two, best.block_to_mri, (coarse / 2,), ("affine",))
    best = best if finer is None or finer.quality < best.quality - 0.2 else finer
    return best, back @ best.block_to_mri


def _cropped(view: View) -> Scaled:
    box, grid = _box(np.asarray(view.mask.data), view.image.grid, 2)
    return Scaled(Image(grid, np.asarray(view.image.data[box], np.float32)), Image(grid, np.asarray(view.mask.data[box])))


def _enlarged(view: View, factor: float) -> View:
    """The view with all lengths times ``factor``."""
    old = view.image.grid
    grid = Grid(old.shape, old.spacing_mm * factor, old.origin_mm * factor, old.direction)
    return View(Image(grid, view.image.data), Image(grid, view.mask.data))


def _starts(one: Scaled, two: Scaled, guide: Guide, shrink: Float, coarse: float) -> list[Float]:
    """Matrices to begin with (fixed mm to the enlarged moving mm)."""
    if guide.landmarks is not None and len(guide.landmarks[0]) >= LANDMARKS_FOR_AFFINE:
        points = np.concatenate([guide.landmarks[0], np.ones((len(guide.landmarks[0]), 1))], axis=1)
        matrix = np.eye(4)
        matrix[:3] = np.linalg.lstsq(points, guide.landmarks[1], rcond=None)[0].T
        if np.linalg.det(matrix) <= 0:
            raise RegistrationError("The landmarks make the moving volume a mirror image: check their order and their signs.")
        return [shrink @ matrix]
    centred = np.eye(4)
    centred[:3, 3] = _middle(two.mask) - _middle(one.mask)
    lying = [shrink, centred] if guide.search else [shrink]
    return lying + (search_orientations(one, two, 1.5 * coarse, (False,), ROTATIONS, KEPT) if guide.search else [])


def _middle(mask: Image) -> Float:
    return mask.grid.to_world(np.argwhere(mask.data).mean(axis=0))


def _best_start(one: Scaled, two: Scaled, starts: list[Float], coarse: float, progress: Progress) -> PoseCandidate:
    """The best of all starts, refined to a rigid map and the best few different ones of these to an affine."""
    progress(0.4, "orientation")
    rough = [c for s in starts if (c := refine_pose(one, two, s, (coarse,), ("rigid", "similarity"))) is not None]
    chosen = distinct_candidates(rough, one.mask, REFINED)
    progress(0.7, "orientation")
    refined = [refine_pose(one, two, c.block_to_mri, (coarse, coarse / 1.6), ("similarity", "affine")) for c in chosen]
    found = [c for c in refined if c is not None] or chosen
    if not found:
        raise RegistrationError("No start for the registration was found: check the volumes' spacings and masks.")
    return max(found, key=lambda c: c.quality)
