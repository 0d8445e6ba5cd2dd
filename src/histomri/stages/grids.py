"""The grids of ``resample.grids``: their names and what they say. Light to import, since the workflow asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RESERVED = ("mri", "sections", "block")

GridEntry = str | Mapping[str, Any]


def grid_name(entry: GridEntry, has_mri: bool = True) -> str:
    """The name that a grid has in file names: ``block`` in place of ``mri`` where a block has no MRI."""
    name = entry if isinstance(entry, str) else str(entry["name"])
    return "block" if name == "mri" and not has_mri else name


def grid_names(entries: Sequence[GridEntry], has_mri: bool) -> list[str]:
    """The names of all grids of a block, in order, each once."""
    return list(dict.fromkeys(grid_name(e, has_mri) for e in entries))


def grid_entry(entries: Sequence[GridEntry], name: str) -> GridEntry:
    """The entry of that name; the names that have a meaning need no entry. Raises ``KeyError`` where there is none."""
    if name in RESERVED:
        return name
    for entry in entries:
        if grid_name(entry) == name:
            return entry
    raise KeyError(f"No grid is named {name!r} in resample.grids.")


def grid_problems(entries: Sequence[GridEntry]) -> list[str]:
    """What is wrong with the names, in words: used twice, or reserved for another meaning."""
    names = [grid_name(e) for e in entries]
    twice = [f"the name {n!r} is used twice" for n in dict.fromkeys(names) if names.count(n) > 1]
    named = [e for e in entries if not isinstance(e, str)]
    return twice + [f"the name {e['name']!r} has a meaning of its own" for e in named if e["name"] in RESERVED]
