"""How points are counted at the command line: pixels of level 0, (x, y, z) order, RAS for the MRI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histomri.io.config import load_study
from histomri.io.graph import read_graph
from histomri.transforms.graph import SectionSpace, SpaceGraph

Float = NDArray[np.float64]

ORIGINS = ("centre", "corner")
RAS_LPS = np.array([-1.0, -1.0, 1.0])


def study_graph(config: Path) -> SpaceGraph:
    """The graph of spaces of the study of that config. Raises ``InputError`` when the study did not run."""
    return read_graph(load_study(config).output / "transforms" / "graph.json")


def _pixel_mm(graph: SpaceGraph, space: str) -> Float:
    """Pixel size (x, y) in mm of a section or slide; 1 where it has no pixels (it then has no transform either)."""
    section = graph.space(f"section:{space.partition(':')[2]}")
    assert isinstance(section, SectionSpace)
    return np.ones(2) if section.grid is None else section.grid.spacing_mm[::-1]


def _is_flat(space: str) -> bool:
    return space.startswith(("section:", "slide:"))


def to_world(graph: SpaceGraph, space: str, points: Float, origin: str = "centre") -> Float:
    """Points as the command line counts them, (n, 2 or 3) as x, y[, z], in mm and array order."""
    if _is_flat(space):
        return ((points - (0.5 if origin == "corner" else 0.0)) * _pixel_mm(graph, space))[:, ::-1]
    return (points * RAS_LPS if space == "mri" else points)[:, ::-1]


def from_world(graph: SpaceGraph, space: str, points: Float, origin: str = "centre") -> Float:
    """The inverse of :func:`to_world`."""
    points = points[:, ::-1]
    if _is_flat(space):
        return points / _pixel_mm(graph, space) + (0.5 if origin == "corner" else 0.0)
    return points * RAS_LPS if space == "mri" else points
