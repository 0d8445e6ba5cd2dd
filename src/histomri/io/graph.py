"""``transforms/graph.json``: the spaces of a study, and the files of the transforms that join them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histomri.core import Grid, InputError
from histomri.core.errors import Problem
from histomri.io.atomic import write_json
from histomri.io.transform_sums import read_published
from histomri.transforms import Transform
from histomri.transforms.graph import Edge, PlaneEdge, SectionSpace, Space, SpaceGraph, slide_edge

VERSION = 1


@dataclass(frozen=True)
class GraphRecord:
    """What ``graph.json`` says: ``spaces`` by name and ``edges``, as written (see ``docs/architecture.md``), and its folder."""

    spaces: dict[str, dict[str, Any]]
    edges: list[dict[str, Any]]
    folder: Path


def write_graph(path: Path, spaces: dict[str, dict[str, Any]], edges: list[dict[str, Any]]) -> None:
    """Write ``graph.json`` atomically. Files in ``edges`` are relative to its folder."""
    write_json(path, {"version": VERSION, "spaces": spaces, "edges": edges})


def read_record(path: Path) -> GraphRecord:
    """Read ``graph.json`` as it is written. Raises :class:`InputError` when it is missing or of another version."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        remedy = "run the study first: it is written once the sections are registered"
        raise InputError(Problem(str(path), f"cannot be read ({problem})", remedy)) from problem
    if version != VERSION:
        raise InputError(Problem(str(path), f"is of version {version}, expected {VERSION}", "run the study again"))
    if not (isinstance(record.get("spaces"), dict) and isinstance(record.get("edges"), list)):
        raise InputError(Problem(str(path), "spaces and edges were expected, they are not there", "run the study again"))
    return GraphRecord(record["spaces"], record["edges"], path.parent)


def read_graph(path: Path) -> SpaceGraph:
    """The graph that ``graph.json`` describes; each transform's file is read when it is first used.

    Only the forward files are read: the way back is their exact inverse. Raises :class:`InputError` where it is damaged.
    """
    record = read_record(path)
    try:
        return _graph_of(record)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as problem:
        what = f"is damaged ({type(problem).__name__}: {problem})"
        raise InputError(Problem(str(path), what, "run the study again")) from problem


def _graph_of(record: GraphRecord) -> SpaceGraph:
    sections = {name: _section_space(name, s) for name, s in record.spaces.items() if s["type"] == "section"}
    spaces = [sections.get(name) or Space(name) for name in record.spaces]
    edges = [_edge(e, sections, record.folder) for e in record.edges]
    joined = {e["to"] for e in record.edges}
    # a section that was not placed has no file, yet its reason must be found on the way
    edges += [PlaneEdge(s, _no_transform) for name, s in sections.items() if name not in joined]
    for name, space in record.spaces.items():
        if space["type"] == "slide":
            section = sections[f"section:{name.partition(':')[2]}"]
            pixel_mm = np.array(record.spaces[section.name]["pixel_size_mm"] or [1.0, 1.0])
            edges.append(slide_edge(section, pixel_mm, np.array(space["offset_px"], float)))
    return SpaceGraph(spaces, edges)


def _no_transform() -> Transform:
    raise InputError(Problem("graph.json", "a section that is placed has no file of its transform", "run the study again"))


def _section_space(name: str, record: dict[str, Any]) -> SectionSpace:
    has_pixels = record["shape"] is not None and record["pixel_size_mm"] is not None
    return SectionSpace(
        name=name,
        block=f"block:{record['block']}",
        position_mm=float(record["position_mm"]),
        plane_reach_mm=float(record["plane_reach_mm"]),
        grid=Grid(tuple(record["shape"]), np.array(record["pixel_size_mm"])) if has_pixels else None,
        is_placed=bool(record["placed"]),
        flags=tuple(record["flags"]),
        error_mm=float("nan") if record.get("error_mm") is None else float(record["error_mm"]),
    )


def _edge(record: dict[str, Any], sections: dict[str, SectionSpace], folder: Path) -> Edge:
    load = _loader(folder / record["file"], record["from"], record["to"])
    if record["to"] in sections:
        return PlaneEdge(sections[record["to"]], load)
    return Edge(record["from"], record["to"], load)


def _loader(path: Path, from_space: str, to_space: str) -> Callable[[], Transform]:
    return lambda: read_published(path, from_space, to_space)
