"""Whether two registered images resemble each other more than chance would have it: ASHLAR's question, asked of one pair.

The null distribution is made of the pair itself: the moving image under the same transform, but turned about the middle of the
fixed tissue in steps of 30 degrees, on either face. ``docs/decisions/engine.md`` has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.kernels.descriptor import mind_plane
from histomri.kernels.features import masked_mean
from histomri.kernels.interpolate import warp_2d
from histomri.registration.alignment import View
from histomri.registration.pair import at_spacing
from histomri.registration.sanity import linear_part
from histomri.registration.search import rotation
from histomri.registration.together import together
from histomri.registration.warp import warped
from histomri.transforms import Affine, Chain, Transform

Array = NDArray[np.float32]

SIDE_PX = 160
STEP_DEG = 30.0
LEAST_SPREAD = 0.01
FILL_PX = 4.0
# related pairs reached 5.5 and more, unrelated ones 2.7 at most
LEAST_LEAD = 4.0


@dataclass(frozen=True)
class Resemblance:
    """Cosines of MIND (Heinrich et al. 2012) over both tissues, in -1 to 1: as the images lay, and as they lie now.

    ``linear`` is what the linear part alone reaches, ``chance`` the median over its turned copies, ``lead`` how far ``linear``
    lies above it, in robust standard deviations.
    """

    before: float
    after: float
    linear: float
    chance: float
    lead: float


def resemblance(fixed: View, moving: View, transform: Transform) -> Resemblance:
    """Measure two planar views under a transform (fixed mm to moving mm)."""
    comparison = _Comparison.of(fixed, moving, transform)
    # a deformation finds likeness between any two images, so the linear part alone is put to the test
    linear = [step for step in Chain.steps_of(transform) if isinstance(step, Affine)]
    plain = comparison.score(Chain(tuple(linear)))
    null = together([partial(comparison.score, Chain((turn, *linear))) for turn in turns(fixed.mask)])
    chance, lead = above_chance(plain, null, LEAST_SPREAD)
    return Resemblance(comparison.score(Affine.identity(2)), comparison.score(transform), plain, chance, lead)


def above_chance(own: float, null: Sequence[float], least_spread: float) -> tuple[float, float]:
    """The median of what chance gives, and how many robust standard deviations (at least ``least_spread`` each) ``own`` leads."""
    chance = float(np.median(null))
    spread = max(1.4826 * float(np.median(np.abs(np.array(null) - chance))), least_spread)
    return chance, (own - chance) / spread


def turns(mask: Image) -> list[Affine]:
    """Rotations about the middle of a mask on either face, without the one that turns nothing."""
    middle = mask.grid.to_world(np.argwhere(mask.data).mean(axis=0))
    linear = [rotation(a, flip) for flip in (False, True) for a in np.arange(0, 360, STEP_DEG) if a or flip]
    return [Affine.from_parts(m, middle - m @ middle) for m in linear]


def _described(image: Array, mask: NDArray[np.bool_]) -> Array:
    """MIND (y, x, 8) of an image, of which nothing counts outside its mask."""
    filled = np.where(mask, image, masked_mean(image, mask, FILL_PX)).astype(np.float32)
    return mind_plane(filled, mask) * mask[..., None]


@dataclass(frozen=True, eq=False)
class _Comparison:
    """The fixed descriptors, and the moving image and mask as (y, x, 2) averaged to about the fixed grid's pixels."""

    grid: Grid
    features: Array
    moving: Image

    @staticmethod
    def of(fixed: View, moving: View, transform: Transform) -> _Comparison:
        spacing = max(float(fixed.image.grid.extent_mm.max()) / SIDE_PX, float(fixed.image.grid.spacing_mm.max()))
        scale = float(np.sqrt(abs(np.linalg.det(linear_part(transform)))))
        image, mask = at_spacing(fixed.image, fixed.mask, spacing)
        other = max(spacing * scale, float(moving.image.grid.spacing_mm.max()))
        pixels, tissue = at_spacing(moving.image, moving.mask, other)
        both = np.stack([pixels.data, tissue.data.astype(np.float32)], axis=-1)
        return _Comparison(image.grid, _described(image.data, mask.data), Image(pixels.grid, both, ("image", "mask")))

    def score(self, transform: Transform) -> float:
        """Cosine of the descriptors over the union of both tissues, the moving image's taken once it is turned."""
        here = self._on_grid(transform)
        features = _described(np.ascontiguousarray(here[..., 0]), here[..., 1] >= 0.5)
        norms = float(np.linalg.norm(self.features)) * float(np.linalg.norm(features))
        return float(np.vdot(self.features, features)) / max(norms, 1e-12)

    def _on_grid(self, transform: Transform) -> Array:
        if not all(isinstance(step, Affine) for step in Chain.steps_of(transform)):
            return np.asarray(warped(self.moving, transform, self.grid), np.float32)
        corners = np.concatenate([np.eye(2), np.zeros((1, 2))])
        # an affine map is known by where it takes three points
        *axes, origin = transform.map(corners)
        matrix = np.eye(3)
        matrix[:2] = np.column_stack([*(axis - origin for axis in axes), origin])
        onto = self.moving.grid.world_to_index @ matrix @ self.grid.index_to_world
        return warp_2d(self.moving.data, onto, (self.grid.shape[0], self.grid.shape[1]))
