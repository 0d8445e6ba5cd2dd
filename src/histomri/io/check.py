"""Everything that can be known to be wrong with a study before anything is computed: ``histomri check``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np

from histomri.backend import has_gpu
from histomri.core import Block, Grid, InputError, Section
from histomri.core.errors import Problem, named
from histomri.io.by_hand import block_problems, guide_problems, hint_problems, section_problems
from histomri.io.config import config_problems, load_study, read_config, unmatched_blocks
from histomri.io.given import future_problems
from histomri.io.links import link_problems
from histomri.io.nifti import read_geometry, read_nifti
from histomri.io.order import order_problems
from histomri.io.sheets import (
    Parsed,
    SectionGuide,
    SectionLandmark,
    parse_blocks,
    parse_guides,
    parse_landmarks,
    parse_sections,
)
from histomri.io.tables import absolute
from histomri.io.tiff_chain import is_cut_off

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 8
SHEETS = ("sections", "blocks", "landmarks", "guides")
EXTENT_LIMITS_MM = (0.05, 500.0)  # from a section of a larval fish brain to one of two human brains
EXTENT_TO_MRI_LIMITS = (0.01, 15.0)  # a small block of a whole brain; a slide with several sections of a mouse brain
EXTENT_TO_PEERS_LIMIT = 30.0  # no two sections of a specimen differ by as much, units taken for one another do
PYRAMID_SHARE = 4 / 3
STORED_SHARE = 0.6  # lossless compression of stained tissue
BYTES_PER_VOXEL = 8  # colours, twice (OME-Zarr and NIfTI), and the coverage
UNITS_REMEDY = "give it in millimetres (0.5 um is 0.0005)"


@dataclass(frozen=True)
class _Inputs:
    """What could be read of a study, and the files that were looked into: facts, or the problems met, by path."""

    sheets: Mapping[str, Path]
    sections: Parsed[Section]
    blocks: Parsed[Block]
    landmarks: Parsed[SectionLandmark]
    guides: Parsed[SectionGuide]
    slides: Mapping[Path, Any]
    volumes: Mapping[Path, Any]


@dataclass(frozen=True)
class _Volume:
    grid: Grid
    warnings: tuple[str, ...]


def check_study(config_path: Path) -> list[Problem]:
    """Everything wrong with the study of a config file, warnings included; nothing is computed or written."""
    path = absolute(config_path, Path.cwd())
    try:
        config = read_config(path)
    except InputError as error:
        return list(error.problems)
    problems = config_problems(config, str(path))
    sheets = {key: absolute(config[key], path.parent) for key in SHEETS if _is_text(config.get(key))}
    if config.get("device") == "gpu" and not has_gpu():
        problems.append(Problem(f"{path}, key device", "gpu is asked for, no working GPU is found", "write auto or cpu"))
    inputs = _look(sheets, _positive(config.get("section_spacing_mm"))) if "sections" in sheets else None
    if inputs:
        problems += _input_problems(inputs, _positive(config.get("pixel_size_mm")))
        problems += _by_hand_problems(inputs, str(_value(config, "stack", "order")))
        problems += order_problems(_value(config, "stack", "order"), inputs.sections.items)
    if _is_text(config.get("output")):
        problems += _output_problems(absolute(config["output"], path.parent), f"{path}, key output", inputs)
    with suppress(InputError):  # what stops it is among the problems already
        problems += future_problems(load_study(path))
    return list(dict.fromkeys(problems))


def _value(config: Mapping[str, Any], stage: str, key: str) -> object:
    """A stage's key as the user wrote it, None where it is not there."""
    keys = config.get(stage)
    return keys.get(key) if isinstance(keys, Mapping) else None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _look(sheets: Mapping[str, Path], spacing_mm: float | None) -> _Inputs:
    """Read the sheets, then look into all files that they name, side by side."""
    sections = parse_sections(sheets["sections"], spacing_mm)
    blocks: Parsed[Block] = parse_blocks(sheets["blocks"]) if "blocks" in sheets else Parsed()
    landmarks: Parsed[SectionLandmark] = parse_landmarks(sheets["landmarks"]) if "landmarks" in sheets else Parsed()
    guides: Parsed[SectionGuide] = parse_guides(sheets["guides"]) if "guides" in sheets else Parsed()
    used = [s for s in sections.items if s.is_used]
    slides = {path for s in used for path in (s.file, s.blockface) if path is not None}
    with ThreadPoolExecutor(THREADS) as pool:
        facts = _each(pool, slides, _probe, "correct the path, or mark the section as missing")
        volumes = _each(pool, {b.mri for b in blocks.items if b.mri}, _volume, "correct the path, or empty the cell")
        masks = _each(pool, {b.mri_mask for b in blocks.items if b.mri_mask}, _volume, "correct the path, or empty the cell")
    return _Inputs(sheets, sections, blocks, landmarks, guides, facts, {**masks, **volumes})


def _each(
    pool: ThreadPoolExecutor, paths: Iterable[Path], look: Callable[[Path], Result], if_gone: str
) -> dict[Path, Result | InputError]:
    """What ``look`` says of each file; ``if_gone`` is the remedy for one that is not there."""

    def guarded(path: Path) -> Result | InputError:
        if not path.exists():
            return InputError(Problem(str(path), "there is no such file", if_gone))
        try:
            return look(path)
        except InputError as error:
            return error
        except Exception as error:  # readers of foreign formats raise anything; all of it means the same to the user
            what = f"the file cannot be read ({type(error).__name__}: {error})"
            return InputError(Problem(str(path), what, "copy or export it again"))

    ordered = sorted(paths)
    return dict(zip(ordered, pool.map(guarded, ordered), strict=True))


def _probe(path: Path) -> Any:
    from histomri.io.slides import probe  # its readers take a second to import

    slide = probe(path)
    if is_cut_off(path):
        raise InputError(Problem(str(path), "is truncated: part of its images lies beyond its end", "copy it again"))
    return slide


def _volume(path: Path) -> _Volume:
    grid, notes = read_geometry(path)
    image = read_nifti(path)
    if image.channels:
        raise InputError(
            Problem(str(path), f"one value per voxel was expected, found {len(image.channels)}", "extract one of them")
        )
    finite = np.isfinite(image.data)
    lost = int(image.data.size - np.count_nonzero(finite))
    values = image.data[finite]
    if values.min() == values.max():
        raise InputError(Problem(str(path), f"the volume is empty: every voxel is {values.min():g}", "choose the right file"))
    return _Volume(grid, (*notes, *([f"{lost} voxels are not a finite number; they count as background"] if lost else [])))


def _input_problems(inputs: _Inputs, pixel_size_mm: float | None) -> Iterator[Problem]:
    yield from inputs.sections.problems
    yield from inputs.blocks.problems
    if inputs.sections.items and inputs.blocks.items:
        sheets = inputs.sheets["sections"], inputs.sheets.get("blocks")
        yield from unmatched_blocks(inputs.sections.items, inputs.blocks.items, sheets)
    for section, slide, where in _used(inputs):
        yield from _slide_problems(section, slide, where, pixel_size_mm)
    yield from _extent_problems(inputs, pixel_size_mm)
    yield from _photograph_problems(inputs)
    yield from _block_problems(inputs)
    yield from _landmark_problems(inputs)


def _used(inputs: _Inputs) -> Iterator[tuple[Section, Any, str]]:
    """Each section that takes part, what was found of its slide, and where the sheet has it."""
    for row, section in zip(inputs.sections.rows, inputs.sections.items, strict=True):
        if section.is_used and section.file is not None:
            yield section, inputs.slides[section.file], f"{inputs.sheets['sections']}, row {row} (section {section.id})"


def _shape(section: Section, slide: Any) -> tuple[int, int]:
    """Height and width of the section's part of its slide, in level-0 pixels."""
    shape = section.region[:1:-1] if section.region else slide.shape
    return int(shape[0]), int(shape[1])


def _slide_problems(section: Section, slide: Any, where: str, pixel_size_mm: float | None) -> Iterator[Problem]:
    if isinstance(slide, InputError):
        yield from named(slide, where)
        return
    if section.region is not None:
        x, y, w, h = section.region
        height, width = slide.shape
        if x + w > width or y + h > height:
            what = f"the region {x},{y},{w},{h} reaches beyond the slide, which has {width} x {height} pixels at level 0"
            yield Problem(f"{where}, column region", what, "correct the region (x,y,width,height in level-0 pixels)")
    if section.channel is not None and section.channel not in slide.channels:
        what = f"{section.file} has no channel {section.channel!r}"
        yield Problem(f"{where}, column channel", what, f"write one of {', '.join(slide.channels)}")
    if _extent_mm(section, slide, pixel_size_mm) is None:
        remedy = "fill in pixel_size_mm in the row, or set it in the config for all"
        yield Problem(f"{where}, column pixel_size_mm", f"{section.file} states no pixel size, and the cell is empty", remedy)


def _extent_mm(section: Section, slide: Any, pixel_size_mm: float | None) -> float | None:
    """The longer side of what the section uses of its slide, None where the pixel size is unknown."""
    if isinstance(slide, InputError):
        return None
    sizes = section.pixel_size_mm or slide.pixel_size_mm or pixel_size_mm
    return None if sizes is None else float(np.max(np.asarray(_shape(section, slide)) * np.asarray(sizes)))


def _extent_problems(inputs: _Inputs, pixel_size_mm: float | None) -> Iterator[Problem]:
    """Sections of an impossible size: mostly a pixel size in micrometres, or off by 1,000 otherwise."""
    mri_mm = {b.id: _mri_extent_mm(inputs, b) for b in inputs.blocks.items}
    sized = [(section, _extent_mm(section, slide, pixel_size_mm), where) for section, slide, where in _used(inputs)]
    known = [(section, extent, where) for section, extent, where in sized if extent is not None]
    typical = median(extent for _, extent, _ in known) if len(known) > 2 else None
    for section, extent, where in known:
        reason = _implausible(extent, mri_mm.get(section.block), typical)
        if reason:
            size = f"{_decimal(section.pixel_size_mm)} mm" if section.pixel_size_mm else "from the file or the config"
            what = f"with its pixel size ({size}) the section is {_decimal(extent)} mm long, {reason}"
            yield Problem(f"{where}, column pixel_size_mm", what, UNITS_REMEDY)


def _decimal(value: float) -> str:
    """Four digits, and never an exponent: 0.00005 rather than 5e-05."""
    return np.format_float_positional(float(f"{value:.4g}"), trim="-")


def _implausible(extent_mm: float, mri_mm: float | None, typical_mm: float | None) -> str | None:
    least, most = EXTENT_LIMITS_MM
    if not least <= extent_mm <= most:
        return f"{least:g} to {most:g} mm were expected"
    if mri_mm and not EXTENT_TO_MRI_LIMITS[0] <= extent_mm / mri_mm <= EXTENT_TO_MRI_LIMITS[1]:
        return f"which does not fit its MRI of {_decimal(mri_mm)} mm"
    if typical_mm and not 1 / EXTENT_TO_PEERS_LIMIT <= extent_mm / typical_mm <= EXTENT_TO_PEERS_LIMIT:
        return f"the other sections are about {_decimal(typical_mm)} mm long"
    return None


def _mri_extent_mm(inputs: _Inputs, block: Block) -> float | None:
    volume = inputs.volumes.get(block.mri) if block.mri else None
    return float(volume.grid.extent_mm.max()) if isinstance(volume, _Volume) else None


def _block_problems(inputs: _Inputs) -> Iterator[Problem]:
    for row, block in zip(inputs.blocks.rows, inputs.blocks.items, strict=True):
        for column, path in (("mri", block.mri), ("mri_mask", block.mri_mask)):
            where = f"{inputs.sheets['blocks']}, row {row} (block {block.id}), column {column}"
            volume = inputs.volumes.get(path) if path else None
            if isinstance(volume, InputError):
                yield from named(volume, where)
            elif isinstance(volume, _Volume):
                for text in volume.warnings:
                    yield Problem(where, f"{path}: {text}", "make sure that this is right", "warning")


def _photograph_problems(inputs: _Inputs) -> Iterator[Problem]:
    calibrated = {b.id for b in inputs.blocks.items if b.blockface_pixel_size_mm}
    unknown: dict[str, str] = {}
    for row, section in zip(inputs.sections.rows, inputs.sections.items, strict=True):
        photograph = inputs.slides.get(section.blockface) if section.blockface else None
        where = f"{inputs.sheets['sections']}, row {row} (section {section.id}), column blockface"
        if isinstance(photograph, InputError):
            yield from named(photograph, where)
        elif photograph is not None and section.block not in calibrated and photograph.pixel_size_mm is None:
            unknown.setdefault(section.block, where)
    for block, where in unknown.items():
        what = f"the photographs of block {block!r} state no pixel size"
        yield Problem(where, what, "fill in the column blockface_pixel_size_mm of blocks.tsv")


def _landmark_problems(inputs: _Inputs) -> Iterator[Problem]:
    yield from inputs.landmarks.problems
    if not inputs.sections.items:
        return
    sections = {s.id: s for s in inputs.sections.items}
    slides = {section.id: slide for section, slide, _ in _used(inputs) if not isinstance(slide, InputError)}
    for row, mark in zip(inputs.landmarks.rows, inputs.landmarks.items, strict=True):
        where = f"{inputs.sheets['landmarks']}, row {row} (landmark {mark.name})"
        if mark.section not in sections:
            what = f"{inputs.sheets['sections']} has no section {mark.section!r}"
            yield Problem(f"{where}, column section", what, "correct the name, or remove the row")
        elif mark.section in slides:
            yield from _outside(mark.point_px, _shape(sections[mark.section], slides[mark.section]), where)


def _outside(point_px: tuple[float, float], shape: tuple[int, int], where: str) -> Iterator[Problem]:
    (height, width), (y, x) = shape, point_px
    if not (-0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5):
        what = f"x {x:g}, y {y:g} lies outside of the section, which has {width} x {height} pixels"
        yield Problem(where, what, "give it in level-0 pixels from the top left of the section's region")


def _by_hand_problems(inputs: _Inputs, order: str) -> Iterator[Problem]:
    """Hints, guides, rough transforms and locks."""
    yield from inputs.guides.problems
    if not inputs.sections.items:
        return
    yield from section_problems(inputs.sections.items, inputs.guides.items, inputs.sheets["sections"], order)
    yield from hint_problems(inputs.sections.items, inputs.sheets["sections"])
    if "blocks" in inputs.sheets:
        yield from block_problems(inputs.blocks.items, inputs.sheets["blocks"])
    if not inputs.guides.items:
        return
    sheet = inputs.sheets["guides"]
    yield from guide_problems(inputs.guides, inputs.sections.items, inputs.blocks.items, sheet)
    shapes = {section.id: _shape(section, slide) for section, slide, _ in _used(inputs) if not isinstance(slide, InputError)}
    for row, guide in zip(inputs.guides.rows, inputs.guides.items, strict=True):
        for name, point in ((guide.section, guide.point_px), (guide.to_section, guide.to_px)):
            if point is not None and name in shapes:
                yield from _outside(point, shapes[name], f"{sheet}, row {row} (section {name})")


def _output_problems(output: Path, where: str, inputs: _Inputs | None) -> Iterator[Problem]:
    folder = next(p for p in (output, *output.parents) if p.exists())
    if not folder.is_dir():
        yield Problem(where, f"a folder was expected, {folder} is a file", "choose another folder")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Problem(where, f"{folder} is not writable", "choose another folder, or change its permissions")
    yield from link_problems(output)
    if inputs is None:
        return
    needed, free = _needed_bytes(inputs, output), shutil.disk_usage(folder).free
    if needed > 0.8 * free:
        severity = "error" if needed > free else "warning"
        what = f"about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free on the disk of {folder}"
        yield Problem(where, what, "make room, or choose a folder on another disk", severity)


def _needed_bytes(inputs: _Inputs, output: Path) -> float:
    """A rough estimate of the size of the ingested sections that are not there yet, and of the volumes made from them."""
    stored = 0.0
    for section, slide, _ in _used(inputs):
        if not isinstance(slide, InputError) and not (output / "ingest" / section.id / "manifest.json").exists():
            stored += float(np.prod(_shape(section, slide))) * len(slide.channels) * np.dtype(slide.dtype).itemsize
    voxels = sum(float(np.prod(v.grid.shape)) for v in inputs.volumes.values() if isinstance(v, _Volume))
    stains = len({s.stain for s in inputs.sections.items})
    return stored * PYRAMID_SHARE * STORED_SHARE + voxels * stains * BYTES_PER_VOXEL
