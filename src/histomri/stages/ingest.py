"""Ingestion: a slide file becomes an OME-Zarr pyramid with a tissue mask, and a manifest that says what was found."""

from __future__ import annotations

import errno
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from histomri.core import Grid, InputError, Section
from histomri.core.errors import HistomriError, Problem
from histomri.io import omezarr, private, slides
from histomri.io.publish import content_sha256, remove, whole
from histomri.io.pyramid import Reading, ReadTile
from histomri.io.regions import FoundSection, sections_on
from histomri.io.sections import SectionManifest, write_manifest
from histomri.io.shards import encoder, room_for
from histomri.io.slides.base import MOST_ASSOCIATED_PX
from histomri.stages.focus import add_quality
from histomri.stages.stains import add_stains, check_stains
from histomri.stages.tissue import MaskSettings, add_tissue

BASE_MB = 350
SAMPLE_PX = 512
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# beside the manifest, so that the public folder of sections may be given away as it is
KEPT = "kept"


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
    focal_plane: str = "sharpest"
    stains: dict[str, Any] = field(default_factory=dict)
    registration_channel: str = "auto"
    keep: list[str] = field(default_factory=list)
    reading_order: str = "row-major"

    def __post_init__(self) -> None:
        check_stains(self.stains)

    @property
    def storage(self) -> omezarr.Storage:
        """How the store's arrays are laid out."""
        return omezarr.Storage(self.chunk_px, self.shard_px, self.codec)


class NoPixelSizeError(InputError):
    """Neither the sheet nor the file nor the config says how big a pixel is."""


class NoSpaceError(HistomriError):
    """The disk is too small, or not to be written."""


class SlideChangedError(HistomriError):
    """A slide's files changed while they were read."""


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
    What ``settings.keep`` names goes to the folder ``kept`` beside the manifest.
    Raises ``InputError`` where no pixel size is known, :class:`NoSpaceError` where the disk is too small, and
    :class:`SlideChangedError`; then nothing is published.
    """
    store, manifest = Path(store), Path(manifest)
    kept = manifest.parent / KEPT
    # an old manifest must never stand beside a new store, nor what was kept once outlive the wish to keep it
    remove(manifest)
    remove(kept)
    with disk_errors_in_words(store), whole(store) as partial:
        digests: dict[str, str] = {}
        try:
            record, digests = convert(section, partial, settings, pixel_size_mm, threads)
        except NoPixelSizeError:
            raise
        except (InputError, OSError) as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise
            remove(partial)
            record = placeholder(section, partial, settings, pixel_size_mm, error)
        record = replace(record, store=store, content_sha256=content_sha256(partial, digests))
    record = without_private(record, section, settings, kept)
    write_manifest(manifest, record)
    return record


def convert(
    section: Section, folder: Path, settings: IngestSettings, pixel_size_mm: float | None, threads: int
) -> tuple[SectionManifest, dict[str, str]]:
    """Write the pyramid and the tissue label of a readable slide into ``folder``; the record, and digests of files with pixels.

    Raises ``InputError``, :class:`NoSpaceError` and :class:`SlideChangedError`.
    """
    if section.file is None:
        raise bad(section, "the sheet names no file", "fill in the column 'file', or set the status to missing")
    opened = slides.open_slide(section.file, section.channel, settings.max_plain_px, settings.focal_plane)
    with opened as slide, unchanged(slide):
        info = slide.info
        found = found_region(section, slide, settings.reading_order)
        section = replace(section, region=found.region) if found else section
        grid = Grid(region_shape(section, info.shape), pixel_size(section, info, pixel_size_mm))
        levels = omezarr.level_count(grid.shape, settings.smallest_level_px)
        spec = omezarr.PyramidSpec(section.id, grid, info.channels, info.dtype, levels)
        left, top = section.region[:2] if section.region else (0, 0)
        granted = threads_within_memory(settings, spec, threads)
        reading = reading_of(slide, (top, left), granted, ProgressLog(spec))
        storage, remarks = storage_of(spec, settings)
        check_space(folder, spec, reading.read_tile, storage.codec)
        digests = omezarr.write_pyramid(folder, spec, reading, storage)
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
        flags=(*flags, *info.notes, *remarks),
        dropped=info.dropped,
    )
    record = add_tissue(record, mask_settings(settings), storage, found.own if found else None)
    return measured(record, section.stain, settings, threads), digests


def measured(record: SectionManifest, stain: str, settings: IngestSettings, threads: int) -> SectionManifest:
    """The manifest with focus and stains, measured side by side where there are threads for it."""
    each = max(1, threads // 2)
    with ThreadPoolExecutor(min(2, threads)) as pool:
        stained = pool.submit(add_stains, record, stain, settings.stains, settings.registration_channel, each)
        sharp = pool.submit(add_quality, record, each)
        found = stained.result()
    return replace(sharp.result(), stains=found.stains, registration_channel=found.registration_channel, flags=found.flags)


def storage_of(spec: omezarr.PyramidSpec, settings: IngestSettings) -> tuple[omezarr.Storage, tuple[str, ...]]:
    """How a section is stored; without loss, and with a flag that says so, where the chosen codec cannot hold its pixels."""
    if omezarr.fits_codec(settings.codec, len(spec.channels), spec.dtype):
        return settings.storage, ()
    said = f"{len(spec.channels)} channels of {spec.dtype} cannot be stored as {settings.codec}: {omezarr.LOSSLESS[0]} is used"
    return replace(settings.storage, codec=omezarr.LOSSLESS[0]), (said,)


def reading_of(slide: slides.Slide, corner: tuple[int, int], threads: int, progress: Callable[[int], None]) -> Reading:
    """How a slide's pixels from ``corner`` (y, x) on are read."""
    top, left = corner

    def tile(y: int, x: int, height: int, width: int) -> slides.Pixels:
        return slide.read_region(y + top, x + left, height, width)

    def planes(y: int, x: int, height: int, width: int, out: slides.Pixels) -> None:
        slide.read_planes(y + top, x + left, height, width, out)

    return Reading(tile, slide.block_px, threads, progress, read_planes=None if slide.block_px else planes)


def without_private(record: SectionManifest, section: Section, settings: IngestSettings, folder: Path) -> SectionManifest:
    """The manifest with the names of what the file says about people, places and times; what is to be kept goes to ``folder``."""
    if record.status == "unreadable" or section.file is None:
        return record
    kept, left = private.keep(section.file, record.dropped, settings.keep, folder, min(settings.max_plain_px, MOST_ASSOCIATED_PX))
    dropped = tuple(name for name in record.dropped if name not in kept)
    return replace(record, dropped=dropped, dropped_metadata=tuple(f.name for f in left), kept=tuple(kept))


def found_region(section: Section, slide: slides.Slide, reading_order: str) -> FoundSection | None:
    """Where the slide holds a section whose region is ``auto``; None where the sheet says. Raises ``InputError``."""
    if section.auto_region is None:
        return None
    place, count = section.auto_region
    return sections_on(slide, count, reading_order).sections[place - 1]


def mask_settings(settings: IngestSettings) -> MaskSettings:
    """What the search for tissue wants to know."""
    return MaskSettings(
        mask_px=settings.mask_px,
        min_contrast=settings.mask_min_contrast,
        min_contrast_dark=settings.mask_min_contrast_dark,
        min_piece=settings.mask_min_piece,
        max_hole=settings.mask_max_hole,
        min_fraction=settings.min_tissue_fraction,
    )


def placeholder(
    section: Section, folder: Path, settings: IngestSettings, pixel_size_mm: float | None, error: Exception
) -> SectionManifest:
    """A store of one white pixel without tissue for a slide that cannot be read, and the reason as a flag."""
    size = section.pixel_size_mm or pixel_size_mm or 1.0
    grid = Grid((1, 1), np.full(2, size))
    spec = omezarr.PyramidSpec(section.id, grid, ("intensity",), "uint8", 1)
    reading = Reading(lambda y, x, h, w: np.full((h, w, 1), 255, np.uint8))
    omezarr.write_pyramid(folder, spec, reading, settings.storage)
    omezarr.write_label(folder, "tissue", [np.zeros((1, 1), bool)], [grid], settings.storage)
    problems = error.problems if isinstance(error, InputError) else ()
    # the text of a system's error names the path, and paths name people
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = "; ".join(problem.what for problem in problems) or said
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


def threads_within_memory(settings: IngestSettings, spec: omezarr.PyramidSpec, threads: int) -> int:
    """How many of the granted threads fit ``max_memory_mb``.

    Each holds its shard of level 0, and at worst a chunk of sums and a shard as coded of its own at every level above; see
    ``io.pyramid``.
    """
    from histomri.kernels.pyramid import sum_type

    channels, dtype = len(spec.channels), np.dtype(spec.dtype)
    shapes = [omezarr.level_grid(spec.grid, k).shape for k in range(spec.levels)]

    def held(side: int, level: int) -> float:
        return float(np.prod([min(n, side) for n in shapes[level]]))

    coded = sum(held(settings.shard_px, k) for k in range(spec.levels)) * dtype.itemsize
    sums = sum(held(settings.chunk_px, k) * sum_type(dtype, k).itemsize for k in range(1, spec.levels))
    unit = (coded + sums) * channels / 2**20
    # the interpreter and its libraries, and decoded tiles that are kept
    return max(1, min(threads, math.floor((settings.max_memory_mb - BASE_MB) / unit)))


class ProgressLog:
    """Says in the job's log how much is done and how long the rest may take, every ten seconds and at the end of a long one."""

    def __init__(self, spec: omezarr.PyramidSpec, every_s: float = 10.0):
        self._per_px = len(spec.channels) * np.dtype(spec.dtype).itemsize
        self._total, self._done, self._every_s = int(np.prod(spec.grid.shape)), 0, every_s
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, pixels: int) -> None:
        """That many more pixels of level 0 are written."""
        with self._lock:
            self._done += pixels
            now = time.monotonic()
            if now - self._said < self._every_s:
                return
            self._said = now
        rate = self._done / (now - self._began)
        done, total = (n * self._per_px / 1e9 for n in (self._done, self._total))
        left = (self._total - self._done) / rate
        print(f"{done:.2f} of {total:.2f} GB of pixels, {rate * self._per_px / 1e6:.0f} MB/s, {left:.0f} s to go", flush=True)


@contextmanager
def disk_errors_in_words(store: Path) -> Iterator[None]:
    """A full disk as :class:`NoSpaceError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise NoSpaceError(f"{store} could not be written ({error.strerror}): free space there, or move the output") from error


@contextmanager
def unchanged(slide: slides.Slide) -> Iterator[None]:
    """Raises :class:`SlideChangedError` where a file of the slide has another size or time at the end of the block."""
    before = {file: stamp(file) for file in slide.files()}
    yield
    changed = [str(file) for file, seen in before.items() if stamp(file) != seen]
    if changed:
        raise SlideChangedError(f"{', '.join(changed)} changed while it was read: wait until it is copied whole, and run again")


def stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of a file, None where there is none any more."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def check_space(folder: Path, spec: omezarr.PyramidSpec, read_tile: ReadTile, codec: str) -> None:
    """Raises :class:`NoSpaceError` where the store will hardly fit on the disk of ``folder``, by a sample of its pixels."""
    height, width = spec.grid.shape
    pixels = height * width * len(spec.channels) * np.dtype(spec.dtype).itemsize * 4 / 3
    free = shutil.disk_usage(folder.parent).free
    if pixels < free:
        return
    needed = pixels * coded_share(read_tile, (height, width), codec)
    if needed > free:
        what = f"the pyramid needs about {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
        raise NoSpaceError(f"{folder.parent}: {what}: free space there, move the output, or choose another ingest.codec")


def coded_share(read_tile: ReadTile, shape: tuple[int, int], codec: str) -> float:
    """Bytes that the codec makes of a byte of pixels, by 25 boxes spread over the slide."""
    side, places = min(SAMPLE_PX, *shape), range(5)
    encode, coded, read = encoder(codec, 1), 0, 0
    for i in places:
        for j in places:
            y, x = (round((n - side) * k / 4) for n, k in zip(shape, (i, j), strict=True))
            planes = np.ascontiguousarray(np.moveaxis(read_tile(y, x, side, side), -1, 0))
            coded += encode(planes, memoryview(bytearray(room_for(planes.nbytes))))
            read += planes.nbytes
    return coded / read


def damage_flags(section: Section, bad_tiles: int, tiles: int, max_share: float) -> tuple[str, ...]:
    """A flag for tiles that could not be decoded. Raises ``InputError`` when their share exceeds ``max_share``."""
    if not bad_tiles:
        return ()
    what = f"{bad_tiles} of {tiles} tiles could not be decoded"
    if bad_tiles > max_share * tiles:
        raise bad(section, what, "copy the slide again from the scanner")
    return (what,)
