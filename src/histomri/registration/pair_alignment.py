"""Two planar views aligned by the sections' pair registration: every rotation and both faces, then a deformation."""

from __future__ import annotations

import numpy as np

from histomri.registration.alignment import Alignment, Guide, Progress, View, silent
from histomri.registration.deformable import Deformation
from histomri.registration.pair import Prepared, deform_pair, prepare, register_pair, scaled, structure_score
from histomri.registration.sanity import tissue_size
from histomri.transforms import Affine, Chain, DisplacementField

LEAST_SCORE = 0.25


def register_planar(fixed: View, moving: View, guide: Guide, progress: Progress = silent) -> Alignment:
    """See ``docs/engine.md``."""
    size = 1.6 * tissue_size(fixed.mask)
    scale = tissue_size(fixed.mask) / tissue_size(moving.mask)
    progress(0.1, "search")
    first = _prepared(fixed, size)
    found = []
    for factor in (1.0, scale) if abs(scale - 1) > 0.03 and 0.2 < scale < 5 else (1.0,):
        view = View(scaled(moving.image, factor), scaled(moving.mask, factor))
        second = _prepared(view, size)
        found.append((register_pair(first, second, models=("rigid", "similarity", "affine")), second, factor))
        progress(0.3, "search")
    pair, second, factor = max(found, key=lambda f: f[0].score)
    progress(0.6, "deformation")
    field, after = deform_pair(first, second, pair.matrix, Deformation())
    affine = Affine(np.diag([1 / factor, 1 / factor, 1.0]) @ pair.matrix)
    steps = (affine,) if field is None else (DisplacementField(field.grid, field.values), affine)
    before = 1 - structure_score(first.channels, second.channels, np.eye(3))
    status = "converged" if after >= LEAST_SCORE else "failed"
    reason = "the cost fell by less than its tolerance" if status == "converged" else "the images do not resemble each other"
    return Alignment(Chain(steps) if len(steps) > 1 else affine, status, reason, "mind", before, 1 - after)


def _prepared(view: View, size: float) -> Prepared:
    fine = max(size / 250, float(view.image.grid.spacing_mm.max()))
    return prepare(view.image, view.mask, size / 60, fine)
