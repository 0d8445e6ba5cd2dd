"""Tab separated sheets: rows with their numbers, and typed cells whose problems are collected, not raised one by one."""

from __future__ import annotations

import codecs
import csv
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from histomri.core.errors import InputError, Problem

NAME = re.compile(r"\w[\w.+&-]*")  # goes into file names, Snakemake wildcards and space names
# file names have 255 bytes, of which two names and an ending of ours may become one
MOST_NAME_BYTES = 100
# of stores, and of what killed writers leave: a folder of such a name would not be looked into, or be removed
MARKS = (".partial", ".replaced", ".zarr")


def absolute(path: str | Path, base: Path) -> Path:
    """The absolute path of ``path``, which is relative to the folder ``base``. Links are kept as they are written."""
    return Path(os.path.abspath(base / Path(path).expanduser()))  # noqa: PTH100 (resolve() would follow links)


@dataclass(frozen=True)
class Row:
    """One row of a sheet: its number as an editor counts lines, and its cells by column (stripped)."""

    number: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A sheet as read: its columns, its rows (blank and comment, ``#``, lines left out) and what is wrong with single rows."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...] = ()


def read_table(path: Path, required: Sequence[str]) -> Table:
    """Read a tab separated sheet with a header, in UTF-8 or UTF-16, with any line ends.

    Raises
    ------
    InputError
        When the file is missing, is not text, lacks a required column or repeats a column.
    """
    lines = _numbered_cells(_read_text(path))
    if not lines:
        raise InputError(Problem(str(path), "a header row was expected, the file is empty", "write the header row"))
    columns = tuple(lines[0][1])
    header = _header_problems(path, columns, required)
    if header:
        raise InputError(*header)
    rows = tuple(Row(number, dict(zip(columns, cells + [""] * len(columns), strict=False))) for number, cells in lines[1:])
    return Table(columns, rows, tuple(_long_rows(path, len(columns), lines[1:])))


def _long_rows(path: Path, width: int, lines: Sequence[tuple[int, list[str]]]) -> Iterator[Problem]:
    for number, cells in lines:
        if any(cells[width:]):
            what = f"{width} cells were expected, {len(cells)} found"
            yield Problem(f"{path}, row {number}", what, "remove the extra tabs, or name the columns in the header")


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(Problem(str(path), f"the sheet cannot be read ({error.strerror})", "correct its path")) from error
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"text in UTF-8 was expected, byte {error.start} is not"
        raise InputError(Problem(str(path), what, "save the sheet as tab separated text in UTF-8")) from error


def _numbered_cells(text: str) -> list[tuple[int, list[str]]]:
    """Line number and stripped cells of every line that holds something."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    filled = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
    return [(n, [cell.strip() for cell in next(csv.reader([line], delimiter="\t"))]) for n, line in filled]


def _header_problems(path: Path, columns: Sequence[str], required: Sequence[str]) -> list[Problem]:
    where = f"{path}, header"
    if len(columns) == 1 and len(required) > 1 and re.search("[,;]", columns[0]):
        return [
            Problem(where, f"tab separated columns were expected, found {columns[0]!r}", "save the sheet with tabs between cells")
        ]
    found = ", ".join(c for c in columns if c)
    missing = [
        Problem(where, f"the column {c!r} is missing (found: {found})", "add the column") for c in required if c not in columns
    ]
    repeated = sorted({c for c in columns if c and columns.count(c) > 1})
    return missing + [Problem(where, f"the column {c!r} stands there twice", "remove or rename one of them") for c in repeated]


@dataclass
class Cells:
    """Typed access to the cells of one row; whatever is wrong is added to ``problems`` and read as None (or the default)."""

    path: Path
    row: Row
    problems: list[Problem] = field(default_factory=list)

    @property
    def where(self) -> str:
        """File and row, as problems name them."""
        return f"{self.path}, row {self.row.number}"

    def reject(self, column: str, what: str, remedy: str) -> None:
        """Note a problem of this row's ``column``."""
        self.problems.append(Problem(f"{self.where}, column {column}", what, remedy))

    def text(self, column: str, default: str = "") -> str:
        """The cell, or ``default`` where it is empty or the column is absent."""
        return self.row.cells.get(column, "") or default

    def name(self, column: str, default: str = "") -> str:
        """A cell that becomes part of file names: letters, digits and ``. _ + & -``."""
        value = self.text(column, default)
        if not value:
            self.reject(column, "a name was expected, the cell is empty", "fill it in")
        elif not NAME.fullmatch(value) or len(value.encode(errors="replace")) > MOST_NAME_BYTES:
            remedy = f"use letters, digits, '.', '_', '+', '&' and '-' only, {MOST_NAME_BYTES} bytes at most"
            self.reject(column, f"{value[:MOST_NAME_BYTES]!r} cannot be part of a file name", remedy)
        elif value.endswith(MARKS):
            self.reject(column, f"{value!r} ends as unfinished results or stores do", f"do not end it in {' or '.join(MARKS)}")
        return value

    def choice(self, column: str, choices: Sequence[str], default: str) -> str:
        """A cell that must be one of ``choices``."""
        value = self.text(column, default)
        if value not in choices:
            self.reject(column, f"{value!r} is not known", f"write one of {', '.join(choices)}, or leave it empty for {default}")
            return default
        return value

    def number(self, column: str, *, positive: bool = False) -> float | None:
        """A finite number, None where the cell is empty."""
        value = self.text(column)
        if not value:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (positive and number <= 0):
            kind = "a positive number" if positive else "a number"
            self.reject(column, f"{kind} was expected, found {value!r}", "write it with a decimal point and without a unit")
            return None
        return number

    def file(self, column: str) -> Path | None:
        """An absolute path, relative to the sheet's folder unless absolute in it; None where the cell is empty."""
        value = self.text(column)
        return absolute(value, self.path.parent) if value else None

    def region(self, column: str) -> tuple[int, int, int, int] | None:
        """``x,y,width,height`` in pixels, None where the cell is empty or says ``auto``."""
        value = self.text(column)
        if not value or value.startswith("auto"):
            return None
        parts = value.split(",")
        if len(parts) == 4 and all(re.fullmatch(r"\s*-?\d+\s*", p) for p in parts):
            x, y, width, height = (int(p) for p in parts)
            if x >= 0 and y >= 0 and width > 0 and height > 0:
                return x, y, width, height
        what = f"x,y,width,height in level-0 pixels were expected (whole numbers, width and height at least 1), found {value!r}"
        self.reject(column, what, "write for example 0,1200,20000,18000, or leave it empty for the whole slide")
        return None

    def auto_region(self, column: str) -> tuple[int, int] | None:
        """(k, n) of ``auto``, ``auto:k`` or ``auto:k/n``: the k-th of n sections on the slide, n = 0 where it is not said."""
        value = self.text(column)
        if not value.startswith("auto"):
            return None
        found = re.fullmatch(r"auto(?::(\d+)(?:/(\d+))?)?", value)
        if found:
            k, n = int(found[1] or 1), int(found[2] or 0)
            if k >= 1 and (found[2] is None or n >= k):
                return k, n
        what = f"auto, auto:K or auto:K/N (the K-th of N sections on the slide) was expected, found {value!r}"
        self.reject(column, what, "write for example auto:2/6, or give the region as x,y,width,height")
        return None
