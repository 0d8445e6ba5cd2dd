"""Ingested sections: their manifests, their levels, and the image that registration works on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image, InputError
from histomri.core.errors import Problem
from histomri.io import omezarr
from histomri.io.atomic import write_json

TISSUE = "labels/tissue"
# one level finer than needed is averaged down where it holds no more pixels than this
FINER_LEVEL_PX = 1 << 25

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class StainRecord:
    """The stains of a section as ingestion found them.

    ``kind`` is one of :data:`histomri.kernels.named_stains.KINDS`, ``given`` or None (unknown); ``vectors`` (n, c) are unit
    vectors of optical density by channel, one per name (of intensity above the background where tissue is brighter).
    ``origin`` says of each where it comes from (``image``, ``named``, ``config``), ``confidence`` how sure the image is of it,
    0 to 1. ``strengths`` are the concentrations that three quarters of the stained tissue stay below,
    ``medians`` those of the middle of all tissue.
    """

    kind: str | None
    names: tuple[str, ...]
    vectors: tuple[tuple[float, ...], ...]
    origin: tuple[str, ...]
    confidence: tuple[float, ...]
    strengths: tuple[float, ...]
    medians: tuple[float, ...]


@dataclass(frozen=True)
class SectionManifest:
    """What ingestion found out about a section; the record that everything downstream depends on.

    ``store`` is an absolute path in memory and relative to the output folder on disk. ``shape`` (y, x) and
    ``pixel_size_mm`` (y, x) are those of level 0; ``region`` is (x, y, width, height) in level-0 pixels of the slide.
    ``background`` is per channel, in pixel values; ``inverted`` is True where tissue is brighter than it. The tissue label
    starts at level ``tissue_level`` of the image and has ``tissue_levels`` levels of its own. ``dropped`` names the images and
    ``dropped_metadata`` the private fields of the file's metadata that were left behind, ``kept`` those that the config asked
    for. ``registration_channel`` is what registration sees: ``mean``, one of the stains, or one of the channels. ``sharpness`` to
    ``dynamic_range`` are defined in :mod:`histomri.kernels.focus` (None where they cannot be told); ``background_drift`` is how
    much the glass varies smoothly over the slide, in optical density.
    """

    section: str
    store: Path
    shape: tuple[int, int]
    pixel_size_mm: tuple[float, float]
    levels: int
    channels: tuple[str, ...]
    dtype: str
    background: tuple[float, ...]
    inverted: bool = False
    region: tuple[int, int, int, int] | None = None
    tissue_level: int = 0
    tissue_levels: int = 1
    tissue_area_mm2: float = 0.0
    tissue_fraction: float = 0.0
    status: str = "ok"
    flags: tuple[str, ...] = ()
    content_sha256: str = ""
    dropped: tuple[str, ...] = ()
    dropped_metadata: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    stains: StainRecord | None = None
    registration_channel: str = "mean"
    sharpness: float | None = None
    soft_share: float | None = None
    mean_density: float | None = None
    saturation: float | None = None
    dynamic_range: float | None = None
    white_balance: tuple[float, ...] = ()
    background_drift: float = 0.0

    @property
    def grid(self) -> Grid:
        """The level-0 grid in ``section:`` mm, origin at the centre of the top left pixel."""
        return Grid(self.shape, np.asarray(self.pixel_size_mm))

    @property
    def is_usable(self) -> bool:
        """Whether the section was read and holds tissue."""
        return self.status == "ok"

    def level_grid(self, level: int) -> Grid:
        """The grid of a pyramid level. Raises ``IndexError`` for a level that the store does not have."""
        if not 0 <= level < self.levels:
            raise IndexError(f"Section {self.section!r} has levels 0 to {self.levels - 1}, asked for {level}.")
        return omezarr.level_grid(self.grid, level)


def output_folder(manifest: Path) -> Path:
    """The output folder of a manifest at ``<output>/ingest/<id>/manifest.json``."""
    return manifest.absolute().parent.parent.parent


def write_manifest(path: str | Path, manifest: SectionManifest) -> None:
    """Write a manifest, its store relative to the output folder so that the folder can move."""
    record: dict[str, Any] = asdict(manifest)
    record["store"] = Path(os.path.relpath(manifest.store.absolute(), output_folder(Path(path)))).as_posix()
    write_json(Path(path), record)


def read_manifest(path: str | Path) -> SectionManifest:
    """Read ``<output>/ingest/<id>/manifest.json``. Raises ``InputError`` where it is missing or not a manifest."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["store"] = output_folder(path) / record["store"]
        lists = {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
        if record.get("stains"):
            stains = {key: _tuples(value) for key, value in record["stains"].items()}
            record["stains"] = StainRecord(**stains)
        return SectionManifest(**{**record, **lists})
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = f"expected the manifest of an ingested section, found {error}"
        raise InputError(Problem(str(path), what, "run the ingest stage again")) from error


def _tuples(value: Any) -> Any:
    """Lists in lists as tuples in tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def open_level(manifest: SectionManifest, level: int = 0) -> Image:
    """Level ``level`` of a section's pixels, read only when indexed, on its grid in ``section:`` mm.

    ``data`` is (y, x, c), or (y, x) for a single channel; index it with slices to get NumPy arrays.
    """
    grid = manifest.level_grid(level)
    view = omezarr.ChannelsLast(omezarr.open_array(manifest.store, str(level)))
    return Image(grid, view, manifest.channels if view.has_channels else ())


def open_tissue(manifest: SectionManifest, level: int = 0) -> Image:
    """Level ``level`` of the tissue mask, bool (y, x), on its grid in ``section:`` mm; 0 is the mask's own finest level."""
    grid = omezarr.level_grid(manifest.grid, manifest.tissue_level + level)
    return Image(grid, omezarr.read_pixels(manifest.store, f"{TISSUE}/{level}").astype(bool))


def tissue_contrast(pixels: NDArray[Any], manifest: SectionManifest) -> Float32:
    """Single-channel float32 (y, x) in which tissue is bright on a background of 0, from a section's (y, x[, c]) pixels.

    Brightfield: optical density ``-log10((I + 1) / (background + 1))``. Dark background (``inverted``): ``I - background``
    as a share of the range of the section's pixel type (of 1 for float). Averaged over the channels and clipped at 0; or the
    one channel, or the concentration of the one stain, that is the manifest's ``registration_channel``.
    """
    from histomri.kernels.tissue import tissue_bright  # brings OpenCV

    kind, planes = np.dtype(manifest.dtype), pixels.reshape(*pixels.shape[:2], -1)
    full_range = 1.0 if kind.kind == "f" else float(np.iinfo(kind).max)
    wanted, background = manifest.registration_channel, manifest.background
    if wanted in manifest.channels:
        at = manifest.channels.index(wanted)
        planes, background = planes[..., at : at + 1], background[at : at + 1]
    elif manifest.stains is not None and not manifest.inverted and wanted in manifest.stains.names:
        return stain_channels(pixels, manifest)[..., manifest.stains.names.index(wanted)]
    return tissue_bright(planes, background, manifest.inverted, full_range)


def stain_channels(pixels: NDArray[Any], manifest: SectionManifest) -> Float32:
    """How much of each of a brightfield section's stains there is, (y, x, n) float32, from its (y, x[, c]) pixels.

    Raises ``ValueError`` for a section whose stains are not known.
    """
    from histomri.kernels.stains import concentrations, optical_density

    if manifest.stains is None or manifest.inverted:
        raise ValueError(f"Section {manifest.section!r} has no stains that could be separated.")
    density = optical_density(pixels.reshape(*pixels.shape[:2], -1), manifest.background)
    return concentrations(density, np.asarray(manifest.stains.vectors))


def area_average(pixels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Pixels (y, x[, c]) averaged by exact area, fractions of pixels included, to ``shape`` over the same extent; float32."""
    import cv2

    if pixels.shape[:2] == shape:
        return pixels
    planes = np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), -1, 0).astype(np.float32)
    return np.stack([cv2.resize(p, shape[::-1], interpolation=cv2.INTER_AREA) for p in planes], axis=-1)


def mask_on(manifest: SectionManifest, grid: Grid) -> NDArray[np.bool_]:
    """The tissue mask on another grid in ``section:`` mm, (y, x): linear between the centres of its pixels, cut at one half."""
    import cv2

    finest = manifest.pixel_size_mm[0] * 2**manifest.tissue_level
    wanted = np.floor(np.log2(max(float(grid.spacing_mm[0]) / finest, 1) * 1.001))
    mask = open_tissue(manifest, min(int(wanted), manifest.tissue_levels - 1))
    if mask.grid == grid:
        return np.asarray(mask.data)
    ends = mask.grid.to_index(grid.corners()[[0, -1]])
    y, x = (np.linspace(ends[0, i], ends[1, i], grid.shape[i], dtype=np.float32) for i in (0, 1))
    maps = np.meshgrid(x, y)
    share = cv2.remap(mask.data.astype(np.float32), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(share >= 0.5)


def source_level(manifest: SectionManifest, spacing_mm: float) -> int:
    """The level to average down to ``spacing_mm``: at least twice as fine where affordable, never coarser if avoidable."""
    finest = min(manifest.pixel_size_mm)
    level = int(np.clip(np.floor(np.log2(max(spacing_mm / finest, 1) * 1.001)), 0, manifest.levels - 1))
    exact = abs(finest * 2**level / spacing_mm - 1) < 0.001
    if level and not exact and np.prod(manifest.level_grid(level - 1).shape) <= FINER_LEVEL_PX:
        return level - 1
    return level


def averaged_grid(grid: Grid, spacing_mm: float) -> Grid:
    """The grid over exactly the extent of ``grid`` whose spacing is nearest ``spacing_mm``, never finer than ``grid``."""
    shape = np.clip(np.round(grid.extent_mm / spacing_mm).astype(int), 1, grid.shape)
    factor = np.asarray(grid.shape) / shape
    return Grid(tuple(shape), grid.spacing_mm * factor, grid.to_world((factor - 1) / 2), grid.direction)


def registration_image(manifest: SectionManifest, spacing_mm: float) -> tuple[Image, Image]:
    """The section as registration sees it, and its tissue mask, on one grid of about ``spacing_mm``, in ``section:`` mm.

    The image is float32 (y, x), tissue bright on a background of 0 (see :func:`tissue_contrast`), area-averaged from the
    pyramid; what lies outside the mask (handwriting, slide edges) is not erased. The mask is bool (y, x). The spacing
    differs from ``spacing_mm`` so that whole pixels fill the section exactly, and is never finer than level 0.
    """
    level = open_level(manifest, source_level(manifest, spacing_mm))
    grid = averaged_grid(level.grid, spacing_mm)
    contrast = tissue_contrast(area_average(level.data[...], grid.shape), manifest)
    return Image(grid, contrast), Image(grid, mask_on(manifest, grid))
