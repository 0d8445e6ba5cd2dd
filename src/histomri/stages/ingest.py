"""Ingestion: a slide file becomes an OME-Zarr pyramid with a tissue mask, and a manifest that says what was found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from histomri.core import Grid, InputError, Section
from histomri.core.errors import Problem
from histomri.io import omezarr, slides
from histomri.io.publish import content_sha256, remove, whole
from histomri.io.regions import FoundSection, find_sections
from histomri.io.sections import SectionManifest, open_tissue, write_manifest

LITTLE_TISSUE = 0.01
QUALITY_TILE_PX, QUALITY_TILES = 64, 200


@dataclass(frozen=True)
class IngestSettings:
    """The config key ``ingest``. Lengths in pixels, shares between 0 and 1, contrast in decades of intensity (OD)."""

    chunk_px: int = 512
    shard_px: int = 2048
    codec: str = "zstd"
    smallest_level_px: int = 256
    max_memory_mb: int = 1200
    max_plain_px: int = slides.MAX_PLAIN_PX
    max_bad_tiles: float = 0.1
    mask_px: int = 512
    mask_min_contrast: float = 0.02
    mask_min_contrast_dark: float = 0.1
    mask_min_piece: float = 0.02
    mask_max_hole: float = 0.3
    min_tissue_fraction: float = 0.0005
    reading_order: str = "row-major"

    @property
    def storage(self) -> omezarr.Storage:
        """How the store's arrays are laid out."""
        return omezarr.Storage(self.chunk_px, self.shard_px, self.codec)


class NoPixelSizeError(InputError):
    """Neither the sheet nor the file nor the config says how big a pixel is."""


def ingest_section(
    section: Section,
    store: str | Path,
    manifest: str | Path,
    settings: IngestSettings,
    pixel_size_mm: float | None = None,
    threads: int = 1,
) -> SectionManifest:
    """Stream a section's slide into ``store`` (OME-Zarr, published whole) and write its ``manifest``, which is returned.

    The pixel size is the sheet's, else the file's, else ``pixel_size_mm``. A slide that cannot be read gives a store of one
    pixel and the status ``unreadable``, one without tissue the status ``empty``. The result does not depend on ``threads``.
    Raises ``InputError`` where no pixel size is known.
    """
    store, manifest = Path(store), Path(manifest)
    # an old manifest must never stand beside a new store
    remove(manifest)
    with whole(store) as partial:
        try:
            record = convert(section, partial, settings, pixel_size_mm, threads)
        except NoPixelSizeError:
            raise
        except (InputError, OSError) as error:
            remove(partial)
            record = placeholder(section, partial, settings, pixel_size_mm, error)
        record = replace(record, store=store, content_sha256=content_sha256(partial))
    write_manifest(manifest, record)
    return record


def convert(
    section: Section, folder: Path, settings: IngestSettings, pixel_size_mm: float | None, threads: int
) -> SectionManifest:
    """Write the pyramid and the tissue label of a readable slide into ``folder``. Raises ``InputError``."""
    if section.file is None:
        raise bad(section, "the sheet names no file", "fill in the column 'file', or set the status to missing")
    with slides.open_slide(section.file, section.channel, settings.max_plain_px) as slide:
        info = slide.info
        found = found_region(section, settings)
        section = replace(section, region=found.region) if found else section
        grid = Grid(region_shape(section, info.shape), pixel_size(section, info, pixel_size_mm))
        levels = omezarr.level_count(grid.shape, settings.smallest_level_px)
        spec = omezarr.PyramidSpec(section.id, grid, info.channels, info.dtype, levels)
        left, top = section.region[:2] if section.region else (0, 0)
        granted = threads_within_memory(settings, len(info.channels), np.dtype(info.dtype).itemsize, threads)
        omezarr.write_pyramid(
            folder, spec, lambda y, x, h, w: slide.read_region(y + top, x + left, h, w), settings.storage, granted
        )
        flags = damage_flags(section, slide.bad_tiles, slide.tiles, settings.max_bad_tiles)
    record = SectionManifest(
        section=section.id,
        store=folder,
        shape=(grid.shape[0], grid.shape[1]),
        pixel_size_mm=(float(grid.spacing_mm[0]), float(grid.spacing_mm[1])),
        levels=levels,
        channels=info.channels,
        dtype=info.dtype,
        background=(),
        region=section.region,
        flags=(*flags, *info.notes),
        dropped=info.dropped,
    )
    return add_quality(add_tissue(record, settings, found.own if found else None))


def found_region(section: Section, settings: IngestSettings) -> FoundSection | None:
    """Where the slide holds a section whose region is ``auto``; None where the sheet says. Raises ``InputError``."""
    if section.auto_region is None or section.file is None:
        return None
    place, count = section.auto_region
    return find_sections(section.file, count, settings.reading_order, section.channel)[place - 1]


def add_tissue(record: SectionManifest, settings: IngestSettings, own: np.ndarray | None = None) -> SectionManifest:
    """Find the tissue on the working level, write it as a label, and measure it.

    ``own`` is bool over the section's extent, at any spacing: what of the tissue is no neighbour's on the slide.
    """
    from histomri.kernels.tissue import TissueParameters, find_tissue

    fits = [k for k in range(record.levels) if max(record.level_grid(k).shape) <= settings.mask_px]
    level = fits[0] if fits else record.levels - 1
    planes = omezarr.open_array(record.store, str(level))[...]
    parameters = TissueParameters(
        min_contrast=settings.mask_min_contrast,
        min_contrast_dark=settings.mask_min_contrast_dark,
        min_share=settings.mask_min_piece,
        max_hole=settings.mask_max_hole,
    )
    tissue = find_tissue(np.moveaxis(planes, 0, -1), parameters)
    if own is not None:
        tissue = replace(tissue, mask=tissue.mask & nearby(own, tissue.mask.shape))
    fraction = float(tissue.mask.mean())
    is_empty = fraction < settings.min_tissue_fraction
    mask = np.zeros_like(tissue.mask) if is_empty else tissue.mask
    grid = record.level_grid(level)
    masks, grids = omezarr.mask_pyramid(mask, grid, record.levels)
    omezarr.write_label(record.store, "tissue", masks, grids, settings.storage)
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


def add_quality(record: SectionManifest) -> SectionManifest:
    """Measure focus on tiles of level 0, and the stain on the working level; nothing for an empty section."""
    from histomri.kernels.focus import measure_focus, measure_stain, white_balance
    from histomri.kernels.glass import density_over

    if not record.is_usable:
        return record
    mask = open_tissue(record).data
    array = omezarr.open_array(record.store, "0")

    def tiles(where: np.ndarray) -> Iterator[np.ndarray]:
        for y, x in spread_tiles(where, 2**record.tissue_level, record.shape):
            planes = array[:, y : y + QUALITY_TILE_PX, x : x + QUALITY_TILE_PX]
            yield density_over(np.moveaxis(planes, 0, -1), record.background, record.inverted).mean(axis=-1)

    focus = measure_focus(tiles(mask), tiles(~grown_mask(mask)))
    pixels = np.moveaxis(omezarr.open_array(record.store, str(record.tissue_level))[...], 0, -1)
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


def spread_tiles(where: np.ndarray, factor: int, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Level-0 corners (y, x) of at most ``QUALITY_TILES`` tiles that lie in ``where`` (``factor`` coarser), evenly chosen."""
    side = QUALITY_TILE_PX
    corners = [(y, x) for y in range(0, shape[0] - side + 1, side) for x in range(0, shape[1] - side + 1, side)]
    inside = [(y, x) for y, x in corners if where[y // factor : (y + side) // factor, x // factor : (x + side) // factor].all()]
    # by the golden ratio: spread over rows and columns alike, whatever the shape
    chosen = sorted(range(len(inside)), key=lambda k: (k * 0.6180339887) % 1.0)[:QUALITY_TILES]
    return [inside[k] for k in sorted(chosen)]


def nearby(own: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A section's own tissue on another grid of the same extent, grown a little: it was seen more coarsely."""
    import cv2

    size = cv2.resize(own.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
    reach = 1 + 2 * math.ceil(max(shape) / max(own.shape))
    return np.asarray(cv2.dilate(size, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)), bool)


def placeholder(
    section: Section, folder: Path, settings: IngestSettings, pixel_size_mm: float | None, error: Exception
) -> SectionManifest:
    """A store of one white pixel without tissue for a slide that cannot be read, and the reason as a flag."""
    size = section.pixel_size_mm or pixel_size_mm or 1.0
    grid = Grid((1, 1), np.full(2, size))
    spec = omezarr.PyramidSpec(section.id, grid, ("intensity",), "uint8", 1)
    omezarr.write_pyramid(folder, spec, lambda y, x, h, w: np.full((h, w, 1), 255, np.uint8), settings.storage)
    omezarr.write_label(folder, "tissue", [np.zeros((1, 1), bool)], [grid], settings.storage)
    problems = error.problems if isinstance(error, InputError) else ()
    reason = "; ".join(problem.what for problem in problems) or str(error)
    return SectionManifest(
        section=section.id,
        store=folder,
        shape=(1, 1),
        pixel_size_mm=(size, size),
        levels=1,
        channels=("intensity",),
        dtype="uint8",
        background=(255.0,),
        region=section.region,
        status="unreadable",
        flags=(f"could not be read: {reason}",),
    )


def bad(section: Section, what: str, remedy: str) -> InputError:
    """An input error about a section."""
    return InputError(Problem(f"section {section.id} ({section.file})", what, remedy))


def region_shape(section: Section, slide_shape: tuple[int, int]) -> tuple[int, int]:
    """(y, x) of the section's region, the whole slide without one. Raises ``InputError`` where it leaves the slide."""
    if section.region is None:
        return slide_shape
    x, y, width, height = section.region
    if min(x, y) < 0 or min(width, height) < 1 or x + width > slide_shape[1] or y + height > slide_shape[0]:
        what = f"region {x},{y},{width},{height} leaves the slide of {slide_shape[1]} x {slide_shape[0]} pixels"
        raise bad(section, what, "give x,y,width,height in level-0 pixels of the file")
    return height, width


def pixel_size(section: Section, info: slides.SlideInfo, default_mm: float | None) -> np.ndarray:
    """Pixel size (y, x) in mm: the sheet's, else the file's, else the config's. Raises :class:`NoPixelSizeError`."""
    sheet = section.pixel_size_mm
    size = (sheet, sheet) if sheet else info.pixel_size_mm or ((default_mm, default_mm) if default_mm else None)
    if size is None:
        what = "neither the sheet nor the file nor the config gives a pixel size"
        remedy = "fill in the column 'pixel_size_mm', or set pixel_size_mm in the config"
        raise NoPixelSizeError(Problem(f"section {section.id} ({section.file})", what, remedy))
    return np.asarray(size, float)


def threads_within_memory(settings: IngestSettings, channels: int, itemsize: int, threads: int) -> int:
    """How many of the granted threads fit ``max_memory_mb``: each holds one unit as read, stored and averaged."""
    unit = settings.shard_px**2 * channels * (3 * itemsize + 5) / 2**20
    # the levels above hold one unit each in float32, the interpreter and the tile cache the rest
    fixed = 350 + settings.shard_px**2 * channels * 4 / 2**20 * 2
    return max(1, min(threads, math.floor((settings.max_memory_mb - fixed) / unit)))


def damage_flags(section: Section, bad_tiles: int, tiles: int, max_share: float) -> tuple[str, ...]:
    """A flag for tiles that could not be decoded. Raises ``InputError`` when their share exceeds ``max_share``."""
    if not bad_tiles:
        return ()
    what = f"{bad_tiles} of {tiles} tiles could not be decoded"
    if bad_tiles > max_share * tiles:
        raise bad(section, what, "copy the slide again from the scanner")
    return (what,)


def tissue_flags(is_empty: bool, fraction: float, area_mm2: float) -> tuple[str, ...]:
    """A flag for no tissue or very little of it."""
    if is_empty:
        return ("no tissue was found",)
    return (f"little tissue: {area_mm2:.3g} mm2, {100 * fraction:.2g} % of the image",) if fraction < LITTLE_TISSUE else ()
