"""What a displacement may cost, apart from the images: every term is ``term(field, spacing) -> (value, gradient)``.

``field`` (*shape, ndim) in pixels, ``spacing`` (ndim,) the size of a pixel along each axis in any unit of length; with
``v = spacing * u`` the displacement in that unit, derivatives by length and N the number of nodes:

    diffusion   1/N sum |dv|^2                         forward differences
    bending     1/N sum_ab |d_a d_b v|^2               second differences (Rueckert et al. 1999)
    curvature   1/N sum |laplacian v|^2                (Fischer and Modersitzki 2003)
    elastic     1/N sum mu |(dv + dv^T) / 2|^2 + lambda / 2 (div v)^2
    volume      1/N sum log(det(1 + dv))^2             (Rohlfing et al. 2003)

Nothing is asked at the border (natural boundary conditions). The gradient, by the field in pixels, is the exact derivative of the
discrete value. ``bending`` and ``curvature`` carry one over a length squared, the others are pure numbers. In float64, in numpy's
own order: nothing depends on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Term = Callable[[NDArray[Any], Float], tuple[float, Float]]

# below this determinant log(det) goes on as its tangent, so that a fold costs much and still has a gradient
LEAST_DETERMINANT = 0.05


def diffusion(field: NDArray[Any], spacing: Float) -> tuple[float, Float]:
    """Mean squared first derivatives."""
    v = _lengths(field, spacing)
    value, gradient = 0.0, np.zeros_like(v)
    for axis, size in enumerate(spacing):
        part, slope = _square(_forward(v, axis) / size)
        value += part
        gradient += _forward_adjoint(slope, axis) / size
    return _mean(value, gradient, spacing)


def bending(field: NDArray[Any], spacing: Float) -> tuple[float, Float]:
    """Mean squared second derivatives, mixed ones counted twice: no cost for any affine displacement."""
    v = _lengths(field, spacing)
    value, gradient = 0.0, np.zeros_like(v)
    for a in range(len(spacing)):
        part, slope = _square(_second(v, a) / spacing[a] ** 2)
        value += part
        gradient += _second_adjoint(slope, a, v.shape[a]) / spacing[a] ** 2
        for b in range(a + 1, len(spacing)):
            size = spacing[a] * spacing[b]
            part, slope = _square(_forward(_forward(v, a), b) / size)
            value += 2 * part
            gradient += 2 * _forward_adjoint(_forward_adjoint(slope, b), a) / size
    return _mean(value, gradient, spacing)


def curvature(field: NDArray[Any], spacing: Float) -> tuple[float, Float]:
    """Mean squared Laplacian, of the nodes' inner second differences."""
    v = _lengths(field, spacing)
    laplacian = np.zeros_like(v)
    for axis, size in enumerate(spacing):
        _inner(laplacian, axis)[...] += _second(v, axis) / size**2
    value, slope = _square(laplacian)
    gradient = np.zeros_like(v)
    for axis, size in enumerate(spacing):
        gradient += _second_adjoint(_inner(slope, axis), axis, v.shape[axis]) / size**2
    return _mean(value, gradient, spacing)


def elastic(field: NDArray[Any], spacing: Float, mu: float = 1.0, lam: float = 0.5) -> tuple[float, Float]:
    """Linear elastic energy with the Lame constants mu and lambda: no cost for small rotations."""
    v = _lengths(field, spacing)
    slopes = _derivatives(v, spacing)
    strain = (slopes + np.swapaxes(slopes, -1, -2)) / 2
    divergence = np.trace(slopes, axis1=-2, axis2=-1)
    value = mu * float((strain**2).sum()) + lam / 2 * float((divergence**2).sum())
    stress = 2 * mu * strain + lam * divergence[..., None, None] * np.eye(len(spacing))
    return _mean(value, _derivatives_adjoint(stress, spacing), spacing)


def volume(field: NDArray[Any], spacing: Float) -> tuple[float, Float]:
    """Mean squared logarithm of the Jacobian determinant: growing by a factor costs as much as shrinking by it."""
    v = _lengths(field, spacing)
    jacobian = _derivatives(v, spacing) + np.eye(len(spacing))
    determinant = np.linalg.det(jacobian)
    safe = np.maximum(determinant, LEAST_DETERMINANT)
    logarithm = np.log(safe) + (determinant - safe) / safe
    slope = (2 * logarithm / safe)[..., None, None] * _cofactors(jacobian)
    return _mean(float((logarithm**2).sum()), _derivatives_adjoint(slope, spacing), spacing)


TERMS: dict[str, Term] = {
    "diffusion": diffusion,
    "bending": bending,
    "curvature": curvature,
    "elastic": elastic,
    "volume": volume,
}


def penalty(weights: dict[str, float], field: NDArray[Any], spacing: Float) -> tuple[float, Float]:
    """``alpha R``: the weighted sum of terms, by name. Raises ``KeyError`` for an unknown one."""
    value, gradient = 0.0, np.zeros(field.shape)
    for name, weight in sorted(weights.items()):
        part, slope = TERMS[name](field, spacing)
        value, gradient = value + weight * part, gradient + weight * slope
    return value, gradient


def landmark_distance(mapped: Float, goal: Float, unit: float) -> tuple[float, Float]:
    """``1/n sum |q_i - g_i|^2 / unit^2`` of mapped points (n, ndim) and their goals, and its derivative by ``mapped``."""
    off = (mapped - goal) / unit
    return float((off**2).sum()) / len(off), 2 * off / (unit * len(off))


def _lengths(field: NDArray[Any], spacing: Float) -> Float:
    return np.asarray(field, np.float64) * spacing


def _mean(value: float, gradient: Float, spacing: Float) -> tuple[float, Float]:
    """Over the nodes, and by the field in pixels."""
    nodes = gradient[..., 0].size
    return value / nodes, gradient * (spacing / nodes)


def _square(x: Float) -> tuple[float, Float]:
    return float((x**2).sum()), 2 * x


def _inner(x: Float, axis: int) -> Float:
    """Without the first and last node of an axis; a view. Empty for an axis of fewer than three nodes."""
    return x[(slice(None),) * axis + (slice(1, -1),)]


def _forward(x: Float, axis: int) -> Float:
    """``x[i + 1] - x[i]``, one shorter."""
    return np.diff(x, axis=axis)


def _forward_adjoint(y: Float, axis: int) -> Float:
    pad = [(0, 0)] * y.ndim
    pad[axis] = (1, 1)
    return -np.diff(np.pad(y, pad), axis=axis)


def _second(x: Float, axis: int) -> Float:
    """``x[i + 1] - 2 x[i] + x[i - 1]`` at inner nodes, two shorter; nothing for an axis of fewer than three nodes."""
    return np.diff(x, n=2, axis=axis)


def _second_adjoint(y: Float, axis: int, n: int) -> Float:
    if n < 3:
        return np.zeros((*y.shape[:axis], n, *y.shape[axis + 1 :]))
    return _forward_adjoint(_forward_adjoint(y, axis), axis)


def _derivatives(v: Float, spacing: Float) -> Float:
    """``d v_i / d x_j``, (*shape, i, j), central in the middle and one-sided at the border."""
    return np.stack([_central(v, axis) / size for axis, size in enumerate(spacing)], axis=-1)


def _derivatives_adjoint(y: Float, spacing: Float) -> Float:
    out = np.zeros(y.shape[:-1])
    for axis, size in enumerate(spacing):
        out += _central_adjoint(y[..., axis], axis) / size
    return out


def _central(x: Float, axis: int) -> Float:
    if x.shape[axis] < 2:
        return np.zeros_like(x)
    step = np.diff(x, axis=axis)
    first, last = (step[(slice(None),) * axis + (s,)] for s in (slice(0, 1), slice(-1, None)))
    before, after = (step[(slice(None),) * axis + (s,)] for s in (slice(None, -1), slice(1, None)))
    return np.concatenate([first, (before + after) / 2, last], axis=axis)


def _central_adjoint(y: Float, axis: int) -> Float:
    if y.shape[axis] < 2:
        return np.zeros_like(y)
    at = (slice(None),) * axis
    step = np.zeros_like(y[(*at, slice(1, None))])
    step[(*at, slice(None, -1))] += y[(*at, slice(1, -1))] / 2
    step[(*at, slice(1, None))] += y[(*at, slice(1, -1))] / 2
    step[(*at, slice(0, 1))] += y[(*at, slice(0, 1))]
    step[(*at, slice(-1, None))] += y[(*at, slice(-1, None))]
    return _forward_adjoint(step, axis)


def _cofactors(m: Float) -> Float:
    """``d det / d m``, (..., n, n)."""
    if m.shape[-1] == 2:
        return np.stack([np.stack([m[..., 1, 1], -m[..., 1, 0]], -1), np.stack([-m[..., 0, 1], m[..., 0, 0]], -1)], -2)
    rows = [np.cross(m[..., (i + 1) % 3, :], m[..., (i + 2) % 3, :]) for i in range(3)]
    return np.stack(rows, axis=-2)
