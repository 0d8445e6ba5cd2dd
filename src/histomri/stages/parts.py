"""One store written by several jobs: made empty by the first, filled by each with chunks of its own, taken over by the last.

A chunk is a file, and every chunk belongs to one part: no two jobs ever write one file. Each making of the empty store has a
folder of its own, so that a job left over from an earlier making writes where nobody looks any more.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from histomri.io.atomic import write_json
from histomri.io.publish import NOT_CONTENT, remove

CURRENT = "current.json"
NAME_BYTES = 8
OWN_NAME = re.compile(rf"[0-9a-f]{{{2 * NAME_BYTES}}}")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Parts:
    """The working folder of a store, and what each of its parts says when it is done."""

    working: Path
    done: tuple[Path, ...]


def share(items: Sequence[Item], part: int, parts: int) -> Sequence[Item]:
    """The items of one part of ``parts``, neighbours together; the parts are as equal as can be, and leave nothing out."""
    return items[part * len(items) // parts : (part + 1) * len(items) // parts]


def begin(working: Path) -> Path:
    """Empty the working folder; returns the folder of the store to be made in it. Call :func:`ready` when it is made."""
    remove(working)
    store = working / secrets.token_hex(NAME_BYTES)
    store.parent.mkdir(parents=True)
    return store


def ready(working: Path, store: Path) -> None:
    """Say that this is the store to be filled."""
    write_json(working / CURRENT, {"store": store.name})


def current(working: Path) -> Path:
    """The store to be filled.

    Raises
    ------
    RuntimeError
        When what is written there is no name that :func:`begin` gives: it may lead out of the working folder.
    """
    name = str(json.loads((working / CURRENT).read_text(encoding="utf-8"))["store"])
    if not OWN_NAME.fullmatch(name):
        raise RuntimeError(f"{working / CURRENT}: {name!r} is no store of ours; remove {working} and run again")
    return working / name


def take_over(parts: Parts, partial: Path) -> int:
    """Give the store that the parts filled a second name, ``partial``; returns how many voxels they covered.

    Its files are linked, or copied where the file system has no links, so that a job killed now finds all of it again.

    Raises
    ------
    RuntimeError
        When a part is missing, or belongs to another making of the store.
    """
    store, records = current(parts.working), [json.loads(path.read_text(encoding="utf-8")) for path in parts.done]
    found = sorted(record["part"] for record in records if record["store"] == store.name)
    if found != list(range(len(records))) or any(record["parts"] != len(records) for record in records):
        raise RuntimeError(f"{parts.working}: of {len(records)} parts of {store.name}, these are there: {found}")
    shutil.copytree(store, partial, copy_function=_link, ignore=lambda folder, names: [n for n in names if n in NOT_CONTENT])
    return sum(int(record["covered"]) for record in records)


def record_part(done: Path, store: Path, part: int, parts: int, covered: int) -> None:
    """Say that a part is done."""
    content: dict[str, Any] = {"store": store.name, "part": part, "parts": parts, "covered": covered}
    write_json(done, content)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
