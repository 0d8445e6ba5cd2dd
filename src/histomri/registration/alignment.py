"""What every registration pipeline takes and hands back, so that ``register`` can call any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from histomri.core import Image
from histomri.transforms.base import Transform

Float = NDArray[np.float64]
Progress = Callable[[float, str], None]
STATUSES = ("converged", "stopped", "failed")


def silent(share: float, doing: str) -> None:
    """A progress report that nobody reads."""


@dataclass(frozen=True, eq=False)
class View:
    """One image as registration sees it, in 2D or 3D.

    ``image`` is float32, (*shape), one channel, finite; ``mask`` bool on the same grid, True = use. In 2D tissue is bright on a
    background of 0 (optical-density like) and what lies outside the mask is not erased. ``imaged``, bool, 2D only: where the
    picture shows anything at all; None where it does everywhere. ``extracted``: the mask was read off what surrounds the tissue,
    one value exactly, as around an extracted brain.
    """

    image: Image
    mask: Image
    imaged: Image | None = None
    extracted: bool = False


@dataclass(frozen=True, eq=False)
class Guide:
    """What the user knows beforehand. ``search`` False: the images lie about right in their world already.

    ``landmarks`` are corresponding points, fixed and moving, each (n, ndim) in mm and array order; they guide, and need not be
    exact. ``outlines``: the masks end where the tissue does, because both were given or an image is extracted.
    """

    search: bool = True
    landmarks: tuple[Float, Float] | None = None
    outlines: bool = False

    def seen_under(self, matrix: Float) -> Guide:
        """The same with the moving image in the world that ``matrix`` (3, 3) maps to its own."""
        if self.landmarks is None:
            return self
        fixed, moving = self.landmarks
        return replace(self, landmarks=(fixed, (moving - matrix[:2, 2]) @ np.linalg.inv(matrix[:2, :2]).T))

    def turned_round(self) -> Guide:
        """The same for the moving image as the fixed one."""
        return self if self.landmarks is None else replace(self, landmarks=self.landmarks[::-1])


@dataclass(frozen=True, eq=False)
class Alignment:
    """What a pipeline found.

    ``transform`` maps fixed mm to moving mm: an ``Affine``, or a ``Chain`` of a ``DisplacementField`` on a grid over the fixed
    image and then an ``Affine``. ``status`` is converged (a criterion ended it), stopped (the count or the time did) or failed
    (the best so far, not to be trusted), ``reason`` says why. ``before`` and ``after`` are the dissimilarity ``metric`` of
    the images as they lay and as they lie now, lower is better; ``trace`` its values on the way.
    """

    transform: Transform
    status: str
    reason: str
    metric: str
    before: float
    after: float
    trace: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def part(progress: Progress, start: float, end: float) -> Progress:
    """A progress report whose 0 to 1 are ``start`` to ``end`` of another."""
    return lambda share, doing: progress(start + (end - start) * min(max(share, 0.0), 1.0), doing)
