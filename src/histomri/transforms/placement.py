"""Where the sections of one block lie: the one record that stack, blockface and mri hand on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.transforms.affine import Affine
from histomri.transforms.base import Transform
from histomri.transforms.displacement import DisplacementField

# a section whose confidence is lower is not relied on, and is sought again
DOUBTFUL = 0.3
# a section that is surer than this on its own photograph stays there
ON_PHOTOGRAPH = 0.5
# how a placement says that a person gave it
BY_HAND = "placed by hand"


@dataclass(frozen=True, eq=False)
class Placement:
    """How one section lies in its block's plane ``z = position_mm``.

    A point p = (y, x) in mm of the block plane is at ``affine.map(p + u(p))`` in the section (mm from the centre of its
    top left pixel), ``u`` being ``field`` (None means no deformation). ``affine`` is None where the section could not be
    placed. A mirrored section has a negative determinant.
    """

    section: str
    position_mm: float
    affine: Affine | None
    field: DisplacementField | None = None
    flags: tuple[str, ...] = ()
    confidence: float = 1.0
    quality: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_placed(self) -> bool:
        """Whether the section has a transform at all."""
        return self.affine is not None

    @property
    def is_doubtful(self) -> bool:
        """Whether it is not placed, or not surely enough to be relied on."""
        return not self.is_placed or self.confidence < DOUBTFUL

    @property
    def suspicions(self) -> tuple[str, ...]:
        """The flags that are a reason to look at the section: all but that it was placed by hand."""
        return tuple(f for f in self.flags if not f.startswith(BY_HAND))

    @property
    def notes(self) -> tuple[str, ...]:
        """The flags that only say how it came to its place."""
        return tuple(f for f in self.flags if f.startswith(BY_HAND))

    @property
    def is_on_photograph(self) -> bool:
        """Whether it lies well on its own photograph of the block, which knows its place better than an MRI or neighbours."""
        return self.quality.get("source") == "blockface" and self.confidence >= ON_PHOTOGRAPH

    @property
    def is_mirrored(self) -> bool:
        """Whether the section lies face down."""
        return self.affine is not None and float(np.linalg.det(self.affine.linear)) < 0

    @property
    def block_to_section(self) -> Transform:
        """The whole 2D transform from the block plane to the section. Raises ``ValueError`` when not placed."""
        if self.affine is None:
            raise ValueError(f"Section {self.section!r} was not placed, so it has no transform.")
        return self.affine if self.field is None else self.affine @ self.field


@dataclass(frozen=True, eq=False)
class Placements:
    """All sections of a block, and the block's pose in the MRI (``mri_to_block``, 4 x 4, None without MRI).

    ``mri_to_block`` maps MRI points (LPS mm, array order z, y, x) to block points (z, y, x) in mm. Where the planes are bent,
    ``plane_bend`` then moves these points along z, so that a section's plane is ``z = position_mm`` again; None: they are flat.
    ``quality`` holds the numbers of the stage that made it.
    """

    block: str
    sections: dict[str, Placement]
    mri_to_block: Affine | None = None
    quality: dict[str, Any] = dataclasses.field(default_factory=dict)
    plane_bend: DisplacementField | None = None

    @property
    def pose(self) -> Transform | None:
        """MRI points to block points, the bend of the planes included; None without an MRI."""
        if self.mri_to_block is None or self.plane_bend is None:
            return self.mri_to_block
        return self.plane_bend @ self.mri_to_block

    @property
    def placed(self) -> dict[str, Placement]:
        """The sections that have a transform."""
        return {k: p for k, p in self.sections.items() if p.is_placed}

    def positions_mm(self) -> NDArray[np.float64]:
        """Positions of all sections in the order of the record."""
        return np.array([p.position_mm for p in self.sections.values()])
