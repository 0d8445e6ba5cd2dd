"""What ingestion finds out about a section's stains, and how all sections of a stain are made to look alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image, InputError
from histomri.core.errors import Problem
from histomri.io import omezarr
from histomri.io.sections import SectionManifest, StainRecord, mask_on
from histomri.kernels.named_stains import KINDS, kind_of, nuclear_channel, stain_problems
from histomri.kernels.stains import (
    Look,
    common_look,
    concentrations,
    estimate_colours,
    normalised,
    optical_density,
    rescaled,
    strengths,
    unit,
    upper_quartile,
)

RGB = ("red", "green", "blue")
# nuclei are whole at this pixel size, and compression and noise averaged out
WORKING_MM = 0.002
TILE_PX = 256
MAX_TILES = 24
# twice as many turn the colours of an H&E section by 0.05 to 0.2 degrees, and take half a second more
MAX_PIXELS = 700_000
# of what a fluorescence channel reaches; darker counts as unstained
DIM = 0.05


@dataclass(frozen=True, eq=False)
class Dyes:
    """The dyes that a section is said to hold: their names, unit vectors (n, c), and whether the image may correct them."""

    kind: str | None
    names: tuple[str, ...]
    vectors: NDArray[np.float64]
    is_given: bool = False
    may_correct: bool = False


def check_stains(entries: Mapping[str, Any]) -> None:
    """Refuse stain colours that cannot be told apart. Raises ``InputError`` naming the stain."""
    problems = [Problem(f"config, key ingest.stains.{stain}", what, remedy) for stain, what, remedy in stain_problems(entries)]
    if problems:
        raise InputError(*problems)


def add_stains(
    record: SectionManifest, stain: str, entries: Mapping[str, Any], registration_channel: str, threads: int = 1
) -> SectionManifest:
    """The manifest of a section with tissue, with its stains measured and the channel that registration sees chosen.

    ``entries`` is the config key ``ingest.stains``: what it says about the sheet's ``stain``, else what the name itself says. The
    store is only read. A section without tissue keeps its manifest.
    """
    if not record.is_usable:
        return record
    entry = entries.get(stain, {})
    dyes = dyes_of(record, stain, entry)
    pixels = tissue_pixels(record, threads)
    if len(pixels) == 0:
        return record
    stains = measure_stains(record, dyes, pixels)
    wanted = entry.get("registration_channel") or registration_channel
    channel, remarks = choose_channel(record, stains, wanted)
    return replace(record, stains=stains, registration_channel=channel, flags=(*record.flags, *remarks))


def dyes_of(record: SectionManifest, stain: str, entry: Mapping[str, Any]) -> Dyes:
    """The dyes by the config's vectors, its kind, or the stain's name; each channel by itself where no colours are known."""
    kind = entry.get("kind") or kind_of(stain)
    if record.inverted or record.channels != RGB:
        return Dyes(kind, record.channels, np.eye(len(record.channels)))
    if entry.get("vectors"):
        vectors = unit(entry["vectors"])
        names = tuple(entry.get("names") or (f"stain_{i}" for i in range(len(vectors))))
        return Dyes(kind or "given", names, vectors, is_given=True, may_correct=bool(entry.get("estimate", False)))
    if kind is None or not KINDS[kind].vectors:
        return Dyes(kind, record.channels, np.eye(len(record.channels)))
    return Dyes(kind, KINDS[kind].names, unit(np.array(KINDS[kind].vectors)), may_correct=bool(entry.get("estimate", True)))


def measure_stains(record: SectionManifest, dyes: Dyes, pixels: NDArray[Any]) -> StainRecord:
    """The record of a section's stains from tissue pixels (m, c); ``origin`` says where the image shows no colour of its own."""
    vectors, confidence = dyes.vectors, (1.0,) * len(dyes.names)
    origin = ["config" if dyes.is_given else "named"] * len(dyes.names)
    if dyes.may_correct:
        found = estimate_colours(pixels, record.background, dyes.vectors)
        vectors, confidence = found.vectors, found.confidence
        origin = ["image" if is_own else standard for is_own, standard in zip(found.found, origin, strict=True)]
    amounts, strengths = amounts_of(record, pixels, vectors)
    return StainRecord(
        kind=dyes.kind,
        names=dyes.names,
        vectors=tuple(tuple(round(float(v), 5) for v in row) for row in vectors),
        origin=tuple(origin),
        confidence=tuple(confidence),
        strengths=tuple(round(float(v), 5) for v in strengths),
        medians=tuple(round(float(np.median(column)), 5) for column in np.ascontiguousarray(amounts.T)),
    )


def amounts_of(
    record: SectionManifest, pixels: NDArray[Any], vectors: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """How much of each stain the pixels hold, (m, n), and how strong it is; above the background if ``inverted``."""
    if record.inverted:
        above = pixels.astype(np.float32) - np.asarray(record.background, np.float32)
        least = np.maximum(DIM * np.percentile(above, 99, axis=0), 1e-3)
        return above, np.array([upper_quartile(a, float(dim)) for a, dim in zip(above.T, least, strict=True)])
    amounts = concentrations(optical_density(pixels, record.background), vectors)
    return amounts, strengths(amounts)


def choose_channel(record: SectionManifest, stains: StainRecord, wanted: str) -> tuple[str, tuple[str, ...]]:
    """What registration sees, and a flag where the section does not have what the config asks for."""
    if wanted == "auto":
        return automatic_channel(record, stains), ()
    by_name = {name.lower(): name for name in (*record.channels, *stains.names)}
    if wanted == "mean" or wanted.lower() in by_name:
        return by_name.get(wanted.lower(), "mean"), ()
    there = ", ".join(dict.fromkeys((*stains.names, *record.channels)))
    return "mean", (f"has no registration_channel {wanted!r} (it has {there}): the mean of its channels is used",)


def automatic_channel(record: SectionManifest, stains: StainRecord) -> str:
    """The nuclei in fluorescence, the counterstain beside a marker that is here and there, else the mean."""
    if record.inverted:
        return nuclear_channel(record.channels) or "mean"
    structure = KINDS[stains.kind].structure if stains.kind in KINDS else None
    return structure if structure in stains.names else "mean"


def stain_level(record: SectionManifest) -> int:
    """The level whose pixels are about 2 um, at least the second where the section is large enough for it."""
    wanted = int(np.floor(np.log2(max(WORKING_MM / min(record.pixel_size_mm), 1.0) * 1.001)))
    tissue_px = record.tissue_fraction * float(np.prod(np.asarray(record.shape, float)))
    for level in (1, 2):
        wanted = max(wanted, level) if tissue_px / 4**level > 50_000 else wanted
    return min(wanted, record.levels - 1)


def tissue_pixels(record: SectionManifest, threads: int = 1) -> NDArray[Any]:
    """Pixels of the tissue, (m, c), of at most 24 tiles spread evenly over it; of many pixels every so many-th."""
    level = stain_level(record)
    grid, stored = record.level_grid(level), omezarr.stored_level(record.store, str(level))

    def held(box: tuple[slice, slice]) -> NDArray[Any]:
        corner, end = (box[0].start, box[1].start), (box[0].stop, box[1].stop)
        planes = stored.box(corner, (end[0] - corner[0], end[1] - corner[1]))
        return planes[:, mask_on(record, grid.crop(corner, end))]

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(held, sample_tiles(record, grid)))
    if not parts:
        return np.empty((0, len(record.channels)), record.dtype)
    pixels = np.concatenate(parts, axis=1)
    return np.ascontiguousarray(pixels[:, :: -(-pixels.shape[1] // MAX_PIXELS) or 1]).T


def sample_tiles(record: SectionManifest, grid: Grid) -> list[tuple[slice, slice]]:
    """Boxes of at most 256 pixels' side of a level's grid: those that hold tissue, thinned out evenly in reading order."""
    import cv2

    height, width = grid.shape
    across = (-(-height // TILE_PX), -(-width // TILE_PX))
    finest = grid.with_spacing(grid.spacing_mm * max(1.0, max(grid.shape) / 1024))
    share = cv2.resize(mask_on(record, finest).astype(np.float32), across[::-1], interpolation=cv2.INTER_AREA)
    held = np.argwhere(share.reshape(across) >= min(0.3, 0.5 * float(share.max())))
    if float(share.max()) <= 0:
        return []
    chosen = held[np.unique(np.linspace(0, len(held) - 1, min(MAX_TILES, len(held))).round().astype(int))]
    edges = [np.linspace(0, n, k + 1).round().astype(int) for n, k in zip((height, width), across, strict=True)]
    return [(slice(edges[0][r], edges[0][r + 1]), slice(edges[1][c], edges[1][c + 1])) for r, c in chosen]


def look_of(record: SectionManifest) -> Look | None:
    """How a section's stains look; None where they were not measured."""
    if record.stains is None:
        return None
    stains = record.stains
    return Look(np.asarray(record.background, float), np.asarray(stains.vectors, float), np.asarray(stains.strengths, float))


def study_look(records: Sequence[SectionManifest]) -> Look | None:
    """The look in the middle of those of the sections of a stain; None where none was measured.

    It depends on the manifests alone, so a further section costs nothing but its own ingestion.
    """
    first = next((r for r in records if r.stains is not None), None)
    alike = [r for r in records if first is not None and is_comparable(r, first)]
    looks = [look for r in alike if (look := look_of(r)) is not None]
    return common_look(looks) if looks else None


def is_comparable(record: SectionManifest, other: SectionManifest) -> bool:
    """Whether two sections were measured by the same stains, on the same side of their background."""
    if record.stains is None or other.stains is None:
        return False
    return record.stains.names == other.stains.names and record.inverted == other.inverted


class NormalisedPixels:
    """The pixels of a section's level as they would look in the middle of the study; computed when indexed with slices."""

    def __init__(self, data: Any, record: SectionManifest, wanted: Look):
        own = look_of(record)
        assert own is not None
        self._data, self._own, self._wanted = data, own, wanted
        self._change = rescaled if record.inverted else normalised
        self.shape, self.dtype, self.ndim = tuple(data.shape), data.dtype, len(data.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        pixels = np.asarray(self._data[key])
        planes = pixels if self.ndim == 3 else pixels[..., None]
        changed = self._change(planes, self._own, self._wanted)
        return changed if self.ndim == 3 else changed[..., 0]


def normalised_image(image: Image, record: SectionManifest, wanted: Look | None) -> Image:
    """A level of a section with the wanted look; as it is where no look is wanted or its own is not known."""
    if wanted is None or look_of(record) is None or look_of(record).vectors.shape != wanted.vectors.shape:  # type: ignore[union-attr]
        return image
    return Image(image.grid, NormalisedPixels(image.data, record, wanted), image.channels)
