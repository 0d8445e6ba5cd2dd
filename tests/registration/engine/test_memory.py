"""Levels that do not fit a memory are evaluated in parts, with the result of the whole."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from scenes import BLIND, bent_scene, linear_scene

from histomri.core import Image
from histomri.registration.engine import Options, fit
from histomri.registration.engine.checks import source
from histomri.registration.engine.models import frame_of
from histomri.registration.engine.multilevel import _Plan, _State
from histomri.registration.engine.objective import Level
from histomri.registration.engine.parts import dissimilarity, evaluate, newton, overlap
from histomri.registration.metrics import METRICS

TILES = {2: [(17, 60), (20, 13)], 3: [(9, 26, 26), (8, 13, 11)]}
MATRICES = {
    2: np.array([[0.97, 0.08, 1.3], [-0.06, 1.04, -0.7], [0, 0, 1]]),
    3: np.array([[0.97, 0.08, 0.02, 1.3], [-0.06, 1.04, 0.05, -0.7], [0.03, 0.01, 0.98, 0.4], [0, 0, 0, 1]]),
}


def planned(ndim: int, metric: str, options: Options | None = None) -> tuple[_Plan, Level]:
    scene = bent_scene(ndim)
    fixed, moving = source(scene.fixed, None, ""), source(scene.moving, None, "")
    frame = frame_of(fixed.grid.points().reshape(-1, ndim))
    plan = _Plan(fixed, moving, METRICS[metric], frame, None, "auto", None, None, options or Options())
    return plan, plan.level(_State(np.eye(ndim + 1)), 1)


def bent(level: Level) -> np.ndarray:
    random = np.random.default_rng(1)
    return random.normal(scale=0.7, size=(*level.fixed.shape, level.fixed.ndim)).astype(np.float32)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("metric", METRICS)
def test_value_and_gradient_of_parts_are_those_of_the_whole(metric: str, ndim: int) -> None:
    plan, level = planned(ndim, metric)
    for displacement in (None, bent(level)):
        asked = plan.metric, MATRICES[ndim], displacement
        value, slope = evaluate(level, *asked, 0.0)
        for tile in TILES[ndim]:
            tiled = replace(level, tile=tile)
            assert len(tiled.boxes) > 1
            found, gradient = evaluate(tiled, *asked, 0.0)
            assert found == pytest.approx(value, rel=1e-6)
            np.testing.assert_allclose(gradient, slope, atol=1e-5 * np.abs(slope).max())
            assert dissimilarity(tiled, *asked) == pytest.approx(value, rel=1e-6)
            assert overlap(tiled, *asked[1:]) == pytest.approx(overlap(level, *asked[1:]), rel=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("metric", ["ssd", "mind"])
def test_gauss_newton_updates_of_parts_are_those_of_the_whole(metric: str, ndim: int) -> None:
    _, level = planned(ndim, metric)
    asked = MATRICES[ndim], bent(level), 1.5, 0.0
    value, update = newton(level, *asked)
    for tile in TILES[ndim]:
        found, step = newton(replace(level, tile=tile), *asked)
        assert found == pytest.approx(value, rel=1e-5)
        np.testing.assert_allclose(step, update, atol=1e-4)
    assert 0.1 < np.abs(update).max() <= 1


def test_where_the_images_hardly_meet_no_part_is_looked_at() -> None:
    plan, level = planned(2, "nmi")
    far = np.eye(3)
    far[0, 2] = 1000
    for tile in ((), (16, 16)):
        value, slope = evaluate(replace(level, tile=tile), plan.metric, far, None, 0.0)
        assert value == np.inf and not slope.any()


@pytest.mark.parametrize("metric", ["ssd", "lncc", "mind"])
def test_an_evaluation_keeps_to_its_memory(metric: str) -> None:
    budget = 8e5
    plan, level = planned(3, metric, Options(memory_bytes=budget, window_px=1.0))
    displacement = bent(level)
    taken = {}
    for tile in ((), level.tile):
        here = replace(level, tile=tile)
        evaluate(here, plan.metric, MATRICES[3], displacement, 0.0)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        evaluate(here, plan.metric, MATRICES[3], displacement, 0.0)
        taken[tile] = tracemalloc.get_traced_memory()[1] - before - displacement.nbytes
        tracemalloc.stop()
    assert taken[level.tile] <= budget
    assert taken[level.tile] < 0.7 * taken[()]


@pytest.mark.parametrize(("metric", "ndim"), [("ssd", 2), ("ncc", 2), ("lncc", 2), ("nmi", 2), ("lncc", 3)])
def test_a_registration_in_parts_finds_what_the_whole_finds(metric: str, ndim: int) -> None:
    scenes = {"affine": linear_scene("affine", ndim, metric in BLIND), "diffeomorphic": bent_scene(ndim, metric in BLIND)}
    for model, scene in scenes.items():
        images = scene.fixed, scene.moving
        # a linear model to its end: half-way, the paths of L-BFGS part over the last bit. The force of nmi jumps from bin to bin:
        # on so few pixels every step of a deformation makes a difference of the last bit 100 times larger
        steps = 60 if model == "affine" else 2 if metric == "nmi" else 8 - 2 * ndim
        options = Options(iterations=(steps,), window_px=1.5)
        levels = (2, 1) if ndim == 2 else (1,)
        whole = fit(*images, (model,), metric, levels=levels, options=options)
        parts = fit(*images, (model,), metric, levels=levels, options=replace(options, memory_bytes=2e5 if ndim == 2 else 1e6))
        assert parts.value_after == pytest.approx(whole.value_after, rel=1e-3, abs=1e-5)
        assert apart_px(whole.transform, parts.transform, scene.fixed) < 0.02, model
        assert scene.error_px(parts) < 0.8 * scene.error_px()


def apart_px(one: object, other: object, image: Image) -> float:
    points = image.grid.points().reshape(-1, image.grid.ndim)
    off = np.linalg.norm(one.map(points) - other.map(points), axis=1)  # type: ignore[attr-defined]
    return float(off.max() / image.grid.spacing_mm[0])
