"""The sheets of a study: ``sections.tsv``, ``blocks.tsv``, ``landmarks.tsv`` and ``guides.tsv``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from histomri.core.errors import InputError, Problem
from histomri.core.section import FLIPS, MIRRORS, STATUSES, Block, Section
from histomri.io.tables import Cells, read_table

SECTION_COLUMNS = (
    "section",
    "file",
    "block",
    "position_mm",
    "index",
    "thickness_mm",
    "stain",
    "pixel_size_mm",
    "region",
    "channel",
    "status",
    "flip",
    "rotation_deg",
    "blockface",
    "transform",
    "transform_from",
    "lock",
)
POSITION_TOLERANCE_MM = 1e-6
GUIDE_REMEDY = "fill in mri_x, mri_y and mri_z, or to_section, to_x and to_y"
Item = TypeVar("Item")


@dataclass(frozen=True)
class SectionLandmark:
    """A point seen in a section and in the MRI: ``point_px`` is (y, x) in level-0 pixels, ``mri_mm`` is (z, y, x) LPS."""

    name: str
    section: str
    point_px: tuple[float, float]
    mri_mm: tuple[float, float, float]


@dataclass(frozen=True)
class SectionGuide:
    """A point of a section that a person found again, in the MRI or in another section, for the registration to go by.

    ``point_px`` is (y, x) in level-0 pixels; either ``mri_mm``, (z, y, x) LPS, or ``to_section`` with ``to_px``, (y, x) there.
    """

    section: str
    point_px: tuple[float, float]
    mri_mm: tuple[float, float, float] | None = None
    to_section: str | None = None
    to_px: tuple[float, float] | None = None


@dataclass(frozen=True)
class Parsed(Generic[Item]):
    """What a sheet holds: its items, the row number of each, and everything that is wrong with it."""

    items: tuple[Item, ...] = ()
    rows: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()

    def checked(self) -> tuple[Item, ...]:
        """The items; raises :class:`InputError` with every problem where there is one."""
        if self.problems:
            raise InputError(*self.problems)
        return self.items


def read_sections(path: Path, section_spacing_mm: float | None = None) -> tuple[Section, ...]:
    """Read ``sections.tsv``, in the order of its rows.

    ``section_spacing_mm`` turns the column ``index`` into a position where ``position_mm`` is empty.

    Raises
    ------
    InputError
        With every problem of the sheet.
    """
    return parse_sections(path, section_spacing_mm).checked()


def read_blocks(path: Path) -> tuple[Block, ...]:
    """Read ``blocks.tsv``, in the order of its rows; raises :class:`InputError` with every problem of the sheet."""
    return parse_blocks(path).checked()


def read_landmarks(path: Path) -> tuple[SectionLandmark, ...]:
    """Read ``landmarks.tsv``; its MRI coordinates, RAS millimetres in the sheet, become (z, y, x) LPS.

    Raises
    ------
    InputError
        With every problem of the sheet.
    """
    return parse_landmarks(path).checked()


def parse_sections(path: Path, section_spacing_mm: float | None = None) -> Parsed[Section]:
    """As :func:`read_sections`, with the problems beside the rows in place of an error."""

    def check(rows: Sequence[Cells], sections: Sequence[Section]) -> None:
        _reject_missing_spacing(rows, section_spacing_mm)
        _reject_repeats(rows, "section", [s.id for s in sections])
        _reject_shared_positions(rows, sections)
        _reject_shared_places(rows, sections)

    parsed = _parse(path, ("section", "file"), lambda cells: _section(cells, section_spacing_mm), check)
    return replace(parsed, items=_counted(parsed.items))


def _counted(sections: Sequence[Section]) -> tuple[Section, ...]:
    """The sections with ``auto:K`` told how many lie on their slide: the largest K or N that its rows name."""
    most: dict[Path | None, int] = {}
    for section in sections:
        if section.auto_region:
            most[section.file] = max(most.get(section.file, 1), *section.auto_region)
    return tuple(replace(s, auto_region=(s.auto_region[0], most[s.file])) if s.auto_region else s for s in sections)


def parse_blocks(path: Path) -> Parsed[Block]:
    """As :func:`read_blocks`, with the problems beside the rows in place of an error."""
    return _parse(path, ("block", "mri"), _block, lambda rows, blocks: _reject_repeats(rows, "block", [b.id for b in blocks]))


def parse_landmarks(path: Path) -> Parsed[SectionLandmark]:
    """As :func:`read_landmarks`, with the problems beside the rows in place of an error."""
    columns = ("name", "section", "x", "y", "mri_x", "mri_y", "mri_z")
    return _parse(
        path, columns, _landmark, lambda rows, marks: _reject_repeats(rows, "name", [(m.name, m.section) for m in marks])
    )


def parse_guides(path: Path) -> Parsed[SectionGuide]:
    """``guides.tsv`` with its problems by itself; ``io.by_hand`` holds it against the other sheets.

    Its MRI coordinates, RAS millimetres in the sheet, become (z, y, x) LPS.
    """
    return _parse(path, ("section", "x", "y"), _guide, lambda rows, guides: None)


def _parse(
    path: Path,
    required: Sequence[str],
    convert: Callable[[Cells], Item],
    check: Callable[[Sequence[Cells], Sequence[Item]], None],
) -> Parsed[Item]:
    """Convert every row of a sheet, then check the rows against each other."""
    try:
        table = read_table(path, required)
    except InputError as error:
        return Parsed(problems=error.problems)
    problems = list(table.problems)
    if not table.rows:
        problems.append(Problem(str(path), "at least one row was expected, the sheet has none", "fill it in"))
    rows = [Cells(path, row, problems) for row in table.rows]
    items = tuple(convert(cells) for cells in rows)
    check(rows, items)
    return Parsed(items, tuple(row.number for row in table.rows), tuple(problems))


def section_to_dict(section: Section) -> dict[str, Any]:
    """The section as plain JSON values, for the params of a rule."""
    return {key: _plain(value) for key, value in asdict(section).items()}


def section_from_dict(values: dict[str, Any]) -> Section:
    """The inverse of :func:`section_to_dict`."""
    region = values.get("region")
    auto = values.get("auto_region")
    fields = {**values, "region": tuple(region) if region else None, "auto_region": tuple(auto) if auto else None}
    return Section(**_with_paths(fields, ("file", "blockface", "transform", "lock")))


def block_to_dict(block: Block) -> dict[str, Any]:
    """The block as plain JSON values, for the params of a rule."""
    return {key: _plain(value) for key, value in asdict(block).items()}


def block_from_dict(values: dict[str, Any]) -> Block:
    """The inverse of :func:`block_to_dict`."""
    return Block(**_with_paths(values, ("mri", "mri_mask", "pose")))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _with_paths(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {**values, **{key: Path(values[key]) for key in keys if values.get(key) is not None}}


def _section(cells: Cells, section_spacing_mm: float | None) -> Section:
    status = cells.choice("status", STATUSES, "ok")
    file = cells.file("file")
    if file is None and status in ("ok", "damaged"):
        cells.reject("file", f"a slide file was expected for a section of status {status!r}", "name it, or set status to missing")
    return Section(
        id=cells.name("section"),
        file=file,
        position_mm=_position(cells, section_spacing_mm),
        block=cells.name("block", "block"),
        stain=cells.name("stain", "histology"),
        thickness_mm=cells.number("thickness_mm", positive=True),
        pixel_size_mm=cells.number("pixel_size_mm", positive=True),
        region=cells.region("region"),
        auto_region=cells.auto_region("region"),
        channel=cells.text("channel") or None,
        status=status,
        flip=cells.choice("flip", FLIPS, "auto"),
        rotation_deg=cells.number("rotation_deg"),
        blockface=cells.file("blockface"),
        transform=cells.file("transform"),
        transform_from=cells.text("transform_from") or None,
        lock=cells.file("lock"),
        extra={c: text for c, text in cells.row.cells.items() if c and c not in SECTION_COLUMNS},
    )


def _position(cells: Cells, section_spacing_mm: float | None) -> float:
    """Position along the cutting axis in mm; NaN, and a problem, where the row does not say."""
    if cells.text("position_mm"):
        position = cells.number("position_mm")
        return float("nan") if position is None else position
    if not cells.text("index"):
        cells.reject("position_mm", "neither position_mm nor index is given", "fill in one of the two columns")
        return float("nan")
    index = cells.number("index")
    return float("nan") if index is None or section_spacing_mm is None else index * section_spacing_mm


def _reject_missing_spacing(rows: Sequence[Cells], section_spacing_mm: float | None) -> None:
    """One problem for all rows that give an index where the distance between sections is not known."""
    indexed = [c for c in rows if c.text("index") and not c.text("position_mm")]
    if section_spacing_mm is None and indexed:
        what = f"the index of this row and {len(indexed) - 1} more needs the distance between sections, which is not known"
        indexed[0].reject("index", what, "set section_spacing_mm in the config, or fill in position_mm")


def _block(cells: Cells) -> Block:
    mri, mask = cells.file("mri"), cells.file("mri_mask")
    if mask is not None and mri is None:
        cells.reject("mri_mask", "a mask is given without an MRI", "fill in the column mri, or empty mri_mask")
    return Block(
        id=cells.name("block"),
        mri=mri,
        mri_mask=mask,
        blockface_pixel_size_mm=cells.number("blockface_pixel_size_mm", positive=True),
        mirror=cells.choice("mirror", MIRRORS, "no"),
        pose=cells.file("pose"),
    )


def _landmark(cells: Cells) -> SectionLandmark:
    if not cells.text("name"):
        cells.reject("name", "a name was expected, the cell is empty", "fill it in")
    x, y, right, anterior, superior = (_coordinate(cells, c) for c in ("x", "y", "mri_x", "mri_y", "mri_z"))
    return SectionLandmark(cells.text("name"), cells.name("section"), (y, x), (superior, -anterior, -right))


def _guide(cells: Cells) -> SectionGuide:
    to_mri = any(cells.text(c) for c in ("mri_x", "mri_y", "mri_z"))
    to_section = any(cells.text(c) for c in ("to_section", "to_x", "to_y"))
    if to_mri == to_section:
        what = "both are filled in" if to_mri else "neither is filled in"
        cells.reject("mri_x", f"a point in the MRI or a point in another section was expected, {what}", GUIDE_REMEDY)
    x, y = (_coordinate(cells, c) for c in ("x", "y"))
    section = cells.name("section")
    if to_section and not to_mri:
        to_x, to_y = (_coordinate(cells, c) for c in ("to_x", "to_y"))
        return SectionGuide(section, (y, x), None, cells.name("to_section"), (to_y, to_x))
    if to_mri and not to_section:
        right, anterior, superior = (_coordinate(cells, c) for c in ("mri_x", "mri_y", "mri_z"))
        return SectionGuide(section, (y, x), (superior, -anterior, -right))
    return SectionGuide(section, (y, x))


def guide_to_dict(guide: SectionGuide) -> dict[str, Any]:
    """The guide as plain JSON values, for the params of a rule."""
    return {key: _plain(value) for key, value in asdict(guide).items()}


def guide_from_dict(values: dict[str, Any]) -> SectionGuide:
    """The inverse of :func:`guide_to_dict`."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return SectionGuide(**fields)


def _coordinate(cells: Cells, column: str) -> float:
    value = cells.number(column)
    if value is None and not cells.text(column):
        cells.reject(column, "a number was expected, the cell is empty", "fill it in, or remove the row")
    return float("nan") if value is None else value


def _reject_repeats(rows: Sequence[Cells], column: str, keys: Sequence[object]) -> None:
    first: dict[object, int] = {}
    for cells, key in zip(rows, keys, strict=True):
        number = first.setdefault(key, cells.row.number)
        if number != cells.row.number and cells.text(column):
            what = f"{cells.text(column)!r} stands in row {number} already"
            cells.reject(column, what, "give each its own name, or remove one of the rows")


def _reject_shared_places(rows: Sequence[Cells], sections: Sequence[Section]) -> None:
    """One place on a slide cannot hold two sections."""
    first: dict[object, int] = {}
    for cells, section in zip(rows, sections, strict=True):
        if section.auto_region:
            number = first.setdefault((section.file, section.channel, section.auto_region[0]), cells.row.number)
            if number != cells.row.number:
                what = f"{cells.text('region')!r} of this slide stands in row {number} already"
                cells.reject("region", what, "number the sections of a slide auto:1, auto:2, ... in reading order")


def _reject_shared_positions(rows: Sequence[Cells], sections: Sequence[Section]) -> None:
    """Two sections of a block cannot have been cut at one place; excluded rows (a second scan, say) may repeat it."""
    first: dict[tuple[str, int], Cells] = {}
    for cells, section in zip(rows, sections, strict=True):
        if section.status == "excluded" or section.position_mm != section.position_mm:
            continue
        key = (section.block, round(section.position_mm / POSITION_TOLERANCE_MM))
        other = first.setdefault(key, cells)
        if other is not cells:
            column = "position_mm" if cells.text("position_mm") else "index"
            what = f"block {section.block!r} has a section at {section.position_mm:g} mm in row {other.row.number} already"
            cells.reject(column, what, "correct one of the positions, or set the status of one of them to excluded")
