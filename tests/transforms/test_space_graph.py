"""The graph must find the way, or say in words why there is none."""

from __future__ import annotations

import numpy as np
import pytest

from histomri.core import Grid, InputError
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.graph import Edge, PlaneEdge, SectionSpace, Space, SpaceGraph, slide_edge

PIXEL = np.array([0.01, 0.02])
POSE = Affine.from_parts([[0, 1, 0], [0, 0, -1], [1.1, 0, 0.1]], [1.0, 2.0, 3.0], "mri", "block:b")


def _field() -> DisplacementField:
    grid = Grid((21, 21), 0.5)
    return DisplacementField(grid, np.random.default_rng(2).normal(size=(21, 21, 2)) * 0.03, "block:b", "block:b")


def _section(name: str, position: float, **more) -> SectionSpace:
    return SectionSpace(f"section:{name}", "block:b", position, 0.6, Grid((600, 300), PIXEL), **more)


@pytest.fixture
def graph() -> SpaceGraph:
    a, b = _section("a", 1.0), _section("b", 1.5)
    lost = _section("lost", 2.0, is_placed=False, flags=("no tissue",))
    transform = Affine.from_parts([[0.0, 1.1], [0.9, 0.1]], [-1.0, -0.5], "block:b", "section:a") @ _field()
    spaces = [a, b, lost, Space("block:b"), Space("block:alone"), Space("mri"), Space("slide:a")]
    straight = Affine(np.eye(3), "block:b", "section:b")
    edges = [
        PlaneEdge(a, lambda: transform), PlaneEdge(b, lambda: straight), PlaneEdge(lost, lambda: straight),
        Edge("mri", "block:b", lambda: POSE), slide_edge(a, PIXEL, np.array([100, 50])),
    ]  # fmt: skip
    return SpaceGraph(spaces, edges)


def test_there_and_back_over_the_whole_chain(graph: SpaceGraph) -> None:
    points = np.random.default_rng(0).uniform([1.1, 1.1], [5.5, 5.5], (100, 2))
    there, reasons = graph.map(points, "slide:a", "mri")
    assert not any(reasons)
    back, reasons = graph.map(there, "mri", "slide:a")
    assert not any(reasons)
    np.testing.assert_allclose(back, points, atol=1e-5)


def test_a_section_lies_in_its_plane_of_the_block(graph: SpaceGraph) -> None:
    points, _ = graph.map([[1.0, 2.0]], "section:b", "block:b")
    np.testing.assert_allclose(points, [[1.5, 1.0, 2.0]])
    mri, _ = graph.map([[1.0, 2.0]], "section:b", "mri")
    np.testing.assert_allclose(POSE.map(mri), [[1.5, 1.0, 2.0]])


def test_a_region_shifts_the_slide(graph: SpaceGraph) -> None:
    points, _ = graph.map([[100 * 0.01, 50 * 0.02]], "slide:a", "section:a")
    np.testing.assert_allclose(points, [[0.0, 0.0]], atol=1e-12)


def test_a_point_far_from_the_plane_has_a_reason_with_the_distance(graph: SpaceGraph) -> None:
    points, reasons = graph.map([[2.3, 1.0, 1.0], [1.9, 1.0, 1.0]], "block:b", "section:b")
    assert np.isnan(points[0]).all()
    assert reasons[0] == "0.800 mm from the plane of section b, which reaches 0.600 mm"
    np.testing.assert_allclose(points[1], [1.0, 1.0])


def test_an_unplaced_section_says_why(graph: SpaceGraph) -> None:
    for start, end, n in [("mri", "section:lost", 3), ("section:lost", "mri", 2)]:
        points, reasons = graph.map(np.ones((2, n)), start, end)
        assert np.isnan(points).all()
        assert list(reasons) == ["section lost was not placed: no tissue"] * 2


def test_a_point_beyond_the_image_has_a_reason_and_its_edge_has_not(graph: SpaceGraph) -> None:
    edge = [599.5 * 0.01, 299.5 * 0.02]
    _, reasons = graph.map([edge, [-0.0051, 0.0], [1.0, 6.1]], "section:b", "block:b")
    assert list(reasons) == ["", *["outside of the image of section b"] * 2]
    _, reasons = graph.map([[1.5, 7.0, 1.0]], "block:b", "section:b")
    assert list(reasons) == ["outside of the image of section b"]


def test_coordinates_that_are_not_there_stay_so(graph: SpaceGraph) -> None:
    points, reasons = graph.map([[np.nan, 1.0], [1.0, 1.0]], "section:b", "block:b")
    assert list(reasons) == ["no coordinates", ""]
    assert np.isnan(points[0]).all()


def test_no_way_is_a_reason_and_an_unknown_space_an_error(graph: SpaceGraph) -> None:
    _, reasons = graph.map([[1.0, 1.0]], "section:a", "block:alone")
    assert "no transform leads" in reasons[0]
    with pytest.raises(InputError, match="section:x"):
        graph.map([[1.0, 1.0]], "section:x", "mri")
    with pytest.raises(InputError, match="a space is"):
        graph.map([[1.0, 1.0]], "sektion", "mri")


def test_no_points_are_no_points(graph: SpaceGraph) -> None:
    points, reasons = graph.map(np.zeros((0, 2)), "section:a", "mri")
    assert points.shape == (0, 3)
    assert len(reasons) == 0


def test_a_fold_is_told_and_not_guessed() -> None:
    grid = Grid((41, 41), 0.1)
    values = np.zeros((41, 41, 2))
    values[..., 0] = 0.9 * np.sin(grid.points()[..., 0] * 8)
    space = SectionSpace("section:f", "block:b", 0.0, 1.0)
    folded = Affine(np.eye(3)) @ DisplacementField(grid, values)
    graph = SpaceGraph([space, Space("block:b")], [PlaneEdge(space, lambda: folded)])
    _, reasons = graph.map(np.random.default_rng(0).uniform(0.5, 3.5, (50, 2)), "section:f", "block:b")
    assert any("cannot be inverted" in r for r in reasons)
