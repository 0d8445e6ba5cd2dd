"""The registration engine: any metric with any transform, regulariser and optimiser, coarse to fine, in 2D and 3D."""

from histomri.registration.engine.models import Bounds
from histomri.registration.engine.multilevel import TRANSFORMS, Fit, Options, Step, fit
from histomri.registration.engine.optimisers import OPTIMISERS, Outcome, Settings
from histomri.registration.engine.regularisation import TERMS
from histomri.registration.engine.thin_plate import ThinPlateSpline, landmark_spline

__all__ = [
    "OPTIMISERS",
    "TERMS",
    "TRANSFORMS",
    "Bounds",
    "Fit",
    "Options",
    "Outcome",
    "Settings",
    "Step",
    "ThinPlateSpline",
    "fit",
    "landmark_spline",
]
