"""ITK transform files (``.tfm``, ``.h5``): the (x, y[, z]) order ends here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from histomri.core import Grid, InputError
from histomri.core.errors import Problem
from histomri.io.atomic import replacing
from histomri.io.transform_text import TEXT_FILES, check_text
from histomri.transforms import Affine, Chain, DisplacementField, Transform

sitk: Any = SimpleITK
Float = NDArray[np.float64]

COVER_MAX_NODES = 1_000_000
TRIAL_S = 60
TRIAL_BYTES, DEFLATED_MOST = 1 << 28, 20
TRIAL = """
import resource, sys, SimpleITK
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 1 << 32
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
SimpleITK.ReadTransform(sys.argv[1])
"""
ONE_THREAD = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}


def _swapped(matrix: Float) -> Float:
    """A homogeneous matrix with the order of its coordinates reversed: (z, y, x) <-> (x, y, z)."""
    order = [*range(len(matrix) - 2, -1, -1), len(matrix) - 1]
    return matrix[np.ix_(order, order)]


def _affine_to_itk(affine: Affine) -> Any:
    matrix = _swapped(affine.matrix)
    itk = sitk.AffineTransform(affine.ndim)
    itk.SetMatrix(matrix[:-1, :-1].ravel().tolist())
    itk.SetTranslation(matrix[:-1, -1].tolist())
    return itk


def _field_to_itk(field: DisplacementField) -> Any:
    values = np.ascontiguousarray(np.asarray(field.values, np.float64)[..., ::-1])
    image = sitk.GetImageFromArray(values, isVector=True)
    grid = field.grid
    image.SetOrigin(grid.origin_mm[::-1].tolist())
    image.SetSpacing(grid.spacing_mm[::-1].tolist())
    image.SetDirection(grid.direction[::-1, ::-1].ravel().tolist())
    return sitk.DisplacementFieldTransform(image)


def padded_to(field: DisplacementField, points: Float) -> DisplacementField:
    """The field with its edge values repeated until its grid holds ``points``, (n, ndim) in mm.

    ITK moves nothing outside of a field's grid, whereas ours keeps the edge value: within the padding both agree.
    The padding stops at a million nodes.
    """
    grid = field.grid
    index = grid.to_index(points)
    before = np.maximum(0, np.ceil(-index.min(0)).astype(int))
    after = np.maximum(0, np.ceil(index.max(0)).astype(int) + 1 - grid.shape)
    if np.prod(np.asarray(grid.shape) + before + after) > COVER_MAX_NODES or not (before.any() or after.any()):
        return field
    values = np.pad(field.values, [*zip(before, after, strict=True), (0, 0)], mode="edge")
    return DisplacementField(grid.crop(-before, grid.shape + after), values, field.from_space, field.to_space)


def _sampled_at(field: DisplacementField, grid: Grid) -> DisplacementField:
    points = grid.points()
    return DisplacementField(grid, field.map(points) - points, field.from_space, field.to_space)


@dataclass(frozen=True)
class Sampling:
    """How an inverted field is sampled: finer until the error between nodes is at most ``tolerance_mm``, or ``max_nodes``."""

    tolerance_mm: float = 1e-4
    max_nodes: int = 100_000


def sampled(field: DisplacementField, points: Float, how: Sampling | None = None) -> DisplacementField:
    """An inverted field as a plain one, on a grid that holds ``points`` (n, ndim) of its from-space.

    The grid is refined until the error in the middle of its cells is small, or it would have too many nodes (:class:`Sampling`).
    Along the lines where the inverse has a kink (the field's own grid lines and its rim) up to 0.002 mm remain.
    """
    if not field.inverted:
        return field
    how = how or Sampling()
    ends = np.concatenate([field.grid.corners(), points])
    ends = np.concatenate([ends, field.inverse().map(ends)])
    plain = padded_to(DisplacementField(field.grid, field.values), ends)
    spacing = plain.grid.spacing_mm
    while True:
        shape = np.ceil((np.asarray(plain.grid.shape) - 1) * plain.grid.spacing_mm / spacing - 1e-9).astype(int) + 1
        grid = Grid(tuple(shape), spacing, plain.grid.origin_mm, plain.grid.direction)
        result = _sampled_at(field, grid)
        between = Grid(tuple(np.maximum(1, shape - 1)), spacing, grid.to_world(np.full(grid.ndim, 0.5)), grid.direction).points()
        error = np.nanmax(np.abs(result.map(between) - field.map(between)), initial=0.0)
        if error <= how.tolerance_mm or np.prod(shape) * 2**grid.ndim > how.max_nodes:
            return result
        spacing = spacing / 2


def _step_to_itk(step: Transform, points: Float, how: Sampling | None) -> Any:
    if isinstance(step, Affine):
        return _affine_to_itk(step)
    if isinstance(step, DisplacementField):
        return _field_to_itk(sampled(step, points, how) if step.inverted else padded_to(step, points))
    raise TypeError(f"A {type(step).__name__} cannot be written as an ITK transform.")


def write_affine(path: Path, affine: Affine) -> None:
    """Write a 2D or 3D affine as an ITK transform file (``.tfm`` or ``.h5``), (x, y[, z]) in mm, atomically."""
    with replacing(Path(path)) as temporary:
        sitk.WriteTransform(_affine_to_itk(affine), str(temporary))


def write_chain(path: Path, transform: Transform, cover: Float | None = None, how: Sampling | None = None) -> None:
    """Write a chain of affines and displacement fields as an ITK composite transform (``.h5`` or ``.tfm``), atomically.

    ``cover``, (n, ndim) points in mm of its from-space, says where the file must agree with ``transform``: fields are extended
    by their edge values to hold them (without it, ITK moves nothing outside of the field's grid). An inverted field is written
    as :func:`sampled` has it, by ``how``.
    """
    points = np.zeros((0, transform.ndim)) if cover is None else np.asarray(cover, float).reshape(-1, transform.ndim)
    steps = []
    for step in Chain.steps_of(transform):
        field_points = points if len(points) or isinstance(step, Affine) else step.grid.corners()  # type: ignore[attr-defined]
        steps.append(_step_to_itk(step, field_points, how))
        points = step.map(points) if len(points) else points
    # ITK applies the transform that was added last first
    composite = sitk.CompositeTransform(steps[::-1])
    with replacing(Path(path)) as temporary:
        sitk.WriteTransform(composite, str(temporary))


def _flat(itk: Any) -> list[Any]:
    """The elementary transforms in the order in which they are applied."""
    itk = itk.Downcast()
    if itk.GetName() != "CompositeTransform":
        return [itk]
    parts = [itk.GetNthTransform(i) for i in range(itk.GetNumberOfTransforms())]
    return [step for part in parts[::-1] for step in _flat(part)]


def _from_itk(itk: Any) -> Transform:
    if itk.GetName() == "DisplacementFieldTransform":
        image = itk.GetDisplacementField()
        n = image.GetDimension()
        direction = np.asarray(image.GetDirection()).reshape(n, n)[::-1, ::-1]
        shape, spacing, origin = image.GetSize()[::-1], image.GetSpacing()[::-1], image.GetOrigin()[::-1]
        grid = Grid(shape, np.asarray(spacing), np.asarray(origin), direction)
        return DisplacementField(grid, sitk.GetArrayFromImage(image)[..., ::-1].copy())
    if not itk.IsLinear():
        raise ValueError(f"a {itk.GetName()} is neither linear nor a displacement field")
    # by mapping, so that every linear class and its centre of rotation are right
    n = itk.GetDimension()
    start = np.asarray(itk.TransformPoint([0.0] * n))
    columns = [np.asarray(itk.TransformPoint(row)) - start for row in np.eye(n).tolist()]
    return Affine(_swapped(Affine.from_parts(np.stack(columns, axis=1), start).matrix))


def fails_in_itk(path: Path) -> bool:
    """Whether ITK crashes, hangs or fails over a file: a damaged HDF5 file can end the process that reads it.

    It is read in a process of its own first, which takes half a second and may take no more memory than such a file needs;
    ITK's text files need no such trial.
    """
    if path.suffix.lower() in TEXT_FILES:
        return False
    line = [sys.executable, "-c", TRIAL, str(path.absolute()), str(TRIAL_BYTES + DEFLATED_MOST * path.stat().st_size)]
    try:
        done = subprocess.run(line, capture_output=True, timeout=TRIAL_S, check=False, env={**os.environ, **ONE_THREAD})
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def read_transform(path: Path, from_space: str = "", to_space: str = "") -> Transform:
    """Read an ITK transform file of linear transforms and displacement fields; the spaces name its two ends.

    Raises :class:`InputError` when it cannot be read or holds another kind of transform (a B-spline, for one).
    """
    try:
        check_text(Path(path))
        steps = [_from_itk(itk) for itk in _flat(sitk.ReadTransform(str(path)))]
        if not steps:
            raise ValueError("it holds none")
    except (RuntimeError, ValueError, OverflowError) as problem:
        raise InputError(
            Problem(str(path), f"cannot be read as an ITK transform ({problem})", "run the stage mri again")
        ) from problem
    if len(steps) == 1:
        return _named(steps[0], from_space, to_space)
    return Chain((_named(steps[0], from_space, ""), *steps[1:-1], _named(steps[-1], "", to_space)))


def _named(step: Transform, from_space: str, to_space: str) -> Transform:
    if isinstance(step, Affine):
        return Affine(step.matrix, from_space, to_space)
    assert isinstance(step, DisplacementField)
    return DisplacementField(step.grid, step.values, from_space, to_space)
