"""Tables of points: ``x, y[, z]`` and any other columns, in CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from histomri.core import InputError
from histomri.core.errors import Problem
from histomri.io.atomic import replacing

Float = NDArray[np.float64]
DECIMALS = 6


@dataclass(frozen=True)
class PointTable:
    """A table of points: its header and rows as text, and the line in the file at which each row ends."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> int | None:
        """Where a column is, None without it; case and blanks around its name do not matter."""
        names = [h.strip().lower() for h in self.header]
        return names.index(name) if name in names else None

    def coordinates(self, ndim: int) -> Float:
        """The coordinates, (n, ndim) in the order x, y[, z]; NaN where all cells of a point are empty.

        Raises :class:`InputError` with every row that is not a point, and for a missing column.
        """
        found = [(name, self.column(name)) for name in "xyz"[:ndim]]
        missing = [name for name, at in found if at is None]
        if missing:
            remedy = f"name the columns {', '.join('xyz'[:ndim])}: points of this space have {ndim} coordinates"
            raise InputError(Problem(str(self.path), f"there is no column {' and no column '.join(missing)}", remedy))
        problems: list[Problem] = []
        points = [self._point(i, [at for _, at in found if at is not None], problems) for i in range(len(self.rows))]
        if problems:
            raise InputError(*problems)
        return np.array(points, float).reshape(-1, ndim)

    def _point(self, i: int, columns: list[int], problems: list[Problem]) -> list[float]:
        cells = [self.rows[i][c].strip() for c in columns]
        if not any(cells):
            return [np.nan] * len(columns)
        try:
            return [float(cell) for cell in cells]
        except ValueError:
            where, found = f"{self.path}, row {i + 1} (line {self.lines[i]})", ", ".join(repr(c) for c in cells)
            problems.append(Problem(where, f"the coordinates are not numbers: {found}", "correct the row"))
            return [np.nan] * len(columns)

    def reasons(self) -> list[str]:
        """The column ``reason`` of an earlier mapping, empty texts without one."""
        at = self.column("reason")
        return ["" if at is None else row[at] for row in self.rows]

    def errors_mm(self) -> Float:
        """The column ``error_mm`` of an earlier mapping, NaN for a cell that holds no number; zeros without the column."""
        at = self.column("error_mm")
        return np.array([0.0 if at is None else _value(row[at]) for row in self.rows])


def read_points(path: Path) -> PointTable:
    """Read a table of points (UTF-8, comma separated; tab separated when its name ends in ``.tsv``).

    Raises :class:`InputError` for a file that cannot be read, has no header, or rows whose number of cells differs from it.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse(path, file)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise InputError(
            Problem(str(path), f"cannot be read as a table of points ({problem})", "save it as CSV in UTF-8")
        ) from problem


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _parse(path: Path, file: TextIO) -> PointTable:
    reader = csv.reader(file, delimiter=_delimiter(path))
    header = next(reader, None)
    if not header:
        raise InputError(Problem(str(path), "is empty", "its first line must name the columns, x and y among them"))
    rows, lines, problems = [], [], []
    for row in reader:
        if not row:  # a blank line
            continue
        rows.append(row)
        lines.append(reader.line_num)
        if len(row) != len(header):
            where = f"{path}, row {len(rows)} (line {reader.line_num})"
            problems.append(Problem(where, f"has {len(row)} cells, the header {len(header)}", "correct the row"))
    if problems:
        raise InputError(*problems)
    return PointTable(path, header, rows, lines)


def _value(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _number(value: float) -> str:
    text = f"{value:.{DECIMALS}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def write_points(
    path: Path,
    table: PointTable,
    points: Float,
    reasons: list[str],
    drop_z: bool = False,
    errors_mm: Sequence[float] | None = None,
) -> None:
    """Write ``table`` with its coordinates replaced by ``points``, (n, 2 or 3), and the column ``reason``, atomically.

    A point with NaN gets empty cells. A missing z column is put behind y; with ``drop_z`` a z column goes where
    points have two coordinates. With ``errors_mm`` there is a column ``error_mm``, empty for NaN and for points without a place.
    The reason column is always written, last where it is new.
    """
    header, rows = list(table.header), [list(row) for row in table.rows]
    names = [h.strip().lower() for h in header]
    if drop_z and points.shape[1] == 2 and "z" in names:
        _remove(names.index("z"), names, header, *rows)
    if points.shape[1] == 3 and "z" not in names:
        at = names.index("y") + 1
        for line, cell in [(names, "z"), (header, "z"), *((row, "") for row in rows)]:
            line.insert(at, cell)
    for column in ("reason",) if errors_mm is None else ("error_mm", "reason"):
        if column not in names:
            for line, cell in [(names, column), (header, column), *((row, "") for row in rows)]:
                line.append(cell)
    columns = [names.index(n) for n in "xyz"[: points.shape[1]]]
    for row, point, reason in zip(rows, points, reasons, strict=True):
        for c, value in zip(columns, point, strict=True):
            row[c] = _number(value) if np.isfinite(value) else ""
        row[names.index("reason")] = reason
    if errors_mm is not None:
        for row, point, error in zip(rows, points, errors_mm, strict=True):
            row[names.index("error_mm")] = _number(error) if np.isfinite([*point, error]).all() else ""
    with replacing(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=_delimiter(Path(path)), lineterminator="\n").writerows([header, *rows])


def _remove(at: int, *lines: list[str]) -> None:
    for line in lines:
        del line[at]
