"""Pose of a block in its MRI with no initial guess.

Rotations from an even cover of SO(3), every shift by normalised FFT correlation of outline and edges (Padfield 2012), over what
the sections span and over their tissue alone, the best few of each refined from rigid over one scale per axis to affine, judged
by metrics that the search did not use. Mirror images are kept apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from histomri.core import Grid, Image, RegistrationError
from histomri.kernels.gaussian import gaussian
from histomri.kernels.interpolate import sample_3d
from histomri.registration.channels import make_channels, match_contrast
from histomri.registration.linear import Prior, fit_linear
from histomri.registration.samples import Channels, Samples, draw_samples
from histomri.registration.similarity import nmi

Float = NDArray[np.float64]
Pose = TypeVar("Pose")
SCALE_LIMITS = (0.6, 1.25)
REFINED = 4
# of the most tissue that the MRI shows anywhere within the span: less is compared as if it were that much
LEAST_ENERGY = 0.02
REFUSED = 2
# models with a scale of their own along the cutting axis, and how far it is from what is expected, as a logarithm, one sigma
SCALED = ("scaling", "affine")
AXIS_SPREAD = 0.1
# parts of a section that say something of the pose independently of each other
LOOKS = 10


class Scaled:
    """An image and its mask, resampled to any isotropic spacing once and kept; of how many sections it is made, if of any."""

    def __init__(self, image: Image, mask: Image, sections: int | None = None):
        self.image, self.mask, self.sections = image, mask, sections
        self._kept: dict[float, tuple[Image, Image]] = {}

    def at(self, spacing_mm: float) -> tuple[Image, Image]:
        """Image and mask at a spacing (see :func:`at_spacing_3d`)."""
        key = round(spacing_mm, 6)
        if key not in self._kept:
            self._kept[key] = at_spacing_3d(self.image, self.mask, spacing_mm)
        return self._kept[key]


@dataclass(frozen=True, eq=False)
class PoseCandidate:
    """``block_to_mri`` (4, 4) in mm and array order, with ``score`` (structure cosine), ``nmi`` (dissimilarity, lower is better)
    and ``dice`` of the masks.
    """

    block_to_mri: Float
    score: float
    nmi: float
    dice: float
    mirrored: bool

    @property
    def quality(self) -> float:
        """What candidates are ranked by: structure cosine, mask overlap and NMI together, higher is better."""
        return self.score + self.dice - self.nmi


@dataclass(frozen=True, eq=False)
class PoseResult:
    """The best pose, its ``confidence`` in 0 to 1 (lead over the best different pose) and the candidates, best first."""

    best: PoseCandidate
    confidence: float
    candidates: list[PoseCandidate] = field(default_factory=list)


def super_fibonacci(n: int) -> Float:
    """``n`` rotations spread evenly over SO(3) (Alexa 2022), as (n, 3, 3) matrices."""
    phi, psi = np.sqrt(2.0), 1.533751168755204288118041413
    s = np.arange(n) + 0.5
    t, d = s / n, 2 * np.pi * s
    r, big = np.sqrt(t), np.sqrt(1 - t)
    a, b = d / phi, d / psi
    quaternions = np.stack([r * np.sin(a), r * np.cos(a), big * np.sin(b), big * np.cos(b)], axis=1)
    return np.asarray(Rotation.from_quat(quaternions).as_matrix())


def find_pose(
    stack: Scaled,
    mri: Scaled,
    mirrored: tuple[bool, ...] = (False,),
    rotations: int = 2000,
    keep: int = 12,
    progress: Callable[[str], None] = lambda _: None,
) -> PoseResult:
    """Pose of the stack (image, mask; block mm) in the MRI (image, mask; LPS mm).

    Raises ``RegistrationError`` when either mask is empty or no candidate is anatomically possible.
    """
    coarse = _coarse_mm(stack, mri)
    # both hands are tried whatever is allowed: a mirrored pose that fits as well is a reason to doubt
    where = ("span", "tissue")
    starts = [s for hand in (False, True) for s in search_orientations(stack, mri, 1.5 * coarse, (hand,), rotations, keep, where)]
    progress(f"{len(starts)} orientations to refine")
    rough = [c for start in starts if (c := refine_pose(stack, mri, start, (coarse,), ("rigid", "scaling"))) is not None]
    allowed = distinct_candidates([c for c in rough if c.mirrored in mirrored], stack.mask, REFINED)
    refused = distinct_candidates([c for c in rough if c.mirrored not in mirrored], stack.mask, REFUSED)
    found = _refined(stack, mri, allowed, coarse, progress)
    if not found:
        raise RegistrationError(
            "No pose of the block in the MRI is anatomically possible: check pixel sizes, positions, `mirror`."
        )
    finer = refine_pose(stack, mri, found[0].block_to_mri, (coarse / 2, coarse / 3))
    best = finer if finer is not None else found[0]
    others = [c for c in found[1:] if different(c.block_to_mri, found[0].block_to_mri, stack.mask)]
    rivals = sorted([*others, *_refined(stack, mri, refused, coarse, progress)], key=lambda c: -c.quality)
    # without a rival there is nothing to be surer of than
    lead = found[0].quality - rivals[0].quality if rivals else 0.0
    return PoseResult(best, confidence(lead), [best, found[0], *rivals])


def refine_given(stack: Scaled, mri: Scaled, start: Float, keep: bool = False) -> PoseResult:
    """A pose that a person gave (block mm -> MRI mm), refined while it stays the same pose; as it is with ``keep``.

    Its confidence is 1, the person's: there is no rival to measure it by. Raises ``RegistrationError`` as :func:`find_pose` does.
    """
    coarse = _coarse_mm(stack, mri)
    best = _judge(stack, mri, start, coarse / 3)
    if not keep:
        found = refine_pose(stack, mri, start, (coarse, coarse / 2, coarse / 3))
        if found is not None and found.mirrored == best.mirrored and not different(found.block_to_mri, start, stack.mask):
            best = found
    return PoseResult(best, 1.0, [best])


def _coarse_mm(stack: Scaled, mri: Scaled) -> float:
    """The spacing at which poses are first refined. Raises ``RegistrationError`` when either mask is empty."""
    if not stack.mask.data.any() or not mri.mask.data.any():
        raise RegistrationError("The pose needs tissue in both the stack and the MRI; one of the masks is empty.")
    return max(float(max(stack.mask.grid.extent_mm)), 1e-3) / 40


def _refined(
    stack: Scaled, mri: Scaled, rough: list[PoseCandidate], coarse: float, progress: Callable[[str], None]
) -> list[PoseCandidate]:
    """Candidates refined to the affine at two spacings, best first; the impossible ones left out."""
    out = []
    for start in rough:
        candidate = refine_pose(stack, mri, start.block_to_mri, (coarse, coarse / 1.6), ("scaling", "affine"))
        if candidate is not None:
            out.append(candidate)
            hand = "mirrored" if candidate.mirrored else "proper"
            progress(f"{hand}: score {candidate.score:.3f} dice {candidate.dice:.3f} nmi {candidate.nmi:.3f}")
    return sorted(out, key=lambda c: -c.quality)


def distinct_candidates(found: list[PoseCandidate], mask: Image, limit: int) -> list[PoseCandidate]:
    """The best ``limit`` that are different poses, best first: many starts come to the same end."""
    return distinct(sorted(found, key=lambda c: -c.quality), lambda c: c.block_to_mri, mask, limit)


def distinct(found: Iterable[Pose], matrix: Callable[[Pose], Float], mask: Image, limit: int) -> list[Pose]:
    """The first ``limit`` whose matrices (block to MRI) are different poses of the tissue in ``mask``, in their order."""
    out: list[Pose] = []
    for pose in found:
        if len(out) == limit:
            break
        if all(different(matrix(pose), matrix(o), mask) for o in out):
            out.append(pose)
    return out


def confidence(lead: float) -> float:
    """0.5 for no lead over the best different pose, above 0.95 for a lead of 0.15 in quality."""
    return float(1 / (1 + np.exp(-20 * lead)))


def different(a: Float, b: Float, mask: Image) -> bool:
    """Whether two poses put the block's tissue more than a tenth of its extent apart (rms)."""
    # about 2,000 of the mask's voxels say enough, and many poses are compared
    step = max(1, int(np.cbrt(int(mask.data.sum()) / 2000)))
    nodes = np.argwhere(mask.data[::step, ::step, ::step]) * step
    points = np.concatenate([mask.grid.to_world(nodes), np.ones((len(nodes), 1))], axis=1)
    distance = np.linalg.norm((points @ (a - b).T)[:, :3], axis=1)
    return float(np.sqrt((distance**2).mean())) > 0.1 * float(max(mask.grid.extent_mm))


def at_spacing_3d(image: Image, mask: Image, spacing_mm: float) -> tuple[Image, Image]:
    """Image and mask on an isotropic grid with the same axes, smoothed to its spacing."""
    covered = resample_3d(mask, spacing_mm)
    return resample_3d(image, spacing_mm), covered.with_data(covered.data >= 0.5)


def resample_3d(image: Image, spacing_mm: float) -> Image:
    """A volume on an isotropic grid with the same axes as float32, smoothed to its spacing; 0 outside."""
    base = image.grid
    sigma = np.maximum(0.45 * spacing_mm / base.spacing_mm - 0.3, 0)
    grid = base.with_spacing(np.full(3, spacing_mm))
    matrix = base.world_to_index @ grid.index_to_world
    blurred = _blurred(np.asarray(image.data, np.float32), sigma)
    data = ndimage.affine_transform(
        blurred, np.diag(matrix[:3, :3]), matrix[:3, 3], output_shape=grid.shape, order=1, mode="constant"
    )
    return Image(grid, data)


def _blurred(data: NDArray[np.float32], sigma: Float) -> NDArray[np.float32]:
    """Gaussian, truncated at 3 sigma, 0 outside."""
    reach = [int(3 * s + 0.5) for s in sigma]
    inner = tuple(slice(r, r + n) for r, n in zip(reach, data.shape, strict=True))
    return gaussian(np.pad(data, [(r, r) for r in reach]), [float(s) for s in sigma], 3)[inner]


def search_orientations(
    stack: Scaled,
    mri: Scaled,
    spacing_mm: float,
    mirrored: tuple[bool, ...],
    rotations: int,
    keep: int,
    compared: tuple[str, ...] = ("all",),
) -> list[Float]:
    """The best ``keep`` distinct starts (block mm -> MRI mm) over rotations, faces and shifts, by each comparison.

    ``compared``: where the MRI's tissue counts against a match: "all" of it, what of it lies within the "span" of the sections,
    or in their "tissue". A whole brain is found by the first two, a slab by the second, a hemisphere by the last.
    """
    fixed = make_channels(*stack.at(spacing_mm), "edges")
    moving = make_channels(*mri.at(spacing_mm), "edges")
    scale = _shrinkage(stack.mask, mri.mask)
    middle_fixed, middle_moving = _centroid(fixed), _centroid(moving)
    reach = max(_reach(fixed, middle_fixed), _reach(moving, middle_moving) / scale)
    size = fft.next_fast_len(int(np.ceil(_reach(fixed, middle_fixed) + reach)) + 2, real=True)
    size = max(size, 8)
    cube = _cube(fixed, middle_fixed, np.eye(3), size)
    compare = _Correlation(cube, [_known(name, cube, fixed, middle_fixed) for name in compared])
    found: list[list[tuple[float, Float]]] = [[] for _ in compared]
    for flip in mirrored:
        hand = np.diag([1.0, 1.0, -1.0]) if flip else np.eye(3)
        for turn in super_fibonacci(rotations):
            linear = turn @ hand * scale
            surfaces = compare.surfaces(_cube(moving, middle_moving, linear, size))
            for kept, surface in zip(found, surfaces, strict=True):
                peak = np.array(np.unravel_index(int(surface.argmax()), surface.shape))
                shift = np.where(peak > size // 2, peak - size, peak) * spacing_mm
                matrix = np.eye(4)
                matrix[:3, :3], matrix[:3, 3] = linear, middle_moving + linear @ (shift - middle_fixed)
                kept.append((float(surface[tuple(peak)]), matrix))
    best = [distinct(sorted(kept, key=lambda f: -f[0]), lambda f: f[1], stack.mask, keep) for kept in found]
    return [matrix for kept in best for _, matrix in kept]


class _Correlation:
    """``<f, m> / (|f| |m|_W)`` for every shift of m: channels f and m (c, n, n, n); a W (n, n, n) is 1 around what f shows.

    Without a W ``|m|`` is left out: it would be the same for all shifts.
    """

    def __init__(self, fixed: NDArray[np.float32], known: Sequence[NDArray[np.float32] | None]):
        self.side = fixed.shape[-1]
        self.fixed = np.conj(fft.rfftn(fixed, axes=(1, 2, 3)))
        self.known = [None if w is None else np.conj(fft.rfftn(w)) for w in known]
        self.norm = float(np.linalg.norm(fixed)) + 1e-12

    def surfaces(self, moving: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The cosine over each W for each cyclic shift (n, n, n)."""
        shape = (self.side,) * 3
        product = fft.irfftn((self.fixed * fft.rfftn(moving, axes=(1, 2, 3))).sum(axis=0), s=shape) / self.norm
        power = fft.rfftn((moving**2).sum(axis=0)) if any(w is not None for w in self.known) else None
        return [product if w is None else _over_energy(product, fft.irfftn(w * power, s=shape)) for w in self.known]


def _over_energy(product: NDArray[np.float32], energy: NDArray[np.float32]) -> NDArray[np.float32]:
    least = LEAST_ENERGY * float(energy.max()) + 1e-12
    return np.asarray(product / np.sqrt(np.maximum(energy, least)), np.float32)


def _known(name: str, cube: NDArray[np.float32], fixed: Channels, middle: Float) -> NDArray[np.float32] | None:
    """Where the MRI's tissue counts against a match, by its name in :func:`search_orientations`; None for everywhere."""
    if name == "tissue":
        return np.asarray(cube[-1] > 0, np.float32)
    return _span(fixed, middle, cube.shape[-1]) if name == "span" else None


def _span(channels: Channels, middle: Float, size: int) -> NDArray[np.float32]:
    """1 from the first section with tissue to the last, on the cube of :func:`_cube`: what lies beyond a block was not cut."""
    planes = np.nonzero((channels.data[..., -1] > 0.25).any(axis=(1, 2)))[0]
    first, last = (float(planes[0]), float(planes[-1])) if len(planes) else (0.0, float(channels.grid.shape[0] - 1))
    spacing = channels.grid.spacing_mm[0]
    nodes = np.indices((size,) * 3).reshape(3, -1).T - float(size // 2)
    along = channels.grid.to_index(middle + nodes * spacing)[:, 0]
    return ((along >= first - 0.5) & (along <= last + 0.5)).astype(np.float32).reshape((size,) * 3)


def _shrinkage(stack_mask: Image, mri_mask: Image) -> float:
    """In-plane scale from block to MRI: from the volumes where both are plausibly whole, else the usual 1 / 0.87."""
    volume = [float(m.data.sum()) * float(np.prod(m.grid.spacing_mm)) for m in (stack_mask, mri_mask)]
    ratio = (volume[1] / max(volume[0], 1e-9)) ** (1 / 3)
    return float(ratio) if 0.85 <= ratio <= 1.35 else 1.1


def _centroid(channels: Channels) -> Float:
    nodes = np.argwhere(channels.data[..., -1] > 0.25)
    return channels.grid.to_world(nodes.mean(axis=0)) if len(nodes) else channels.grid.centre_mm


def _reach(channels: Channels, middle: Float) -> float:
    nodes = np.argwhere(channels.data[..., -1] > 0.25)
    distance = np.linalg.norm(channels.grid.to_world(nodes) - middle, axis=1)
    return float(distance.max(initial=1.0)) / float(channels.grid.spacing_mm[0])


def _cube(channels: Channels, middle: Float, linear: Float, size: int) -> NDArray[np.float32]:
    """Channels first on a cube of ``size`` voxels, turned by ``linear`` about the tissue's centroid."""
    centre = np.full(3, size // 2, float)
    spacing = channels.grid.spacing_mm[0]
    matrix = np.eye(4)
    matrix[:3, :3] = linear * spacing
    matrix[:3, 3] = middle - linear @ centre * spacing
    nodes = np.stack(np.meshgrid(*[np.arange(size, dtype=float)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    out = sample_3d(channels.data, channels.grid.world_to_index @ matrix, nodes)
    return np.ascontiguousarray(out.T).reshape(-1, size, size, size)


def refine_pose(
    stack: Scaled,
    mri: Scaled,
    start: Float,
    spacings_mm: tuple[float, ...],
    models: tuple[str, ...] = ("rigid", "scaling", "affine"),
) -> PoseCandidate | None:
    """Gauss-Newton on structure channels over models and spacings, while the scales stay possible (None: not even the start)."""
    matrix = start
    for spacing in spacings_mm:
        fixed = make_channels(*stack.at(spacing), "structure")
        samples = draw_samples(fixed)
        fine_mri = mri.at(spacing)
        for model in models:
            aligned = align_3d(*fine_mri, matrix, fixed.grid)
            aligned = match_contrast(fixed, aligned, _inner(aligned, fixed.grid))
            prior = _axis_prior_of(stack, samples, aligned, matrix) if model in SCALED else None
            finer = matrix @ fit_linear(samples, aligned, np.eye(4), model, iterations=20, prior=prior).matrix
            if not possible(finer):
                # a few slices leave the scale along their axis open, and it runs away: what came before is what they can tell
                break
            matrix = finer
    if not possible(matrix):
        return None
    return _judge(stack, mri, matrix, spacings_mm[-1])


def _axis_prior_of(stack: Scaled, samples: Samples, aligned: Channels, matrix: Float) -> Prior | None:
    """The prior in the units of the images' cost: what a misfit as there is now would cost one look of all there are."""
    if stack.sections is None:
        return None
    return axis_prior(matrix, fit_linear(samples, aligned, np.eye(4), "rigid", iterations=0).cost / (LOOKS * stack.sections))


def axis_prior(matrix: Float, weight: float) -> Prior:
    """``weight r^2``, ``r = (log |c_z| - (log |c_y| + log |c_x|) / 4) / AXIS_SPREAD``, c the columns of ``matrix A``, A a step.

    The scale along the cutting axis lies between 1 and that of the plane.

    Positions are the specimen's own where sections shrink after they are cut, and the shrunk block's where before. A few sections
    hardly say, and a scale that runs away puts all of them on wrong planes.
    """
    share = np.array([1.0, -0.25, -0.25]) / AXIS_SPREAD

    def terms(step: Float) -> tuple[float, Float, Float]:
        columns = (matrix @ step)[:3, :3]
        square = (columns**2).sum(axis=0)
        rest = float(share @ (0.5 * np.log(square)))
        slope = np.zeros((3, 4))
        slope[:, :3] = matrix[:3, :3].T @ columns * (share / square)
        return weight * rest**2, weight * rest * slope.ravel(), weight * np.outer(slope, slope)

    return terms


def expected_strain(matrix: Float) -> tuple[float, float]:
    """By what share the scale along the cutting axis should change, and its standard deviation (see :func:`axis_prior`)."""
    scales = np.linalg.norm(matrix[:3, :3], axis=0)
    change = np.log(scales[0]) - 0.25 * np.log(scales[1:]).sum()
    return float(np.expm1(-change)), AXIS_SPREAD


def _inner(aligned: Channels, grid: Grid) -> NDArray[np.float32]:
    """The part of an aligned volume that lies on the fixed grid itself."""
    start = [(n - m) // 2 for n, m in zip(aligned.grid.shape, grid.shape, strict=True)]
    return aligned.data[tuple(slice(a, a + n) for a, n in zip(start, grid.shape, strict=True))]


def align_3d(image: Image, mask: Image, matrix: Float, grid: Grid, margin: int = 6) -> Channels:
    """Structure channels of the moving volume in the fixed frame, on the fixed grid with a margin (see ``pair.align``)."""
    frame = Grid(tuple(n + 2 * margin for n in grid.shape), grid.spacing_mm, grid.to_world([-margin] * 3), grid.direction)
    here = warp_volume(image, mask, matrix, frame)
    return make_channels(Image(frame, here[..., 0]), Image(frame, here[..., 1] >= 0.5), "structure")


def warp_volume(image: Image, mask: Image, matrix: Float, frame: Grid) -> NDArray[np.float32]:
    """Image and mask of a volume on another grid: (*frame.shape, 2)."""
    both = np.stack([np.asarray(image.data, np.float32), np.asarray(mask.data, np.float32)], axis=-1)
    nodes = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in frame.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    return sample_3d(both, image.grid.world_to_index @ matrix @ frame.index_to_world, nodes).reshape(*frame.shape, 2)


def possible(matrix: Float) -> bool:
    """Whether all scales lie within the limits for fixed, dehydrated tissue: a wild matrix is never acted on."""
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    inverse = 1 / np.maximum(scales, 1e-9)
    return bool((inverse > SCALE_LIMITS[0]).all() and (inverse < SCALE_LIMITS[1] + 0.25).all())


def _judge(stack: Scaled, mri: Scaled, matrix: Float, spacing_mm: float) -> PoseCandidate:
    image, mask = stack.at(spacing_mm)
    here = warp_volume(*mri.at(spacing_mm), matrix, image.grid)
    aligned = align_3d(*mri.at(spacing_mm), matrix, image.grid, margin=0)
    fixed = make_channels(image, mask, "structure")
    a, b = fixed.data[..., :-1], aligned.data[..., :-1]
    score = float((a * b).sum()) / (float(np.linalg.norm(a) * np.linalg.norm(b)) + 1e-12)
    inside = mask.data & (here[..., 1] >= 0.5)
    overlap = 2 * float(inside.sum()) / max(float(mask.data.sum() + (here[..., 1] >= 0.5).sum()), 1.0)
    value = nmi(image.data[inside], here[..., 0][inside]) if inside.sum() > 200 else 0.0
    return PoseCandidate(matrix, score, value, overlap, bool(np.linalg.det(matrix[:3, :3]) < 0))
