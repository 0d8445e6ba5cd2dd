"""Diffeomorphic in-plane registration: small smooth updates, composed, coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histomri.kernels.features import smooth
from histomri.kernels.flow import flow_terms
from histomri.kernels.interpolate import warp_2d
from histomri.registration.linear import Channels
from histomri.transforms.displacement import DisplacementField

Array = NDArray[np.float32]
MIN_JACOBIAN = 0.15


@dataclass(frozen=True)
class Deformation:
    """How stiff and how long. ``window_px``: the update's Gaussian window, ``stiffness_px``: Gaussian of the whole field after
    each update (both in pixels of the level), ``factors``: downsample factors coarse to fine, ``iterations`` per level,
    ``ridge``: damping relative to the mean structure tensor.
    """

    window_px: float = 4.0
    stiffness_px: float = 1.0
    factors: tuple[int, ...] = (4, 2, 1)
    iterations: int = 20
    ridge: float = 0.3
    tolerance: float = 2e-4


@dataclass(frozen=True, eq=False)
class DeformableResult:
    """``field`` on the fixed grid (fixed mm, before the affine), the mean cost before and after, ``status``."""

    field: DisplacementField
    before: float
    after: float
    status: str


def fit_deformable(
    fixed: Channels, moving: Channels, matrix: NDArray[np.float64], settings: Deformation, start: Array | None = None
) -> DeformableResult:
    """Displacement u on the fixed grid such that moving(matrix(p + u)) looks like fixed(p); the map never folds.

    Each step solves the windowed Gauss-Newton system ``(G*T + ridge) du = -G*b`` (Lucas and Kanade 1981), is composed with the
    field so far (``u <- du + u(p + du)``) and smoothed; a step that would fold is halved. ``start`` (y, x, 2) in mm.
    """
    spacing = fixed.grid.spacing_mm
    field = np.zeros((*fixed.grid.shape, 2), np.float32) if start is None else (start / spacing).astype(np.float32)
    before = _cost(fixed, moving, matrix, field)
    status = "converged"
    for factor in settings.factors:
        level = _shrink(fixed, factor)
        onto = moving.grid.world_to_index @ matrix @ level.grid.index_to_world
        coarse = _resize(field, level.grid.shape) * np.float32(1 / factor)
        coarse, status = _descend(level, moving.data if factor == 1 else _blurred(moving, factor), onto, coarse, settings)
        field = _resize(coarse, fixed.grid.shape) * np.float32(factor)
    field = unfold(field)
    after = _cost(fixed, moving, matrix, field)
    if not after < before:
        return DeformableResult(DisplacementField(fixed.grid, np.zeros_like(field)), before, before, "failed: no improvement")
    return DeformableResult(DisplacementField(fixed.grid, (field * spacing).astype(np.float32)), before, after, status)


def _descend(level: Channels, moving: Array, onto: NDArray[np.float64], field: Array, settings: Deformation) -> tuple[Array, str]:
    best, best_cost, stale = field, np.inf, 0
    for _ in range(settings.iterations):
        terms = flow_terms(level.data, moving, level.weight, onto, field)
        cost = float(terms[..., 5].sum(dtype=np.float64)) / max(float(level.weight.sum(dtype=np.float64)), 1e-9)
        if cost < best_cost * (1 - settings.tolerance):
            best, best_cost, stale = field, cost, 0
        else:
            best, best_cost, stale = (field, cost, stale + 1) if cost < best_cost else (best, best_cost, stale + 1)
            if stale >= 3:
                return best, "converged"
        update = _update(terms, settings)
        field = compose(field, update)
        field = _smooth_field(field, settings.stiffness_px)
    return best, "stopped"


def _update(terms: Array, settings: Deformation) -> Array:
    """``-(G*T + ridge I)^-1 G*b``, at most one pixel."""
    t = np.stack([smooth(terms[..., k], settings.window_px) for k in range(5)], axis=-1).astype(np.float64)
    ridge = settings.ridge * float((t[..., 0] + t[..., 2]).mean()) / 2 + 1e-9
    yy, yx, xx = t[..., 0] + ridge, t[..., 1], t[..., 2] + ridge
    det = yy * xx - yx * yx
    step = -np.stack([xx * t[..., 3] - yx * t[..., 4], yy * t[..., 4] - yx * t[..., 3]], axis=-1) / det[..., None]
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    return np.asarray(step / np.maximum(length, 1.0), np.float32)


def compose(field: Array, update: Array) -> Array:
    """``du + u(p + du)`` in pixels; a halved update is used where the result would fold."""
    for _ in range(4):
        moved = np.asarray(_displaced(field, update) + update, np.float32)
        if float(jacobian(moved).min()) > MIN_JACOBIAN / 2:
            return moved
        update = update / np.float32(2)
    return field


def _displaced(field: Array, update: Array) -> Array:
    """``u(p + du)`` for updates of at most a pixel: replicated edges, so the field does not fade at the border."""
    padded = np.pad(field, [(2, 2), (2, 2), (0, 0)], mode="edge")
    onto = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
    return warp_2d(padded, onto, (field.shape[0], field.shape[1]), update)


def jacobian(field: Array) -> Array:
    """Determinant of ``d(p + u)/dp`` of a field in pixels, central differences."""
    (yy, yx), (xy, xx) = (np.gradient(field[..., k]) for k in range(2))
    return np.asarray((1 + yy) * (1 + xx) - yx * xy, np.float32)


def unfold(field: Array) -> Array:
    """The field smoothed just as much as it takes for the Jacobian to stay above ``MIN_JACOBIAN``."""
    for _ in range(30):
        if float(jacobian(field).min()) > MIN_JACOBIAN:
            return field
        field = _smooth_field(field, 1.5)
    return np.zeros_like(field)


def _smooth_field(field: Array, sigma: float) -> Array:
    return np.stack([smooth(field[..., k], sigma) for k in range(2)], axis=-1)


def _shrink(channels: Channels, factor: int) -> Channels:
    if factor == 1:
        return channels
    grid = channels.grid.downsample(factor)
    data = np.stack([_block_mean(channels.data[..., c], factor) for c in range(channels.data.shape[-1])], axis=-1)
    return Channels(grid, np.ascontiguousarray(data), _block_mean(channels.weight, factor))


def _block_mean(data: Array, factor: int) -> Array:
    pad = [(0, -n % factor) for n in data.shape]
    full = np.pad(data, pad, mode="edge")
    shape = (full.shape[0] // factor, factor, full.shape[1] // factor, factor)
    out: Array = full.reshape(shape).mean(axis=(1, 3), dtype=np.float32)
    return out


def _blurred(moving: Channels, factor: int) -> Array:
    return np.stack([smooth(moving.data[..., c], 0.45 * factor) for c in range(moving.data.shape[-1])], axis=-1)


def _resize(field: Array, shape: tuple[int, ...]) -> Array:
    """A field on a grid ``f`` times finer or coarser with aligned outer faces, values unchanged."""
    if field.shape[:2] == tuple(shape):
        return field
    ratio = [n / m for n, m in zip(field.shape[:2], shape, strict=True)]
    if max(ratio) > 1:
        field = _smooth_field(field, 0.45 * max(ratio))
    # ceil-sized levels: the true factor is the nearest whole one
    factor = max(1, round(max(max(ratio), 1 / min(ratio))))
    step = float(factor) if max(ratio) > 1 else 1.0 / factor
    offset = (step - 1) / 2
    where = np.stack(np.meshgrid(*[np.arange(n) * step + offset for n in shape], indexing="ij"))
    parts = [ndimage.map_coordinates(field[..., k], where, order=1, mode="nearest") for k in range(2)]
    return np.stack(parts, axis=-1).astype(np.float32)


def _cost(fixed: Channels, moving: Channels, matrix: NDArray[np.float64], field: Array) -> float:
    onto = moving.grid.world_to_index @ matrix @ fixed.grid.index_to_world
    warped = warp_2d(moving.data, onto, (fixed.grid.shape[0], fixed.grid.shape[1]), field)
    error = ((warped - fixed.data) ** 2).sum(axis=-1) * fixed.weight
    return float(error.sum(dtype=np.float64) / max(float(fixed.weight.sum(dtype=np.float64)), 1e-9))
