"""GeoJSON as QuPath writes it: features, or a list of them, whose geometries are taken apart into points."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import InputError
from histomri.core.errors import Problem
from histomri.io.atomic import replacing

Float = NDArray[np.float64]

SUFFIXES = (".geojson", ".json")
# nesting of "coordinates" around a position
DEPTH = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
# QuPath keeps a cell's nucleus beside its outline
GEOMETRY_KEYS = ("geometry", "nucleusGeometry")
# these describe the geometry as it was
STALE = ("bbox", "isEllipse")
DECIMALS = 6
# on one edge that is made denser
MOST_POINTS = 1_000_000


@dataclass
class Shape:
    """One elementary geometry of a document: the JSON object, the feature it belongs to, and its name in an error."""

    geometry: dict[str, Any]
    feature: dict[str, Any] | None
    key: str
    where: str

    @property
    def depth(self) -> int:
        """How deeply positions are nested in its coordinates."""
        return DEPTH[self.geometry["type"]]


def is_geojson(path: Path) -> bool:
    """Whether a file's name says that it is GeoJSON."""
    return Path(path).suffix.lower() in SUFFIXES


def read_document(path: Path) -> Any:
    """The JSON of a file. Raises :class:`InputError` when it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError) as problem:
        raise InputError(Problem(str(path), f"cannot be read as GeoJSON ({problem})", "export it again")) from problem
    except RecursionError as problem:
        raise InputError(Problem(str(path), "is nested too deeply to be GeoJSON", "export it again")) from problem


def _finite(text: str) -> float:
    """A number of JSON, which knows no NaN and no infinity. Raises ``ValueError``."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number")
    return value


def write_document(path: Path, document: Any) -> None:
    """Write JSON atomically."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    with replacing(Path(path)) as temporary:
        # half a surrogate pair is no text, but JSON may name it: as it came
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _features(document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        return _list(document.get("features"))
    return [document]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def shapes(path: Path, document: Any) -> list[Shape]:
    """All elementary geometries of a document, in order. Raises :class:`InputError` naming the feature that is none."""
    found: list[Shape] = []
    for i, feature in enumerate(_features(document)):
        where = f"{path}, feature {i + 1}"
        if not isinstance(feature, dict) or "type" not in feature:
            raise InputError(Problem(where, f"expected a GeoJSON object, found {str(feature)[:60]!r}", "export it again"))
        if feature["type"] != "Feature":
            found += _elementary(feature, None, "", where)
            continue
        for key in GEOMETRY_KEYS:
            if feature.get(key) is not None:
                found += _elementary(feature[key], feature, key, where)
    return found


def _elementary(geometry: Any, feature: dict[str, Any] | None, key: str, where: str) -> Iterator[Shape]:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection":
        for part in _list(geometry.get("geometries")):
            yield from _elementary(part, feature, key, where)
    elif isinstance(kind, str) and kind in DEPTH and "coordinates" in geometry:
        yield Shape(geometry, feature, key, where)
    else:
        known = ", ".join([*DEPTH, "GeometryCollection"])
        raise InputError(Problem(where, f"expected a geometry of type {known}, found {kind!r}", "export it again"))


def positions(shape: Shape, ndim: int, densify: float | None = None) -> Float:
    """The shape's points, (n, ndim) as x, y[, z]; ``densify`` first puts new points on its edges, at most that far apart.

    Raises :class:`InputError` for coordinates that are not numbers or are too few.
    """
    flat: list[Any] = []
    try:
        if densify and shape.depth and shape.geometry["type"] != "MultiPoint":
            lines = shape.geometry["coordinates"]
            shape.geometry["coordinates"] = _nested(lines, shape.depth - 1, lambda line: _dense(line, densify))
        _nested(shape.geometry["coordinates"], shape.depth, flat.append)
        return np.array([[float(v) for v in position[:ndim]] for position in flat], float).reshape(-1, ndim)
    except (TypeError, ValueError, OverflowError, KeyError) as problem:
        what = f"expected positions of {ndim} numbers in a {shape.geometry['type']} ({problem})"
        raise InputError(Problem(shape.where, what, "correct the feature")) from problem


def _nested(coordinates: Any, depth: int, act: Any) -> Any:
    return act(coordinates) if depth == 0 else [_nested(part, depth - 1, act) for part in coordinates]


def _dense(line: list[list[float]], step: float) -> list[list[float]]:
    result = list(line[:1])
    for start, end in itertools.pairwise(line):
        a, b = np.asarray(start, float), np.asarray(end, float)
        length = float(np.linalg.norm(b - a))
        if not length <= MOST_POINTS * step:
            raise ValueError(f"an edge is {length:g} long, more than {MOST_POINTS} steps of {step:g}")
        count = max(1, int(np.ceil(length / step)))
        result += [(a + (b - a) * i / count).tolist() for i in range(1, count + 1)]
    return result


def replace_positions(shape: Shape, points: Float) -> None:
    """Put mapped points, (n, ndim), in the place of the shape's, in the order of :func:`positions`."""
    rest = iter(np.round(points, DECIMALS).tolist())
    shape.geometry["coordinates"] = _nested(shape.geometry["coordinates"], shape.depth, lambda _: next(rest))
    for key in STALE:
        shape.geometry.pop(key, None)
        if shape.feature:
            shape.feature.pop(key, None)


def give_reason(shape: Shape, reason: str) -> None:
    """Take the geometry away and say why in the feature's ``reason`` property; a bare geometry loses its coordinates."""
    if shape.feature is None:
        shape.geometry["coordinates"] = []
        shape.geometry["reason"] = reason
        return
    shape.feature[shape.key] = None
    properties = {k: v for k, v in _properties(shape.feature).items() if k != "error_mm"}
    shape.feature["properties"] = {**properties, "reason": reason}
    for key in STALE:
        shape.feature.pop(key, None)


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    found = feature.get("properties")
    return found if isinstance(found, dict) else {}


def give_error(shape: Shape, error_mm: float) -> None:
    """The expected error of a mapped shape in its feature's ``error_mm`` property, on top of that of an earlier mapping.

    Null where either is unknown; nothing for a bare geometry, which has no properties.
    """
    if shape.feature is None:
        return
    properties = _properties(shape.feature)
    before = properties.get("error_mm", 0.0)
    total = math.hypot(error_mm, before) if isinstance(before, int | float) else math.nan
    shape.feature["properties"] = {**properties, "error_mm": round(total, 6) if math.isfinite(total) else None}
