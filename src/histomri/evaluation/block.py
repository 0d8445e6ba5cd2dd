"""One block measured: every placed section on its plane, beside the MRI and its neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histomri.core import Grid, Image
from histomri.evaluation.neighbours import NeighbourEvidence, PlacedSection, Undeformed, compare
from histomri.evaluation.overlap import best_threshold, dice, nmi
from histomri.evaluation.planes import Float32, Mask, section_on_plane, section_undeformed, volume_on_plane
from histomri.evaluation.regularity import Deformation, contour_roughness, deformation
from histomri.transforms import Transform
from histomri.transforms.placement import Placement, Placements

MASK_VOXELS = 8_000_000


@dataclass(frozen=True, eq=False)
class SectionImage:
    """A section before it is placed: its single-channel image and tissue mask on one grid in ``section:`` mm, and its stain."""

    stain: str
    image: Image
    mask: Image


@dataclass(frozen=True, eq=False)
class BlockMri:
    """The MRI of a block: the single-channel volume, its mask of tissue on a grid of its own, and the way to the block."""

    volume: Image
    mask: Image
    to_block: Transform

    def on_plane(self, grid: Grid, position_mm: float) -> tuple[Float32, Mask]:
        """Volume and mask on a plane of the block; 0 and False outside the volume."""
        values = volume_on_plane(self.volume, self.to_block, grid, position_mm)
        inside = volume_on_plane(self.mask, self.to_block, grid, position_mm, order=0)
        return np.nan_to_num(values), np.nan_to_num(inside) > 0.5


@dataclass(frozen=True)
class SectionMeasures:
    """The numbers of one placed section; NaN where there is nothing to measure against."""

    density: float
    mask_dice: float = float("nan")
    nmi_before: float = float("nan")
    nmi_after: float = float("nan")
    deformation: Deformation = field(default_factory=Deformation)
    tissue_px: int = 0
    neighbours: NeighbourEvidence = field(default_factory=NeighbourEvidence)

    @property
    def folding(self) -> float:
        """Folded share of the tissue."""
        return self.deformation.folded_px / max(self.tissue_px, 1)


def thinned(volume: Image, voxels: int) -> Image:
    """Every n-th voxel of a single-channel volume, n the least that leaves about ``voxels`` or fewer."""
    n = max(1, int(np.ceil((np.prod(volume.grid.shape) / voxels) ** (1 / 3))))
    data = np.asarray(volume.data[::n, ::n, ::n])
    return Image(Grid(data.shape, volume.grid.spacing_mm * n, volume.grid.origin_mm, volume.grid.direction), data)


def mri_tissue_mask(volume: Image) -> Image:
    """Tissue of an MRI: Otsu's threshold, closed by two voxels, holes filled, the largest piece.

    Every n-th voxel is used where there are more than 8 million, so the mask may be on a coarser grid than the volume.
    Raises ``ValueError`` for a constant volume.
    """
    volume = thinned(volume, MASK_VOXELS)
    above = volume.data > best_threshold(volume.data)
    padded = np.pad(above, 3)
    closed = ndimage.binary_closing(padded, ndimage.generate_binary_structure(3, 1), iterations=2)[3:-3, 3:-3, 3:-3]
    filled = np.asarray(ndimage.binary_fill_holes(closed), bool)
    labels, count = ndimage.label(filled)
    sizes = np.bincount(labels.ravel(), minlength=2)[1:]
    return volume.with_data(labels == 1 + int(np.argmax(sizes)) if count else filled)


def place_all(images: Mapping[str, SectionImage], placements: Placements, grid: Grid, threads: int = 1) -> list[PlacedSection]:
    """The placed sections that have an image, on the grid of the block's plane, in order of position."""

    def place(placement: Placement) -> PlacedSection:
        s = images[placement.section]
        image, mask = section_on_plane(s.image, s.mask, placement, grid)
        return PlacedSection(placement.section, s.stain, placement.position_mm, image, mask)

    order = sorted((p for k, p in placements.placed.items() if k in images), key=lambda p: (p.position_mm, p.section))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(place, order))


def _nmi_pair(before: tuple[Any, ...] | None, after: tuple[Any, ...]) -> tuple[float, float]:
    """NMI of (image, mask, MRI, MRI mask) before and after, over the tissue of either, so that both see the same pixels."""
    region = np.logical_or.reduce([m for pair in (before, after) if pair for m in (pair[1], pair[3])])
    values = [nmi(pair[0] * pair[1], pair[2], region) if pair else float("nan") for pair in (before, after)]
    return values[0], values[1]


@dataclass(frozen=True, eq=False)
class BlockMeasurer:
    """Measures the sections of one block, all placed on ``grid``.

    ``before`` and ``mri_before`` are the sections and the MRI as they lay before refinement, by section id; None without.
    ``images`` are the sections before they were placed, in which cracks are sought that the deformation closed.
    """

    grid: Grid
    sections: list[PlacedSection]
    placements: Placements
    mri: BlockMri | None = None
    before: Mapping[str, PlacedSection] | None = None
    mri_before: BlockMri | None = None
    images: Mapping[str, SectionImage] = field(default_factory=dict)

    def _compare(self, i: int, reach: int, trusted: AbstractSet[str] | None, tissue: Mask | None) -> NeighbourEvidence:
        s = self.sections[i]
        free = self.images.get(s.id)
        placement = self.placements.sections[s.id]
        loose = Undeformed(*section_undeformed(free.image, free.mask, placement, self.grid)) if free else None
        return compare(self.sections, i, reach, trusted, tissue, loose)

    def measure(self, i: int, reach: int) -> SectionMeasures:
        """The measures of the ``i``-th section in order of position."""
        s = self.sections[i]
        plane = self.mri.on_plane(self.grid, s.position_mm) if self.mri else None
        overlap, nmi_before, nmi_after = self._against_mri(s, plane)
        return SectionMeasures(
            density=float(np.median(s.image[s.mask])) if s.mask.any() else float("nan"),
            mask_dice=overlap,
            nmi_before=nmi_before,
            nmi_after=nmi_after,
            deformation=deformation(self.placements.sections[s.id], self.grid, s.mask),
            tissue_px=int(s.mask.sum()),
            neighbours=self._compare(i, reach, None, plane[1] if plane else None),
        )

    def measure_all(self, reach: int, threads: int = 1) -> dict[str, SectionMeasures]:
        """The measures of every section by its id; they do not depend on ``threads``."""
        with ThreadPoolExecutor(threads) as pool:
            measures = pool.map(lambda i: self.measure(i, reach), range(len(self.sections)))
            return {s.id: m for s, m in zip(self.sections, measures, strict=True)}

    def compare_again(
        self, measures: Mapping[str, SectionMeasures], trusted: AbstractSet[str], reach: int, threads: int = 1
    ) -> dict[str, SectionMeasures]:
        """The same measures with every section compared with its ``trusted`` neighbours alone.

        A bad section makes its good neighbours look bad; without it they look as they are.
        """

        def again(i: int) -> SectionMeasures:
            s = self.sections[i]
            tissue = self.mri.on_plane(self.grid, s.position_mm)[1] if self.mri else None
            return replace(measures[s.id], neighbours=self._compare(i, reach, trusted, tissue))

        with ThreadPoolExecutor(threads) as pool:
            return {m[0].id: m[1] for m in zip(self.sections, pool.map(again, range(len(self.sections))), strict=True)}

    def _against_mri(self, s: PlacedSection, plane: tuple[Float32, Mask] | None) -> tuple[float, float, float]:
        if plane is None:
            return (float("nan"),) * 3
        earlier = self.before.get(s.id) if self.before else None
        before = None
        if earlier is not None and self.mri_before is not None:
            before = (earlier.image, earlier.mask, *self.mri_before.on_plane(self.grid, s.position_mm))
        return (dice(s.mask, plane[1]), *_nmi_pair(before, (s.image, s.mask, *plane)))

    def smoothness(self, measures: Mapping[str, SectionMeasures]) -> dict[str, float]:
        """How smoothly the sections follow each other along the cutting axis.

        ``neighbour_similarity``: median squared local correlation with the neighbours (1 is best). ``contour_mm``: mean second
        difference of the outlines. ``centroid_rms_mm``: root mean square second difference of the tissue's centroids.
        """
        similarity = np.array([m.neighbours.similarity for m in measures.values()])
        similarity = similarity[np.isfinite(similarity)]
        spacing = float(self.grid.spacing_mm[0])
        rough = contour_roughness([s.mask for s in self.sections], spacing)
        centroids = np.array([_centroid(s.mask) for s in self.sections if s.mask.any()]) * spacing
        second = np.diff(centroids, n=2, axis=0) if len(centroids) > 2 else np.zeros((0, 2))
        return {
            "neighbour_similarity": float(np.median(similarity)) if len(similarity) else float("nan"),
            "contour_mm": float(np.median(rough)) if len(rough) else float("nan"),
            "centroid_rms_mm": float(np.sqrt((second**2).sum(axis=1).mean())) if len(second) else float("nan"),
        }


def _centroid(mask: Mask) -> NDArray[np.float64]:
    return np.asarray(np.argwhere(mask).mean(axis=0), float)
