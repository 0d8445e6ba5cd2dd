"""``histomri map``: points from one space to another."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.cli.coordinates import ORIGINS, from_world, study_graph, to_world
from histomri.core import InputError
from histomri.core.errors import Problem
from histomri.io import geojson
from histomri.io.points import read_points, write_points
from histomri.transforms.graph import SpaceGraph

Float = NDArray[np.float64]

HELP = "map points between sections, slides, blocks and the MRI"
DESCRIPTION = """\
Maps points between any two of section:<id> and slide:<id> (x, y in level-0 pixels; x right, y down, (0, 0) the centre of the
top left pixel), block:<block> (mm) and mri (x, y, z in RAS mm). IN is a CSV with columns x,y[,z], or GeoJSON as QuPath writes it.
A point that cannot be mapped gets empty coordinates and a reason (a GeoJSON feature no geometry and the property "reason").
error_mm is the error that is to be expected of a mapped point, from the evidence for its section's place; empty where nothing
tells. Mappings one after the other add up, as if each section erred by itself (there and back is overstated so)."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser of ``histomri``."""
    parser: argparse.ArgumentParser = subparsers.add_parser("map", help=HELP, description=DESCRIPTION)
    parser.add_argument("--config", type=Path, required=True, metavar="CONFIG", help="the study's config file")
    parser.add_argument("--from", dest="from_space", required=True, metavar="SPACE", help="the space of the points in IN")
    parser.add_argument("--to", dest="to_space", required=True, metavar="SPACE", help="the space of the points in OUT")
    origin = "where (0, 0) of sections and slides is: the centre of the top left pixel, or its corner as QuPath counts"
    parser.add_argument("--origin", choices=ORIGINS, help=f"{origin} (default: centre in CSV, corner in GeoJSON)")
    densify = "in GeoJSON, add points on lines and outlines, at most STEP apart (in units of the space of IN)"
    parser.add_argument("--densify", type=_positive, metavar="STEP", help=densify)
    parser.add_argument("points", type=Path, metavar="IN", help="CSV or GeoJSON")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="file to write, of the same kind as IN")
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, found {text}")
    return value


def run(args: argparse.Namespace) -> int:
    """Map the points and say on standard error how many had none, and why."""
    if geojson.is_geojson(args.points) != geojson.is_geojson(args.output):
        what = f"{args.points.name} and {args.output.name} are not of the same kind"
        raise InputError(Problem(str(args.output), what, "name both .csv, or both .geojson"))
    if args.output.is_dir() or not args.output.absolute().parent.is_dir():
        raise InputError(Problem(str(args.output), "is a folder or lies in none", "name a file in a folder that exists"))
    graph = study_graph(args.config)
    graph.space(args.from_space), graph.space(args.to_space)
    reasons = _map_geojson(graph, args) if geojson.is_geojson(args.points) else _map_table(graph, args)
    failed = Counter(r for r in reasons if r)
    if failed:
        print(
            f"{sum(failed.values())} of {len(reasons)} could not be mapped, most of all: {failed.most_common(1)[0][0]}",
            file=sys.stderr,
        )
    return 0


def _mapped(graph: SpaceGraph, args: argparse.Namespace, points: Float, origin: str) -> tuple[Float, list[str]]:
    world, reasons = graph.map(to_world(graph, args.from_space, points, origin), args.from_space, args.to_space)
    return from_world(graph, args.to_space, world, origin), [str(r) for r in reasons]


def _map_table(graph: SpaceGraph, args: argparse.Namespace) -> list[str]:
    table = read_points(args.points)
    ndim = graph.space(args.from_space).ndim
    points, reasons = _mapped(graph, args, table.coordinates(ndim), args.origin or "centre")
    own = graph.error_mm(args.from_space, args.to_space)
    # a mapping of points that were mapped before adds to their error
    errors = [float(np.hypot(own, before)) for before in table.errors_mm()]
    # a point that an earlier mapping lost keeps the reason that it was given there
    reasons = [old if old and new == "no coordinates" else new for old, new in zip(table.reasons(), reasons, strict=True)]
    write_points(args.output, table, points, reasons, drop_z=ndim == 3, errors_mm=errors)
    return reasons


def _map_geojson(graph: SpaceGraph, args: argparse.Namespace) -> list[str]:
    """One reason per geometry: it is mapped as a whole or not at all."""
    document = geojson.read_document(args.points)
    shapes = geojson.shapes(args.points, document)
    ndim = graph.space(args.from_space).ndim
    parts = [geojson.positions(s, ndim, args.densify) for s in shapes]
    points, reasons = _mapped(graph, args, np.concatenate([*parts, np.zeros((0, ndim))]), args.origin or "corner")
    ends = np.cumsum([len(p) for p in parts])
    error_mm = graph.error_mm(args.from_space, args.to_space)
    said = []
    for shape, part, end in zip(shapes, parts, ends, strict=True):
        own = reasons[end - len(part) : end]
        lost = [r for r in own if r]
        said.append("" if not lost else lost[0] if len(own) == 1 else f"{len(lost)} of {len(own)} points: {lost[0]}")
        if said[-1]:
            geojson.give_reason(shape, said[-1])
        else:
            geojson.replace_positions(shape, points[end - len(part) : end])
            geojson.give_error(shape, error_mm)
    geojson.write_document(args.output, document)
    return said
