"""Where the tissue of an ingested section is: the label ``tissue`` of its store, and what the manifest says about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from histomri.io import omezarr
from histomri.io.sections import SectionManifest

LITTLE_TISSUE = 0.01


@dataclass(frozen=True)
class MaskSettings:
    """The keys ``ingest.mask_*`` and ``min_tissue_fraction``."""

    mask_px: int
    min_contrast: float
    min_contrast_dark: float
    min_piece: float
    max_hole: float
    min_fraction: float


def add_tissue(
    record: SectionManifest, settings: MaskSettings, storage: omezarr.Storage, own: np.ndarray | None = None
) -> SectionManifest:
    """Find the tissue on the working level, write it as a label, and measure it.

    ``own`` is bool over the section's extent, at any spacing: what of the tissue is no neighbour's on the slide.
    """
    from histomri.kernels.tissue import TissueParameters, find_tissue

    fits = [k for k in range(record.levels) if max(record.level_grid(k).shape) <= settings.mask_px]
    level = fits[0] if fits else record.levels - 1
    planes = omezarr.read_pixels(record.store, str(level))
    parameters = TissueParameters(
        min_contrast=settings.min_contrast,
        min_contrast_dark=settings.min_contrast_dark,
        min_share=settings.min_piece,
        max_hole=settings.max_hole,
    )
    tissue = find_tissue(np.moveaxis(planes, 0, -1), parameters)
    if own is not None:
        tissue = replace(tissue, mask=tissue.mask & nearby(own, tissue.mask.shape))
    fraction = float(tissue.mask.mean())
    is_empty = fraction < settings.min_fraction
    mask = np.zeros_like(tissue.mask) if is_empty else tissue.mask
    grid = record.level_grid(level)
    masks, grids = omezarr.mask_pyramid(mask, grid, record.levels)
    omezarr.write_label(record.store, "tissue", masks, grids, storage)
    area = float(mask.sum() * np.prod(grid.spacing_mm))
    return replace(
        record,
        background=tissue.background,
        inverted=tissue.inverted,
        background_drift=tissue.drift,
        tissue_level=level,
        tissue_levels=len(masks),
        tissue_area_mm2=area,
        tissue_fraction=float(mask.mean()),
        status="empty" if is_empty else "ok",
        flags=(*record.flags, *tissue_flags(is_empty, fraction, area)),
    )


def nearby(own: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A section's own tissue on another grid of the same extent, grown a little: it was seen more coarsely."""
    import cv2

    size = cv2.resize(own.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
    reach = 1 + 2 * math.ceil(max(shape) / max(own.shape))
    return np.asarray(cv2.dilate(size, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)), bool)


def tissue_flags(is_empty: bool, fraction: float, area_mm2: float) -> tuple[str, ...]:
    """A flag for no tissue or very little of it."""
    if is_empty:
        return ("no tissue was found",)
    return (f"little tissue: {area_mm2:.3g} mm2, {100 * fraction:.2g} % of the image",) if fraction < LITTLE_TISSUE else ()
