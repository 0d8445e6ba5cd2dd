"""A new study's config and sheets, filled in from the slides found: ``histomri new``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from histomri.core import InputError
from histomri.core.errors import Problem
from histomri.io.defaults import stage_yaml

SUFFIXES = (
    *(".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".qptiff"),
    *(".tif", ".tiff", ".btf", ".png", ".jpg", ".jpeg"),
)
SECTION_COLUMNS = (
    *("section", "file", "block", "index", "stain", "thickness_mm", "pixel_size_mm", "region", "channel", "status"),
    *("flip", "blockface"),
)
BLOCK_COLUMNS = ("block", "mri", "mri_mask", "blockface_pixel_size_mm", "mirror")


@dataclass(frozen=True)
class FoundSlide:
    """A slide file, and whether it states its pixel size; ``problem`` says why it could not be opened.

    ``region`` is that of one of several sections on it, as the sheet writes it.
    """

    path: Path
    has_pixel_size: bool
    problem: str = ""
    region: str = ""


def write_study(folder: Path, slides: Path | None, per_slide: int | None = None, order: str = "row-major") -> list[FoundSlide]:
    """Write ``config.yaml``, ``sections.tsv`` and ``blocks.tsv`` into ``folder``, and return the slides they name.

    With ``per_slide`` the sections on each slide are found, and each is returned with its region, in the reading ``order``.

    Raises
    ------
    InputError
        When one of the files is there already, or the folder of slides is missing or holds none.
    """
    names = ("config.yaml", "sections.tsv", "blocks.tsv")
    there = [
        Problem(str(folder / n), "the file is there already", "choose another folder") for n in names if (folder / n).exists()
    ]
    if there:
        raise InputError(*there)
    found = find_slides(slides) if slides else []
    if per_slide is not None:
        found = [part for slide in found for part in parts_of(slide, per_slide, order)]
    folder.mkdir(parents=True, exist_ok=True)
    texts = (
        _config(folder.resolve().name, found),
        _sections(found, folder),
        _sheet(BLOCK_COLUMNS, [("block", "", "", "", "no")]),
    )
    for name, text in zip(names, texts, strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    return found


def find_slides(folder: Path) -> list[FoundSlide]:
    """The slides in a folder and below, in natural order (2 before 10); raises :class:`InputError` where there is none."""
    if not folder.is_dir():
        raise InputError(Problem(str(folder), "there is no such folder", "correct the path"))
    paths = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")]
    if not paths:
        raise InputError(Problem(str(folder), f"no slide was found ({', '.join(SUFFIXES)})", "choose the folder of the slides"))
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_look, sorted(paths, key=lambda p: _natural(str(p.relative_to(folder))))))


def parts_of(slide: FoundSlide, count: int, order: str) -> list[FoundSlide]:
    """One entry per section on a slide; a slide on which they are not found stays, with ``auto:K/N`` and the problem in words."""
    from histomri.io.regions import find_sections

    if slide.problem:
        return [slide]
    try:
        regions = [",".join(map(str, part.region)) for part in find_sections(slide.path, count, order)]
    except InputError as error:
        words = "; ".join(p.what for p in error.problems)
        return [replace(slide, region=f"auto:{k}/{count}", problem=words if k == 1 else "") for k in range(1, count + 1)]
    return [replace(slide, region=region) for region in regions]


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key: digits by their value, everything else by its letters."""
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", text) if part]


def _look(path: Path) -> FoundSlide:
    from histomri.io.slides import probe  # its readers take a second to import

    try:
        return FoundSlide(path, probe(path).pixel_size_mm is not None)
    except InputError as error:
        return FoundSlide(path, True, "; ".join(p.what for p in error.problems))


def section_ids(paths: Sequence[Path]) -> list[str]:
    """A unique id for each file, from its name; where names of files repeat, its folder's name stands before it.

    A file that is there several times (sections on one slide) is numbered.
    """
    files = list(dict.fromkeys(paths))
    stems = {p: _clean(p.name.split(".")[0] or p.stem) for p in files}
    shared = [s for s in stems.values() if list(stems.values()).count(s) > 1]
    longer = [_clean(f"{p.parent.name}_{stems[p]}") if stems[p] in shared else stems[p] for p in paths]
    return [f"{name}_{longer[:i].count(name) + 1}" if longer.count(name) > 1 else name for i, name in enumerate(longer)]


def _clean(text: str) -> str:
    """Text with everything replaced that an id must not hold."""
    return re.sub(r"[^\w.+&-]+", "_", text).strip("_.+&-") or "section"


def _sections(found: Sequence[FoundSlide], folder: Path) -> str:
    ids = section_ids([slide.path for slide in found])
    rows = [
        (name, _written(slide.path, folder), "block", str(i), "histology", "", "", slide.region, "", "", "auto", "")
        for i, (name, slide) in enumerate(zip(ids, found, strict=True), 1)
    ]
    return _sheet(SECTION_COLUMNS, rows)


def _written(path: Path, folder: Path) -> str:
    """The path as the sheet gives it: relative where the slides lie beside or below the study, else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return os.path.relpath(path, folder) if path.is_relative_to(folder.parent) else str(path)


def _sheet(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (columns, *rows))


def _config(name: str, found: Sequence[FoundSlide]) -> str:
    unsized = sum(not slide.has_pixel_size for slide in found)
    pixels = f"{unsized} of the {len(found)} slides found state none" if unsized else "needed only for slides that state none"
    return f"""\
# A study for histomri. `histomri check config.yaml` says what is still missing or wrong; `histomri run config.yaml` runs it.
# Relative paths are relative to this file.

study: "{name}"
sections: sections.tsv  # one row per section; order them along the cutting axis and correct `index`, stains and flips
blocks: blocks.tsv      # one row per block: fill in `mri`, or leave it empty where there is none
output: results

# TO FILL IN: distance in mm between two sections whose `index` differs by 1 (or give `position_mm` in place of `index`).
# section_spacing_mm: 0.05

# Pixel size in mm, {pixels} (0.5 um is 0.0005).
{"" if unsized else "# "}pixel_size_mm: {"null  # TO FILL IN" if unsized else "0.0005"}

# Points seen both in sections and in the MRI, to measure the error with (they never reach a registration).
# landmarks: landmarks.tsv

# Points that tell the registration how a section lies, to mend one that it got wrong (config/README.md).
# guides: guides.tsv

# Everything below is a default: take away the `#` to change a value.

{stage_yaml(commented=True)}"""
