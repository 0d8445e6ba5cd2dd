"""Records (JSON) of a result, which may be somebody else's: held against their shape before anything is taken from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from histomri.core import InputError
from histomri.core.errors import Problem

# more than the bytes of any file; Python's integers have no end, and floats have
MOST_DIGITS = 25
Schema = Mapping[str, Any]
TEXT, NUMBER, COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
# nothing that a terminal would act upon
ONE_LINE = {"pattern": r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"}
SOME_TEXT, SOME_NUMBER = {"type": ["string", "null"]}, {"type": ["number", "null"]}
# one of a file with the checksums of its arrays
_ARRAY = {
    "type": "object",
    # without a checksum where it was too large to decode
    "required": ["shape", "dtype"],
    "properties": {"shape": {"type": "array", "items": COUNT}, "dtype": TEXT, "sha256": TEXT},
}
_FILE = {"type": "object", "properties": {"arrays": {"type": "object", "additionalProperties": _ARRAY}}}
PROVENANCE: Schema = {
    "type": "object",
    "required": ["study", "histomri", "packages", "python", "config", "inputs", "outputs"],
    "properties": {
        "study": TEXT,
        "histomri": {"type": "object", "properties": {"code": TEXTS, "git_revision": SOME_TEXT}},
        "packages": TEXTS,
        "python": TEXT,
        "config": {"type": "object"},
        "study_folder": SOME_TEXT,
        "machine": {"type": "object"},
        "inputs": {"type": "object", "additionalProperties": {"type": "object"}},
        "outputs": {"type": "object", "additionalProperties": _FILE},
    },
}
METRICS: Schema = {
    "type": "object",
    "properties": {
        "pose": {
            "type": ["object", "null"],
            "propertyNames": ONE_LINE,
            "additionalProperties": {"type": ["object", "null"], "properties": {"warning": SOME_TEXT | ONE_LINE}},
        },
        "sections": {"type": ["object", "null"], "additionalProperties": COUNT},
        "tre_mm": {
            "type": ["object", "null"],
            "properties": {"n": COUNT, "median": SOME_NUMBER, "p95": SOME_NUMBER, "max": SOME_NUMBER},
        },
        "mask_dice": {"type": ["object", "null"], "properties": {"median": SOME_NUMBER, "p10": SOME_NUMBER}},
    },
}
_ROW = {"type": "array", "items": NUMBER, "minItems": 4, "maxItems": 4}
POSE: Schema = {
    "type": "object",
    "required": ["mri_to_block", "confidence", "sections_as"],
    "properties": {
        "mri_to_block": {"type": "array", "items": _ROW, "minItems": 4, "maxItems": 4},
        "confidence": SOME_NUMBER,
        "sections_as": TEXT,
    },
}


@dataclass(frozen=True)
class _Kind:
    """A kind of record: what it is called, its shape, and what to do where a file is none."""

    name: str
    schema: Schema
    remedy: str


def read_provenance(path: Path) -> dict[str, Any]:
    """The record of a run; its results' names stay below its folder. Raises ``InputError`` where the file is none."""
    kind = _Kind("a provenance.json of histomri", PROVENANCE, "name the one of a finished study")
    record = _read(path, kind)
    outside = next((name for name in record["outputs"] if leads_out(name)), None)
    if outside is not None:
        what = f"it names a result that lies outside of its folder: {_shown(outside)}"
        raise InputError(Problem(str(path), what, "it is damaged or made to do harm: ask for another one"))
    return record


def read_metrics(path: Path) -> dict[str, Any]:
    """The ``metrics.json`` of a result. Raises ``InputError`` where the file is none."""
    return _read(path, _Kind("a metrics.json of histomri", METRICS, "run the study again"))


def read_pose_record(path: Path) -> dict[str, Any]:
    """The ``pose.json`` of a block, its matrix invertible. Raises ``InputError`` where the file is none."""
    import numpy as np

    record = _read(path, _Kind("a pose.json of histomri", POSE, "run the stage mri again"))
    matrix = np.asarray(record["mri_to_block"], float)
    # not so near to singular that its inverse is none
    if not np.linalg.cond(matrix) < 1e12:
        raise InputError(Problem(str(path), "its mri_to_block is singular", "run the stage mri again"))
    return record | {"mri_to_block": matrix.tolist()}


def leads_out(name: str) -> bool:
    """Whether a path of a record is no path below the record's own folder.

    >>> leads_out("stack/a.json"), leads_out("../a.json"), leads_out("/a.json")
    (False, True, True)
    """
    return not name or "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts


def _read(path: Path, kind: _Kind) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_int=_whole, parse_constant=_finite)
        found = next(_problems(record, kind.schema), None)
    except (OSError, ValueError, RecursionError) as error:
        found = f"{type(error).__name__}: {_shown(str(error))}"
    if found:
        raise InputError(Problem(str(path), f"{kind.name} was expected ({found})", kind.remedy)) from None
    return dict(record)


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _refuse(text)


def _whole(text: str) -> int:
    return int(text) if len(text) < MOST_DIGITS else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{_shown(text)} is no number that a record may hold")


def _problems(record: Any, schema: Schema) -> Iterator[str]:
    """What keeps a value from the shape that is expected, in words."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema).iter_errors(record):
        where = ".".join(str(part) for part in error.absolute_path) or "its whole"
        needed: Any = error.validator_value
        if error.validator == "required":
            missing = [name for name in needed if name not in error.instance]
            yield f"there is no {', '.join(missing)} in {_shown(where)}"
        else:
            yield f"{_shown(where)} is not of {error.validator} {needed}"


def _shown(text: str) -> str:
    """A text of a file's in one line of a terminal: short, without anything that a terminal would act upon."""
    return ascii(text[:80])[1:-1]
