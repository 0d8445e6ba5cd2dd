"""How sharp an ingested section is and how it is stained, measured on tiles of level 0 and on the working level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from histomri.io import omezarr
from histomri.io.sections import SectionManifest, open_tissue

QUALITY_TILE_PX, QUALITY_TILES = 64, 200
# the quietest tenth of the glass is the camera's noise: a few tiles tell it
GLASS_TILES = 60


def add_quality(record: SectionManifest, threads: int = 1) -> SectionManifest:
    """Measure focus on tiles of level 0, and the stain on the working level; nothing for an empty section."""
    from histomri.kernels.focus import measure_focus, measure_stain, white_balance
    from histomri.kernels.glass import density_over

    if not record.is_usable:
        return record
    mask = open_tissue(record).data
    level = omezarr.stored_level(record.store, "0")

    def tiles(where: np.ndarray, most: int) -> Iterator[np.ndarray]:
        corners = spread_tiles(where, 2**record.tissue_level, record.shape, most)
        for planes in level.boxes(corners, QUALITY_TILE_PX, threads):
            yield density_over(np.moveaxis(planes, 0, -1), record.background, record.inverted).mean(axis=-1)

    focus = measure_focus(tiles(mask, QUALITY_TILES), tiles(~grown_mask(mask), GLASS_TILES))
    pixels = np.moveaxis(omezarr.read_pixels(record.store, str(record.tissue_level)), 0, -1)
    stain = measure_stain(density_over(pixels, record.background, record.inverted)[mask])
    return replace(
        record,
        sharpness=focus.sharpness,
        soft_share=focus.soft_share,
        mean_density=stain.density,
        saturation=stain.saturation,
        dynamic_range=stain.dynamic_range,
        white_balance=white_balance(record.background),
    )


def grown_mask(mask: np.ndarray) -> np.ndarray:
    """The tissue and what is within 2 % of the long side of it."""
    from histomri.kernels.pieces import grown

    return grown(mask, max(2, round(0.02 * max(mask.shape))))


def spread_tiles(where: np.ndarray, factor: int, shape: tuple[int, int], most: int = QUALITY_TILES) -> list[tuple[int, int]]:
    """Level-0 corners (y, x) of at most ``most`` tiles that lie in ``where`` (``factor`` coarser), evenly chosen."""
    import cv2

    side = QUALITY_TILE_PX
    # one tile for each pixel of ``where`` is enough to choose from, however large level 0 is
    y, x = (np.arange(0, n - side + 1, max(side, factor)) for n in shape)
    first, after = (y // factor, x // factor), ((y + side - 1) // factor + 1, (x + side - 1) // factor + 1)
    sums = cv2.integral(where.astype(np.uint8))
    held = sums[np.ix_(*after)] - sums[np.ix_(first[0], after[1])] - sums[np.ix_(after[0], first[1])] + sums[np.ix_(*first)]
    inside = np.argwhere(held == np.outer(after[0] - first[0], after[1] - first[1]))
    # by the golden ratio: spread over rows and columns alike, whatever the shape
    chosen = np.sort(np.argsort((np.arange(len(inside)) * 0.6180339887) % 1.0, kind="stable")[:most])
    return [(int(y[i]), int(x[j])) for i, j in inside[chosen]]
