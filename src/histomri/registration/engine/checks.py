"""What a fit cannot work with, said in words before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histomri.core import Grid, Image, InputError, RegistrationError
from histomri.core.errors import Problem
from histomri.registration import sanity
from histomri.registration.engine.pyramid import Source
from histomri.registration.engine.regularisation import TERMS
from histomri.registration.sanity import MAX_SCALE, MAX_STRETCH
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.affine import nearest_rotation

Float = NDArray[np.float64]

LEAST_PIXELS = 16
LEAST_NODES = 4
# share of the smaller mask that must meet the other at the start
LEAST_OVERLAP = 0.05
SPACING_RATIO = 500.0
CONSTANT = 1e-6


def _error(where: str, what: str, remedy: str) -> InputError:
    return InputError(Problem(where, what, remedy))


def names(given: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raises ``InputError`` for a name that does not exist, or none at all."""
    for name in given or [""]:
        if name not in known:
            raise _error(where, f"there is no {name!r}", f"choose from {', '.join(known)}")


def order(transforms: Sequence[str], linear: Sequence[str], bent: bool) -> None:
    """Raises ``InputError`` for a linear transform after a deformation; ``bent`` where the start has one already."""
    for name in transforms:
        if bent and name in linear:
            raise _error("transforms", f"{name} cannot follow a deformation", "put the linear transforms first")
        bent = bent or name not in linear


def penalties(given: Mapping[str, float] | None) -> None:
    """Raises ``InputError`` for a term that does not exist or a weight below 0."""
    if given:
        names(list(given), tuple(TERMS), "regularisation")
        for name, weight in given.items():
            if not (np.isfinite(weight) and weight >= 0):
                raise _error("regularisation", f"{name} has the weight {weight}", "give a number of at least 0")


def geometry(fixed: Grid, moving: Grid) -> None:
    """Raises ``InputError`` for different dimensions, or spacings that cannot both be right."""
    if fixed.ndim != moving.ndim:
        raise _error("images", f"a {fixed.ndim}D image cannot be fitted to a {moving.ndim}D one", "give two of the same kind")
    ratio = max(float(moving.spacing_mm.max() / fixed.spacing_mm.min()), float(fixed.spacing_mm.max() / moving.spacing_mm.min()))
    if ratio > SPACING_RATIO:
        what = f"their spacings differ by a factor of {ratio:.3g} (limit {SPACING_RATIO:g})"
        raise _error("images", what, "correct the spacing that is wrong")


def source(image: Image, mask: Image | None, name: str) -> Source:
    """The image as float32 with channels, what lies outside the mask and is not finite replaced by the mean of what lies inside.

    Raises ``InputError`` for an image or mask that is empty, constant, or not finite where it is to be used.
    """
    data = np.asarray(image.data, np.float32)
    data = data if image.channels else data[..., None]
    inside: NDArray[np.bool_] = np.ones(image.grid.shape, bool) if mask is None else _mask(mask, image.grid, name)
    if min(image.grid.shape) < LEAST_NODES:
        what = f"has {' x '.join(map(str, image.grid.shape))} pixels, at least {LEAST_NODES} along each axis are needed"
        raise _error(name, what, "use a finer or larger image")
    if int(inside.sum()) < LEAST_PIXELS:
        what = f"its mask is empty: {int(inside.sum())} pixels are set, at least {LEAST_PIXELS} are needed"
        raise _error(name, what, "set the mask where there is something to compare, or leave it out")
    finite = np.asarray(np.isfinite(data).all(axis=-1), bool)
    if not finite[inside].all():
        count = int((~finite & inside).sum())
        raise _error(name, f"{count} pixels that are to be used are NaN or infinite", "leave them out by a mask, or fill them")
    used = data[inside]
    if float((used.max(axis=0) - used.min(axis=0)).max()) <= CONSTANT * max(float(np.abs(used).max()), 1e-30):
        raise _error(name, f"is constant where it is to be used: {used.flat[0]:g}", "choose the right file or mask")
    filled = np.where(finite[..., None], data, used.mean(axis=0, dtype=np.float64)).astype(np.float32)
    return Source(image.grid, np.ascontiguousarray(filled), inside)


def _mask(mask: Image, grid: Grid, name: str) -> NDArray[np.bool_]:
    if mask.grid.shape != grid.shape:
        raise _error(name, f"its mask has {mask.grid.shape} pixels, the image {grid.shape}", "make the mask on the image's grid")
    return np.asarray(mask.data) > 0


def at_unit_spread(fixed: Source, moving: Source) -> tuple[Source, Source]:
    """Both images less the fixed one's mean, over its standard deviation in its mask: weights then mean the same for all."""
    used = fixed.data[fixed.mask].astype(np.float64)
    mean, spread = used.mean(), max(float(used.std()), 1e-30)

    def scaled(image: Source) -> Source:
        return Source(image.grid, ((image.data - np.float32(mean)) / np.float32(spread)).astype(np.float32), image.mask)

    return scaled(fixed), scaled(moving)


def landmarks(given: tuple[ArrayLike, ArrayLike], ndim: int) -> tuple[Float, Float]:
    """Both lists of points, float64. Raises ``InputError`` where they do not pair up or are not finite."""
    fixed, moving = (np.asarray(p, float) for p in given)
    if fixed.shape != moving.shape or fixed.ndim != 2 or fixed.shape[1] != ndim or not len(fixed):
        what = f"two lists of as many points (n, {ndim}) were expected, found {fixed.shape} and {moving.shape}"
        raise _error("landmarks", what, "each row must be the same point in both images")
    if not (np.isfinite(fixed).all() and np.isfinite(moving).all()):
        raise _error("landmarks", "some coordinates are not finite", "leave those points out")
    return fixed, moving


def starts(initial: Any, fixed: Source, moving: Source, points: tuple[Float, Float] | None) -> list[Float]:
    """The matrices (fixed mm to moving mm) to start from, each within the limits of ``sanity``."""
    ndim = fixed.grid.ndim
    if initial is None:
        given = [np.eye(ndim + 1) if points is None else from_landmarks(*points)]
    elif isinstance(initial, str):
        names([initial], ("centres",), "initial")
        given = [_centres(fixed, moving)]
    else:
        many = initial if isinstance(initial, (list, tuple)) else [initial]
        given = [_matrix(one, ndim) for one in many]
    for matrix in given:
        if why := _bad_linear(matrix[:-1, :-1]):
            raise RegistrationError(f"The initial transform cannot be right: {why}.")
    return given


def _matrix(given: Any, ndim: int) -> Float:
    matrix = np.asarray(getattr(given, "matrix", given), float)
    if matrix.shape != (ndim + 1, ndim + 1) or not np.isfinite(matrix).all():
        what = f"a finite {ndim + 1} x {ndim + 1} matrix (fixed mm to moving mm) was expected, found {matrix.shape}"
        raise _error("initial", what, "give an Affine of the images' dimensions")
    return matrix


def from_landmarks(fixed: Float, moving: Float) -> Float:
    """The similarity that takes fixed points nearest to moving ones (Umeyama 1991); a shift for too few points."""
    ndim = fixed.shape[1]
    middle = fixed.mean(axis=0), moving.mean(axis=0)
    a, b = fixed - middle[0], moving - middle[1]
    out = np.eye(ndim + 1)
    spread = float((a**2).sum())
    if len(fixed) >= ndim and spread > 0:
        turn, reach = nearest_rotation(a, b)
        out[:-1, :-1] = turn * reach / spread
    out[:-1, -1] = middle[1] - out[:-1, :-1] @ middle[0]
    return out


def _centres(fixed: Source, moving: Source) -> Float:
    out = np.eye(fixed.grid.ndim + 1)
    middle = [s.grid.to_world(np.argwhere(s.mask).mean(axis=0)) for s in (fixed, moving)]
    out[:-1, -1] = middle[1] - middle[0]
    return out


def _bad_linear(linear: Float, around: float = 10.0) -> str:
    """Why a linear part is beyond all limits; its scale may be up to ``around`` times off 1."""
    scales = np.linalg.svd(linear, compute_uv=False)
    if not scales[-1] > 0:
        return "its matrix is singular"
    middle = float(np.prod(scales) ** (1 / len(scales)))
    if not 1 / around <= middle <= around:
        return f"it scales by {middle:.3g} (limit: a factor of {around:g})"
    stretch = float(scales[0] / scales[-1])
    return f"it stretches or shears by {stretch:.3g} (limit {MAX_STRETCH:g})" if stretch > MAX_STRETCH else ""


def refused(matrix: Float, field: DisplacementField | None, first: Float, fixed: Source) -> str:
    """Why a result is beyond the limits of ``sanity``, relative to its start; empty where nothing is wrong with it."""
    if not np.isfinite(matrix).all() or (field is not None and not np.isfinite(field.values).all()):
        return "it is not finite"
    relative = np.asarray(np.linalg.solve(first[:-1, :-1].T, matrix[:-1, :-1].T).T, np.float64)
    if why := _bad_linear(relative, MAX_SCALE):
        return why
    return "" if field is None else sanity.too_long(field, fixed.grid)


def overlap(matrix: Float, fixed: Source, moving: Source) -> None:
    """Raises ``RegistrationError`` where hardly any of the smaller mask meets the other at the start."""
    share = sanity.overlap(Affine(matrix), Image(fixed.grid, fixed.mask), Image(moving.grid, moving.mask))
    if share < LEAST_OVERLAP:
        what = f"only {share:.1%} of the smaller image meets the other at the start (at least {LEAST_OVERLAP:.0%} are needed)"
        raise RegistrationError(f"{what}: give an initial transform, or search for one.")
