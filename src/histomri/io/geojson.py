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
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as problem:
        raise InputError(Problem(str(path), f"cannot be read as GeoJSON ({problem})", "export it again")) from problem


def write_document(path: Path, document: Any) -> None:
    """Write JSON atomically."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(document, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _features(document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        return list(document.get("features") or [])
    return [document]


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
        for part in geometry.get("geometries") or []:
            yield from _elementary(part, feature, key, where)
    elif kind in DEPTH and "coordinates" in geometry:
        yield Shape(geometry, feature, key, where)
    else:
        known = ", ".join([*DEPTH, "GeometryCollection"])
        raise InputError(Problem(where, f"expected a geometry of type {known}, found {kind!r}", "export it again"))


def positions(shape: Shape, ndim: int, densify: float | None = None) -> Float:
    """The shape's points, (n, ndim) as x, y[, z]; ``densify`` first puts new points on its edges, at most that far apart.

    Raises :class:`InputError` for coordinates that are not numbers or are too few.
    """
    if densify and shape.depth and shape.geometry["type"] != "MultiPoint":
        lines = shape.geometry["coordinates"]
        shape.geometry["coordinates"] = _nested(lines, shape.depth - 1, lambda line: _dense(line, densify))
    flat: list[Any] = []
    try:
        _nested(shape.geometry["coordinates"], shape.depth, flat.append)
        return np.array([[float(v) for v in position[:ndim]] for position in flat], float).reshape(-1, ndim)
    except (TypeError, ValueError) as problem:
        what = f"expected positions of {ndim} numbers in a {shape.geometry['type']} ({problem})"
        raise InputError(Problem(shape.where, what, "correct the feature")) from problem


def _nested(coordinates: Any, depth: int, act: Any) -> Any:
    return act(coordinates) if depth == 0 else [_nested(part, depth - 1, act) for part in coordinates]


def _dense(line: list[list[float]], step: float) -> list[list[float]]:
    result = list(line[:1])
    for start, end in itertools.pairwise(line):
        a, b = np.asarray(start, float), np.asarray(end, float)
        count = max(1, int(np.ceil(np.linalg.norm(b - a) / step)))
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
    properties = {k: v for k, v in (shape.feature.get("properties") or {}).items() if k != "error_mm"}
    shape.feature["properties"] = {**properties, "reason": reason}
    for key in STALE:
        shape.feature.pop(key, None)


def give_error(shape: Shape, error_mm: float) -> None:
    """The expected error of a mapped shape in its feature's ``error_mm`` property, on top of that of an earlier mapping.

    Null where either is unknown; nothing for a bare geometry, which has no properties.
    """
    if shape.feature is None:
        return
    properties = shape.feature.get("properties") or {}
    before = properties.get("error_mm", 0.0)
    total = math.hypot(error_mm, before) if isinstance(before, int | float) else math.nan
    shape.feature["properties"] = {**properties, "error_mm": round(total, 6) if math.isfinite(total) else None}
