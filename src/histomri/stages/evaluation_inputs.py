"""What evaluation and report both read: the sections of a block on its plane, and its MRI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histomri.core import Block, Grid, Image, Section
from histomri.evaluation.block import BlockMri, SectionImage, mri_tissue_mask, place_all
from histomri.evaluation.neighbours import PlacedSection
from histomri.evaluation.planes import plane_grid, tissue_outline_mm
from histomri.io.nifti import read_nifti
from histomri.io.placements import read_placements
from histomri.io.sections import SectionManifest, read_manifest, registration_image
from histomri.transforms import Transform
from histomri.transforms.placement import Placements

# how much wider than the square root of its area a section may be before it gets more than the pixels asked for
WIDTH_OVER_ROOT_OF_AREA = 1.5


@dataclass(frozen=True, eq=False)
class PlacedBlock:
    """A block with its sections on one grid of its plane, in order of position, and its MRI where there is one.

    ``grid`` is None, and ``sections`` empty, where no section was placed.
    """

    block: Block
    placements: Placements
    images: Mapping[str, SectionImage]
    grid: Grid | None
    sections: list[PlacedSection]
    volume: Image | None = None
    tissue: Image | None = None

    def mri(self, to_block: Transform | None) -> BlockMri | None:
        """The MRI under a pose; None without an MRI or a pose."""
        if self.volume is None or self.tissue is None or to_block is None:
            return None
        return BlockMri(self.volume, self.tissue, to_block)


def read_manifests(manifests: Mapping[str, Path]) -> dict[str, SectionManifest]:
    """The manifests of all ingested sections, by section id."""
    return {name: read_manifest(path) for name, path in manifests.items()}


def working_spacing_mm(manifests: Iterable[SectionManifest], spacing_mm: float, max_pixels: int) -> float:
    """The spacing at which sections are compared: ``spacing_mm``, or where that is 0 one that shows the largest tissue
    with about ``max_pixels`` across. Never finer than the sections' pixels."""
    known = list(manifests)
    finest = min((min(m.pixel_size_mm) for m in known), default=0.01)
    across = WIDTH_OVER_ROOT_OF_AREA * max((m.tissue_area_mm2**0.5 for m in known), default=1.0)
    return max(spacing_mm or across / max_pixels, finest)


def read_images(
    sections: Iterable[Section], manifests: Mapping[str, SectionManifest], spacing_mm: float
) -> dict[str, SectionImage]:
    """The images of the sections that hold tissue, at about ``spacing_mm``, by section id."""
    usable = [s for s in sections if s.id in manifests and manifests[s.id].is_usable]
    return {s.id: SectionImage(s.stain, *registration_image(manifests[s.id], spacing_mm)) for s in usable}


def read_mri(block: Block) -> Image | None:
    """The MRI of a block, its channels averaged; None where it has none."""
    if block.mri is None:
        return None
    volume = read_nifti(block.mri)
    return volume.with_data(np.asarray(volume.data).mean(axis=-1, dtype=np.float32)) if volume.channels else volume


def read_mri_tissue(block: Block, volume: Image | None) -> Image | None:
    """The tissue mask of a block's MRI: the sheet's, or one by threshold; None without an MRI."""
    if volume is None:
        return None
    if block.mri_mask is None:
        return mri_tissue_mask(volume)
    mask = read_nifti(block.mri_mask, may_be_empty=True)
    return mask.with_data(np.asarray(mask.data) > 0)


def read_block(
    block: Block,
    sections: Iterable[Section],
    manifests: Mapping[str, SectionManifest],
    placements: Path,
    spacing_mm: float,
    max_pixels: int,
) -> PlacedBlock:
    """Everything of one block, its sections brought onto one grid of its plane."""
    record = read_placements(placements)
    own = [s for s in sections if s.block == block.id]
    spacing = working_spacing_mm([manifests[s.id] for s in own if s.id in manifests], spacing_mm, max_pixels)
    images = read_images(own, manifests, spacing)
    outlines = [tissue_outline_mm(images[k].mask, p) for k, p in record.placed.items() if k in images]
    if not any(len(c) for c in outlines):
        return PlacedBlock(block, record, images, None, [])
    grid = plane_grid(outlines, spacing_mm, max_pixels, spacing)
    volume = read_mri(block)
    return PlacedBlock(block, record, images, grid, place_all(images, record, grid), volume, read_mri_tissue(block, volume))
