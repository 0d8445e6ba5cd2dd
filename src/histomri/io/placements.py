"""``placements.json`` and the file of displacements beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError  # of NumPy, over the header of an array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, InputError, Section
from histomri.core.errors import Problem
from histomri.io.atomic import replacing, write_json
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement, Placements

VERSION = 1
DAMAGED = (OSError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, SyntaxError)


def fields_file(path: Path) -> Path:
    """The file with the displacements that belongs to a ``placements.json``."""
    return Path(path).with_suffix(".fields.npy")


def _field_record(field: DisplacementField, offset: int) -> dict[str, Any]:
    if not _is_upright(field, 2):
        raise ValueError("A placement's field must be 2D, upright and not inverted to be written.")
    return _lattice_record(field.grid, offset)


def _bend_record(bend: DisplacementField | None, offset: int) -> dict[str, Any] | None:
    """Only what moves along z is stored."""
    if bend is None:
        return None
    if not _is_upright(bend, 3) or np.asarray(bend.values)[..., 1:].any():
        raise ValueError("A bend of the planes must be 3D, upright, along z alone and not inverted to be written.")
    return _lattice_record(bend.grid, offset)


def _is_upright(field: DisplacementField, dimensions: int) -> bool:
    return not field.inverted and np.array_equal(field.grid.direction, np.eye(dimensions))


def _lattice_record(grid: Grid, offset: int) -> dict[str, Any]:
    """The grid of values that begin at ``offset`` of the fields' file."""
    return {"shape": grid.shape, "spacing_mm": grid.spacing_mm, "origin_mm": grid.origin_mm, "offset": offset}


def _placement_record(placement: Placement, offset: int) -> dict[str, Any]:
    field = placement.field
    return {
        "position_mm": placement.position_mm,
        "affine": None if placement.affine is None else placement.affine.matrix,
        "field": None if field is None else _field_record(field, offset),
        "flags": list(placement.flags),
        "confidence": placement.confidence,
        "quality": placement.quality,
    }


def write_placements(path: Path, placements: Placements) -> None:
    """Write ``placements.json`` and its ``.fields.npy`` (one flat float32 array), each atomically, the JSON last.

    Affines keep every bit, displacements are stored as float32; NaN in ``quality`` becomes null. Raises ``ValueError`` for a
    field that is inverted or turned.
    """
    path, records, values, offset = Path(path), {}, [], 0
    for name, placement in placements.sections.items():
        records[name] = _placement_record(placement, offset)
        if placement.field is not None:
            values.append(np.asarray(placement.field.values, np.float32).ravel())
            offset += values[-1].size
    bend = placements.plane_bend
    if bend is not None:
        values.append(np.asarray(bend.values[..., 0], np.float32).ravel())
    flat = np.concatenate(values) if values else np.zeros(0, np.float32)
    with replacing(fields_file(path)) as temporary:
        np.save(temporary, flat)
    pose = None if placements.mri_to_block is None else placements.mri_to_block.matrix
    record = {"version": VERSION, "block": placements.block, "mri_to_block": pose, "quality": placements.quality}
    record["plane_bend"] = _bend_record(bend, offset)
    write_json(path, {**record, "fields_sha256": hashlib.sha256(flat.tobytes()).hexdigest(), "sections": records})


def _read_field(record: dict[str, Any] | None, flat: NDArray[np.float32], block: str) -> DisplacementField | None:
    if record is None:
        return None
    grid, values = _read_lattice(record, flat, 2)
    return DisplacementField(grid, values, f"block:{block}", f"block:{block}")  # type: ignore[arg-type]


def _read_bend(record: dict[str, Any] | None, flat: NDArray[np.float32], block: str) -> DisplacementField | None:
    if record is None:
        return None
    grid, along = _read_lattice(record, flat, 1)
    values = np.zeros((*grid.shape, 3))
    values[..., :1] = along
    return DisplacementField(grid, values, f"block:{block}", f"block:{block}")


def _read_lattice(record: dict[str, Any], flat: NDArray[np.float32], channels: int) -> tuple[Grid, NDArray[np.float32]]:
    """What :func:`_lattice_record` wrote, and its values, (*shape, channels)."""
    grid = Grid(tuple(record["shape"]), np.array(record["spacing_mm"]), np.array(record["origin_mm"]))
    size = int(np.prod(grid.shape)) * channels
    return grid, flat[record["offset"] : record["offset"] + size].reshape(*grid.shape, channels)


def _read_placement(name: str, record: dict[str, Any], flat: NDArray[np.float32], block: str) -> Placement:
    matrix = record["affine"]
    return Placement(
        section=name,
        position_mm=float(record["position_mm"]),
        affine=None if matrix is None else Affine(np.array(matrix), f"block:{block}", f"section:{name}"),
        field=_read_field(record["field"], flat, block),
        flags=tuple(record["flags"]),
        confidence=float("nan") if record["confidence"] is None else float(record["confidence"]),
        quality=record["quality"],
    )


def at_placed_positions(sections: Iterable[Section], placements: Placements) -> tuple[Section, ...]:
    """The sections at the positions that their placements have, which are not the sheet's where the order was unknown."""
    placed = placements.sections
    return tuple(replace(s, position_mm=placed[s.id].position_mm) if s.id in placed else s for s in sections)


def read_placements(path: Path) -> Placements:
    """Read what :func:`write_placements` wrote; displacements come as float32, transforms with the spaces' names.

    Raises :class:`InputError` when a file is missing, or the displacements are not those that the JSON was written with.
    """
    path = Path(path)
    try:
        return _read(path)
    except (*DAMAGED, TokenError) as problem:
        what = f"cannot be read ({type(problem).__name__}: {problem})"
        raise InputError(Problem(str(path), what, "run the stage that makes it again")) from problem


def _read(path: Path) -> Placements:
    record = json.loads(path.read_text(encoding="utf-8"))
    flat = np.load(fields_file(path), allow_pickle=False)
    if hashlib.sha256(flat.tobytes()).hexdigest() != record["fields_sha256"]:
        raise InputError(
            Problem(str(fields_file(path)), "does not belong to its placements.json", "run the stage that makes it again")
        )
    block = record["block"]
    pose = None if record["mri_to_block"] is None else Affine(np.array(record["mri_to_block"]), "mri", f"block:{block}")
    sections = {name: _read_placement(name, r, flat, block) for name, r in record["sections"].items()}
    # what an earlier version wrote, a lock for one, has no bend
    return Placements(block, sections, pose, record["quality"], _read_bend(record.get("plane_bend"), flat, block))
