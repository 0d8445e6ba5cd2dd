"""The report: one HTML file with everything in it, to be read by people."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import histomri
from histomri.core import Block, Grid, Image, Section
from histomri.evaluation.neighbours import PlacedSection
from histomri.io.atomic import replacing
from histomri.io.nifti import read_geometry, read_nifti
from histomri.stages import templates
from histomri.stages.cells import listed
from histomri.stages.contact_sheets import thumbnails
from histomri.stages.evaluation_inputs import PlacedBlock, read_block, read_manifests, read_mri
from histomri.stages.methods import Methods, methods_of
from histomri.stages.pictures import MRI_COLOUR, SECTION_COLOUR, Mask, Rgb, data_address, outline, png_address

TISSUE_TINT = np.array([1.0, 0.78, 0.55])
SIZES = (512, 448, 384, 320, 256, 208, 160, 128, 96)
BASE64_GROWTH = 1.37
VOLUME_VOXELS = 300_000_000
AXIS_NAMES = ("axial", "coronal", "sagittal")  # across LPS z, y, x


class ReportSettings(Protocol):
    """What the report needs of ``EvaluateSettings``."""

    @property
    def spacing_mm(self) -> float: ...
    @property
    def max_pixels(self) -> int: ...
    @property
    def report_pixels(self) -> int: ...
    @property
    def report_max_mb(self) -> float: ...


@dataclass(frozen=True)
class Picture:
    """Two images of one place, the upper one to be faded: data addresses and their size in pixels."""

    base: str
    top: str
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """One of three orthogonal views of a volume, and the MRI on the same plane (None without)."""

    title: str
    histology: str
    mri: str | None


def write_report(
    study: str,
    sections: tuple[Section, ...],
    manifests: Mapping[str, Path],
    blocks: tuple[Block, ...],
    placements: Mapping[str, Path],
    volumes: Mapping[tuple[str, str, str], Path],
    evaluation: Path,
    settings: ReportSettings,
    report: Path,
    poses: Mapping[str, Path] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Write ``report/index.html`` from the folder that ``evaluate`` wrote, and the contact sheets ``sections.html`` beside it.

    ``volumes`` are the manifests of the resampled volumes by (block, stain, grid), the NIfTI file beside each; ``poses`` are the
    pictures of the blocks' best poses; ``parameters`` are the config's keys that the methods paragraph names, which is left out
    without. The page loads nothing from anywhere and stays below about ``settings.report_max_mb``.
    """
    rows = read_rows(evaluation / "sections.tsv")
    known = read_manifests(manifests)
    pictures: dict[str, Picture] = {}
    for block in blocks:
        if block.id in placements:
            placed = read_block(block, sections, known, placements[block.id], settings.spacing_mm, settings.max_pixels)
            share = sum(s.block == block.id for s in sections) / max(len(sections), 1)
            pictures |= section_pictures(placed, settings.report_pixels, 0.75e6 * settings.report_max_mb * share)
    views = [(key, *volume_views(path, next(b for b in blocks if b.id == key[0]))) for key, path in sorted(volumes.items())]
    page = (
        _environment()
        .get_template("report.html")
        .render(
            study=study,
            version=histomri.__version__,
            metrics=json.loads((evaluation / "metrics.json").read_text(encoding="utf-8")),
            rows=rows,
            flagged=worst_first([row for row in rows if row["flags"]]),
            has_mri=any(b.mri for b in blocks),
            pictures=pictures,
            volumes=views,
            poses={b: png_address(path.read_bytes()) for b, path in (poses or {}).items()},
            histogram=_histogram([float(r["error_mm"]) for r in read_rows(evaluation / "landmarks.tsv") if r["error_mm"]]),
            stains=sorted({s.stain for s in sections}),
            methods=None if parameters is None else _methods(sections, blocks, parameters),
        )
    )
    items = thumbnails(rows, known)
    sheets = _environment().get_template("sections.html").render(study=study, items=items, blocks=len({i.block for i in items}))
    for path, text in ((report.with_name("sections.html"), sheets), (report, page)):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _methods(sections: Sequence[Section], blocks: Sequence[Block], parameters: Mapping[str, Any]) -> Methods:
    used = [s for s in sections if s.is_used]
    return methods_of(used, sorted({s.stain for s in used}), any(b.mri for b in blocks), parameters)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table of ours, cells as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def worst_first(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Flagged rows in the order in which to look at them: least sure first; last, those that the sheet itself leaves out."""
    return sorted(rows, key=lambda row: (row["status"] in ("missing", "excluded"), float(row["confidence"] or 0)))


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(templates.FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = _number
    environment.filters["listed"] = listed
    environment.filters["first_word"] = lambda flag: flag.split(":")[0].replace("_", " ")
    return environment


def _number(value: Any, digits: int = 3) -> str:
    """A number for people: ``digits`` significant ones, a dash where there is none."""
    if value in (None, ""):
        return "–"
    try:
        value = float(value)
    except ValueError:
        return str(value)
    return f"{value:.{digits}g}" if abs(value) < 10 ** (digits + 1) else f"{value:.0f}"


def _histogram(errors_mm: Sequence[float], bars: int = 40) -> dict[str, Any] | None:
    """Heights of the bars of the landmarks' errors up to their 99th percentile (the rest is in the last bar); None without."""
    if not errors_mm:
        return None
    values = np.asarray(errors_mm)
    end = max(float(np.percentile(values, 99)), 1e-6)
    counts, _ = np.histogram(np.minimum(values, end), bars, (0.0, end))
    median, p95 = np.percentile(values, [50, 95])
    return {"counts": counts.tolist(), "end": end, "median": float(median), "p95": float(p95), "n": len(values)}


# ------------------------------------------------------------------------------------------------ pictures of sections


def _shown(values: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    return np.asarray(np.clip((np.nan_to_num(values).astype(np.float32) - low) / max(high - low, 1e-9), 0, 1), np.float32)


def _resized(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    smaller = size[0] < image.shape[1]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR))


@dataclass(frozen=True)
class _Layer:
    """One image of a picture: values in 0 to 1, a tint, and the mask whose outline it brings."""

    values: NDArray[np.float32]
    tint: NDArray[np.float64]
    mask: Mask


def _picture(base: _Layer, top: _Layer, longest: int) -> Picture:
    height, width = top.values.shape
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    masks = [_resized(m.astype(np.uint8) * 255, size) > 127 for m in (base.mask, top.mask)]
    addresses = []
    for layer in (base, top):
        rgb = np.ascontiguousarray((_resized(layer.values, size)[..., None] * layer.tint * 255).astype(np.uint8))
        outline(rgb, masks[0], MRI_COLOUR)
        outline(rgb, masks[1], SECTION_COLOUR)
        addresses.append(data_address(rgb))
    return Picture(addresses[0], addresses[1], *size)


def _section_layer(s: PlacedSection) -> _Layer:
    high = float(np.percentile(s.image[s.mask], 99.5)) if s.mask.any() else 1.0
    return _Layer(_shown(s.image, 0.0, high), TISSUE_TINT, s.mask)


def _layers(placed: PlacedBlock) -> Callable[[int], tuple[_Layer, _Layer]]:
    """What lies under and over each section: its MRI plane, or the section before it where there is no MRI."""
    mri, grid = placed.mri(placed.placements.pose), placed.grid
    if mri is None or grid is None:
        return lambda i: (_section_layer(placed.sections[max(i - 1, 0)]), _section_layer(placed.sections[i]))
    data = mri.volume.data[::4, ::4, ::4]
    low, high = np.percentile(data[np.isfinite(data) & (data != 0)], [1, 99.5])

    def layers(i: int) -> tuple[_Layer, _Layer]:
        plane, tissue = mri.on_plane(grid, placed.sections[i].position_mm)
        return _Layer(_shown(plane, min(low, 0.0), high), np.ones(3), tissue), _section_layer(placed.sections[i])

    return layers


def section_pictures(placed: PlacedBlock, longest: int, max_bytes: float) -> dict[str, Picture]:
    """A picture of each placed section over its MRI plane by section id, of ``longest`` pixels or as many as ``max_bytes`` allow.

    Where even the smallest would not fit, evenly spaced sections are shown.
    """
    n = len(placed.sections)
    if not n:
        return {}
    layers = _layers(placed)
    sample = range(0, n, max(1, n // 6))
    each = 0.0
    for size in [longest, *(s for s in SIZES if s < longest)]:
        each = max(len(p.base) + len(p.top) for p in (_picture(*layers(i), size) for i in sample))
        if each * n <= max_bytes:
            break
    step = max(1, int(np.ceil(each * n / max_bytes)))
    return {placed.sections[i].id: _picture(*layers(i), size) for i in range(0, n, step)}


# ------------------------------------------------------------------------------------------------ views of volumes


def _plane_index(grid: Grid, axis: int, at: int) -> NDArray[np.intp]:
    shape = [n for i, n in enumerate(grid.shape) if i != axis]
    rows, columns = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return np.insert(np.stack([rows, columns], axis=-1), axis, at, axis=-1)


def _view_title(grid: Grid, axis: int) -> str:
    direction = np.abs(grid.direction[:, axis])
    return f"{AXIS_NAMES[int(np.argmax(direction))]}{'' if direction.max() > 0.95 else ', oblique'}"


def _upright(rgb: Rgb, grid: Grid, axis: int, longest: int = 420) -> Rgb:
    """The plane with square pixels and the patient's left, front and top as is customary (LPS z up in the picture)."""
    rows, columns = (i for i in range(3) if i != axis)
    size = (rgb.shape[1] * grid.spacing_mm[columns], rgb.shape[0] * grid.spacing_mm[rows])
    scale = longest / max(size)
    image = _resized(rgb, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
    main = [int(np.argmax(np.abs(grid.direction[:, i]))) for i in (rows, columns)]
    sign = [float(grid.direction[m, i]) for m, i in zip(main, (rows, columns), strict=True)]
    if (sign[0] > 0) == (main[0] == 0):
        image = image[::-1]
    return np.ascontiguousarray(image if sign[1] > 0 else image[:, ::-1])


def _box(coverage: Mask) -> tuple[slice, ...]:
    """The smallest box around what is covered, a twentieth wider on each side."""
    box = []
    for axis in range(3):
        used = np.flatnonzero(coverage.any(axis=tuple(i for i in range(3) if i != axis)))
        margin = max(1, (used[-1] - used[0]) // 20)
        box.append(slice(max(0, int(used[0] - margin)), int(used[-1] + margin + 1)))
    return tuple(box)


def _rgb_plane(values: NDArray[Any], low: float, high: float) -> Rgb:
    shown = (_shown(values, low, high) * 255).astype(np.uint8)
    return shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, axis=-1)


def volume_views(manifest: Path, block: Block) -> tuple[list[View], str]:
    """Three orthogonal views through the middle of a volume, beside the MRI where there is one; and a remark in words."""
    path = manifest.with_suffix(".nii.gz")
    grid, _ = read_geometry(path)
    if np.prod(grid.shape) > VOLUME_VOXELS:
        return (
            [],
            f"The volume of {' x '.join(map(str, grid.shape))} voxels is too large to be shown here: open {path.name} itself.",
        )
    volume = read_nifti(path, may_be_empty=True)
    data = volume.data[..., :3] if volume.channels else volume.data
    covered = data.any(axis=-1) if volume.channels else data != 0
    if not covered.any():
        return [], "The volume is empty."
    box = _box(covered)
    start = [s.start for s in box]
    part = Image(volume.grid.crop(start, np.add(start, data[box].shape[:3])), data[box], volume.channels[:3])
    return list(_views(part, block)), ""


def _sampled(volume: Image, world: NDArray[np.float64]) -> NDArray[np.float32]:
    index = np.moveaxis(volume.grid.to_index(world), -1, 0)
    return np.asarray(ndimage.map_coordinates(volume.data, index, order=1, output=np.float32), np.float32)


def _views(volume: Image, block: Block) -> Iterator[View]:
    mri = read_mri(block)
    high = 255.0 if volume.data.dtype == np.uint8 else float(np.percentile(volume.data, 99.9))
    bright = 1.0 if mri is None else float(np.percentile(mri.data[::4, ::4, ::4], 99.7))
    for axis in range(3):
        at = volume.grid.shape[axis] // 2
        plane = _rgb_plane(np.take(volume.data, at, axis=axis), 0.0, high)
        beside = None
        if mri is not None:
            world = volume.grid.to_world(_plane_index(volume.grid, axis, at))
            beside = data_address(_upright(_rgb_plane(_sampled(mri, world), 0.0, bright), volume.grid, axis), 82)
        yield View(_view_title(volume.grid, axis), data_address(_upright(plane, volume.grid, axis), 82), beside)
