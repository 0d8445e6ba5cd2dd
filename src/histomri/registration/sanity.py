"""What no registration of two images of one tissue can be: limits beyond which a transform is refused, not resampled with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.transforms import Affine, Chain, DisplacementField, Transform

Float = NDArray[np.float64]

# linear scale, over what the sizes of the two tissues say where the images count in pixels
MAX_SCALE = 3.0
# the larger principal scale over the smaller: 1.5 is a shear of 23 degrees
MAX_STRETCH = 2.0
# displacement, over the diagonal of the fixed image
MAX_DISPLACEMENT = 0.25
MAX_FOLDED = 0.01
# share of the smaller mask that must meet the other one
MIN_OVERLAP = 0.1
# landmarks: how much worse than a plain affine fit of them, and how far over the moving image's diagonal, they may lie
MISSED_FACTOR = 2.0
MISSED_SHARE = 0.02
OVERLAP_POINTS = 20_000
SLAB = 32
LONG_SIDE = 1.6  # of a compact shape, in roots of its area


def refusal(transform: Transform, fixed_mask: Image, moving_mask: Image) -> str:
    """Why a transform (fixed mm to moving mm) cannot be right, in words; empty where nothing is wrong with it."""
    checks = (_linear(transform, fixed_mask, moving_mask), _deformation(transform, fixed_mask))
    return next((why for why in checks if why), "") or _overlap(transform, fixed_mask, moving_mask)


def linear_part(transform: Transform) -> Float:
    """Product of the linear parts of a chain's affines, (ndim, ndim)."""
    out = np.eye(transform.ndim)
    for step in Chain.steps_of(transform):
        out = step.linear @ out if isinstance(step, Affine) else out
    return out


def _linear(transform: Transform, fixed_mask: Image, moving_mask: Image) -> str:
    linear = linear_part(transform)
    if not np.isfinite(linear).all():
        return "its matrix is not finite"
    scales = np.linalg.svd(linear, compute_uv=False)
    expected = tissue_size(moving_mask) / tissue_size(fixed_mask)
    middle = float(np.prod(scales) ** (1 / len(scales)))
    if not min(1.0, expected) / MAX_SCALE <= middle <= max(1.0, expected) * MAX_SCALE:
        return f"it scales by {middle:.3g}, where the sizes of the tissue say {expected:.3g} (limit: a factor of {MAX_SCALE:g})"
    stretch = float(scales[0] / scales[-1])
    if stretch > MAX_STRETCH:
        return f"it stretches or shears: one direction {stretch:.3g} times as much as another (limit {MAX_STRETCH:g})"
    return ""


def tissue_size(mask: Image) -> float:
    """The root of the mask's area, or cube root of its volume, in mm."""
    volume = float(np.count_nonzero(mask.data)) * abs(float(np.linalg.det(mask.grid.index_to_world)))
    return float(max(volume, 1e-30) ** (1 / mask.grid.ndim))


def long_side_mm(mask: Image) -> float:
    """Length of a section's tissue, about the long side of a compact shape."""
    return LONG_SIDE * tissue_size(mask)


def _deformation(transform: Transform, fixed_mask: Image) -> str:
    for step in Chain.steps_of(transform):
        if isinstance(step, DisplacementField):
            if not np.isfinite(step.values).all():
                return "its displacement is not finite"
            if why := too_long(step, fixed_mask.grid):
                return why
    folded = folded_share(transform, fixed_mask)
    return f"it folds in {folded:.2%} of the mask (limit {MAX_FOLDED:.0%})" if folded > MAX_FOLDED else ""


def too_long(field: DisplacementField, fixed: Grid) -> str:
    """Why a displacement is beyond the limit, in words; empty where it is not."""
    longest = float(np.linalg.norm(field.values, axis=-1).max())
    diagonal = float(np.linalg.norm(fixed.extent_mm))
    if longest <= MAX_DISPLACEMENT * diagonal:
        return ""
    return f"it displaces by {longest / diagonal:.0%} of the fixed image's diagonal (limit {MAX_DISPLACEMENT:.0%})"


def folded_share(transform: Transform, fixed_mask: Image) -> float:
    """Share of the fixed mask where a displacement field's Jacobian determinant is not above 0; 0 without a field."""
    fields = [step for step in Chain.steps_of(transform) if isinstance(step, DisplacementField)]
    shares = [_folded(field, fixed_mask) for field in fields]
    return max(shares, default=0.0)


def _folded(field: DisplacementField, mask: Image) -> float:
    folded = sum(int(lookup(mask, part.grid.to_world(nodes)).sum()) for part, nodes in _folded_nodes(field))
    node = abs(float(np.linalg.det(field.grid.index_to_world)))
    return float(folded * node / tissue_size(mask) ** mask.grid.ndim)


def _folded_nodes(field: DisplacementField) -> Iterator[tuple[DisplacementField, NDArray[np.int64]]]:
    """Nodes whose Jacobian determinant is not above 0, slab by slab with one node beside it, so that little is held."""
    shape = np.asarray(field.grid.shape)
    for first in range(0, int(shape[0]), SLAB):
        low, high = max(0, first - 1), min(int(shape[0]), first + SLAB + 1)
        if high - low < 2:
            continue
        start, stop = np.array([low, *np.zeros(len(shape) - 1, int)]), np.array([high, *shape[1:]])
        slab = DisplacementField(field.grid.crop(start, stop), field.values[low:high])
        nodes = np.argwhere(slab.jacobian_determinant() <= 0)
        own = (nodes[:, 0] + low >= first) & (nodes[:, 0] + low < first + SLAB)
        yield slab, nodes[own]


def _overlap(transform: Transform, fixed_mask: Image, moving_mask: Image) -> str:
    share = overlap(transform, fixed_mask, moving_mask)
    return "" if share >= MIN_OVERLAP else f"only {share:.0%} of the smaller tissue meets the other (limit {MIN_OVERLAP:.0%})"


def overlap(transform: Transform, fixed_mask: Image, moving_mask: Image) -> float:
    """Share of the smaller mask that meets the other one under a transform (fixed mm to moving mm)."""
    nodes = np.argwhere(fixed_mask.data)
    nodes = nodes[:: max(1, len(nodes) // OVERLAP_POINTS)]
    hit = float(lookup(moving_mask, transform.map(fixed_mask.grid.to_world(nodes))).mean())
    area = tissue_size(fixed_mask) ** transform.ndim * abs(float(np.linalg.det(linear_part(transform))))
    return hit * area / min(area, tissue_size(moving_mask) ** transform.ndim)


def landmarks_missed(transform: Transform, landmarks: tuple[Float, Float], moving: Grid) -> str:
    """Why a transform contradicts the landmarks, by their median distance against an affine fit's; empty where it does not."""
    fixed, goal = landmarks
    columns = np.column_stack([fixed, np.ones(len(fixed))])
    fitted = columns @ np.linalg.lstsq(columns, goal, rcond=None)[0]
    plain, found = (float(np.median(np.linalg.norm(p - goal, axis=1))) for p in (fitted, transform.map(fixed)))
    limit = max(MISSED_FACTOR * plain, MISSED_SHARE * float(np.linalg.norm(moving.extent_mm)))
    return (
        "" if found <= limit else f"the images led {found:.4g} away from the landmarks (limit {limit:.4g}), which contradict them"
    )


def lookup(mask: Image, points: Float) -> NDArray[np.bool_]:
    """A mask at points (n, ndim) in mm, the nearest pixel; False outside."""
    index = np.rint(mask.grid.to_index(points)).astype(int)
    inside = ((index >= 0) & (index < np.asarray(mask.grid.shape))).all(axis=-1)
    out = np.zeros(inside.shape, bool)
    out[inside] = np.asarray(mask.data)[tuple(index[inside].T)] != 0
    return out
