"""The user's own choice from the engine's menus, run by the engine from the default pipeline's start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from histomri.core import Image
from histomri.registration.alignment import Alignment, Guide, Progress, View, part
from histomri.transforms import Affine

Float = NDArray[np.float64]

# the engine's menus, which take seconds to import, by name (a test holds them together)
TRANSFORMS = ("translation", "rigid", "similarity", "affine", "landmark_spline", "bspline", "diffeomorphic", "velocity")
REGULARISERS = ("diffusion", "bending", "curvature", "elastic", "volume")
OPTIMISERS = ("gauss_newton", "levenberg_marquardt", "lbfgs", "adam", "gradient_descent", "cmaes")
METRICS = ("ssd", "ncc", "lncc", "cr", "mi", "nmi", "ngf", "mind")
DEFAULT_TRANSFORMS = ("affine", "diffeomorphic")
DEFAULT_METRIC = "mind"


@dataclass(frozen=True)
class Choice:
    """What the user chose of the menus; None leaves it to the program. ``regularisation``: the weight of each term.

    ``device`` (``auto``, ``cpu``, ``gpu``) is where the engine computes; the default pipelines compute on the CPU.
    """

    transforms: tuple[str, ...] | None = None
    metric: str | None = None
    regularisation: Mapping[str, float] | None = None
    optimiser: str | None = None
    device: str = "cpu"

    @property
    def is_none(self) -> bool:
        """Whether nothing of the menus was chosen, so that the default pipeline runs."""
        return replace(self, device="cpu") == Choice()


def register_chosen(fixed: View, moving: View, choice: Choice, guide: Guide, progress: Progress) -> Alignment:
    """The engine's fit with what was chosen, from a searched start unless ``guide`` says no."""
    from histomri.registration.engine import Options, fit

    names, measure = choice.transforms or DEFAULT_TRANSFORMS, choice.metric or DEFAULT_METRIC
    start = None
    if guide.search and guide.landmarks is None:
        found = find_start(fixed, moving, part(progress, 0.0, 0.4))
        start = nearest(found, names[0], fixed.mask).matrix
    images = fixed.image, moving.image, names, measure, fixed.mask, moving.mask, start
    optimiser, report = choice.optimiser or "auto", part(progress, 0.4, 1.0)
    options = Options(device=choice.device)
    done = fit(*images, choice.regularisation, optimiser, landmarks=guide.landmarks, options=options, progress=report)
    values = done.value_before, done.value_after
    return Alignment(done.transform, done.status, done.reason, measure, *values, done.trace, done.notes)


def find_start(fixed: View, moving: View, progress: Progress) -> Affine:
    """Fixed mm to moving mm from no initial guess, as the default pipelines begin."""
    from histomri.registration import planar, volumetric

    if fixed.image.grid.ndim == 2:
        return planar.find_start(fixed, moving, Guide())
    return volumetric.find_start(fixed, moving, Guide(), progress)


def nearest(start: Affine, model: str, fixed_mask: Image) -> Affine:
    """The transform of a linear ``model`` nearest to a start: the same where the middle of the fixed mask goes; others unchanged.

    The rotation (or reflection) is the polar factor of the linear part (Higham 1986), the scale the mean of its singular values.
    """
    u, scales, vt = np.linalg.svd(start.linear)
    linear = {"translation": np.eye(start.ndim), "rigid": u @ vt, "similarity": scales.mean() * u @ vt}.get(model)
    if linear is None:
        return start
    middle = fixed_mask.grid.to_world(np.argwhere(fixed_mask.data).mean(axis=0))
    return Affine.from_parts(linear, start.map(middle) - linear @ middle)
