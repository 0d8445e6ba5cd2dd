"""From a section or MRI plane to the feature channels that registration compares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histomri.core import Grid, Image
from histomri.kernels import features
from histomri.registration.samples import Channels

MASK_GAIN = {"structure": 1.0, "edges": 0.5}


def make_channels(image: Image, mask: Image, kind: str, weight_margin: int = 4) -> Channels:
    """Channels of one image on its own grid, the last one the tissue mask.

    ``structure``: MIND, for any two stains or modalities. ``edges``: gradient magnitude, contrast-blind and free of direction,
    for the rotation search. Everything is 0 outside the mask, so that tissue against background costs too. The weight is 1 in the
    mask and ``weight_margin`` pixels around it.
    """
    inside = np.asarray(mask.data, bool)
    data = np.asarray(image.data, np.float32)
    outline = MASK_GAIN[kind] * features.smooth(inside, 1.0)[..., None]
    stack = np.moveaxis(_texture(data, inside, kind), 0, -1)
    # the weight reaches past the tissue, so that a moving image which is larger than the fixed one pays for it
    near = ndimage.binary_dilation(inside, iterations=weight_margin) if inside.any() else inside
    return Channels(
        image.grid, np.ascontiguousarray(np.concatenate([stack, outline], axis=-1), np.float32), near.astype(np.float32)
    )


def match_contrast(fixed: Channels, moving: Channels, warped: NDArray[np.float32]) -> Channels:
    """The moving channels with their texture at its regression slope on the fixed one, ``a = <f, m> / <m, m>``, in 0.2 to 1.

    ``warped`` is the moving image on the fixed grid as it lies now. Without the slope, texture that matches only in part is worth
    less than the zeros outside the tissue, and every registration shrinks the moving image until it vanishes.
    """
    weight = fixed.weight[..., None]
    f, m = fixed.data[..., :-1] * weight, warped[..., :-1] * weight
    slope = float(np.vdot(f, m)) / max(float(np.vdot(m, m)), 1e-9)
    data = moving.data.copy()
    data[..., :-1] *= np.float32(np.clip(slope, 0.2, 1.0))
    return Channels(moving.grid, data, moving.weight)


def _texture(data: NDArray[np.float32], inside: NDArray[np.bool_], kind: str) -> NDArray[np.float32]:
    if kind == "structure":
        return features.mind(data, inside, sigma_px=1.0, reach=2)
    edges = features.edge_strength(data, inside, 1.0)
    return 2 * np.where(inside, edges - np.float32(0.45), 0)[None]


def resample_to(image: Image, grid: Grid) -> Image:
    """The image (2D, single channel or boolean) on another grid of the same axes, area-averaged when it is coarser; 0 outside.

    A boolean image comes back boolean (at least half covered).
    """
    ratio = grid.spacing_mm / image.grid.spacing_mm
    data = box_average(np.asarray(image.data, np.float32), ratio)
    matrix = image.grid.world_to_index @ grid.index_to_world
    out = ndimage.affine_transform(
        data, matrix[:-1, :-1], matrix[:-1, -1], output_shape=grid.shape, order=1, mode="grid-constant", cval=0.0
    )
    is_mask = image.data.dtype == bool
    return Image(grid, out >= 0.5 if is_mask else out.astype(np.float32))


def box_average(data: NDArray[np.float32], ratio: NDArray[np.float64]) -> NDArray[np.float32]:
    """Box average over about one output pixel where the output is coarser (``ratio`` > 1), else unchanged."""
    for axis, r in enumerate(ratio):
        width = round(float(r))
        if width > 1:
            data = ndimage.uniform_filter1d(data, width if width % 2 else width + 1, axis=axis, mode="constant")
    return data
