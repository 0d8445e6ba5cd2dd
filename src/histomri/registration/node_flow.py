"""Two views on one level of resolution, and Gauss-Newton on it: linear maps and deformations, both over nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid
from histomri.kernels.descriptor import mind_plane
from histomri.kernels.features import smooth
from histomri.kernels.flow_nodes import Looks, composed, least_jacobian, node_terms, relaxed
from histomri.kernels.interpolate import warp_2d
from histomri.registration.alignment import View
from histomri.registration.groups import generators
from histomri.registration.mending import unfolded
from histomri.registration.recolouring import conditional_mean
from histomri.registration.together import together
from histomri.transforms import DisplacementField

Float = NDArray[np.float64]
Array = NDArray[np.float32]
Bool = NDArray[np.bool_]
MARGIN_SHARE = 0.02
EDGE_PX = 4
DESCRIPTOR = 0.3
TONE_PX = 3.0
TONE_REACH_PX = 8.0


COLOUR_PX = 1.0
LEAST_PIXELS = 200
LEAST_UNEXPLAINED = 0.25


class Extras(NamedTuple):
    """How much counts beside the descriptor: ``outline``, the masks themselves; ``colour``, brightness where one image's tells
    the other's; ``tone``: whether the tones may count at all.
    """

    outline: float = 0.0
    colour: float = 0.0
    tone: bool = True


NOTHING_ELSE = Extras()
SHAPES = Extras(tone=False)


class Sampling(NamedTuple):
    """How a plane is brought to a spacing: from the coarsest level that is ``finer`` times as fine, smoothed by ``blur`` times
    what is missing to it.
    """

    finer: float = 1.0
    blur: float = 0.5


PLAINLY = Sampling()
# where the pixels of a coarse level happened to fall must not matter
SMOOTHLY = Sampling(2.0, 0.35)


@dataclass(frozen=True, eq=False)
class Pyramid:
    """A view at its own spacing, halved again and again: planes (y, x, 3) of image, mask and whether it was imaged at all (not
    there where all was), finest first, and their grids.

    ``placed`` (3, 3) maps the world in which it is seen to its own; ``sampling`` says how it is brought to another grid.
    """

    grids: tuple[Grid, ...]
    planes: tuple[Array, ...]
    placed: Float = field(default_factory=lambda: np.eye(3))
    sampling: Sampling = PLAINLY

    @staticmethod
    def of(view: View, sampling: Sampling = PLAINLY, least_px: int = 24) -> Pyramid:
        """Area averages; what lies further than ``MARGIN_SHARE`` of the image from the mask is erased, as it is not tissue."""
        mask = np.asarray(view.mask.data, bool)
        reach = max(1, round(MARGIN_SHARE * max(mask.shape)))
        near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)).astype(bool)
        channels = [np.where(near, view.image.data, 0), mask, *([] if view.imaged is None else [view.imaged.data])]
        plane = np.stack(channels, axis=-1).astype(np.float32)
        grids, planes = [view.image.grid], [plane]
        while min(plane.shape[:2]) >= 2 * least_px:
            plane = _halved(plane)
            grids.append(grids[-1].downsample(2))
            planes.append(plane)
        return Pyramid(tuple(grids), tuple(planes), sampling=sampling)

    def under(self, matrix: Float) -> Pyramid:
        """The same as it is seen from the world that ``matrix`` (3, 3) maps to this one."""
        return replace(self, placed=self.placed @ matrix)

    @property
    def spacing_mm(self) -> float:
        """The finest spacing."""
        return float(self.grids[0].spacing_mm.max())

    def on(self, grid: Grid, matrix: Float) -> Array:
        """Image, mask and whether it was imaged at all, (y, x, 3), on a grid that ``matrix`` takes to this view's world."""
        matrix = self.placed @ matrix
        step = np.linalg.norm(matrix[:2, :2] @ grid.direction * grid.spacing_mm, axis=0).min()
        finer, blur_of = self.sampling
        level = max((i for i, g in enumerate(self.grids) if finer * float(g.spacing_mm.max()) <= 1.01 * step), default=0)
        plane, source = self.planes[level], self.grids[level]
        blur = float(np.sqrt(max((step / float(source.spacing_mm.max())) ** 2 - 1, 0))) * blur_of
        if blur > 0.2:
            plane = np.asarray(cv2.GaussianBlur(plane, (0, 0), blur, borderType=cv2.BORDER_REPLICATE), np.float32)
        onto = source.world_to_index @ matrix @ grid.index_to_world
        if plane.shape[-1] == 2:
            plane = np.concatenate([plane, np.ones((*plane.shape[:2], 1), np.float32)], axis=-1)
        return warp_2d(plane, onto, (grid.shape[0], grid.shape[1]))


def _halved(plane: Array) -> Array:
    height, width = plane.shape[:2]
    even = cv2.copyMakeBorder(plane, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA), np.float32)


class Seen(NamedTuple):
    """Both looks as they are compared for now, and the gain of the tone (y, x)."""

    fixed: Looks
    moving: Looks
    gain: Array


@dataclass(frozen=True, eq=False)
class Level:
    """Features and weight of both images in the fixed frame; the moving one reaches ``pad`` pixels further on every side.

    The colour of the looks is brightness as it is, which counts ``colour`` times once it was made comparable.
    """

    grid: Grid
    fixed: Looks
    moving: Looks
    pad: int
    stride: int
    scale: float
    colour: float = 0.0

    @property
    def nodes(self) -> tuple[int, int]:
        """How many nodes there are along y and x."""
        return -(-self.grid.shape[0] // self.stride), -(-self.grid.shape[1] // self.stride)

    def terms(self, field: Array, seen: Seen) -> Array:
        """The Gauss-Newton sums on the nodes."""
        offset, scale = (self.pad, self.pad), self.colour**2
        return node_terms(seen.fixed, seen.moving, seen.gain, field, self.stride, offset, self.scale, scale)

    def seen(self, field: Array, tone: float) -> Seen:
        """What can be compared, and how, as the images lie under ``field``."""
        fixed, moving = self._recoloured(field)
        return Seen(fixed, moving, self.tone_gain(field, tone))

    def _moved(self, plane: Array, field: Array) -> Array:
        """A plane of the moving image and its weight on the fixed grid, (y, x, 2)."""
        height, width = self.grid.shape
        u = np.asarray(cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        onto = np.array([[1.0, 0.0, self.pad], [0.0, 1.0, self.pad], [0.0, 0.0, 1.0]])
        return warp_2d(np.stack([plane, self.moving.weight], axis=-1), onto, (height, width), u)

    def _recoloured(self, field: Array) -> tuple[Looks, Looks]:
        """Both looks with colours that can be subtracted: the moving brightness as the mean fixed one where it is found.

        In units of the spread about that mean. Where too little is seen of both, they have none.
        """
        fixed, moving = self.fixed, self.moving
        if fixed.colour is None or moving.colour is None:
            return fixed, moving
        moved = self._moved(moving.colour, field)
        both = fixed.weight * moved[..., 1] > 0.5
        if both.sum() < LEAST_PIXELS:
            return replace(fixed, colour=None), replace(moving, colour=None)
        wanted = fixed.colour[both]
        curve = conditional_mean(moved[..., 0][both], wanted)
        spread = float(np.sqrt(max(1 - curve.ratio, LEAST_UNEXPLAINED)) * wanted.std(dtype=np.float64))
        size = np.float32(self.colour / max(spread, 1e-6))
        return replace(fixed, colour=size * fixed.colour), replace(moving, colour=size * curve.apply(moving.colour))

    def tone_gain(self, field: Array, strength: float) -> Array:
        """How far the tones can be compared around each pixel (y, x): their local correlation as they lie, with its sign."""
        if strength == 0:
            return np.zeros(self.grid.shape, np.float32)
        moved = self._moved(self.moving.tone, field)
        w = self.fixed.weight * moved[..., 1]
        f, m = self.fixed.tone, moved[..., 0]
        fm, ff, mm = (_blur(w * a, TONE_REACH_PX) for a in (f * m, f * f, m * m))
        return np.asarray(np.float32(strength) * fm / np.sqrt(ff * mm + np.float32(1e-4)), np.float32)

    def chance(self) -> float:
        """The residual of unrelated pixels: ``s e / (s + e)``, ``e = sum_c var f_c + var m_c + (mean f_c - mean m_c)^2``."""
        f, m = (x.descriptor[x.weight > 0][::7] for x in (self.fixed, self.moving))
        if not len(f) or not len(m):
            return self.scale
        e = float((f.var(axis=0) + m.var(axis=0) + (f.mean(axis=0) - m.mean(axis=0)) ** 2).sum())
        return self.scale * e / (self.scale + e)

    def positions(self) -> Float:
        """Pixel positions of the nodes, (rows, columns, 2)."""
        axes = [(np.arange(n) + 0.5) * self.stride - 0.5 for n in self.nodes]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


@dataclass(frozen=True, eq=False)
class Still:
    """A fixed view on a grid as it is compared, with whatever is brought onto it; ``mask`` (y, x) is its tissue's share."""

    grid: Grid
    looks: Looks
    mask: Array
    extras: Extras

    @staticmethod
    def of(view: Pyramid, grid: Grid, extras: Extras = NOTHING_ELSE) -> Still:
        """A view on ``grid``."""
        plane = view.on(grid, np.eye(3))
        return Still(grid, _looks(plane, extras), plane[..., 1], extras)


def levels_onto(still: Sequence[Still], moving: Pyramid, matrix: Float, stride: int, robust: float) -> tuple[Level, ...]:
    """Fixed views on one grid, each with the same moving view under ``matrix`` (fixed mm -> moving mm)."""
    grid, extras = still[0].grid, still[0].extras
    pad = _margin(grid)
    other = moving.on(grid.crop((-pad, -pad), np.asarray(grid.shape) + pad), matrix)
    looks, inner = _looks(other, extras), other[pad:-pad, pad:-pad, 1]
    near = (replace(s.looks, weight=_near(s.mask, inner) * s.looks.weight) for s in still)
    return tuple(Level(grid, fixed, looks, pad, stride, robust, extras.colour) for fixed in near)


def make_level(fixed: Pyramid, moving: Pyramid, matrix: Float, grid: Grid, stride: int, robust: float) -> Level:
    """Both views on ``grid``, the moving one under ``matrix`` (fixed mm -> moving mm)."""
    return levels_onto((Still.of(fixed, grid),), moving, matrix, stride, robust)[0]


def make_both_ways(
    planes: tuple[Pyramid, Pyramid], matrix: Float, grid: Grid, stride: int, robust: float, extras: Extras = NOTHING_ELSE
) -> tuple[Level, Level]:
    """Two views on ``grid``, the second one under ``matrix``: the level that takes the first for fixed, and the other way round.

    What is compared of each is computed once for both.
    """
    pad = _margin(grid)
    wide = grid.crop((-pad, -pad), np.asarray(grid.shape) + pad)
    placed = (planes[0], np.eye(3)), (planes[1], matrix)
    seen = together([partial(plane.on, wide, onto) for plane, onto in placed])
    looks = together([partial(_looks, plane, extras) for plane in seen])
    near = _near(*(plane[..., 1] for plane in seen))
    ways = (looks, looks[::-1])
    first, second = (Level(grid, _inner(still, near, pad), other, pad, stride, robust, extras.colour) for still, other in ways)
    return first, second


def _margin(grid: Grid) -> int:
    """Pixels by which the moving image reaches further."""
    return EDGE_PX + round(0.06 * max(grid.shape))


def _looks(plane: Array, extras: Extras) -> Looks:
    colour = None if extras.colour == 0 else _blur(plane[..., 0], COLOUR_PX)
    tone = _tone(plane) if extras.tone else np.zeros(plane.shape[:2], np.float32)
    return Looks(_features(plane), tone, _imaged(plane), _outline(plane, extras.outline), colour)


def _inner(looks: Looks, near: Array, pad: int) -> Looks:
    """The looks without a margin, with weight only ``near`` tissue."""
    sure = (np.ascontiguousarray(p[pad:-pad, pad:-pad]) for p in (looks.descriptor, looks.tone, looks.weight * near))
    extra = (None if p is None else np.ascontiguousarray(p[pad:-pad, pad:-pad]) for p in (looks.outline, looks.colour))
    return Looks(*sure, *extra)


def _near(*masks: Array) -> Array:
    """1 where any of the images has tissue, and a little around it, 0 elsewhere."""
    tissue = np.maximum(*masks) > 0.1
    return cv2.dilate(tissue.astype(np.uint8), np.ones((2 * EDGE_PX + 1,) * 2, np.uint8)).astype(np.float32)


def _features(plane: Array) -> Array:
    # the square root brings strong and pale stains closer before their differences are squared
    return mind_plane(np.sqrt(np.maximum(plane[..., 0], 0)), plane[..., 1] > 0.5, size=DESCRIPTOR)


def _outline(plane: Array, outline: float) -> Array | None:
    return None if outline == 0 else np.float32(outline) * _blur(plane[..., 1], 1.0)


def _tone(plane: Array) -> Array:
    """The image as a share of what is common in its tissue, after local normalisation."""
    inside = plane[..., 1] > 0.5
    common = float(np.median(plane[..., 0][inside][::7])) if inside.any() else 1.0
    share = plane[..., 0] / (plane[..., 0] + np.float32(max(common, 1e-6)))
    mean = _blur(share, TONE_PX)
    spread = np.sqrt(np.maximum(_blur(share * share, TONE_PX) - mean * mean, 0))
    floor = 0.25 * float(np.median(spread[inside][::7])) if inside.any() else 1.0
    return np.asarray(np.clip((share - mean) / (spread + np.float32(floor + 1e-6)), -3, 3), np.float32)


def _blur(plane: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.float32)


def _imaged(plane: Array) -> Array:
    """1 for pixels whose descriptor saw only what was imaged, 0 for others."""
    whole = (plane[..., 2] > 0.99).astype(np.uint8)
    return np.asarray(cv2.erode(whole, np.ones((5, 5), np.uint8), borderValue=0), np.float32)


def fit_matrix(level: Level, model: str, iterations: int, tone: float = 0.0) -> tuple[Float, float]:
    """The linear map of the level's pixels (3, 3), to be done before its matrix, and its cost: 1 where all looks unrelated.

    Pixels of tissue that find nothing imaged cost as much as unrelated ones, so losing them never pays. The tones count ``tone``
    times as far as they agree as the images lie at first.
    """
    state, best = np.eye(3), (np.eye(3), np.inf)
    total = max(float(level.fixed.weight.sum(dtype=np.float64)), 1e-9)
    positions, chance = level.positions(), level.chance()
    linear = LinearModel.of(model, positions)
    seen = level.seen(np.zeros((*level.nodes, 2), np.float32), tone)
    for _ in range(iterations):
        field = (positions @ (state[:2, :2] - np.eye(2)).T + state[:2, 2]).astype(np.float32)
        terms = level.terms(field, seen).astype(np.float64)
        cost = (float(terms[..., 5].sum()) / chance + total - float(terms[..., 6].sum())) / total
        if not cost < best[1] * (1 - LINEAR_TOLERANCE):
            return (state, cost) if cost < best[1] else best
        best = (state, cost)
        state = state @ linear.step(terms)
    return best


@dataclass(frozen=True, eq=False)
class LinearModel:
    """Displacements of the nodes by the parameters of a linear model: ``basis`` (2, n, k), y and x, and its maps (k, 2, 3) of
    positions relative to ``centre`` over ``radius``.
    """

    maps: Float
    basis: Float
    centre: Float
    radius: float

    @staticmethod
    def of(model: str, positions: Float) -> LinearModel:
        """A model by its name on nodes at ``positions`` (rows, columns, 2)."""
        flat = positions.reshape(-1, 2)
        centre = flat.mean(axis=0)
        radius = float(np.abs(flat - centre).max()) or 1.0
        scaled = np.concatenate([(flat - centre) / radius, np.ones((len(flat), 1))], axis=-1)
        maps = np.stack(generators(model, 2))[:, :2]
        return LinearModel(maps, np.einsum("kab,nb->ank", maps, scaled), centre, radius)

    def step(self, terms: Float) -> Float:
        """The Gauss-Newton step (3, 3) for the terms (rows, columns, 7), at most three pixels anywhere."""
        yy, yx, xx, sy, sx = (terms[..., k].reshape(-1, 1) for k in range(5))
        by, bx = self.basis
        # without BLAS, whose sums depend on its number of threads
        hessian = np.einsum("nk,nl->kl", by, yy * by + yx * bx) + np.einsum("nk,nl->kl", bx, yx * by + xx * bx)
        slope = np.einsum("nk,na->k", by, sy) + np.einsum("nk,na->k", bx, sx)
        hessian += np.eye(len(slope)) * (1e-3 * np.trace(hessian) / len(slope) + 1e-12)
        delta = -np.linalg.solve(hessian, slope)
        delta *= min(1.0, 3.0 / max(float(np.abs(np.einsum("ank,k->an", self.basis, delta)).max()), 1e-9))
        step = np.eye(3)
        move = np.tensordot(delta, self.maps, axes=1)
        step[:2, :2] += move[:, :2] / self.radius
        step[:2, 2] = move[:, 2] - move[:, :2] @ self.centre / self.radius
        return step


@dataclass(frozen=True)
class Bending:
    """How a level's deformation is sought. ``alpha``: weight of the squared slope of the displacement, relative to the mean of
    the structure tensor; ``ridge``: damping, likewise; ``window``: Gaussian of the sums in nodes; ``sweeps`` of the solver; at
    most ``iterations``, fewer where the cost falls by less than ``tolerance``. ``tone``: how much tones count where they agree,
    which, as the relation of the colours, is measured at the level's start and again before the iterations ``tone_again``.
    ``mended``: a step that would fold is mended there, instead of halved everywhere until it does not.
    """

    alpha: float = 1.0
    ridge: float = 0.05
    window: float = 1.0
    sweeps: int = 12
    iterations: int = 40
    tolerance: float = 2e-4
    tone: float = 0.7
    tone_again: tuple[int, ...] = (6,)
    mended: bool = False


MIN_JACOBIAN = 0.1


def folds(field: DisplacementField) -> bool:
    """Whether a displacement in mm on nodes folds, or nearly: a Jacobian determinant of ``MIN_JACOBIAN`` or less somewhere."""
    nodes = np.ascontiguousarray(field.values @ field.grid.world_to_index[:2, :2].T, np.float32)
    return least_jacobian(nodes, 1) <= MIN_JACOBIAN


# of the terms: tensor and force, which make the system that is solved
SYSTEM = 5
LINEAR_TOLERANCE = 1e-4


class Bendable(Protocol):
    """What :func:`bend` asks of a level, or of several as one; what it has seen is its own business."""

    @property
    def nodes(self) -> tuple[int, int]:
        """How many nodes there are along y and x."""

    @property
    def stride(self) -> int:
        """Pixels between nodes."""

    def terms(self, field: Array, seen: Any) -> Array:
        """The Gauss-Newton sums on the nodes."""

    def seen(self, field: Array, tone: float) -> Any:
        """What can be compared, and how, as the images lie under ``field``."""


def bend(level: Bendable, field: Array, plan: Bending, pins: Array | None = None) -> tuple[Array, float, str]:
    """The level's displacement on its nodes, in pixels, from ``field`` on; its cost and how it ended.

    Each Gauss-Newton step of ``sum w r^2 + alpha |grad u|^2`` is composed with the field so far, and halved or mended where it
    would fold. ``pins`` (rows, columns, 3): how hard a node is drawn, in units of the mean tensor, and to which displacement.
    """
    best, best_cost, stale = field, np.inf, 0
    seen = level.seen(field, plan.tone)
    for done in range(plan.iterations):
        if done in plan.tone_again:
            seen, best_cost = level.seen(field, plan.tone), np.inf
        terms = level.terms(field, seen)
        unit = _mean_tensor(terms)
        cost = _cost(terms, field, plan.alpha * unit)
        if cost < best_cost * (1 - plan.tolerance):
            best, best_cost, stale = field, cost, 0
        else:
            best, best_cost, stale = (field, cost, stale + 1) if cost < best_cost else (best, best_cost, stale + 1)
            if stale >= 2:
                return best, best_cost, "converged"
        terms = np.stack([smooth(terms[..., k], plan.window) for k in range(SYSTEM)], axis=-1)
        if pins is not None:
            _draw(terms, field, pins, unit)
        field = _advance(field, terms, level.stride, unit, plan)
    return best, best_cost, "stopped"


def _mean_tensor(terms: Array) -> float:
    """Half the mean trace of the structure tensor over the nodes that see anything."""
    seen = max(int((terms[..., 6] > 0).sum()), 1)
    return float((terms[..., 0] + terms[..., 2]).sum(dtype=np.float64)) / 2 / seen + 1e-9


def _cost(terms: Array, field: Array, alpha: float) -> float:
    slope = float(sum((np.diff(field, axis=a).astype(np.float64) ** 2).sum() for a in (0, 1)))
    return (float(terms[..., 5].sum(dtype=np.float64)) + alpha * slope) / max(float(terms[..., 6].sum(dtype=np.float64)), 1e-9)


def _draw(terms: Array, field: Array, pins: Array, unit: float) -> None:
    """Add the pull of the pins to the terms."""
    pull = np.float32(unit) * pins[..., 0]
    terms[..., 0] += pull
    terms[..., 2] += pull
    terms[..., 3:5] += pull[..., None] * (field - pins[..., 1:])


def make_pins(level: Level, fixed_mm: Float, wanted_mm: Float, pull: float) -> Array:
    """Pins (rows, columns, 3) for :func:`bend` that draw points ``fixed_mm`` (n, 2) to ``wanted_mm``, both in the fixed world.

    Each point draws its nearest node with ``pull``; a node with several is drawn to their mean.
    """
    start, end = level.grid.to_index(fixed_mm), level.grid.to_index(wanted_mm)
    last = np.asarray(level.nodes) - 1
    nodes = np.clip(np.round((start + 0.5) / level.stride - 0.5), 0, last).astype(int)
    pins = np.zeros((*level.nodes, 3))
    np.add.at(pins, tuple(nodes.T), np.concatenate([np.ones((len(nodes), 1)), end - start], axis=1))
    pins[..., 1:] /= np.maximum(pins[..., :1], 1)
    pins[..., 0] *= pull
    return pins.astype(np.float32)


def _advance(field: Array, terms: Array, stride: int, unit: float, plan: Bending) -> Array:
    """The field after one step of at most ``stride`` pixels."""
    update = relaxed(terms, field, plan.alpha * unit, plan.ridge * unit, plan.sweeps)
    length = np.linalg.norm(update, axis=-1, keepdims=True)
    update = np.asarray(update / np.maximum(length / stride, 1), np.float32)
    if plan.mended:
        return _mended(composed(field, update, stride), field, stride)
    for _ in range(5):
        moved = composed(field, update, stride)
        if least_jacobian(moved, stride) > MIN_JACOBIAN:
            return moved
        update = update / np.float32(2)
    return field


def _mended(moved: Array, before: Array, stride: int) -> Array:
    """A field in pixels that does not fold: mended around the nodes where it would, or the one before if that fails."""
    if least_jacobian(moved, stride) > MIN_JACOBIAN:
        return moved
    scale = np.float32(1 / stride)
    mended = unfolded(moved * scale, MIN_JACOBIAN, before * scale)
    return before if mended is None else np.asarray(mended / scale, np.float32)


def finer(field: Array, nodes: tuple[int, int]) -> Array:
    """A field on nodes half as far apart, in pixels half as large."""
    doubled = cv2.resize(field, (nodes[1], nodes[0]), interpolation=cv2.INTER_LINEAR) * np.float32(2)
    return np.ascontiguousarray(doubled)
