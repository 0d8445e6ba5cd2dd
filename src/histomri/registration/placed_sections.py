"""The sections of a block as they lie on its plane, in the forms that registration compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.registration.bending import masked_pyramid
from histomri.registration.channels import make_channels, match_contrast
from histomri.registration.linear import fit_linear
from histomri.registration.node_flow import Pyramid
from histomri.registration.pair import align, onto_fixed, structure_score
from histomri.registration.samples import Channels, draw_samples
from histomri.registration.volume import SectionPixels, on_plane
from histomri.transforms.placement import Placement

Form = TypeVar("Form")
Float = NDArray[np.float64]
SAMPLES = 30_000


class _Kept(Generic[Form]):
    """One form of each section, until the section moves."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[Placement, Form]] = {}

    def get(self, placement: Placement) -> Form | None:
        found = self.of.get(placement.section)
        return found[1] if found is not None and found[0] is placement else None

    def put(self, placement: Placement, form: Form) -> Form:
        self.of[placement.section] = (placement, form)
        return form


class PlacedSections:
    """Sections' pixels on one grid of their block's plane; each form is kept until the section's placement is another."""

    def __init__(self, pixels: Mapping[str, SectionPixels], plane: Grid):
        self.pixels = pixels
        self.plane = plane
        self._channels: _Kept[Channels] = _Kept()
        self._pyramids: _Kept[Pyramid] = _Kept()

    def here(self, placement: Placement) -> tuple[Image, Image]:
        """Image and mask of a section, its deformation included."""
        both = on_plane(self.pixels[placement.section], placement, self.plane)
        return Image(self.plane, both[..., 0]), Image(self.plane, both[..., 1] >= 0.5)

    def channels(self, placement: Placement) -> Channels:
        """Structure channels."""
        kept = self._channels.get(placement)
        return kept if kept is not None else self._channels.put(placement, make_channels(*self.here(placement), "structure"))

    def pyramid(self, placement: Placement) -> Pyramid:
        """Image and mask, and their halves."""
        kept = self._pyramids.get(placement)
        return kept if kept is not None else self._pyramids.put(placement, masked_pyramid(*self.here(placement)))

    def linear_step(self, placement: Placement, target: Channels, model: str) -> tuple[Float, float, float] | None:
        """The section's affine (3, 3) after one fit of a linear ``model`` to ``target``, and its structure score before and then.

        The section's deformation is left out. None where there is nothing to compare.
        """
        assert placement.affine is not None
        pixels = self.pixels[placement.section]
        start, moving = align(pixels.image, pixels.mask, placement.affine.matrix, self.plane)
        if not (target.weight > 0).any() or not moving.weight.any():
            return None
        before = structure_score(target, moving, np.eye(3))
        moving = match_contrast(target, moving, onto_fixed(moving, self.plane))
        step = fit_linear(draw_samples(target, SAMPLES), moving, np.eye(3), model, iterations=15).matrix
        return start @ step, before, structure_score(target, moving, step)


def with_much_tissue(pixels: Mapping[str, SectionPixels]) -> frozenset[str]:
    """Sections with more than 0.15 of the median tissue area: less cannot determine six parameters."""
    areas = {k: float(p.mask.data.sum()) * float(np.prod(p.mask.grid.spacing_mm)) for k, p in pixels.items()}
    least = 0.15 * float(np.median(list(areas.values()))) if areas else 0.0
    return frozenset(k for k, area in areas.items() if area > least)
