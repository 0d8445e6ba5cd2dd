"""Normalised gradient fields: edges at the same place and angle, of either sign (Haber and Modersitzki 2006).

With central differences ``g = grad m``, ``h = grad f`` (per voxel), ``a = |h|^2 + 1``, ``b = |g|^2 + 1``, ``v`` the weight:

    value = 1 - sum v <h, g>^2 / (a b) / sum v
    force = D^T c,   c = -2 v / sum v (<h, g> h / (a b) - <h, g>^2 g / (a b^2))

D^T being the transposed differences. Images come divided by the gradient that counts as an edge, hence the 1. A voxel whose
neighbours have no weight, or are beyond the border, has no gradient: ``v = min of w over the voxel and its face neighbours``.
"""

from __future__ import annotations

from histomri.backend import array_module
from histomri.kernels.similarity.channels import Array, mean_over_channels


def ngf_reference(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value (1 where an image does not vary or nothing has weight) and force (*shape, c) as array formulas; NumPy or CuPy."""
    return mean_over_channels(_one_channel_reference, fixed, warped, weight)


def _one_channel_reference(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    xp = array_module(warped)
    v = least_of_neighbours(weight.astype(xp.float64))
    total = float(v.sum())
    if total <= 0:
        return 1.0, xp.zeros_like(warped)
    h, g = (central_differences(image.astype(xp.float64)) for image in (fixed, warped))
    a, b = (sum(d * d for d in grad) + 1 for grad in (h, g))
    along = sum(d * e for d, e in zip(h, g, strict=True))
    first, second = along / (a * b), along * along / (a * b * b)
    value = 1 - float((v * along * first).sum()) / total
    coefficients = [-2 / total * v * (first * d - second * e) for d, e in zip(h, g, strict=True)]
    return value, transposed_differences(coefficients).astype(warped.dtype)


def _shifted(image: Array, axis: int, step: int) -> Array:
    """``I(p + step e_axis)``, 0 beyond the border."""
    xp = array_module(image)
    out = xp.zeros_like(image)
    to, of = [slice(None)] * image.ndim, [slice(None)] * image.ndim
    to[axis], of[axis] = (slice(None, -1), slice(1, None)) if step > 0 else (slice(1, None), slice(None, -1))
    out[tuple(to)] = image[tuple(of)]
    return out


def least_of_neighbours(weight: Array) -> Array:
    """The smallest weight among a voxel and its face neighbours, 0 at the border; NumPy or CuPy."""
    xp = array_module(weight)
    out = weight
    for axis in range(weight.ndim):
        for step in (1, -1):
            out = xp.minimum(out, _shifted(weight, axis, step))
    return out


def central_differences(image: Array) -> list[Array]:
    """``(I(p + e) - I(p - e)) / 2`` along each axis, zeros beyond the border; NumPy or CuPy."""
    return [(_shifted(image, axis, 1) - _shifted(image, axis, -1)) / 2 for axis in range(image.ndim)]


def transposed_differences(parts: list[Array]) -> Array:
    """The transpose of :func:`central_differences`: ``sum_axis (c(p - e) - c(p + e)) / 2``."""
    total: Array = sum((_shifted(c, axis, -1) - _shifted(c, axis, 1)) / 2 for axis, c in enumerate(parts))
    return total


def ngf(fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
    """Value and force of the normalised gradient fields (see the module)."""
    return ngf_reference(fixed, warped, weight)
