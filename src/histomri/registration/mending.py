"""A displacement made one-to-one again where it folds, and left as it is elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histomri.kernels.folding import as_volume, nodes_below
from histomri.kernels.gaussian import gaussian

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

MENDING = 20


def unfolded(field: Array, limit: float, before: Array | None = None) -> Array | None:
    """A field (*nodes, ndim) in nodes, mended around those where a corner of a cell is below the limit, until there is none.

    None if it stays. Each round brings it half of the way to ``before``, and smooths; without that, and in the last rounds, it
    only smooths. All that is further away stays as it is, so that a few nodes in a bad place do not keep the rest from moving.
    """
    ndim = field.shape[-1]
    for attempt in range(MENDING):
        folds = nodes_below(as_volume(field), limit).reshape(field.shape[:-1])
        if not folds.any():
            return field
        wanted = gaussian(field, 1.0, ndim)
        if before is not None and attempt < MENDING / 2:
            wanted = (wanted + before) * np.float32(0.5)
        field = np.asarray(field + _near(folds)[..., None] * (wanted - field), np.float32)
    return None


def _near(nodes: Mask) -> Array:
    """1 at nodes and their neighbours, falling smoothly to 0 over about three more."""
    around = ndimage.maximum_filter(nodes, 3).astype(np.float32)
    return np.asarray(np.minimum(2 * gaussian(around, 1.5, nodes.ndim), 1), np.float32)
